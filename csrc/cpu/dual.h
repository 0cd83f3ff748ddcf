// Rows that see few keys, solved in key space.
//
// Where a row sees no more keys than there are dimensions, its covariance has a null space, and the probe
// (C + ridge I)^-1 (q - kbar) has a part of size |q - kbar| / ridge in it. That part meets no key, so it does
// not count, but in float32 the products k . g have to cancel it, and lose the digits that do count. With
// X = diag(sqrt p) (K - kbar) the same weights come from a system over the keys, whose solution has no such part:
//   M = X X^T + ridge I,   z = M^-1 X b,   t = M^-1 (gate sqrt(p) e)
//   c = z / sqrt p,   g = (b - X^T z) / ridge,   f = X^T t,   u = gate e - ridge t / sqrt p,   f . g = t . z

struct Dual {
  bool row[kTileRows];  // solved in key space
  bool any;
  int64_t begin = 0;  // first key of c and u
  int stride = 0;
  float *c, *u;  // [kTileRows][stride]: (k - kbar) . g and (k - kbar) . f
  float f_dot_g[kTileRows];
};

static int64_t dual_scratch(const Problem& p) {
  if (!p.solved()) return 0;
  const int64_t keys = dual_limit(p) + kPanel, stride = keys + kTileRows;
  return keys * (2 * pad_to_lane(p.dim) + keys + 8) + 2 * kTileRows * stride + 512;
}

static void prepare_dual(const Rows& rows, Scratch& scratch, Dual& dual) {
  const Problem& p = *rows.problem;
  int64_t begin = rows.keys->count, end = 0;
  dual.any = false;
  for (int i = 0; i < rows.n; ++i) {
    const int64_t seen = rows.hi[i] - rows.lo[i];
    dual.row[i] = p.solved() && seen > 0 && seen <= dual_limit(p);
    if (!dual.row[i]) continue;
    dual.any = true;
    begin = rows.lo[i] < begin ? rows.lo[i] : begin;
    end = rows.hi[i] > end ? rows.hi[i] : end;
  }
  if (!dual.any) return;
  dual.begin = begin;
  dual.stride = int(end - begin);
  dual.c = scratch.take(int64_t(kTileRows) * dual.stride);
  dual.u = scratch.take(int64_t(kTileRows) * dual.stride);
}

// out[j] = values of row i over the keys it sees, from an array laid out like rows.weights.
static void gather_row(const Rows& rows, const float* blocks, int i, float* out) {
  for_blocks(rows, [&](const Block& b) {
    const float* row = blocks + (b.weights - rows.weights) + i * kKeyBlock;
    for (int64_t j = b.key; j < b.key + b.cols; ++j)
      if (j >= rows.lo[i] && j < rows.hi[i]) out[j - rows.lo[i]] = row[j - b.key];
  });
}

// A row's system over its n keys.
struct DualRow {
  int n, pad;     // arrays over keys are padded with zeros to pad
  float* x;       // [n][dim_pad]: X
  float* root;    // sqrt p
  float* matrix;  // factor of M, [n][pad]
};

static DualRow factor_dual_row(const Rows& rows, int i, const float* kbar, Scratch& scratch) {
  DualRow s;
  const int dim = rows.problem->dim, dim_pad = rows.dim_pad;
  s.n = int(rows.hi[i] - rows.lo[i]);
  s.pad = pad_to_lane(s.n);
  const int panels = (s.n + kPanel - 1) / kPanel;
  s.x = scratch.take(int64_t(s.n) * dim_pad);
  s.root = scratch.take(s.pad);
  s.matrix = scratch.take(int64_t(s.n) * s.pad);
  float* transposed = scratch.take(int64_t(panels) * kPanel * dim);
  for (int j = 0; j < s.pad; ++j) s.root[j] = 0.0f;
  gather_row(rows, rows.weights, i, s.root);
  for (int j = 0; j < s.n; ++j) s.root[j] = __builtin_sqrtf(s.root[j] * rows.inv_sum[i]);
  __builtin_memset(transposed, 0, size_t(panels) * kPanel * dim * 4);
  for (int j = 0; j < s.n; ++j) {
    const float* k = rows.keys->k + (rows.lo[i] + j) * dim_pad;
    float* x = s.x + int64_t(j) * dim_pad;
    for (int d = 0; d < dim_pad; d += kLane) store(x + d, (load(k + d) - load(kbar + d)) * s.root[j]);
    write_panel(x, dim, j, transposed);
  }
  multiply<Into::set>(s.n, s.pad, dim, {s.x, dim_pad, 1}, {transposed, int64_t(dim) * kPanel, kPanel}, s.matrix, s.pad);
  for (int j = 0; j < s.n; ++j) s.matrix[int64_t(j) * s.pad + j] += rows.ridge[i];
  cholesky(s.matrix, s.n, s.pad, rows.ridge[i]);
  return s;
}

// out = X^T x
static void from_key_space(const Rows& rows, const DualRow& s, const float* x, float* out) {
  for (int d = 0; d < rows.dim_pad; d += kLane) store(out + d, Vec{});
  multiply<Into::add>(1, rows.dim_pad, s.n, {x, 0, 1}, {s.x, kPanel, rows.dim_pad}, out, rows.dim_pad);
}

// x = M^-1 x for an x that is orthogonal to sqrt p, as X b and sqrt(p) e are: M maps sqrt p to ridge sqrt p, so the
// solution is orthogonal as well, and what rounding leaves in that direction would grow by 1 / ridge.
static void solve_orthogonal(DualRow& s, float* x) {
  axpy(-dot(s.root, x, s.pad), s.root, x, s.pad);
  substitute(s.matrix, s.n, s.pad, x);
  axpy(-dot(s.root, x, s.pad), s.root, x, s.pad);
}

// z for the right-hand side b (in key dimensions): X b, solved.
static void solve_probe(const Rows& rows, DualRow& s, const float* b, float* z) {
  for (int j = 0; j < s.n; ++j) z[j] = dot(s.x + int64_t(j) * rows.dim_pad, b, rows.dim_pad);
  for (int j = s.n; j < s.pad; ++j) z[j] = 0.0f;
  solve_orthogonal(s, z);
}

// Quotients by sqrt p; a key whose weight vanishes takes part in nothing.
static void store_products(const Rows& rows, const Dual& dual, const DualRow& s, int i, const float* x, float* out) {
  float* row = out + int64_t(i) * dual.stride;
  for (int j = 0; j < dual.stride; ++j) row[j] = 0.0f;
  for (int j = 0; j < s.n; ++j)
    if (s.root[j] > 0.0f) row[rows.lo[i] - dual.begin + j] = x[j] / s.root[j];
}

// Forward: g and c of the rows in key space; b is q - shift - kbar.
static void solve_dual(const Rows& rows, Dual& dual, const float* b, const float* kbar, float* g, Scratch scratch) {
  const int pad = rows.dim_pad;
  for (int i = 0; i < rows.n; ++i) {
    if (!dual.row[i]) continue;
    Scratch local = scratch;
    DualRow s = factor_dual_row(rows, i, kbar + i * pad, local);
    float *z = local.take(s.pad), *gi = g + i * pad;
    solve_probe(rows, s, b + i * pad, z);
    from_key_space(rows, s, z, gi);
    const float inv = 1.0f / rows.ridge[i];
    for (int d = 0; d < pad; d += kLane) store(gi + d, (load(b + i * pad + d) - load(gi + d)) * inv);
    store_products(rows, dual, s, i, z, dual.c);
  }
}

// Backward: f, c, u and f . g. e is laid out like the weights; its mean is not yet subtracted.
static void solve_dual_adjoint(const Rows& rows, Dual& dual, const float* b, const float* kbar, const float* e,
                               const float* e_mean, float* f, Scratch scratch) {
  const int pad = rows.dim_pad;
  for (int i = 0; i < rows.n; ++i) {
    if (!dual.row[i]) continue;
    Scratch local = scratch;
    DualRow s = factor_dual_row(rows, i, kbar + i * pad, local);
    float *z = local.take(s.pad), *t = local.take(s.pad), *y = local.take(s.pad);
    solve_probe(rows, s, b + i * pad, z);
    for (int j = 0; j < s.pad; ++j) y[j] = 0.0f;
    gather_row(rows, e, i, y);
    for (int j = 0; j < s.pad; ++j) t[j] = y[j] = rows.gate[i] * s.root[j] * (y[j] - e_mean[i]);
    solve_orthogonal(s, t);
    from_key_space(rows, s, t, f + i * pad);
    dual.f_dot_g[i] = dot(t, z, s.pad);
    for (int j = 0; j < s.pad; ++j) y[j] -= rows.ridge[i] * t[j];
    store_products(rows, dual, s, i, z, dual.c);
    store_products(rows, dual, s, i, y, dual.u);
  }
}

// The part of a row of dual.c or dual.u that lies in a block, in place of products with g or f.
FLASHLLA_INLINE void scatter_row(const Dual& dual, const Block& b, int i, const float* values, float* row) {
  const float* from = values + int64_t(i) * dual.stride;
  for (int64_t j = b.key; j < b.key + b.cols; ++j) {
    const int64_t at = j - dual.begin;
    row[j - b.key] = at >= 0 && at < dual.stride ? from[at] : 0.0f;
  }
}
