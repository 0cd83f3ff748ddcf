// Decoding: a few query rows over the keys of one sequence and key head, a "unit". Its phases are
//
//   open     mean key, queries
//   load     keys to float32, shifted and transposed into panels; logits, weights and mean of the keys
//   iterate  one iteration of conjugate gradients for all rows that have not converged
//   moments  second moments for one row that converges slowly, which is then solved directly
//   values   the output
//
// The keys are cut into splits, the tasks of a phase. What a split sums up is kept apart, and decode_join adds it in
// the order of the splits, so results depend neither on threads nor on what else is in the batch. An iteration costs
// 2 head_dim multiply-adds a key and row, second moments a good head_dim^2 / 2; keys are converted only once.

constexpr int kDecodeVectors = kLane == 16 ? 4 : 8;
constexpr int kDecodePanel = kDecodeVectors * kLane;  // keys
constexpr int kSplitPanels = 2048 / kDecodePanel;
constexpr int kChunkPanels = 4;  // panels between two visits to the sums, see chunk_of

// ---- products of all rows with panels --------------------------------------------------------------------

template <Into into, int rows>
FLASHLLA_INLINE void multiply_rows(int depth, const float* x, int pad, const float* kt, float* out, const float* w,
                                   const float* offset) {
  constexpr int vectors = kLane == 16 ? 4 : rows == 1 ? 8 : rows == 2 ? 4 : 2;
  for (int n = 0; n < kDecodePanel; n += vectors * kLane)
    micro<rows, vectors, into>(depth, x, pad, 1, kt + n, kDecodePanel, out + n, kDecodePanel, w + n, offset);
}

// sums[row][d] += t[row] . kt[d], a vector of partial sums each, over some panels.
template <int rows>
FLASHLLA_INLINE void sum_rows(int panels, int64_t t_stride, int pad, const float* t, const float* kt, float* sums) {
  constexpr int dims = kLane == 4 ? 4 : rows > 2 ? (kLane == 16 ? 4 : 2) : rows > 1 ? (kLane == 16 ? 8 : 4) : 8;
  for (int d = 0; d < pad; d += dims) {
    Vec acc[rows][dims];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < dims; ++j) acc[i][j] = load(sums + (int64_t(i) * pad + d + j) * kLane);
    for (int panel = 0; panel < panels; ++panel)
      for (int n = 0; n < kDecodePanel; n += kLane) {
        Vec left[rows];
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) left[i] = load(t + panel * t_stride + i * kDecodePanel + n);
#pragma GCC unroll 8
        for (int j = 0; j < dims; ++j) {
          const Vec right = load(kt + (int64_t(panel) * pad + d + j) * kDecodePanel + n);
#pragma GCC unroll 8
          for (int i = 0; i < rows; ++i) acc[i][j] += left[i] * right;
        }
      }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < dims; ++j) store(sums + (int64_t(i) * pad + d + j) * kLane, acc[i][j]);
  }
}

// Calls visit(Count<n>, first) for runs of n rows that are not skipped.
template <int n>
struct Count {
  static constexpr int value = n;
};
template <class Visit>
FLASHLLA_INLINE void for_rows(int rows, const bool* skip, Visit visit) {
  for (int m = 0; m < rows;) {
    if (skip && skip[m]) {
      ++m;
      continue;
    }
    int run = 1;
    while (run < 4 && m + run < rows && !(skip && skip[m + run])) ++run;
    if (run == 4) {
      visit(Count<4>{}, m);
      m += 4;
    } else if (run > 1) {
      visit(Count<2>{}, m);
      m += 2;
    } else {
      visit(Count<1>{}, m);
      m += 1;
    }
  }
}

// out[row] = operand[row] . keys of a panel, and what else `into` asks for.
template <Into into>
static void panel_products(const DecodeUnit& u, int pad, const float* kt, float* out, const float* w,
                           const bool* skip) {
  for_rows(u.rows, skip, [&](auto count, int m) {
    const int at = m * kDecodePanel;
    multiply_rows<into, count.value>(pad, u.operand + m * pad, pad, kt, out + at, w + at, u.offset + m);
  });
}

// sums[row] += sum over the keys of some panels of t[panel][row][key] times the key.
static void panel_sums(const DecodeUnit& u, int pad, int panels, const float* t, const float* kt, float* sums,
                       const bool* skip) {
  for_rows(u.rows, skip, [&](auto count, int m) {
    float* to = sums + int64_t(m) * pad * kLane;
    sum_rows<count.value>(panels, u.rows * kDecodePanel, pad, t + m * kDecodePanel, kt, to);
  });
}

static void store_sums(int rows, int pad, const float* sums, float* images) {
  for (int i = 0; i < rows * pad; ++i) images[i] = sum(load(sums + int64_t(i) * kLane));
}

// ---- keys in panels --------------------------------------------------------------------------------------

FLASHLLA_INLINE void zip(Vec a, Vec b, Vec& low, Vec& high) {
#if defined(__clang__)
#define FLASHLLA_SHUFFLE(...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FLASHLLA_SHUFFLE(...) __builtin_shuffle(a, b, IVec{__VA_ARGS__})
#endif
#if defined(__AVX512F__)
  low = FLASHLLA_SHUFFLE(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  high = FLASHLLA_SHUFFLE(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  low = FLASHLLA_SHUFFLE(0, 8, 1, 9, 2, 10, 3, 11);
  high = FLASHLLA_SHUFFLE(4, 12, 5, 13, 6, 14, 7, 15);
#else
  low = FLASHLLA_SHUFFLE(0, 4, 1, 5);
  high = FLASHLLA_SHUFFLE(2, 6, 3, 7);
#endif
#undef FLASHLLA_SHUFFLE
}

// Calls store_at(col, row, vector over rows) for what load_at(row, col) gives as vectors over columns; rows and cols
// are multiples of kLane. Zipping a square with its other half, as often as its side can be halved, transposes it.
template <class LoadAt, class StoreAt>
FLASHLLA_INLINE void transpose(int rows, int cols, LoadAt load_at, StoreAt store_at) {
  for (int r = 0; r < rows; r += kLane)
    for (int c = 0; c < cols; c += kLane) {
      Vec a[kLane], b[kLane];
#pragma GCC unroll 16
      for (int i = 0; i < kLane; ++i) a[i] = load_at(r + i, c);
#pragma GCC unroll 4
      for (int size = kLane; size > 1; size /= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < kLane / 2; ++i) zip(a[i], a[i + kLane / 2], b[2 * i], b[2 * i + 1]);
#pragma GCC unroll 16
        for (int i = 0; i < kLane; ++i) a[i] = b[i];
      }
#pragma GCC unroll 16
      for (int i = 0; i < kLane; ++i) store_at(c + i, r, a[i]);
    }
}

struct DecodePanels {
  int64_t begin, end;
};
FLASHLLA_INLINE DecodePanels panels_of(const DecodeUnit& u, int64_t split) {
  const int64_t all = (u.keys.hi - u.keys.lo + kDecodePanel - 1) / kDecodePanel, begin = split * kSplitPanels;
  return {begin, begin + kSplitPanels < all ? begin + kSplitPanels : all};
}

// Rows of a cache lie further apart than hardware prefetchers look.
FLASHLLA_INLINE void prefetch_row(const Array& a, int64_t offset, int dim) {
  const int64_t width = a.dtype == DType::f32 ? 4 : 2;
  const char* row = static_cast<const char*>(a.data) + offset * width;
  for (int64_t byte = 0; byte < dim * width; byte += 64) __builtin_prefetch(row + byte);
}

// Calls visit(load_vector) with a function that loads kLane elements at an offset.
template <class Visit>
FLASHLLA_INLINE void with_dtype(const Array& a, Visit visit) {
  const auto* floats = static_cast<const float*>(a.data);
  const auto* halves = static_cast<const uint16_t*>(a.data);
  if (a.dtype == DType::f32)
    visit([floats](int64_t at) { return load(floats + at); });
  else if (a.dtype == DType::bf16)
    visit([halves](int64_t at) { return load_bf16(halves + at); });
  else
    visit([halves](int64_t at) { return load_f16(halves + at); });
}

// The keys or values of a panel: where they lie, and whether they fill it with whole vectors.
struct PanelRows {
  const Array& array;
  int dim, count;
  bool whole;
  int64_t offsets[kDecodePanel];
};

static PanelRows find_rows(const Problem& p, const DecodeUnit& u, const Array& array, int dim, int64_t panel) {
  const Sequence& s = *u.sequence;
  const int64_t first = u.keys.lo + panel * kDecodePanel, left = u.keys.hi - first;
  const bool scattered = array.row_stride > 2 * dim;
  const bool full = left >= kDecodePanel;
  PanelRows rows{array, dim, full ? kDecodePanel : int(left), full && dim % kLane == 0, {}};
  for (int r = 0; r < rows.count; ++r) {
    rows.offsets[r] = key_offset(p, array, s, first + r, u.kv_head);
    if (scattered && r + kDecodePanel < left)
      prefetch_row(array, key_offset(p, array, s, first + r + kDecodePanel, u.kv_head), dim);
  }
  return rows;
}

FLASHLLA_INLINE bool is_nan(Vec x) {
  const float total = sum(x);
  return total != total;
}

// The rows in float32, zeros behind them up to a whole panel. Rows that are not finite become 0, so that they cannot
// reach queries which do not see them, and are noted in `broken` for those which do.
static void load_checked(const DecodeUnit& u, int64_t panel, const PanelRows& rows, float* block, float* broken) {
  const int pad = pad_to_lane(rows.dim);
  __builtin_memset(block, 0, size_t(kDecodePanel) * pad * 4);
  for (int r = 0; r < rows.count; ++r) {
    float* row = block + r * pad;
    load_row(rows.array, rows.offsets[r], rows.dim, pad, row);
    if (all_finite(row, pad)) continue;
    __builtin_memset(row, 0, size_t(pad) * 4);
    const int64_t j = panel * kDecodePanel + r;
    for (int i = 0; i < u.rows; ++i)
      if (j >= u.seen[i].lo && j < u.seen[i].hi) broken[i] = 1.0f;
  }
}

static void load_keys(const Problem& p, const DecodeUnit& u, int64_t panel, float* block, float* kt, float* broken) {
  const PanelRows rows = find_rows(p, u, p.k, p.dim, panel);
  const int pad = pad_to_lane(p.dim);
  const auto store_key = [kt](int d, int r, Vec x) { store(kt + d * kDecodePanel + r, x); };
  Vec nothing = Vec{};  // or NaN
  if (rows.whole)
    with_dtype(p.k, [&](auto load_vector) {
      transpose(
          kDecodePanel, pad,
          [&](int r, int c) {
            const Vec x = load_vector(rows.offsets[r] + c);
            nothing += x * 0.0f;
            return x - load(u.shift + c);
          },
          store_key);
    });
  if (rows.whole && !is_nan(nothing)) return;
  load_checked(u, panel, rows, block, broken);
  transpose(kDecodePanel, pad, [&](int r, int c) { return load(block + r * pad + c) - load(u.shift + c); }, store_key);
}

static void load_values(const Problem& p, const DecodeUnit& u, int64_t panel, float* block, float* broken) {
  const PanelRows rows = find_rows(p, u, p.v, p.value_dim, panel);
  Vec nothing = Vec{};
  if (rows.whole)
    with_dtype(p.v, [&](auto load_vector) {
      for (int r = 0; r < kDecodePanel; ++r)
        for (int d = 0; d < p.value_dim; d += kLane) {
          const Vec x = load_vector(rows.offsets[r] + d);
          nothing += x * 0.0f;
          store(block + r * p.value_dim + d, x);
        }
    });
  if (!rows.whole || is_nan(nothing)) load_checked(u, panel, rows, block, broken);
}

// Panels whose products are taken before their sums: with one row a panel stays in the first-level cache in between,
// with more it is the sums that would not.
FLASHLLA_INLINE int chunk_of(const DecodeUnit& u) { return u.rows > 2 ? kChunkPanels : 1; }

static int64_t decode_scratch(const Problem& p, int rows) {
  const int64_t pad = pad_to_lane(p.dim), value_pad = pad_to_lane(p.value_dim);
  const int64_t sums = rows * pad * kLane, products = int64_t(kChunkPanels) * rows * kDecodePanel;
  return sums + products + kDecodePanel * (2 * pad + value_pad) + 128;
}

static int64_t decode_memory(const Problem& p, DecodeUnit& u, float* memory) {
  const int64_t pad = pad_to_lane(p.dim), value_pad = pad_to_lane(p.value_dim), rows = u.rows;
  const int64_t panels = (u.keys.hi - u.keys.lo + kDecodePanel - 1) / kDecodePanel;
  u.splits = (panels + kSplitPanels - 1) / kSplitPanels;
  const struct {
    float** at;
    int64_t size;
  } parts[] = {
      {&u.shift, pad},
      {&u.operand, rows * pad},
      {&u.kbar, rows * pad},
      {&u.g, rows * pad},
      {&u.residual, rows * pad},
      {&u.kt, p.has_probe() ? panels * pad * kDecodePanel : 0},
      {&u.weights, panels * rows * kDecodePanel},
      {&u.factor, u.splits * rows},
      {&u.broken, u.splits * rows},
      {&u.sums, u.splits * rows},
      {&u.images, u.splits * rows * pad},
      {&u.outputs, u.splits * rows * value_pad * (p.has_probe() ? 2 : 1)},
      {&u.second, p.solved() ? u.splits * p.dim * pad : 0},
  };
  int64_t total = 0;
  for (const auto& part : parts) {
    if (memory) *part.at = memory + total;
    total += (part.size + 15) / 16 * 16;
  }
  return total;
}

FLASHLLA_INLINE int64_t query_of(const Problem& p, const DecodeUnit& u, int r) {
  return u.sequence->q_start + (u.first + r) / p.group();
}
FLASHLLA_INLINE int head_of(const Problem& p, const DecodeUnit& u, int r) {
  return u.kv_head * p.group() + (u.first + r) % p.group();
}
FLASHLLA_INLINE float* kt_of(const DecodeUnit& u, int pad, int64_t panel) { return u.kt + panel * pad * kDecodePanel; }
FLASHLLA_INLINE float* weights_of(const DecodeUnit& u, int64_t panel) {
  return u.weights + panel * u.rows * kDecodePanel;
}

// ---- tasks -----------------------------------------------------------------------------------------------

static void decode_open(const Problem& p, DecodeUnit& u) {
  const Sequence& s = *u.sequence;
  const int pad = pad_to_lane(p.dim);
  Range common = {0, s.k_len};  // a row must not depend on a key that it does not see, not even in rounding
  for (int r = 0; r < u.rows; ++r) {
    const int64_t row = query_of(p, u, r);
    const int head = head_of(p, u, r);
    const Range seen = visible(p, s, row - s.q_start);
    common.lo = seen.lo > common.lo ? seen.lo : common.lo;
    common.hi = seen.hi < common.hi ? seen.hi : common.hi;
    u.seen[r] = {seen.lo - u.keys.lo, seen.hi - u.keys.lo};
    u.gate[r] = p.gate.at(s.q_batch, row, head);
    u.ridge[r] = p.solved() ? p.ridge.at(s.q_batch, row, head) : 0.0f;
    u.iterations[r] = 0;
    float* q = u.operand + r * pad;
    load_row(p.q, p.q.offset(s.q_batch, row, head), p.dim, pad, q);
    u.bad[r] = !all_finite(q, pad) || !(u.gate[r] - u.gate[r] == 0.0f);
    scale_row(q, p.scale * kLog2E, pad);
    if (u.bad[r]) __builtin_memset(q, 0, size_t(pad) * 4);
  }
  mean_key(p, s, u.kv_head, common.lo, common.hi, u.shift);
}

// Logits of the keys of a panel, -inf where a row does not see them, and their maxima.
static void decode_logits(const DecodeUnit& u, int pad, const float* kt, int64_t panel, Vec* top) {
  float* logits = weights_of(u, panel);
  panel_products<Into::set>(u, pad, kt, logits, logits, nullptr);
  const int64_t first = panel * kDecodePanel;
  for (int r = 0; r < u.rows; ++r) {
    float* row = logits + r * kDecodePanel;
    for (int64_t j = first; j < first + kDecodePanel && j < u.seen[r].lo; ++j) row[j - first] = -__builtin_inff();
    for (int64_t j = u.seen[r].hi > first ? u.seen[r].hi : first; j < first + kDecodePanel; ++j)
      row[j - first] = -__builtin_inff();
    for (int n = 0; n < kDecodePanel; n += kLane) top[r] = larger(top[r], load(row + n));
  }
}

static void decode_load(const Problem& p, DecodeUnit& u, int64_t split, Scratch scratch) {
  const int pad = pad_to_lane(p.dim), rows = u.rows;
  const DecodePanels panels = panels_of(u, split);
  float *block = scratch.take(kDecodePanel * pad), *own = scratch.take(kDecodePanel * pad);
  float *sums = scratch.take(int64_t(rows) * pad * kLane), *broken = u.broken + split * rows;
  Vec top[kTileRows], total[kTileRows];
  for (int r = 0; r < rows; ++r) {
    top[r] = splat(-__builtin_inff());
    total[r] = Vec{};
    broken[r] = 0.0f;
  }
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    float* kt = p.has_probe() ? kt_of(u, pad, panel) : own;
    load_keys(p, u, panel, block, kt, broken);
    decode_logits(u, pad, kt, panel, top);
  }
  float* tops = u.factor + split * rows;
  for (int r = 0; r < rows; ++r) tops[r] = max(top[r]);
  for (int64_t i = 0; i < int64_t(rows) * pad * kLane; i += kLane) store(sums + i, Vec{});
  const int chunk = chunk_of(u);
  for (int64_t first = panels.begin; first < panels.end; first += chunk) {
    const int count = first + chunk < panels.end ? chunk : int(panels.end - first);
    float* weights = weights_of(u, first);
    for (int i = 0; i < count * rows; ++i) {
      const int r = i % rows;
      const float peak = tops[r] > -__builtin_inff() ? tops[r] : 0.0f;
      for (int n = 0; n < kDecodePanel; n += kLane) {
        const Vec w = exp2(load(weights + i * kDecodePanel + n) - peak);
        store(weights + i * kDecodePanel + n, w);
        total[r] += w;
      }
    }
    if (p.has_probe()) panel_sums(u, pad, count, weights, kt_of(u, pad, first), sums, nullptr);
  }
  for (int r = 0; r < rows; ++r) u.sums[split * rows + r] = sum(total[r]);
  if (p.has_probe()) store_sums(rows, pad, sums, u.images + split * rows * pad);
}

// images[row] = sum_j t_j k_j and sums[row] = sum_j t_j with t_j = w_j (k_j - kbar) . direction, as `apply` has it.
static void decode_iterate(const Problem& p, DecodeUnit& u, int64_t split, Scratch scratch) {
  const int pad = pad_to_lane(p.dim), rows = u.rows, chunk = chunk_of(u);
  const DecodePanels panels = panels_of(u, split);
  float *t = scratch.take(chunk * rows * kDecodePanel), *sums = scratch.take(int64_t(rows) * pad * kLane);
  Vec total[kTileRows];
  for (int r = 0; r < rows; ++r) total[r] = Vec{};
  for (int64_t i = 0; i < int64_t(rows) * pad * kLane; i += kLane) store(sums + i, Vec{});
  for (int64_t first = panels.begin; first < panels.end; first += chunk) {
    const int count = first + chunk < panels.end ? chunk : int(panels.end - first);
    for (int i = 0; i < count; ++i) {
      float* products = t + i * rows * kDecodePanel;
      panel_products<Into::times>(u, pad, kt_of(u, pad, first + i), products, weights_of(u, first + i), u.settled);
      for (int r = 0; r < rows; ++r) {
        if (u.settled[r]) continue;
        for (int n = 0; n < kDecodePanel; n += kLane) total[r] += load(products + r * kDecodePanel + n);
      }
    }
    panel_sums(u, pad, count, t, kt_of(u, pad, first), sums, u.settled);
  }
  for (int r = 0; r < rows; ++r) u.sums[split * rows + r] = sum(total[r]);
  store_sums(rows, pad, sums, u.images + split * rows * pad);
}

static void decode_moments(const Problem& p, DecodeUnit& u, int64_t split, Scratch scratch) {
  const int pad = pad_to_lane(p.dim), r = u.direct_row;
  const float* kbar = u.kbar + r * pad;
  float* block = scratch.take(kDecodePanel * pad);  // sqrt(w_j) (k_j - kbar), rows are keys
  float* matrix = u.second + split * p.dim * pad;
  __builtin_memset(matrix, 0, size_t(p.dim) * pad * 4);
  const DecodePanels panels = panels_of(u, split);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const float *kt = kt_of(u, pad, panel), *weights = weights_of(u, panel) + r * kDecodePanel;
    float roots[kDecodePanel];
    for (int j = 0; j < kDecodePanel; ++j) roots[j] = __builtin_sqrtf(weights[j]);
    transpose(
        pad, kDecodePanel, [kt](int d, int j) { return load(kt + d * kDecodePanel + j); },
        [&](int j, int d, Vec x) { store(block + j * pad + d, (x - load(kbar + d)) * roots[j]); });
    add_outer_products(block, block, kDecodePanel, p.dim, pad, matrix);
  }
}

// outputs: sums of w_j v_j, then of w_j (1 + gate c_j) v_j, where c_j = (k_j - kbar) . g; sums: of w_j c_j.
static void decode_values(const Problem& p, DecodeUnit& u, int64_t split, Scratch scratch) {
  const int pad = pad_to_lane(p.dim), value_pad = pad_to_lane(p.value_dim), rows = u.rows;
  const int weighted = p.has_probe() ? 2 * rows : rows;
  float *block = scratch.take(kDecodePanel * value_pad), *t = scratch.take(weighted * kDecodePanel);
  float *outputs = u.outputs + split * weighted * value_pad, *gated = t + rows * kDecodePanel;
  Vec drift[kTileRows];
  for (int r = 0; r < rows; ++r) drift[r] = Vec{};
  __builtin_memset(outputs, 0, size_t(weighted) * value_pad * 4);
  const DecodePanels panels = panels_of(u, split);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    load_values(p, u, panel, block, u.broken + split * rows);
    const float* weights = weights_of(u, panel);
    __builtin_memcpy(t, weights, size_t(rows) * kDecodePanel * 4);
    if (p.has_probe()) panel_products<Into::set>(u, pad, kt_of(u, pad, panel), gated, gated, nullptr);
    for (int r = 0; r < rows && p.has_probe(); ++r)
      for (int n = 0; n < kDecodePanel; n += kLane) {
        const int at = r * kDecodePanel + n;
        const Vec c = load(gated + at) - u.offset[r], wc = load(weights + at) * c;
        drift[r] += wc;
        store(gated + at, load(weights + at) + wc * u.gate[r]);
      }
    multiply<Into::add>(weighted, value_pad, kDecodePanel, {t, kDecodePanel, 1}, {block, kPanel, value_pad}, outputs,
                        value_pad);
  }
  for (int r = 0; r < rows; ++r) u.sums[split * rows + r] = sum(drift[r]);
}

static void decode_task(const Problem& p, DecodeUnit& u, int64_t task, float* memory) {
  const Scratch scratch{memory};
  switch (u.phase) {
    case DecodePhase::open: return decode_open(p, u);
    case DecodePhase::load: return decode_load(p, u, task, scratch);
    case DecodePhase::iterate: return decode_iterate(p, u, task, scratch);
    case DecodePhase::moments: return decode_moments(p, u, task, scratch);
    case DecodePhase::values: return decode_values(p, u, task, scratch);
    case DecodePhase::done: return;
  }
}

// ---- between phases --------------------------------------------------------------------------------------

// The sum over the splits of what `part` (pad floats) holds for row r in the first, and further ones every `stride`.
static void join_row(const DecodeUnit& u, const float* part, int64_t stride, int r, int pad, float* total) {
  for (int d = 0; d < pad; d += kLane) store(total + d, Vec{});
  for (int64_t split = 0; split < u.splits; ++split)
    axpy(u.factor[split * u.rows + r], part + split * stride, total, pad);
}
static void join_image(const DecodeUnit& u, int r, int pad, float* total) {
  join_row(u, u.images + r * pad, int64_t(u.rows) * pad, r, pad, total);
}
static float join_sum(const DecodeUnit& u, int r) {
  float total = 0.0f;
  for (int64_t split = 0; split < u.splits; ++split) total += u.factor[split * u.rows + r] * u.sums[split * u.rows + r];
  return total;
}

// q - kbar in the frame of the shifted keys
static void decode_right_hand_side(const Problem& p, const DecodeUnit& u, int r, float* b) {
  const Sequence& s = *u.sequence;
  const int pad = pad_to_lane(p.dim);
  load_row(p.q, p.q.offset(s.q_batch, query_of(p, u, r), head_of(p, u, r)), p.dim, pad, b);
  for (int d = 0; d < pad; ++d) b[d] = u.bad[r] ? 0.0f : b[d] - u.shift[d] - u.kbar[r * pad + d];
}

static void set_operand(DecodeUnit& u, int pad, int r, const float* x) {
  __builtin_memcpy(u.operand + r * pad, x, size_t(pad) * 4);
  u.offset[r] = dot(u.kbar + r * pad, x, pad);
}

static void begin_values(const Problem& p, DecodeUnit& u) {
  const int pad = pad_to_lane(p.dim);
  for (int r = 0; r < u.rows && p.has_probe(); ++r) set_operand(u, pad, r, u.g + r * pad);
  u.phase = DecodePhase::values;
}

// After an iteration, or before the first: another one, a row to solve directly, or the output.
static void choose_phase(const Problem& p, DecodeUnit& u) {
  bool iterate = false;
  u.direct_row = -1;
  for (int r = u.rows - 1; r >= 0; --r) {
    iterate |= !u.settled[r];
    if (!u.converged[r] && p.solver != Solver::cg) u.direct_row = r;
  }
  if (iterate)
    u.phase = DecodePhase::iterate;
  else if (u.direct_row >= 0)
    u.phase = DecodePhase::moments;
  else
    begin_values(p, u);
}

static void begin_solve(const Problem& p, DecodeUnit& u) {
  const int pad = pad_to_lane(p.dim), limit = iteration_limit(p);
  for (int r = 0; r < u.rows; ++r) {
    float* residual = u.residual + r * pad;
    decode_right_hand_side(p, u, r, residual);
    __builtin_memset(u.g + r * pad, 0, size_t(pad) * 4);
    set_operand(u, pad, r, residual);
    u.rr[r] = u.first_rr[r] = dot(residual, residual, pad);
    u.goal[r] = u.rr[r] * p.rtol * p.rtol;
    u.converged[r] = !(u.rr[r] > u.goal[r]);
    u.settled[r] = u.converged[r] || limit == 0;
  }
  choose_phase(p, u);
}

static void begin_given(const Problem& p, DecodeUnit& u) {
  const Sequence& s = *u.sequence;
  const int pad = pad_to_lane(p.dim);
  for (int r = 0; r < u.rows; ++r) {
    float* g = u.g + r * pad;
    load_row(p.probe, p.probe.offset(s.q_batch, query_of(p, u, r), head_of(p, u, r)), p.dim, pad, g);
    u.bad[r] |= !all_finite(g, pad);
    if (u.bad[r]) __builtin_memset(g, 0, size_t(pad) * 4);
  }
  begin_values(p, u);
}

static void join_load(const Problem& p, DecodeUnit& u) {
  const int pad = pad_to_lane(p.dim);
  for (int r = 0; r < u.rows; ++r) {
    float top = -__builtin_inff();
    for (int64_t split = 0; split < u.splits; ++split) {
      const float part = u.factor[split * u.rows + r];
      top = part > top ? part : top;
      u.bad[r] |= u.broken[split * u.rows + r] > 0.0f;
    }
    for (int64_t split = 0; split < u.splits; ++split) {
      float& part = u.factor[split * u.rows + r];
      part = part > -__builtin_inff() ? __builtin_exp2f(part - top) : 0.0f;
    }
    const float total = join_sum(u, r);
    u.inv_sum[r] = 1.0f / total;
    u.lse[r] = top + __builtin_log2f(total) + dot(u.operand + r * pad, u.shift, pad);
    if (!p.has_probe()) continue;
    join_image(u, r, pad, u.kbar + r * pad);
    scale_row(u.kbar + r * pad, u.inv_sum[r], pad);
  }
  if (p.solved())
    begin_solve(p, u);
  else if (p.has_probe())
    begin_given(p, u);
  else
    begin_values(p, u);
}

static void join_iteration(const Problem& p, DecodeUnit& u, Scratch scratch) {
  const int pad = pad_to_lane(p.dim), limit = iteration_limit(p);
  float* image = scratch.take(pad);
  for (int r = 0; r < u.rows; ++r) {
    if (u.settled[r]) continue;
    float *direction = u.operand + r * pad, *residual = u.residual + r * pad;
    const float left = join_sum(u, r);
    join_image(u, r, pad, image);
    for (int d = 0; d < pad; d += kLane) {
      const Vec covariance = (load(image + d) - load(u.kbar + r * pad + d) * left) * u.inv_sum[r];
      store(image + d, covariance + load(direction + d) * u.ridge[r]);
    }
    const float curvature = dot(direction, image, pad), alpha = curvature > 0.0f ? u.rr[r] / curvature : 0.0f;
    axpy(alpha, direction, u.g + r * pad, pad);
    axpy(-alpha, image, residual, pad);
    const float rr = dot(residual, residual, pad), beta = rr / u.rr[r];
    for (int d = 0; d < pad; d += kLane) store(image + d, load(residual + d) + load(direction + d) * beta);
    set_operand(u, pad, r, image);
    u.rr[r] = rr;
    u.settled[r] = u.converged[r] = !(rr > u.goal[r]);
    const int done = ++u.iterations[r];
    u.settled[r] |= done >= limit;
    if (p.solver != Solver::automatic) continue;
    if (done == kTrial) u.settled[r] |= hopeless(u.first_rr[r], rr, u.goal[r], limit);
    if (done == kTrial / 2) u.settled[r] |= hopeless(u.first_rr[r], rr, u.goal[r], 4 * limit);  // by a factor of 2
  }
  choose_phase(p, u);
}

static void join_moments(const Problem& p, DecodeUnit& u, Scratch scratch) {
  const int pad = pad_to_lane(p.dim), r = u.direct_row;
  float* b = scratch.take(pad);
  for (int64_t split = 0; split < u.splits; ++split)
    for (int d = 0; d < p.dim; ++d) {
      float* row = u.second + int64_t(d) * pad;
      const float factor = u.factor[split * u.rows + r];
      if (split == 0)
        scale_row(row, factor, pad);
      else
        axpy(factor, row + split * p.dim * pad, row, pad);
    }
  decode_right_hand_side(p, u, r, b);
  solve_moments(u.second, u.inv_sum[r], u.ridge[r], p.dim, pad, b, u.g + r * pad);
  u.converged[r] = true;
  choose_phase(p, u);
}

// The centred products of the probe with the keys sum to zero under the weights. What rounding made of that sum, the
// same for all keys, is taken out of the output again.
static void join_values(const Problem& p, DecodeUnit& u, const ForwardOut& out, Scratch scratch) {
  const Sequence& s = *u.sequence;
  const int pad = pad_to_lane(p.dim), value_pad = pad_to_lane(p.value_dim);
  const int weighted = p.has_probe() ? 2 * u.rows : u.rows;
  const int64_t stride = int64_t(weighted) * value_pad;
  float *o = scratch.take(value_pad), *average = scratch.take(value_pad);
  const float nan = __builtin_nanf("");
  for (int r = 0; r < u.rows; ++r) {
    for (int64_t split = 0; split < u.splits; ++split) u.bad[r] |= u.broken[split * u.rows + r] > 0.0f;
    join_row(u, u.outputs + int64_t(weighted - u.rows + r) * value_pad, stride, r, value_pad, o);
    if (p.has_probe()) {
      join_row(u, u.outputs + int64_t(r) * value_pad, stride, r, value_pad, average);
      axpy(-u.gate[r] * join_sum(u, r) * u.inv_sum[r], average, o, value_pad);
    }
    scale_row(o, u.bad[r] ? nan : u.inv_sum[r], value_pad);
    const int64_t query = query_of(p, u, r), to = (s.q_batch * out.q_rows + query) * p.heads + head_of(p, u, r);
    store_row(o, p.value_dim, p.q.dtype, out.o, to * p.value_dim);
    if (!p.has_probe()) __builtin_memset(u.kbar + r * pad, 0, size_t(pad) * 4);
    store_row(u.kbar + r * pad, p.dim, DType::f32, out.kbar, to * p.dim);
    if (p.has_probe()) store_row(u.g + r * pad, p.dim, DType::f32, out.g, to * p.dim);
    out.lse[to] = u.bad[r] ? nan : u.lse[r] * kLn2;
    out.residual[to] = 0.0f;
    out.iterations[to] = u.iterations[r];
  }
  u.phase = DecodePhase::done;
}

static void decode_join(const Problem& p, DecodeUnit& u, const ForwardOut& out, float* memory) {
  const Scratch scratch{memory};
  switch (u.phase) {
    case DecodePhase::open: u.phase = DecodePhase::load; break;
    case DecodePhase::load: join_load(p, u); break;
    case DecodePhase::iterate: join_iteration(p, u, scratch); break;
    case DecodePhase::moments: join_moments(p, u, scratch); break;
    case DecodePhase::values: join_values(p, u, out, scratch); break;
    case DecodePhase::done: break;
  }
  u.tasks = u.splits;
}
