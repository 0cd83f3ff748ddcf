// What the forward and the backward pass do alike with a tile of query rows: load it, and weigh its keys.
//
// The weights of all rows over all visible keys stay in scratch memory, in blocks of kKeyBlock keys, so that
// every product after the first reads them instead of recomputing an exponential.

constexpr int kKeyBlock = kPanel > 32 ? 3 * kPanel : 96;  // a multiple of kPanel and of kMicroRows
static_assert(kKeyBlock % kPanel == 0 && kKeyBlock % kMicroRows == 0, "blocks hold whole panels");
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;
constexpr int kBlockFloats = kTileRows * kKeyBlock;

// A stack of float arrays in the scratch memory of a thread.
struct Scratch {
  float* next;
  float* take(int64_t n) {
    float* p = next;
    next += (n + 15) / 16 * 16;
    return p;
  }
};

// Blocks that a run of `keys` keys can touch once it is widened to whole panels at both ends.
static int64_t blocks_of(int64_t keys) { return (keys + 2 * kPanel) / kKeyBlock + 2; }

struct Rows {
  const Problem* problem;
  const Keys* keys;
  const Tile* tile;
  int n, dim_pad, value_pad;
  int64_t lo[kTileRows], hi[kTileRows];  // visible keys, counted in `keys`
  int64_t key_begin, key_end;            // of all rows, whole panels
  bool bad[kTileRows];                   // reads something that is not finite
  float gate[kTileRows], ridge[kTileRows];
  float inv_sum[kTileRows];  // 1 / sum of the weights; 0 where nothing is visible
  float lse[kTileRows];      // of the shifted logits, in base 2
  float* q;                  // [n][dim_pad]
  float* weights;            // blocks of [kTileRows][kKeyBlock], relative to the row maximum
};

// A run of keys inside one block: columns of the block, and where their operands lie.
struct Block {
  float* weights;
  int64_t key;  // first key
  int offset;   // of the first column in the block
  int cols;     // whole panels
  Right kt, k, v, vt;
};

static Block block_at(const Rows& rows, int64_t index) {
  const Keys& keys = *rows.keys;
  const int64_t start = index * kKeyBlock, end = start + kKeyBlock;
  Block b;
  b.key = start > rows.key_begin ? start : rows.key_begin;
  b.offset = int(b.key - start);
  b.cols = int((end < rows.key_end ? end : rows.key_end) - b.key);
  b.weights = rows.weights + (index - rows.key_begin / kKeyBlock) * kBlockFloats + b.offset;
  const int64_t dim = rows.problem->dim, value_dim = rows.problem->value_dim;
  b.kt = {keys.kt + b.key * dim, dim * kPanel, kPanel};
  b.k = {keys.k + b.key * rows.dim_pad, kPanel, rows.dim_pad};
  b.v = {keys.v + b.key * rows.value_pad, kPanel, rows.value_pad};
  b.vt = {keys.vt + (keys.vt ? b.key * value_dim : 0), value_dim * kPanel, kPanel};
  return b;
}

template <class Visit>
FLASHLLA_INLINE void for_blocks(const Rows& rows, Visit visit) {
  if (rows.key_end <= rows.key_begin) return;
  for (int64_t i = rows.key_begin / kKeyBlock; i <= (rows.key_end - 1) / kKeyBlock; ++i) visit(block_at(rows, i));
}

static int64_t rows_scratch(const Problem& p, int64_t keys) {
  return blocks_of(keys) * kBlockFloats + int64_t(kTileRows) * pad_to_lane(p.dim) + 64;
}

static void load_tile(const Problem& p, const Keys& keys, const Tile& tile, Scratch& scratch, Rows& rows) {
  const Sequence& s = *tile.sequence;
  rows.problem = &p;
  rows.keys = &keys;
  rows.tile = &tile;
  rows.n = tile.rows;
  rows.dim_pad = pad_to_lane(p.dim);
  rows.value_pad = pad_to_lane(p.value_dim);
  rows.q = scratch.take(int64_t(kTileRows) * rows.dim_pad);
  int64_t begin = keys.count, end = 0;
  for (int i = 0; i < rows.n; ++i) {
    const int64_t row = s.q_start + tile.row + i;
    float* q = rows.q + i * rows.dim_pad;
    load_row(p.q, p.q.offset(s.q_batch, row, tile.head), p.dim, rows.dim_pad, q);
    const Range seen = visible(p, s, tile.row + i);
    rows.lo[i] = seen.lo - keys.first;
    rows.hi[i] = seen.hi - keys.first;
    rows.gate[i] = p.gate.at(s.q_batch, row, tile.head);
    rows.ridge[i] = p.solved() ? p.ridge.at(s.q_batch, row, tile.head) : 0.0f;
    rows.bad[i] = !all_finite(q, rows.dim_pad) || !(rows.gate[i] - rows.gate[i] == 0.0f);
    if (rows.hi[i] <= rows.lo[i]) continue;
    rows.bad[i] |= keys.broken_before[rows.hi[i]] > keys.broken_before[rows.lo[i]];
    begin = rows.lo[i] < begin ? rows.lo[i] : begin;
    end = rows.hi[i] > end ? rows.hi[i] : end;
  }
  rows.key_begin = begin / kPanel * kPanel;
  rows.key_end = end > begin ? (end + kPanel - 1) / kPanel * kPanel : rows.key_begin;
  rows.weights = scratch.take(blocks_of(end > begin ? end - begin : 0) * kBlockFloats);
}

FLASHLLA_INLINE bool empty(const Rows& rows, int i) { return rows.hi[i] <= rows.lo[i]; }

// Columns of a block that row i does not see get `value`.
static void mask_row(const Rows& rows, const Block& b, int i, float value, float* row) {
  for (int64_t j = b.key; j < b.key + b.cols && j < rows.lo[i]; ++j) row[j - b.key] = value;
  for (int64_t j = rows.hi[i] > b.key ? rows.hi[i] : b.key; j < b.key + b.cols; ++j) row[j - b.key] = value;
}

// Logits in base 2 into rows.weights, and their maximum over the visible keys of every row.
static void logits(Rows& rows, float* scaled_q, float* top) {
  const Problem& p = *rows.problem;
  Vec running[kTileRows];
  const float factor = p.scale * kLog2E;
  for (int i = 0; i < rows.n; ++i) {
    running[i] = splat(-__builtin_inff());
    const float* q = rows.q + i * rows.dim_pad;
    // A bad row is computed like a row of zeros: what it reads must not reach the rest of the tile.
    for (int d = 0; d < rows.dim_pad; ++d) scaled_q[i * rows.dim_pad + d] = rows.bad[i] ? 0.0f : q[d] * factor;
  }
  for_blocks(rows, [&](const Block& b) {
    multiply<Into::set>(rows.n, b.cols, p.dim, {scaled_q, rows.dim_pad, 1}, b.kt, b.weights, kKeyBlock);
    for (int i = 0; i < rows.n; ++i) {
      float* row = b.weights + i * kKeyBlock;
      if (rows.lo[i] > b.key || rows.hi[i] < b.key + b.cols) mask_row(rows, b, i, -__builtin_inff(), row);
      Vec m = running[i];
      for (int j = 0; j < b.cols; j += kLane) m = larger(m, load(row + j));
      running[i] = m;
    }
  });
  for (int i = 0; i < rows.n; ++i) top[i] = empty(rows, i) ? 0.0f : max(running[i]);
}

// Turns the logits of a block into weights and adds them to the running sums.
FLASHLLA_INLINE void exponentiate(const Rows& rows, const Block& b, const float* top, Vec* sums) {
  for (int i = 0; i < rows.n; ++i) {
    float* row = b.weights + i * kKeyBlock;
    const Vec m = splat(top[i]);
    Vec s = sums[i];
    for (int j = 0; j < b.cols; j += kLane) {
      const Vec w = exp2(load(row + j) - m);
      store(row + j, w);
      s += w;
    }
    sums[i] = s;
  }
}

static void finish_softmax(Rows& rows, const float* top, const Vec* sums) {
  for (int i = 0; i < rows.n; ++i) {
    const float total = empty(rows, i) ? 0.0f : sum(sums[i]);
    rows.inv_sum[i] = total > 0.0f ? 1.0f / total : 0.0f;
    rows.lse[i] = top[i] + __builtin_log2f(total);
  }
}

FLASHLLA_INLINE void scale_row(float* row, float factor, int n_padded) {
  for (int i = 0; i < n_padded; i += kLane) store(row + i, load(row + i) * factor);
}
