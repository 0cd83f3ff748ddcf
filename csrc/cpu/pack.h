// Keys and values of one unit of work as the products want them.

static_assert(kLane <= 64, "padding below assumes small vectors");

FLASHLLA_INLINE void write_panel(const float* row, int dim, int64_t j, float* panels) {
  float* to = panels + (j / kPanel) * int64_t(dim) * kPanel + j % kPanel;
  for (int i = 0; i < dim; ++i) to[int64_t(i) * kPanel] = row[i];
}

// A key amid those from `begin` to `end`: the mean of the last kShiftKeys of them, entries that are not finite
// counted as 0. Moments of keys shifted by it lose few digits to cancellation.
constexpr int64_t kShiftKeys = 256;

static void mean_key(const Problem& p, const Sequence& s, int kv_head, int64_t begin, int64_t end, float* shift) {
  const int dim_pad = pad_to_lane(p.dim);
  float row[256 + 64];
  begin = end - begin > kShiftKeys ? end - kShiftKeys : begin;
  for (int i = 0; i < dim_pad; i += kLane) store(shift + i, Vec{});
  for (int64_t j = begin; j < end; ++j) {
    load_row(p.k, key_offset(p, p.k, s, j, kv_head), p.dim, dim_pad, row);
    if (all_finite(row, dim_pad)) axpy(1.0f / float(end - begin), row, shift, dim_pad);
  }
}

// Fills `keys` (allocated by the caller) with rows keys.first .. keys.first + keys.count of a sequence, up to a
// whole number of panels, shifted by the mean of the keys `common`, which every row of the unit sees.
static void pack(const Problem& p, const Sequence& s, int kv_head, bool backward, Range common, Keys& keys) {
  const int dim_pad = pad_to_lane(p.dim), value_pad = pad_to_lane(p.value_dim);
  const int64_t padded = (keys.count + kPanel - 1) / kPanel * kPanel;
  mean_key(p, s, kv_head, common.lo, common.hi, keys.shift);
  keys.broken_before[0] = 0;
  for (int64_t j = 0; j < padded; ++j) {
    float *k = keys.k + j * dim_pad, *v = keys.v + j * value_pad;
    bool broken = true;
    if (j < keys.count) {
      load_row(p.k, key_offset(p, p.k, s, keys.first + j, kv_head), p.dim, dim_pad, k);
      load_row(p.v, key_offset(p, p.v, s, keys.first + j, kv_head), p.value_dim, value_pad, v);
      broken = !(all_finite(k, dim_pad) && all_finite(v, value_pad));
      keys.broken_before[j + 1] = keys.broken_before[j] + broken;
      for (int i = 0; i < dim_pad; ++i) k[i] -= keys.shift[i];
    }
    if (broken) {
      for (int i = 0; i < dim_pad; ++i) k[i] = 0.0f;
      for (int i = 0; i < value_pad; ++i) v[i] = 0.0f;
    }
    write_panel(k, p.dim, j, keys.kt);
    if (backward) write_panel(v, p.value_dim, j, keys.vt);
  }
}

static void store_sum(const float* parts, int n_parts, int64_t part_stride, int64_t rows, int dim, int pad, DType dtype,
                      void* out, int64_t row_stride) {
  float total[256 + 64];
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = parts + r * pad;
    for (int i = 0; i < pad; i += kLane) store(total + i, load(row + i));
    for (int n = 1; n < n_parts; ++n) axpy(1.0f, row + n * part_stride, total, pad);
    store_row(total, dim, dtype, out, r * row_stride);
  }
}
