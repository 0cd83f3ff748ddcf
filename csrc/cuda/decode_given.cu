// Decoding with a given probe (Parallax) or none (softmax attention): the rows of a key head share what is loaded.
//
// A block of threads takes 16 rows (query heads of a group, query tokens) and one split of each, and reads the keys
// that any of them sees, 64 at a time from multiples of 64: what a row computes does not depend on the rows beside it.
// With weights w_j = 2^(s_j - m) and c_j = k_j . g - c0, c0 that of the split's first key, the state of a row is m,
// sum w, sum w c, sum w v and sum w c v. The last block of a tile of rows merges the splits in their order.
#include "flashlla/tiles.h"

namespace flashlla {

template <bool bf16, int pad, bool aligned, int stages, bool probe>
struct Given {
  static constexpr bool kBf16 = bf16, kAligned = aligned, kProbe = probe;
  static constexpr int kPad = pad, kStages = stages, kRows = 16, kWarps = 4, kThreads = kWarps * kWarp;
  static constexpr int kBlocks = pad > 128 ? 1 : 3;  // a multiprocessor has room for, by registers
  static constexpr int kSums = probe ? 2 : 1;        // sum w v, sum w c v
  static constexpr int kColumns = pad / kWarps;      // of the values, a warp
  static constexpr int kPairs = kColumns / 16;       // pairs of products, 16 columns
  static constexpr int kRowState = 4 + kSums * pad, kState = kRows * kRowState;  // of a row: m, l, t, c0, sums
  static constexpr int kWeightPitch = kBlock + 4;
  static constexpr int kTileHalves = kTileBytes<pad> / 2, kStageBytes = 2 * kTileBytes<pad>;
  static constexpr int kSharedBytes = stages * kStageBytes + 2 * 2 * kRows * kPitch<pad> +
                                      4 * (2 * kRows * kWeightPitch + 3 * kWarps * kRows + 4 * kRows + kBlock + 4);
};

template <class S>
struct Memory {
  uint16_t *stages, *q, *g;
  float *weights, *slopes;       // [row][key]: w, w c
  float *tops, *sums, *moments;  // [warp][row]: of m, l, t
  float* first;                  // c0 of each row
  int *begin, *end, *splits;     // of each row: its keys in this split, the number of its splits
  int *broken, *flag;            // of each key: whether its value is not finite

  FLASHLLA_DEVICE explicit Memory(char* memory) : stages(reinterpret_cast<uint16_t*>(memory)) {
    q = stages + S::kStages * S::kStageBytes / 2;
    g = q + S::kRows * kPitch<S::kPad>;
    weights = reinterpret_cast<float*>(g + S::kRows * kPitch<S::kPad>);
    slopes = weights + S::kRows * S::kWeightPitch;
    tops = slopes + S::kRows * S::kWeightPitch;
    sums = tops + S::kWarps * S::kRows;
    moments = sums + S::kWarps * S::kRows;
    first = moments + S::kWarps * S::kRows;
    begin = reinterpret_cast<int*>(first + S::kRows);
    end = begin + S::kRows, splits = end + S::kRows, broken = splits + S::kRows, flag = broken + kBlock;
  }
  FLASHLLA_DEVICE uint16_t* keys(int n) const { return stages + n % S::kStages * (S::kStageBytes / 2); }
  FLASHLLA_DEVICE uint16_t* values(int n) const { return keys(n) + S::kTileHalves; }
};

// What all threads know of the rows of a tile.
struct TileRange {
  Range any, all;  // keys that some row sees in this split, and those that every row sees that has keys here
  int splits;
};

template <class S>
FLASHLLA_DEVICE TileRange load_rows(const Problem& p, int unit, int tile, int split, const Memory<S>& memory) {
  const int thread = thread_index(), row = tile * S::kRows + thread;
  if (thread < S::kRows) {
    const bool exists = row < p.unit_rows();
    const Row r = row_of(p, unit, exists ? row : 0);
    const Range keys = exists ? visible_keys(p, r.batch, r.token) : Range{0, 0};
    const Range part = split_range(keys, split);
    memory.begin[thread] = part.begin, memory.end[thread] = part.end, memory.splits[thread] = split_count(keys.size());
    memory.first[thread] = 0.0f;
  }
  for (int n = thread; n < S::kRows * S::kPad / 8; n += S::kThreads) {
    const int i = n / (S::kPad / 8), chunk = n % (S::kPad / 8);
    const bool exists = tile * S::kRows + i < p.unit_rows();
    const Row r = row_of(p, unit, exists ? tile * S::kRows + i : 0);
    load_vector(p.q, r, exists ? p.dim : 0, chunk, memory.q + i * kPitch<S::kPad>);
    if (S::kProbe) load_vector(p.probe, r, exists ? p.dim : 0, chunk, memory.g + i * kPitch<S::kPad>);
  }
  sync_block();
  TileRange range = {{0x7fffffff, 0}, {0, 0x7fffffff}, 0};
  for (int i = 0; i < S::kRows; ++i) {
    range.splits = max_of(range.splits, memory.splits[i]);
    if (memory.begin[i] >= memory.end[i]) continue;
    range.any = {min_of(range.any.begin, memory.begin[i]), max_of(range.any.end, memory.end[i])};
    range.all = {max_of(range.all.begin, memory.begin[i]), min_of(range.all.end, memory.end[i])};
  }
  return range;
}

template <class S>
FLASHLLA_DEVICE void load_stage(const Problem& p, const Row& row, Range keys, int n, const Memory<S>& memory) {
  const int block = keys.begin / kBlock * kBlock + n * kBlock;
  if (block < keys.end) {
    load_tile<S::kPad, S::kThreads, S::kAligned>(p, p.k, row, keys, block, 0, p.dim, memory.keys(n));
    load_tile<S::kPad, S::kThreads, S::kAligned>(p, p.v, row, keys, block, 0, p.value_dim, memory.values(n));
  }
  commit_copies();
}

// 0 times a value that is not finite is not 0. Where not all rows see all keys, such values are erased, and the rows
// that do see them are told so.
template <class S>
FLASHLLA_DEVICE void erase_broken_values(uint16_t* values, int* broken) {
  const Lanes<S::kPad, S::kThreads> lane;
  for (int r = thread_index(); r < kBlock; r += S::kThreads) broken[r] = 0;
  sync_block();
  for (int r = lane.first; r < kBlock; r += lane.kStep) {
    float x[8], sum = 0.0f;
    unpack<S::kBf16>(*reinterpret_cast<const Chunk*>(values + r * kPitch<S::kPad> + lane.chunk * 8), x);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += x[i] * 0.0f;
    if (sum != 0.0f) broken[r] = 1;
  }
  sync_block();
  for (int r = lane.first; r < kBlock; r += lane.kStep)
    if (broken[r]) *reinterpret_cast<Chunk*>(values + r * kPitch<S::kPad> + lane.chunk * 8) = Chunk{};
}

template <bool bf16>
FLASHLLA_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if (bf16)
    multiply_bf16(d, a, b0, b1);
  else
    multiply_f16(d, a, b0, b1);
}

// Rows of a lane in a product: entry e of one of its 8 columns is in row lane / 4 + (e / 2) * 8, column
// lane % 4 * 2 + e % 2.
template <class S>
struct State {
  float value[S::kPairs][2][4] = {}, slope[S::kPairs][2][4] = {};        // sum w v, sum w c v: even and odd columns
  float m[2] = {-infinity(), -infinity()}, sum[2] = {}, moment[2] = {};  // this lane's share of l and t
  float logit[2][4], product[2][4];                                      // of this warp's 16 keys of the block

  // q . k and g . k
  FLASHLLA_DEVICE void multiply_keys(const Memory<S>& memory, const uint16_t* keys) {
    const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
    const uint16_t* key = keys + (warp * 16 + lane % 8 + lane / 16 * 8) * kPitch<S::kPad> + lane / 8 % 2 * 8;
    const int row = lane % 16 * kPitch<S::kPad> + lane / 16 * 8;
#pragma unroll
    for (int e = 0; e < 4; ++e) logit[0][e] = logit[1][e] = product[0][e] = product[1][e] = 0.0f;
#pragma unroll 4
    for (int d = 0; d < S::kPad; d += 16) {
      uint32_t k[4], x[4];
      load_matrices(k, key + d);
      load_matrices(x, memory.q + row + d);
      multiply<S::kBf16>(logit[0], x, k[0], k[1]);
      multiply<S::kBf16>(logit[1], x, k[2], k[3]);
      if (!S::kProbe) continue;
      load_matrices(x, memory.g + row + d);
      multiply<S::kBf16>(product[0], x, k[0], k[1]);
      multiply<S::kBf16>(product[1], x, k[2], k[3]);
    }
  }

  // Maxima of this warp's keys, and c0 where a row begins.
  FLASHLLA_DEVICE void mask(const Memory<S>& memory, int block, float scale) {
    const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
    float top[2] = {-infinity(), -infinity()};
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + e / 2 * 8, key = block + warp * 16 + n * 8 + lane % 4 * 2 + e % 2;
        if (key == memory.begin[row]) memory.first[row] = product[n][e];
        logit[n][e] *= scale;
        if (key >= memory.begin[row] && key < memory.end[row]) top[e / 2] = fmaxf(top[e / 2], logit[n][e]);
      }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      top[i] = fmaxf(top[i], shuffle_xor(top[i], 1));
      top[i] = fmaxf(top[i], shuffle_xor(top[i], 2));
      if (lane % 4 == 0) memory.tops[warp * S::kRows + lane / 4 + i * 8] = top[i];
    }
  }

  FLASHLLA_DEVICE void rescale(const Memory<S>& memory) {
    const int lane = thread_index() % kWarp;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = m[i];
#pragma unroll
      for (int w = 0; w < S::kWarps; ++w) top = fmaxf(top, memory.tops[w * S::kRows + lane / 4 + i * 8]);
      const float factor = top == m[i] ? 1.0f : exp2f(m[i] - top);
      m[i] = top;
      sum[i] *= factor, moment[i] *= factor;
#pragma unroll
      for (int n = 0; n < S::kPairs; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          value[n][e / 2][i * 2 + e % 2] *= factor;
          if (S::kProbe) slope[n][e / 2][i * 2 + e % 2] *= factor;
        }
    }
  }

  // w and w c to memory, with as many digits as the products take.
  FLASHLLA_DEVICE void store_weights(const Memory<S>& memory, int block, bool erased) {
    const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + e / 2 * 8, place = warp * 16 + n * 8 + lane % 4 * 2 + e % 2, key = block + place;
        const bool visible = key >= memory.begin[row] && key < memory.end[row];
        const float w = visible ? round_to_tf32(exp2f(logit[n][e] - m[e / 2])) : 0.0f;
        const float wc = visible && S::kProbe ? round_to_tf32(w * (product[n][e] - memory.first[row])) : 0.0f;
        sum[e / 2] += visible && erased && memory.broken[place] ? not_a_number() : w;
        moment[e / 2] += wc;
        memory.weights[row * S::kWeightPitch + place] = w;
        if (S::kProbe) memory.slopes[row * S::kWeightPitch + place] = wc;
      }
  }

  // Adds the products of weights and values. A lane takes the values of two neighbouring columns and keys at once, so
  // that the columns of a product are every other one of 16, and keys are permuted alike on both sides.
  FLASHLLA_DEVICE void multiply_values(const Memory<S>& memory, const uint16_t* values) {
    const int warp = thread_index() / kWarp, lane = thread_index() % kWarp, key = lane % 4 * 2;
    values += key * kPitch<S::kPad> + warp * S::kColumns + lane / 4 * 2;
#pragma unroll 2
    for (int step = 0; step < kBlock; step += 8) {
      const int place = lane / 4 * S::kWeightPitch + step + key;
      float w[4], wc[4];
      load_weights(memory.weights + place, w);
      if (S::kProbe) load_weights(memory.slopes + place, wc);
#pragma unroll
      for (int n = 0; n < S::kPairs; ++n) {
        const uint16_t* from = values + step * kPitch<S::kPad> + n * 16;
        const uint32_t v0 = *reinterpret_cast<const uint32_t*>(from);
        const uint32_t v1 = *reinterpret_cast<const uint32_t*>(from + kPitch<S::kPad>);
        const float even[2] = {low_half<S::kBf16>(v0), low_half<S::kBf16>(v1)};
        const float odd[2] = {high_half<S::kBf16>(v0), high_half<S::kBf16>(v1)};
        multiply_tf32(value[n][0], w, even[0], even[1]);
        multiply_tf32(value[n][1], w, odd[0], odd[1]);
        if (!S::kProbe) continue;
        multiply_tf32(slope[n][0], wc, even[0], even[1]);
        multiply_tf32(slope[n][1], wc, odd[0], odd[1]);
      }
    }
  }
  FLASHLLA_DEVICE static void load_weights(const float* from, float (&to)[4]) {
    const Float2 upper = *reinterpret_cast<const Float2*>(from);
    const Float2 lower = *reinterpret_cast<const Float2*>(from + 8 * S::kWeightPitch);
    to[0] = upper.x, to[1] = lower.x, to[2] = upper.y, to[3] = lower.y;
  }

  FLASHLLA_DEVICE void store(const Memory<S>& memory, float* states) {
    const int thread = thread_index(), warp = thread / kWarp, lane = thread % kWarp;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = lane / 4 + i * 8;
      float* state = states + row * S::kRowState + 4 + warp * S::kColumns;
#pragma unroll
      for (int n = 0; n < S::kPairs; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = n * 16 + (lane % 4 * 2 + e / 2) * 2 + e % 2;
          state[column] = value[n][e % 2][i * 2 + e / 2];
          if (S::kProbe) state[S::kPad + column] = slope[n][e % 2][i * 2 + e / 2];
        }
      sum[i] += shuffle_xor(sum[i], 1), moment[i] += shuffle_xor(moment[i], 1);
      sum[i] += shuffle_xor(sum[i], 2), moment[i] += shuffle_xor(moment[i], 2);
      if (lane % 4 != 0) continue;
      memory.sums[warp * S::kRows + row] = sum[i];
      memory.moments[warp * S::kRows + row] = moment[i];
      if (warp == 0) states[row * S::kRowState] = m[i];
    }
    sync_block();
    if (thread >= S::kRows) return;
    float l = 0.0f, t = 0.0f;
    for (int n = thread; n < S::kWarps * S::kRows; n += S::kRows) l += memory.sums[n], t += memory.moments[n];
    float* state = states + thread * S::kRowState;
    state[1] = l, state[2] = t, state[3] = memory.first[thread];
  }
};

template <class S>
FLASHLLA_DEVICE void sweep(const Problem& p, const Row& row, const TileRange& range, const Memory<S>& memory,
                           float* states) {
  State<S> state;
  const Range keys = range.any;
  const int start = keys.begin / kBlock * kBlock, blocks = (keys.end - start + kBlock - 1) / kBlock;
#pragma unroll
  for (int n = 0; n < S::kStages - 1; ++n) load_stage(p, row, keys, n, memory);
#pragma unroll 1
  for (int n = 0; n < blocks; ++n) {
    if (S::kStages == 1) load_stage(p, row, keys, n, memory);
    wait_for_copies<(S::kStages > 2 ? S::kStages - 2 : 0)>();
    sync_block();  // the block is there, and nobody reads the one before any more
    if (S::kStages > 1) load_stage(p, row, keys, n + S::kStages - 1, memory);
    const int block = start + n * kBlock;
    const bool partly = block < range.all.begin || block + kBlock > range.all.end;
    if (partly) erase_broken_values<S>(memory.values(n), memory.broken);
    state.multiply_keys(memory, memory.keys(n));
    state.mask(memory, block, p.scale * kLog2E);
    sync_block();
    state.rescale(memory);
    state.store_weights(memory, block, partly);
    sync_block();
    state.multiply_values(memory, memory.values(n));
    if (S::kStages == 1) sync_block();
  }
  state.store(memory, states);
}

// One entry of the output: vbar + gate (sum w c v / L - (sum w c / L) vbar), with c relative to c0 of the first split.
template <class S>
FLASHLLA_DEVICE void merge(const Problem& p, const Row& row, const float* states, int splits, int d) {
  float m = -infinity(), l = 0.0f, t = 0.0f, v = 0.0f, cv = 0.0f;
  for (int i = 0; i < splits; ++i) m = fmaxf(m, load_fresh(states + i * int64_t(S::kState)));
  for (int i = 0; i < splits; ++i) {
    const float* state = states + i * int64_t(S::kState);
    const float e = exp2f(load_fresh(state) - m);
    const float weight = e * load_fresh(state + 1), wv = e * load_fresh(state + 4 + d);
    l += weight, v += wv;
    if (!S::kProbe) continue;
    const float c0 = load_fresh(state + 3) - load_fresh(states + 3);
    t += e * load_fresh(state + 2) + c0 * weight;
    cv += e * load_fresh(state + 4 + S::kPad + d) + c0 * wv;
  }
  if (splits == 0) l = 1.0f;  // of a row that sees nothing, o is 0
  const float vbar = v / l, slope = S::kProbe ? value_at(p.gate, row) * (cv / l - t / l * vbar) : 0.0f;
  store_output<S::kBf16>(p, row, d, vbar + slope);
  if (d == 0) store_lse(p, row, m, l);
}

// Blocks: unit, split, tile of rows, the last fastest.
template <class S>
FLASHLLA_DEVICE void decode_given(const Problem& p) {
  const int tiles = (p.unit_rows() + S::kRows - 1) / S::kRows;
  const int tile = block_index() % tiles, index = block_index() / tiles;
  const int split = index % p.splits, unit = index / p.splits;
  const Memory<S> memory(shared_memory());
  const TileRange range = load_rows(p, p.first_unit + unit, tile, split, memory);
  const int blocks = max_of(range.splits, 1);  // a tile of rows that see nothing has a block, too
  if (split >= blocks) return;

  const int place = unit * tiles + tile;
  float* states = p.scratch + int64_t(place) * p.splits * S::kState;
  if (range.splits > 0)
    sweep(p, row_of(p, p.first_unit + unit, tile * S::kRows), range, memory, states + split * int64_t(S::kState));
  if (!last_of(p.counters + place, blocks, memory.flag)) return;
  for (int n = thread_index(); n < S::kRows * p.value_dim; n += S::kThreads) {
    const int i = n / p.value_dim, row = tile * S::kRows + i;
    if (row < p.unit_rows())
      merge<S>(p, row_of(p, p.first_unit + unit, row), states + i * S::kRowState, memory.splits[i], n % p.value_dim);
  }
}

}  // namespace flashlla

#if defined(FLASHLLA_PAD)
using Shape = flashlla::Given<FLASHLLA_BF16, FLASHLLA_PAD, FLASHLLA_ALIGNED, FLASHLLA_STAGES, FLASHLLA_HAS_PROBE>;
FLASHLLA_KERNEL(Shape::kThreads, Shape::kBlocks) lla_decode_given_kernel(const flashlla::Problem p) {
  flashlla::decode_given<Shape>(p);
}
#endif
