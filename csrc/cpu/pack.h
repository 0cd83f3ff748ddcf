// Keys and values of one unit of work as the products want them.

static_assert(kLane <= 64, "padding below assumes small vectors");

FLASHLLA_INLINE void write_panel(const float* row, int dim, int64_t j, float* panels) {
  float* to = panels + (j / kPanel) * int64_t(dim) * kPanel + j % kPanel;
  for (int i = 0; i < dim; ++i) to[int64_t(i) * kPanel] = row[i];
}

// Fills `keys` (allocated by the caller) with rows keys.first .. keys.first + keys.count of a sequence, up to a
// whole number of panels. The shift is the key `shift_at`, entries that are not finite replaced by 0.
static void pack(const Problem& p, const Sequence& s, int kv_head, bool backward, const int64_t shift_at, Keys& keys) {
  const int dim_pad = pad_to_lane(p.dim), value_pad = pad_to_lane(p.value_dim);
  const int64_t padded = (keys.count + kPanel - 1) / kPanel * kPanel;
  load_row(p.k, p.k.offset(s.k_batch, s.k_start + shift_at, kv_head), p.dim, dim_pad, keys.shift);
  for (int i = 0; i < p.dim; ++i)
    if (!(keys.shift[i] - keys.shift[i] == 0.0f)) keys.shift[i] = 0.0f;
  keys.broken_before[0] = 0;
  for (int64_t j = 0; j < padded; ++j) {
    float *k = keys.k + j * dim_pad, *v = keys.v + j * value_pad;
    bool broken = true;
    if (j < keys.count) {
      const int64_t row = s.k_start + keys.first + j;
      load_row(p.k, p.k.offset(s.k_batch, row, kv_head), p.dim, dim_pad, k);
      load_row(p.v, p.v.offset(s.k_batch, row, kv_head), p.value_dim, value_pad, v);
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
