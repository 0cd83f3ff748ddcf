// What a caller asks for, and the table of kernels that answers. Plain data only: this header is shared by
// code compiled for different instruction sets, so it must not define anything that the linker could merge.
#pragma once

#include <cstdint>

namespace flashlla {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };
enum class Solver : int { automatic = 0, cg = 1, direct = 2 };

// A [batch, row, head, dim] array whose last stride is 1. Strides count elements.
struct Array {
  const void* data = nullptr;
  int64_t batch_stride = 0, row_stride = 0, head_stride = 0;
  DType dtype = DType::f32;

  int64_t offset(int64_t batch, int64_t row, int64_t head) const {
    return batch * batch_stride + row * row_stride + head * head_stride;
  }
};

// A [batch, row, head] array of float32, or absent.
struct PerRow {
  const float* data = nullptr;
  int64_t batch_stride = 0, row_stride = 0, head_stride = 0;

  float at(int64_t batch, int64_t row, int64_t head) const {
    return data[batch * batch_stride + row * row_stride + head * head_stride];
  }
};

struct Sequence {
  int64_t q_batch, q_start, q_len;
  int64_t k_batch, k_start, k_len;
};

// Inputs and options of a call. probe.data and ridge.data decide the member of the family: ridge alone means
// a solved probe, probe alone a given one, neither softmax attention.
struct Problem {
  Array q, k, v, probe;
  PerRow ridge, gate;
  int heads = 0, kv_heads = 0, dim = 0, value_dim = 0;
  float scale = 1.0f;
  bool causal = true;
  int64_t window = 0;  // visible keys, the diagonal included; 0 means all
  Solver solver = Solver::automatic;
  float rtol = 1e-6f;
  int max_iters = 1;
  bool stats = false;
  const Sequence* sequences = nullptr;
  int64_t n_sequences = 0;
  // A paged cache: k and v are [page, row of it, head, dim], and the keys of k_batch lie in the pages of its table row.
  const int64_t* block_table = nullptr;
  int64_t table_stride = 0, page_size = 0;

  bool solved() const { return ridge.data != nullptr; }
  bool has_probe() const { return ridge.data != nullptr || probe.data != nullptr; }
  int group() const { return heads / kv_heads; }
};

// Where key j of a sequence lies in k or v.
static inline int64_t key_offset(const Problem& p, const Array& a, const Sequence& s, int64_t j, int64_t head) {
  const int64_t row = s.k_start + j;
  if (!p.block_table) return a.offset(s.k_batch, row, head);
  return a.offset(p.block_table[s.k_batch * p.table_stride + row / p.page_size], row % p.page_size, head);
}

// Results of the forward pass: dense [batch, row, head(, dim)] arrays; o has the dtype of q.
struct ForwardOut {
  void* o;
  float *lse, *kbar, *g, *residual;
  int32_t* iterations;
  int64_t q_rows;  // rows of a batch entry
};

// Inputs and per-query results of the backward pass, dense like ForwardOut; absent ones are null.
struct BackwardOut {
  Array d_o;
  const float *kbar, *g;
  void *dq, *dprobe;
  float *dridge, *dgate;
  void *dk, *dv;
  int64_t q_rows, k_rows;
};

// The keys and values that one unit of work shares, converted to float32, shifted by `shift` (keys) and padded
// with zeros to whole panels. Non-finite rows are zeroed and counted in broken_before.
struct Keys {
  int64_t first = 0, count = 0;      // of the sequence
  float* k = nullptr;                // [padded][dim_pad]
  float* kt = nullptr;               // [padded / panel][dim][panel]
  float* v = nullptr;                // [padded][value_pad]
  float* vt = nullptr;               // [padded / panel][value_dim][panel]; backward only
  float* shift = nullptr;            // [dim_pad]
  int32_t* broken_before = nullptr;  // [count + 1]: non-finite keys or values before each key
};

// A tile of query rows of one head.
struct Tile {
  const Sequence* sequence;
  int head;
  int64_t row;  // first row, counted in the sequence
  int rows;     // at most kTileRows
};

constexpr int kTileRows = 48;

// Visible keys of query row i of a sequence: [lo, hi), bottom-right aligned.
struct Range {
  int64_t lo, hi;
};
static inline Range visible(const Problem& p, const Sequence& s, int64_t row) {
  if (!p.causal) return {0, s.k_len};
  int64_t hi = row + 1 + s.k_len - s.q_len;
  hi = hi < 0 ? 0 : hi;
  const int64_t lo = p.window > 0 && hi > p.window ? hi - p.window : 0;
  return {lo, hi};
}

// Keys up to which a row is solved in key space (dual.h): a quarter more than dimensions, as square systems are
// barely regular.
static inline int64_t dual_limit(const Problem& p) { return p.dim + p.dim / 4; }

// Decoding: some query rows that read the same cached keys, and what is known of them so far; see decode.h. Row r is
// head `r % group` of query `r / group`, counted from `first`.
enum class DecodePhase : int { open, load, iterate, moments, values, done };

struct DecodeUnit {
  const Sequence* sequence;
  int kv_head, first, rows;
  Range keys;      // that any row sees
  int64_t splits;  // of the keys
  DecodePhase phase = DecodePhase::open;
  int64_t tasks = 1;    // of the phase
  int direct_row = -1;  // whose second moments are being formed

  Range seen[kTileRows];  // counted from keys.lo
  bool bad[kTileRows];    // reads something that is not finite
  bool settled[kTileRows], converged[kTileRows];
  int32_t iterations[kTileRows];
  float inv_sum[kTileRows], lse[kTileRows], gate[kTileRows], ridge[kTileRows];
  float rr[kTileRows], goal[kTileRows], first_rr[kTileRows];
  float offset[kTileRows];  // kbar . operand

  float* shift;                // [dim_pad]
  float* operand;              // [rows][dim_pad]: what the keys are multiplied with in this phase
  float *kbar, *g, *residual;  // [rows][dim_pad]
  float* kt;                   // [panel][dim_pad][keys of a panel]
  float* weights;              // [panel][rows][keys of a panel], relative to the maximum of the split
  // Sums over a split: [split][rows](dim_pad | value_pad). A sum times `factor` is relative to the maximum of the row.
  float *factor, *broken, *sums, *images, *outputs;
  float* second;  // [split][dim][dim_pad]
};

// One instruction set.
struct Kernels {
  const char* name;
  int panel;  // columns of a packed panel
  int lane;   // floats of a vector; rows are padded to a multiple

  void (*pack)(const Problem&, const Sequence&, int kv_head, bool backward, Range common, Keys&);
  int64_t (*forward_scratch)(const Problem&, int64_t keys);
  void (*forward_tile)(const Problem&, const Keys&, const Tile&, const ForwardOut&, float* scratch);
  int64_t (*backward_scratch)(const Problem&, int64_t keys);
  void (*backward_tile)(const Problem&, const Keys&, const Tile&, const BackwardOut&, float* dk, float* dv,
                        float* scratch);
  // Adds `parts` accumulators [rows][pad] that lie `part_stride` apart and stores `dim` columns.
  void (*store_sum)(const float* parts, int n_parts, int64_t part_stride, int64_t rows, int dim, int pad, DType,
                    void* out, int64_t row_stride);

  // Decoding. decode_memory returns the floats that a unit needs, and hands them out where `memory` is not null;
  // decode_task runs a task of the unit's phase; decode_join, after the last one, moves on to the next phase.
  int64_t (*decode_memory)(const Problem&, DecodeUnit&, float* memory);
  int64_t (*decode_scratch)(const Problem&, int rows);
  void (*decode_task)(const Problem&, DecodeUnit&, int64_t task, float* scratch);
  void (*decode_join)(const Problem&, DecodeUnit&, const ForwardOut&, float* scratch);
  void (*store_row)(const float* row, int dim, DType, void* out, int64_t offset);
};

const Kernels* kernels_baseline();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();

}  // namespace flashlla
