// C[m, n] = sum_k A[m, k] B[k, n] on small blocks: the only place where the arithmetic is done.
//
// A is read an element at a time and may have any strides (so that it can be a transpose); B is read in
// panels of kPanel columns: element (k, n) of panel p lies at p * panel_stride + k * row_stride + n. That
// covers keys stored row by row (panel_stride = kPanel) and keys transposed into panels.

enum class Into { set, add, times };  // C = AB, C += AB, C = (AB - offset of the row) * W elementwise

struct Left {
  const float* data;
  int64_t m_stride, k_stride;
};
struct Right {
  const float* data;
  int64_t panel_stride, row_stride;
};

constexpr int kMicroRows = 6;

template <int rows, int vectors, Into into>
FLASHLLA_INLINE void micro(int depth, const float* a, int64_t am, int64_t ak, const float* b, int64_t bk, float* c,
                           int64_t ldc, const float* w, const float* offset) {
  Vec acc[rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) acc[i][j] = Vec{};
  for (int k = 0; k < depth; ++k) {
    Vec right[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) right[j] = load(b + j * kLane);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const Vec left = splat(a[i * am]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) acc[i][j] += left * right[j];
    }
    a += ak;
    b += bk;
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      float* at = c + i * ldc + j * kLane;
      if (into == Into::add) acc[i][j] += load(at);
      if (into == Into::times) acc[i][j] = (acc[i][j] - offset[i]) * load(w + i * ldc + j * kLane);
      store(at, acc[i][j]);
    }
}

template <int vectors, Into into>
static void strip(int rows, int depth, Left a, const float* b, int64_t bk, float* c, int64_t ldc, const float* w,
                  const float* offset, const bool* skip) {
  int m = 0;
#define FLASHLLA_ROWS(count)                                                                                      \
  for (; m + (count) <= rows; m += (count)) {                                                                     \
    if (skip && skip[m / kMicroRows]) continue;                                                                   \
    micro<count, vectors, into>(depth, a.data + m * a.m_stride, a.m_stride, a.k_stride, b, bk, c + m * ldc, ldc,  \
                                w + (into == Into::times ? m * ldc : 0), offset + (into == Into::times ? m : 0)); \
  }
  FLASHLLA_ROWS(6)
  FLASHLLA_ROWS(4)
  FLASHLLA_ROWS(2)
  FLASHLLA_ROWS(1)
#undef FLASHLLA_ROWS
}

// cols must be a multiple of kLane. w, with the layout of c, and offset, one a row, are read by Into::times only.
// Groups of kMicroRows rows whose entry in skip is set are left alone.
template <Into into>
static void multiply(int rows, int cols, int depth, Left a, Right b, float* c, int64_t ldc, const float* w = nullptr,
                     const float* offset = nullptr, const bool* skip = nullptr) {
  for (int n = 0; n < cols; n += kPanel) {
    const float* panel = b.data + (n / kPanel) * b.panel_stride;
    const int left = cols - n;
    int done = 0;
#define FLASHLLA_COLS(vectors)                                                                              \
  for (; left - done >= (vectors) * kLane && done + (vectors) * kLane <= kPanel; done += (vectors) * kLane) \
    strip<vectors, into>(rows, depth, a, panel + done, b.row_stride, c + n + done, ldc,                     \
                         into == Into::times ? w + n + done : nullptr, offset, skip);
    FLASHLLA_COLS(kPanelVectors)
    if (kPanelVectors > 2) FLASHLLA_COLS(2)
    FLASHLLA_COLS(1)
#undef FLASHLLA_COLS
  }
}
