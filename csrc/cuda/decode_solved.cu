// Decoding with a solved probe (LLA): moments of the keys of one query row, and the system that they make.
//
// A block of threads takes a split of a row's keys and leaves its state in scratch memory; the last one of a row merges
// the states in the order of the splits, solves, and writes the output. With logits s_j in base 2 and an even m >= s_j,
// the weight of a key is r_j^2, r_j = 2^((s_j - m) / 2). Both sides of the products of tensor cores hold
//     u_j = r_j (k_j - x0) / kx      z_j = r_j (v_j - y0) / ky      in float16,
// relative to the means x0, y0 of the split's first keys and to powers of two kx, ky, so that what they round is the
// keys, once: sum u u^T stays positive semidefinite. As m and log2 kx are integers and grow, rescaling is exact. What
// the rounding left out is a second term of the products where a row sees few keys: with about as many of them as there
// are dimensions, the regression is most sensitive to them.
#include "flashlla/cholesky.h"
#include "flashlla/tiles.h"

namespace flashlla {

constexpr int kFewKeys = 4;  // times the head dimension

template <bool bf16, int pad, bool aligned, int stages, int buffers>
struct Solved {
  static constexpr bool kBf16 = bf16, kAligned = aligned;
  // Blocks of keys that are on their way or being read, and blocks of u and z.
  static constexpr int kPad = pad, kStages = stages, kBuffers = buffers;
  // A block holds the moments of all keys and values, or those of a slab of 64 rows of each.
  static constexpr int kSlabs = pad > 128 ? pad / 64 : 1, kRows = pad / kSlabs;
  static constexpr int kHalves = kSlabs > 1 ? 2 : 1;  // warps that share a row of tiles
  static constexpr int kTiles = pad / kTile, kRowTiles = kRows / kTile;
  // Half of the threads, the first ones, make u and z of a block while the others multiply those of the block before.
  static constexpr int kWarps = kRowTiles * kHalves, kProducers = kWarps * kWarp, kConsumers = kProducers;
  static constexpr int kThreads = kProducers + kConsumers;
  static constexpr int kBlocks = pad > 64 ? 1 : 2;  // a multiprocessor has room for, by registers
  // Tiles of a warp, of 16 columns each. A symmetric matrix of n rows of tiles is covered by tile (i, i + t mod n) for
  // t = 0 .. n / 2, the same number in every row.
  static constexpr int kCross = kTiles / kHalves, kSquare = kTiles / 2 / kHalves + 1;

  using KeyLanes = Lanes<kPad, kProducers>;
  using ValueLanes = Lanes<kRows, kProducers>;

  // Floats of a state: tiles as the threads hold them, a, x0, b, y0, m, l.
  static constexpr int kFragments = (kSquare + kCross) * 2 * 4 * kConsumers;
  static constexpr int kState = kFragments + 2 * kPad + 2 * kRows + 4;

  static constexpr int kStageBytes = kTileBytes<kPad> + kTileBytes<kRows>;
  // Query, logits, maxima, factors, flag.
  static constexpr int kSweepFloats = kPad + kBlock + 3 * kWarps + 2 * kBuffers + 4;
  static constexpr int kMergeFloats = System<kTiles, kThreads>::kFloats + 4 * kPad + kHalves * kRows;
  static constexpr int kSweepBytes = (stages + buffers) * kStageBytes + kSweepFloats * 4;
  static constexpr int kSharedBytes = kSweepBytes > kMergeFloats * 4 ? kSweepBytes : kMergeFloats * 4;
};

template <class S>
FLASHLLA_DEVICE bool produces() {
  return thread_index() < S::kProducers;
}
template <class S>
FLASHLLA_DEVICE int consumer_index() {
  return thread_index() - S::kProducers;
}

// Where a consuming warp's tiles lie.
template <class S>
struct WarpTiles {
  int row = consumer_index<S>() / kWarp % S::kRowTiles;  // of tiles within the slab
  int half = consumer_index<S>() / kWarp / S::kRowTiles;
  FLASHLLA_DEVICE int turn(int i) const { return i * S::kHalves + half; }
  FLASHLLA_DEVICE int column(int slab, int i) const { return (slab * S::kRowTiles + row + turn(i)) % S::kTiles; }
  // Each pair (i, i + n / 2) comes up twice.
  FLASHLLA_DEVICE bool owns(int slab, int i) const {
    return turn(i) < S::kTiles / 2 || (turn(i) == S::kTiles / 2 && slab * S::kRowTiles + row < S::kTiles / 2);
  }
};

// A power of two kx with x / kx <= 2^13, as large as need be for kx and 1 / kx to be normal numbers.
FLASHLLA_DEVICE float scale_for(float x) {
  const int exponent = int((bits(x) + 0x7fffffu) >> 23) - 13;
  return from_bits(uint32_t(max_of(exponent, 1)) << 23);
}
FLASHLLA_DEVICE float inverse_of(float power) { return from_bits((254u << 23) - bits(power)); }

// ---- one block of keys -------------------------------------------------------------------------------------------

// What a block of keys does to the running maxima.
struct Maxima {
  float logit, key, value;
};

// What sum u u^T and sum z u^T are multiplied by.
struct Factors {
  float square, cross;
};

template <class S>
struct Sweep {
  uint16_t *stages, *buffers;
  float *q, *logits;
  Maxima* maxima;  // of each producing warp
  Factors* of_buffers;
  int* flag;

  FLASHLLA_DEVICE explicit Sweep(char* memory) : stages(reinterpret_cast<uint16_t*>(memory)) {
    buffers = stages + S::kStages * S::kStageBytes / 2;
    q = reinterpret_cast<float*>(buffers + S::kBuffers * S::kStageBytes / 2);
    logits = q + S::kPad;
    maxima = reinterpret_cast<Maxima*>(logits + kBlock);
    of_buffers = reinterpret_cast<Factors*>(maxima + S::kWarps);
    flag = reinterpret_cast<int*>(of_buffers + S::kBuffers);
  }
  FLASHLLA_DEVICE uint16_t* keys(int n) const { return stages + n % S::kStages * (S::kStageBytes / 2); }
  FLASHLLA_DEVICE uint16_t* values(int n) const { return keys(n) + kTileBytes<S::kPad> / 2; }
  FLASHLLA_DEVICE uint16_t* u(int n) const { return buffers + n % S::kBuffers * (S::kStageBytes / 2); }
  FLASHLLA_DEVICE uint16_t* z(int n) const { return u(n) + kTileBytes<S::kPad> / 2; }
  // By which what comes before block n is multiplied.
  FLASHLLA_DEVICE Factors& factors(int n) const { return of_buffers[n % S::kBuffers]; }
};

template <class S>
FLASHLLA_DEVICE void sync_producers() {
  sync_first<S::kProducers>();
}

template <class S>
FLASHLLA_DEVICE void load_stage(const Problem& p, const Row& row, Range keys, int slab, int n, const Sweep<S>& memory) {
  const int block = keys.begin + n * kBlock, column = slab * S::kRows;
  if (block < keys.end) {
    load_tile<S::kPad, S::kProducers, S::kAligned>(p, p.k, row, keys, block, 0, p.dim, memory.keys(n));
    load_tile<S::kRows, S::kProducers, S::kAligned>(p, p.v, row, keys, block, column, p.value_dim, memory.values(n));
  }
  commit_copies();
}

// Logits of a block to memory, and its maxima. Lanes of a warp take neighbouring keys, and a part of the columns each.
template <class S>
FLASHLLA_DEVICE Maxima compute_logits(const Sweep<S>& memory, int n, int count, float scale) {
  constexpr int keys = kBlock / S::kWarps, parts = kWarp / keys;
  const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
  const int r = warp * keys + lane % keys, part = lane / keys;
  const uint16_t *key = memory.keys(n) + r * kPitch<S::kPad>, *value = memory.values(n) + r * kPitch<S::kRows>;
  Maxima top = {0.0f, 0.0f, 0.0f};
  float logit = 0.0f, x[8];
#pragma unroll
  for (int c = part; c < S::kPad / 8; c += parts) {
    unpack<S::kBf16>(*reinterpret_cast<const Chunk*>(key + c * 8), x);
    const Float4 q0 = *reinterpret_cast<const Float4*>(memory.q + c * 8);
    const Float4 q1 = *reinterpret_cast<const Float4*>(memory.q + c * 8 + 4);
    logit = dot({x[4], x[5], x[6], x[7]}, q1, dot({x[0], x[1], x[2], x[3]}, q0, logit));
#pragma unroll
    for (int i = 0; i < 8; ++i) top.key = fmaxf(top.key, fabsf(x[i]));
  }
#pragma unroll
  for (int c = part; c < S::kRows / 8; c += parts) {
    unpack<S::kBf16>(*reinterpret_cast<const Chunk*>(value + c * 8), x);
#pragma unroll
    for (int i = 0; i < 8; ++i) top.value = fmaxf(top.value, fabsf(x[i]));
  }
#pragma unroll
  for (int mask = keys; mask < kWarp; mask *= 2) logit += shuffle_xor(logit, mask);
  logit = r < count ? logit * scale : -infinity();
  if (part == 0) memory.logits[r] = logit;
  top = {warp_max(logit), warp_max(top.key), warp_max(top.value)};
  if (lane == 0) memory.maxima[warp] = top;
  sync_producers<S>();
#pragma unroll
  for (int w = 0; w < S::kWarps; ++w) {
    const Maxima other = memory.maxima[w];
    top = {fmaxf(top.logit, other.logit), fmaxf(top.key, other.key), fmaxf(top.value, other.value)};
  }
  return top;
}

// This thread's chunk of the mean of the first block's keys or values. `sums` is memory for a row of each step.
template <class S, int columns>
FLASHLLA_DEVICE void first_mean(const uint16_t* tile, int count, float* sums, float (&mean)[8]) {
  using L = Lanes<columns, S::kProducers>;
  const L lane;
  const float share = 1.0f / float(count);
  float x[8], sum[8] = {};
#pragma unroll 2
  for (int r = lane.first; r < kBlock; r += L::kStep) {
    unpack<S::kBf16>(*reinterpret_cast<const Chunk*>(tile + r * kPitch<columns> + lane.chunk * 8), x);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += x[i] * share;  // what does not exist is 0
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[lane.first * columns + lane.chunk * 8 + i] = sum[i];
  sync_producers<S>();
#pragma unroll
  for (int i = 0; i < 8; ++i) mean[i] = 0.0f;
#pragma unroll 2
  for (int r = 0; r < L::kStep; ++r)
#pragma unroll
    for (int i = 0; i < 8; ++i) mean[i] += sums[r * columns + lane.chunk * 8 + i];
  sync_producers<S>();
}

// A tile of keys or values to u or z or, with `rest`, to what the rounding of these left out, in the tile's own place.
// Adds r times the new numbers to `sum` and r^2 to `weights`.
template <bool rest, bool bf16, int columns, int threads>
FLASHLLA_DEVICE void centre_tile(uint16_t* tile, uint16_t* centred, const float* logits, float m, float inverse_scale,
                                 const float (&shift)[8], float (&sum)[8], float& weights) {
  using L = Lanes<columns, threads>;
  const L lane;
#pragma unroll(rest ? 1 : 2)
  for (int n = 0; n < kBlock / L::kStep; ++n) {
    const int r = lane.first + n * L::kStep;
    const float root = exp2f(0.5f * (logits[r] - m)), factor = root * inverse_scale;
    const int place = r * kPitch<columns> + lane.chunk * 8;
    float x[8], held[8] = {};
    unpack<bf16>(*reinterpret_cast<const Chunk*>(tile + place), x);
    if (rest) unpack<false>(*reinterpret_cast<const Chunk*>(centred + place), held);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = (x[i] - shift[i]) * factor - held[i];
    Chunk u;
#pragma unroll
    for (int i = 0; i < 4; ++i) u.word[i] = pack_f16(x[2 * i], x[2 * i + 1]);
    *reinterpret_cast<Chunk*>((rest ? tile : centred) + place) = u;
    unpack<false>(u, x);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += root * x[i];
    weights += root * root;
  }
}

// ---- the state of a split ------------------------------------------------------------------------------------------

// What the producers keep: of this thread's chunk and rows.
template <class S>
struct Sums {
  float keys[8] = {}, values[8] = {}, weights = 0.0f;  // r u, r z, r^2
  float key_shift[8], value_shift[8];
  float m = -infinity(), key_scale = scale_for(0.0f), value_scale = scale_for(0.0f);

  // For a block with these maxima; the first thread tells the consumers.
  FLASHLLA_DEVICE void rescale(const Maxima& top, Factors& factors) {
    const float new_m = fmaxf(m, 2.0f * ceilf(0.5f * top.logit));
    const float new_key = fmaxf(key_scale, scale_for(top.key)), new_value = fmaxf(value_scale, scale_for(top.value));
    const float weight = exp2f(m - new_m);
    const float key = key_scale * inverse_of(new_key), value = value_scale * inverse_of(new_value);
    m = new_m, key_scale = new_key, value_scale = new_value;
    weights *= weight;
#pragma unroll
    for (int i = 0; i < 8; ++i) keys[i] *= weight * key, values[i] *= weight * value;
    if (thread_index() == 0) factors = {weight * key * key, weight * key * value};
  }

  // A block of keys and values to u and z or, in its own place, to what these left out.
  template <bool rest>
  FLASHLLA_DEVICE void centre(const Sweep<S>& memory, int n) {
    float same = 0.0f;  // the values' weights are those of the keys
    centre_tile<rest, S::kBf16, S::kPad, S::kProducers>(memory.keys(n), memory.u(n), memory.logits, m,
                                                        inverse_of(key_scale), key_shift, keys, rest ? same : weights);
    centre_tile<rest, S::kBf16, S::kRows, S::kProducers>(memory.values(n), memory.z(n), memory.logits, m,
                                                         inverse_of(value_scale), value_shift, values, same);
  }

  // Block n, of `count` keys, to u and z; block n + kStages - 1 sets out.
  FLASHLLA_DEVICE void produce(const Problem& p, const Row& row, Range range, int slab, int n, int count,
                               const Sweep<S>& memory) {
    if (S::kStages == 1) load_stage(p, row, range, slab, n, memory);
    wait_for_copies<(S::kStages > 2 ? S::kStages - 2 : 0)>();
    sync_producers<S>();  // the block is there, and nobody reads the one before any more
    if (S::kStages > 1) load_stage(p, row, range, slab, n + S::kStages - 1, memory);
    rescale(compute_logits(memory, n, count, p.scale * kLog2E), memory.factors(n));
    if (n == 0) {
      float* rows = reinterpret_cast<float*>(memory.u(n));
      first_mean<S, S::kPad>(memory.keys(n), count, rows, key_shift);
      first_mean<S, S::kRows>(memory.values(n), count, rows, value_shift);
    }
    centre<false>(memory, n);
  }

  // To scratch memory, in true units. `rows` is memory for a row of each step of both kinds of lanes.
  FLASHLLA_DEVICE void store(float* state, float* rows) const {
    const typename S::KeyLanes key;
    const typename S::ValueLanes value;
    const int thread = thread_index();
    float *a = state + S::kFragments, *x0 = a + S::kPad, *b = x0 + S::kPad, *y0 = b + S::kRows, *rest = y0 + S::kRows;
    float *value_rows = rows + key.kStep * S::kPad, *all_weights = value_rows + value.kStep * S::kRows;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      rows[key.first * S::kPad + key.chunk * 8 + i] = keys[i] * key_scale;
      value_rows[value.first * S::kRows + value.chunk * 8 + i] = values[i] * value_scale;
      if (key.first == 0) x0[key.chunk * 8 + i] = key_shift[i];
      if (value.first == 0) y0[value.chunk * 8 + i] = value_shift[i];
    }
    if (key.chunk == 0) all_weights[key.first] = weights;
    sync_producers<S>();
    for (int d = thread; d < S::kPad; d += S::kProducers) a[d] = add_rows(rows + d, key.kStep, S::kPad);
    for (int d = thread; d < S::kRows; d += S::kProducers) b[d] = add_rows(value_rows + d, value.kStep, S::kRows);
    if (thread == 0) rest[0] = m, rest[1] = add_rows(all_weights, key.kStep, 1);
  }

  FLASHLLA_DEVICE static float add_rows(const float* x, int rows, int pitch) {
    float sum = 0.0f;
    for (int r = 0; r < rows; ++r) sum += x[r * pitch];
    return sum;
  }
};

// What the consumers keep: this warp's tiles of sum u u^T and sum z u^T.
template <class S>
struct Products {
  float square[S::kSquare][2][4] = {}, cross[S::kCross][2][4] = {};

  FLASHLLA_DEVICE void scale(const Factors& by) {
    if (by.square == 1.0f && by.cross == 1.0f) return;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int i = 0; i < S::kSquare; ++i) square[i][n][e] *= by.square;
#pragma unroll
        for (int i = 0; i < S::kCross; ++i) cross[i][n][e] *= by.cross;
      }
  }

  // Adds the products left u^T and z u^T of `count` keys: 16 at a time, as they lie in memory, transposed on the way.
  FLASHLLA_DEVICE void multiply(const uint16_t* left, const uint16_t* z, const uint16_t* u, int count, int slab) {
    const WarpTiles<S> tiles;
    const int lane = thread_index() % kWarp, low = lane % 8, middle = lane / 8 % 2 * 8, high = lane / 16 * 8;
    const int first = slab * S::kRowTiles + tiles.row, column = (first + tiles.half) % S::kTiles;
    // Operands from the left have the two matrices in the middle swapped.
    uint32_t left_row = shared_address(left + (low + high) * kPitch<S::kPad> + first * kTile + middle);
    uint32_t z_row = shared_address(z + (low + high) * kPitch<S::kRows> + tiles.row * kTile + middle);
    // Columns go round: behind the last one comes the first.
    uint32_t u_row = shared_address(u + (low + middle) * kPitch<S::kPad> + high + column * kTile);
    uint32_t u_round = u_row - S::kPad * 2;
    constexpr int key_step = 16 * kPitch<S::kPad> * 2, value_step = 16 * kPitch<S::kRows> * 2;
#pragma unroll 1
    for (; count > 0; count -= 16, left_row += key_step, z_row += value_step, u_row += key_step, u_round += key_step) {
      uint32_t key_rows[4], value_rows[4], x[4];
      load_transposed(key_rows, left_row);
      load_transposed(value_rows, z_row);
#pragma unroll
      for (int i = 0; i < S::kCross; ++i) {
        const int turn = i * S::kHalves;
        load_transposed(x, (column + turn < S::kTiles ? u_row : u_round) + turn * (kTile * 2));
        multiply_f16(cross[i][0], value_rows, x[0], x[1]);
        multiply_f16(cross[i][1], value_rows, x[2], x[3]);
        if (i >= S::kSquare) continue;
        multiply_f16(square[i % S::kSquare][0], key_rows, x[0], x[1]);
        multiply_f16(square[i % S::kSquare][1], key_rows, x[2], x[3]);
      }
    }
  }

  // The products of block n. Of few keys there are three: in the second and the third, on either side, what the
  // rounding left out takes the place of what it did not.
  FLASHLLA_DEVICE void consume(const Sweep<S>& memory, int n, int count, bool few, int slab) {
    const uint16_t *u = memory.u(n), *z = memory.z(n), *u_rest = memory.keys(n), *z_rest = memory.values(n);
    scale(memory.factors(n));
#pragma unroll 1
    for (int term = 0; term < (few ? 3 : 1); ++term) {
      if (term == 1) sync_block();  // the rest is there
      multiply(term == 1 ? u_rest : u, term == 1 ? z_rest : z, term == 2 ? u_rest : u, count, slab);
    }
  }

  FLASHLLA_DEVICE void store(float* state) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < S::kSquare; ++i) store_tile(state, i * 2 + n, square[i][n]);
#pragma unroll
      for (int i = 0; i < S::kCross; ++i) store_tile(state, (S::kSquare + i) * 2 + n, cross[i][n]);
    }
  }
  FLASHLLA_DEVICE static void store_tile(float* state, int n, const float (&x)[4]) {
    reinterpret_cast<Float4*>(state)[n * S::kConsumers + consumer_index<S>()] = {x[0], x[1], x[2], x[3]};
  }
};

// Keys that a block n holds of a range.
FLASHLLA_DEVICE int block_count(Range keys, int n) { return min_of(keys.size() - n * kBlock, kBlock); }

// The producers' half of a sweep. Both halves pass the same barriers of the whole block: one a block of keys, or one
// after each step where a step needs the one before.
template <class S>
FLASHLLA_DEVICE void produce_all(const Problem& p, const Row& row, Range keys, bool few, int slab,
                                 const Sweep<S>& memory, float* state) {
  const int blocks = (keys.size() + kBlock - 1) / kBlock;
  const bool overlap = S::kBuffers > 1 && !few;
  Sums<S> sums;
  for (int d = thread_index(); d < S::kPad; d += S::kProducers)
    memory.q[d] = d < p.dim ? half_at<S::kBf16>(p.q, row, d) : 0.0f;
#pragma unroll 1
  for (int n = 0; n < S::kStages - 1; ++n) load_stage(p, row, keys, slab, n, memory);
#pragma unroll 1
  for (int n = 0; n < blocks; ++n) {
    sums.produce(p, row, keys, slab, n, block_count(keys, n), memory);
    sync_block();
    if (few) {
      sums.template centre<true>(memory, n);
      sync_block();
    }
    if (!overlap) sync_block();
  }
  if (overlap) sync_block();
  const float key = sums.key_scale, value = sums.value_scale;
  if (thread_index() == 0) memory.factors(0) = {key * key, key * value};
  sync_block();
  sums.store(state, reinterpret_cast<float*>(memory.u(0)));
}

// The consumers' half of a sweep.
template <class S>
FLASHLLA_DEVICE void consume_all(Range keys, bool few, int slab, const Sweep<S>& memory, float* state) {
  const int blocks = (keys.size() + kBlock - 1) / kBlock;
  const bool overlap = S::kBuffers > 1 && !few;
  Products<S> products;
#pragma unroll 1
  for (int n = 0; n < blocks; ++n) {
    sync_block();
    products.consume(memory, n, block_count(keys, n), few, slab);
    if (!overlap) sync_block();
  }
  if (overlap) sync_block();
  sync_block();
  products.scale(memory.factors(0));
  products.store(state);
}

// ---- the merge -----------------------------------------------------------------------------------------------------

// The states of a row, those of a split's slabs side by side. Readers ask for all that they need of one before they
// wait for any of it.
template <class S>
struct States {
  const float* first;
  int splits;
  float m = -infinity(), l = 0.0f;

  FLASHLLA_DEVICE States(const float* first, int splits) : first(first), splits(splits) {
    const int lane = thread_index() % kWarp;
    for (int i = lane; i < splits; i += kWarp) m = fmaxf(m, load_fresh(rest(i)));
    m = warp_max(m);
    for (int i = lane; i < splits; i += kWarp) l += weight(i) * sum(i);
    l = warp_sum(l);
  }
  FLASHLLA_DEVICE const float* at(int split, int slab) const {
    return first + (split * S::kSlabs + slab) * int64_t(S::kState);
  }
  FLASHLLA_DEVICE const float* key_sums(int split) const { return at(split, 0) + S::kFragments; }
  FLASHLLA_DEVICE const float* value_sums(int split, int slab) const {
    return at(split, slab) + S::kFragments + 2 * S::kPad;
  }
  FLASHLLA_DEVICE const float* rest(int split) const { return value_sums(split, 0) + 2 * S::kRows; }
  FLASHLLA_DEVICE float weight(int split) const { return exp2f(load_fresh(rest(split)) - m); }
  FLASHLLA_DEVICE float share(int split) const { return weight(split) / l; }
  FLASHLLA_DEVICE float sum(int split) const { return load_fresh(rest(split) + 1); }
  FLASHLLA_DEVICE Float4 tile(int split, int slab, int n) const {
    return load_fresh(reinterpret_cast<const Float4*>(at(split, slab)) + n * S::kConsumers + consumer_index<S>());
  }
  // An entry of a mean: sum of e (a + l x0) / L, with a at `sums` and x0 `shift` behind it.
  template <class Sums>
  FLASHLLA_DEVICE float mean(const Sums& sums, int shift) const {
    float x = 0.0f;
#pragma unroll 4
    for (int i = 0; i < splits; ++i) x += share(i) * (load_fresh(sums(i)) + sum(i) * load_fresh(sums(i) + shift));
    return x;
  }
};

template <class S>
struct Merge {
  System<S::kTiles, S::kThreads> system;
  float *kbar, *t, *a, *g, *parts;

  FLASHLLA_DEVICE Merge(char* memory, float ridge) : system{reinterpret_cast<float*>(memory), ridge} {
    kbar = system.data + system.kFloats;
    t = kbar + S::kPad, a = t + S::kPad, g = a + S::kPad, parts = g + S::kPad;
  }

  FLASHLLA_DEVICE void prepare(const Problem& p, const Row& row, const States<S>& states) const {
    const int thread = thread_index();
    for (int n = thread; n < S::kTiles * kTileFloats; n += S::kThreads) system.tile(S::kTiles, 0)[n] = 0.0f;
    for (int d = thread; d < S::kPad; d += S::kThreads)
      kbar[d] = states.mean([&](int i) { return states.key_sums(i) + d; }, S::kPad);
    sync_block();
    for (int d = thread; d < p.dim; d += S::kThreads)
      system.right_hand_side(d) = half_at<S::kBf16>(p.q, row, d) - kbar[d];
  }

  // The covariance of a slab's rows, sum of e / L (A + t a^T + a t^T + l t t^T), plus the ridge.
  FLASHLLA_DEVICE void covariance(const States<S>& states, int slab) const {
    const WarpTiles<S> tiles;
    const int lane = thread_index() % kWarp, r = (slab * S::kRowTiles + tiles.row) * kTile + lane / 4;
    const int d = min_of(thread_index(), S::kPad - 1);  // no block has fewer threads
    const bool mine = !produces<S>();                   // the tiles are those of the threads that have made them
    float sum[S::kSquare][2][4] = {};
    for (int split = 0; split < states.splits; ++split) {
      Float4 tile[2 * S::kSquare];
      if (mine)
#pragma unroll
        for (int i = 0; i < 2 * S::kSquare; ++i) tile[i] = states.tile(split, slab, i);
      const float ad = load_fresh(states.key_sums(split) + d), x0 = load_fresh(states.key_sums(split) + S::kPad + d);
      const float share = states.share(split), l = states.sum(split);
      sync_block();
      a[d] = ad, t[d] = x0 - kbar[d];
      sync_block();
      if (!mine) continue;
#pragma unroll
      for (int i = 0; i < S::kSquare; ++i)
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const Float4 x = tile[i * 2 + n];
          const int c = tiles.column(slab, i) * kTile + n * 8 + lane % 4 * 2;
          sum[i][n][0] += share * (x.x + t[r] * (a[c] + l * t[c]) + a[r] * t[c]);
          sum[i][n][1] += share * (x.y + t[r] * (a[c + 1] + l * t[c + 1]) + a[r] * t[c + 1]);
          sum[i][n][2] += share * (x.z + t[r + 8] * (a[c] + l * t[c]) + a[r + 8] * t[c]);
          sum[i][n][3] += share * (x.w + t[r + 8] * (a[c + 1] + l * t[c + 1]) + a[r + 8] * t[c + 1]);
        }
    }
    if (!mine) return;
#pragma unroll
    for (int i = 0; i < S::kSquare; ++i)
      if (tiles.owns(slab, i)) store(slab * S::kRowTiles + tiles.row, tiles.column(slab, i), sum[i]);
  }

  FLASHLLA_DEVICE void store(int row, int column, const float (&x)[2][4]) const {
    const int lane = thread_index() % kWarp;
    float* t = row >= column ? system.tile(row, column) : system.tile(column, row);
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = lane / 4 + e / 2 * 8, c = n * 8 + lane % 4 * 2 + e % 2;
        const float ridge = row == column && r == c ? system.least : 0.0f;
        t[row >= column ? tile_index(r, c) : tile_index(c, r)] = x[n][e] + ridge;
      }
  }

  // vbar + gate Cvk g for a slab of values, with Cvk = sum of e / L (B + y a^T + b t^T + l y t^T).
  FLASHLLA_DEVICE void output(const Problem& p, const Row& row, const States<S>& states, int slab) const {
    const WarpTiles<S> tiles;
    const int thread = thread_index(), lane = thread % kWarp, d = min_of(thread, S::kRows - 1);
    const bool mine = !produces<S>();
    const float vbar = states.mean([&](int i) { return states.value_sums(i, slab) + d; }, S::kRows);
    float product[2] = {}, rest = 0.0f;
    for (int split = 0; split < states.splits; ++split) {
      Float4 tile[2 * S::kCross];
      if (mine)
#pragma unroll
        for (int i = 0; i < 2 * S::kCross; ++i) tile[i] = states.tile(split, slab, 2 * S::kSquare + i);
      const float* values = states.value_sums(split, slab) + d;
      const float b = load_fresh(values), y0 = load_fresh(values + S::kRows);
      const float share = states.share(split), l = states.sum(split);
      float ag = 0.0f, tg = 0.0f;
#pragma unroll
      for (int i = lane; i < S::kPad; i += kWarp) {
        ag += load_fresh(states.key_sums(split) + i) * g[i];
        tg += (load_fresh(states.key_sums(split) + S::kPad + i) - kbar[i]) * g[i];
      }
      ag = warp_sum(ag), tg = warp_sum(tg);
      rest += share * ((y0 - vbar) * (ag + l * tg) + b * tg);
      if (!mine) continue;
#pragma unroll
      for (int i = 0; i < S::kCross; ++i)
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const Float4 x = tile[i * 2 + n];
          const float* gc = g + tiles.column(slab, i) * kTile + n * 8 + lane % 4 * 2;
          product[0] += share * (x.x * gc[0] + x.y * gc[1]);
          product[1] += share * (x.z * gc[0] + x.w * gc[1]);
        }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      product[n] += shuffle_xor(product[n], 1);
      product[n] += shuffle_xor(product[n], 2);
      if (mine && lane % 4 == 0) parts[tiles.half * S::kRows + tiles.row * kTile + n * 8 + lane / 4] = product[n];
    }
    sync_block();
    if (thread < S::kRows && slab * S::kRows + thread < p.value_dim) {
      float x = rest;
      for (int half = 0; half < S::kHalves; ++half) x += parts[half * S::kRows + thread];
      store_output<S::kBf16>(p, row, slab * S::kRows + thread, vbar + value_at(p.gate, row) * x);
    }
    sync_block();
  }

  FLASHLLA_DEVICE void run(const Problem& p, const Row& row, const States<S>& states) const {
    prepare(p, row, states);
    for (int slab = 0; slab < S::kSlabs; ++slab) covariance(states, slab);
    sync_block();
    system.solve(g);
    for (int slab = 0; slab < S::kSlabs; ++slab) output(p, row, states, slab);
    if (thread_index() == 0) store_lse(p, row, states.m, states.l);
  }
};

template <bool bf16>
FLASHLLA_DEVICE void store_nothing(const Problem& p, const Row& row, int threads) {
  for (int d = thread_index(); d < p.value_dim; d += threads) store_output<bf16>(p, row, d, 0.0f);
  if (thread_index() == 0) store_lse(p, row, -infinity(), 1.0f);
}

// Blocks: unit, split, row of the unit, slab, the last fastest: those that read the same keys are neighbours.
template <class S>
FLASHLLA_DEVICE void decode_solved(const Problem& p) {
  int index = block_index();
  const int slab = index % S::kSlabs;
  index /= S::kSlabs;
  const int unit_row = index % p.unit_rows();
  index /= p.unit_rows();
  const int split = index % p.splits, unit = index / p.splits;
  const Row row = row_of(p, p.first_unit + unit, unit_row);
  const Range keys = visible_keys(p, row.batch, row.token);
  const int splits = split_count(keys.size());
  if (keys.size() == 0 && split == 0 && slab == 0) store_nothing<S::kBf16>(p, row, S::kThreads);
  if (split >= splits) return;

  const int place = unit * p.unit_rows() + unit_row;
  float* states = p.scratch + int64_t(place) * p.splits * S::kSlabs * S::kState;
  const Sweep<S> memory(shared_memory());
  float* state = states + (split * S::kSlabs + slab) * int64_t(S::kState);
  const Range range = split_range(keys, split);
  const bool few = keys.size() <= kFewKeys * p.dim;
  if (produces<S>())
    produce_all(p, row, range, few, slab, memory, state);
  else
    consume_all(range, few, slab, memory, state);
  if (!last_of(p.counters + place, splits * S::kSlabs, memory.flag)) return;
  const float ridge = value_at(p.ridge, row);  // its sign is not read on the host: a wrong one makes the row NaN
  Merge<S>(shared_memory(), ridge > 0.0f ? ridge : nan()).run(p, row, States<S>(states, splits));
}

}  // namespace flashlla

#if defined(FLASHLLA_PAD)
using Shape = flashlla::Solved<FLASHLLA_BF16, FLASHLLA_PAD, FLASHLLA_ALIGNED, FLASHLLA_STAGES, FLASHLLA_BUFFERS>;
FLASHLLA_KERNEL(Shape::kThreads, Shape::kBlocks) lla_decode_solved_kernel(const flashlla::Problem p) {
  flashlla::decode_solved<Shape>(p);
}
#endif
