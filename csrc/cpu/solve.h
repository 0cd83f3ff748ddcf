// (Cov_i + ridge_i I) x_i = b_i for the rows of a tile: conjugate gradients on the weights, and a direct solver for
// rows that converge slowly. Rows are independent: each stops at its own residual, so that no result depends
// on which rows share a tile.

// The choice of Solver::automatic. Forming a covariance costs about as much as kDirectCost * dim iterations; a row
// goes direct when its first kTrial iterations promise that it would need more.
constexpr float kDirectCost = 0.4f;
constexpr int kTrial = 8, kDirectBelow = 16;  // head dimensions up to this one go direct at once

struct System {
  const Rows* rows;
  const float* kbar;  // [n][dim_pad], of the shifted keys
  float* block;       // kBlockFloats of scratch
};

// out = (Cov + ridge I) x for all rows that are not skipped, as sum_j t_j (k_j - kbar) + ridge x with
// t_j = p_j (k_j - kbar) . x: centred before it is weighted and again after, so that little cancels when the weights
// sit on few keys far from the shift.
static void apply(const System& system, const float* x, float* out, const bool* skip) {
  const Rows& rows = *system.rows;
  const int n = rows.n, pad = rows.dim_pad;
  float mean[kTileRows];
  Vec sums[kTileRows];
  for (int i = 0; i < n; ++i) {
    mean[i] = dot(system.kbar + i * pad, x + i * pad, pad);
    sums[i] = Vec{};
  }
  for (int i = 0; i < n * pad; i += kLane) store(out + i, Vec{});
  for_blocks(rows, [&](const Block& b) {
    multiply<Into::times>(n, b.cols, rows.problem->dim, {x, pad, 1}, b.kt, system.block, kKeyBlock, b.weights, mean,
                          skip);
    multiply<Into::add>(n, pad, b.cols, {system.block, kKeyBlock, 1}, b.k, out, pad, nullptr, nullptr, skip);
    for (int i = 0; i < n; ++i) {
      if (skip && skip[i / kMicroRows]) continue;
      for (int j = 0; j < b.cols; j += kLane) sums[i] += load(system.block + i * kKeyBlock + j);
    }
  });
  for (int i = 0; i < n; ++i) {
    if (skip && skip[i / kMicroRows]) continue;
    const float *kbar = system.kbar + i * pad, *xi = x + i * pad;
    float* oi = out + i * pad;
    const float left = sum(sums[i]), inv = rows.inv_sum[i], ridge = rows.ridge[i];
    for (int d = 0; d < pad; d += kLane)
      store(oi + d, (load(oi + d) - load(kbar + d) * left) * inv + load(xi + d) * ridge);
  }
}

// Whether a row whose squared residual fell from `first` to `now` in kTrial iterations needs more than `limit`.
FLASHLLA_INLINE bool hopeless(float first, float now, float goal, int limit) {
  const float gained = __builtin_log2f(first / now), wanted = __builtin_log2f(first / goal);
  return !(gained * float(limit) > wanted * float(kTrial));
}

// Starts from x = 0; converged[i] tells whether row i reached its tolerance. A row stops after `limit` iterations,
// or, where `may_give_up`, when it is hopeless.
static void conjugate_gradients(const System& system, const float* b, float rtol, int limit, bool may_give_up, float* x,
                                int32_t* iterations, bool* converged, Scratch scratch) {
  const Rows& rows = *system.rows;
  const int n = rows.n, pad = rows.dim_pad;
  float *r = scratch.take(n * pad), *direction = scratch.take(n * pad), *image = scratch.take(n * pad);
  float rr[kTileRows], goal[kTileRows], first[kTileRows];
  bool skip[kTileRows / kMicroRows + 1], done[kTileRows];
  for (int i = 0; i < n * pad; i += kLane) {
    store(x + i, Vec{});
    store(r + i, load(b + i));
    store(direction + i, load(b + i));
  }
  for (int i = 0; i < n; ++i) {
    rr[i] = first[i] = dot(b + i * pad, b + i * pad, pad);
    goal[i] = rr[i] * rtol * rtol;
    iterations[i] = 0;
    done[i] = converged[i] = !(rr[i] > goal[i]);
  }
  for (int iteration = 0; iteration < limit; ++iteration) {
    bool all = true;
    for (int group = 0; group <= n / kMicroRows; ++group) {
      skip[group] = true;
      for (int i = group * kMicroRows; i < (group + 1) * kMicroRows && i < n; ++i) skip[group] = skip[group] && done[i];
      all = all && skip[group];
    }
    if (all) return;
    apply(system, direction, image, skip);
    for (int i = 0; i < n; ++i) {
      if (done[i]) continue;
      float *xi = x + i * pad, *ri = r + i * pad, *di = direction + i * pad;
      const float* im = image + i * pad;
      const float curvature = dot(di, im, pad);
      const float alpha = curvature > 0.0f ? rr[i] / curvature : 0.0f;
      axpy(alpha, di, xi, pad);
      axpy(-alpha, im, ri, pad);
      const float rr_new = dot(ri, ri, pad), beta = rr_new / rr[i];
      for (int d = 0; d < pad; d += kLane) store(di + d, load(ri + d) + load(di + d) * beta);
      rr[i] = rr_new;
      ++iterations[i];
      done[i] = converged[i] = !(rr_new > goal[i]);
      if (may_give_up && iteration + 1 == kTrial) done[i] |= hopeless(first[i], rr_new, goal[i], limit);
    }
  }
}

// ---- direct ------------------------------------------------------------------------------------------

// Upper triangle (in squares of kLane) of matrix += sum_j a_j k_j k_j^T over `depth` keys; scaled holds a_j k_j.
static void add_outer_products(const float* scaled, const float* k, int depth, int dim, int pad, float* matrix) {
  constexpr int step = 2 * kLane;
  const auto add = [&](int from, int to, int col, int cols) {
    to = to < dim ? to : dim;
    if (from < to)
      multiply<Into::add>(to - from, cols, depth, {scaled + from, 1, pad}, {k + col, kPanel, pad},
                          matrix + int64_t(from) * pad + col, pad);
  };
  for (int col = 0; col < pad; col += step) {
    const int cols = pad - col < step ? kLane : step;
    add(0, col + kLane, col, cols);
    if (cols == step) add(col + kLane, col + step, col + kLane, kLane);
  }
}

// row -= sum over the `count` pivots above it of their entry at `column` times themselves, from that column on.
template <int count>
FLASHLLA_INLINE void eliminate(const float* pivots, float* row, int column, int pad) {
  float factor[count];
#pragma GCC unroll 4
  for (int n = 0; n < count; ++n) factor[n] = pivots[int64_t(n) * pad + column];
  for (int d = column / kLane * kLane; d < pad; d += kLane) {
    Vec x = load(row + d);
#pragma GCC unroll 4
    for (int n = 0; n < count; ++n) x -= factor[n] * load(pivots + int64_t(n) * pad + d);
    store(row + d, x);
  }
}

// In place: upper triangle -> factor U with U^T U = matrix; the diagonal holds reciprocals, which is all that the
// substitutions need. Every pivot is at least the ridge in exact arithmetic. Four pivots at a time, so that the rows
// below are loaded and stored a quarter as often.
static void cholesky(float* matrix, int dim, int pad, float ridge) {
  constexpr int step = 4;
  for (int first = 0; first < dim; first += step) {
    float* pivots = matrix + int64_t(first) * pad;
    const int count = dim - first < step ? dim - first : step;
    for (int n = 0; n < count; ++n) {
      float* row = pivots + int64_t(n) * pad;
      const int j = first + n;
      for (int m = 0; m < n; ++m) eliminate<1>(pivots + int64_t(m) * pad, row, j, pad);
      const float pivot = row[j] > ridge ? row[j] : ridge;
      const float inv = 1.0f / __builtin_sqrtf(pivot);
      scale_row(row + j / kLane * kLane, inv, pad - j / kLane * kLane);
      row[j] = inv;
    }
    for (int i = first + step; i < dim; ++i) eliminate<step>(pivots, matrix + int64_t(i) * pad, i, pad);
  }
}

// Solves U^T U x = x in place, U as cholesky leaves it.
static void substitute(float* u, int dim, int pad, float* x) {
  for (int j = 0; j < dim; ++j) {
    float* row = u + int64_t(j) * pad;
    x[j] *= row[j];
    for (int d = j + 1; d < dim; ++d) x[d] -= x[j] * row[d];
  }
  for (int j = dim - 1; j >= 0; --j) {
    const float* row = u + int64_t(j) * pad;
    float rest = 0.0f;
    for (int d = j + 1; d < dim; ++d) rest += row[d] * x[d];
    x[j] = (x[j] - rest) * row[j];
  }
}

// matrix (centred second moments, upper, weights not normalised) to covariance plus ridge, and the solution for b.
static void solve_moments(float* matrix, float inv_sum, float ridge, int dim, int pad, const float* b, float* x) {
  for (int m = 0; m < dim; ++m) {
    float* row = matrix + int64_t(m) * pad;
    scale_row(row + m / kLane * kLane, inv_sum, pad - m / kLane * kLane);
    row[m] += ridge;
  }
  cholesky(matrix, dim, pad, ridge);
  for (int d = 0; d < pad; ++d) x[d] = b[d];
  substitute(matrix, dim, pad, x);
}

// Rows of `to`: keys less `centre`; of `scaled`: the same times their weights.
FLASHLLA_INLINE void centre_keys(const float* k, const float* centre, const float* weights, int count, int pad,
                                 float* to, float* scaled) {
  for (int j = 0; j < count; ++j)
    for (int d = 0; d < pad; d += kLane) {
      const Vec x = load(k + j * pad + d) - load(centre + d);
      store(to + j * pad + d, x);
      store(scaled + j * pad + d, x * weights[j]);
    }
}

static void direct(const System& system, const float* b, const bool* done, float* x, Scratch scratch) {
  const Rows& rows = *system.rows;
  const int dim = rows.problem->dim, pad = rows.dim_pad;
  float* matrix = scratch.take(int64_t(dim) * pad);
  constexpr int depth = 48;
  float *centred = scratch.take(depth * pad), *scaled = scratch.take(depth * pad);
  for (int i = 0; i < rows.n; ++i) {
    if (done[i]) continue;
    for (int64_t m = 0; m < int64_t(dim) * pad; m += kLane) store(matrix + m, Vec{});
    for_blocks(rows, [&](const Block& block) {
      for (int start = 0; start < block.cols; start += depth) {
        const int count = block.cols - start < depth ? block.cols - start : depth;
        centre_keys(block.k.data + int64_t(start) * pad, system.kbar + i * pad, block.weights + i * kKeyBlock + start,
                    count, pad, centred, scaled);
        add_outer_products(scaled, centred, count, dim, pad, matrix);
      }
    });
    solve_moments(matrix, rows.inv_sum[i], rows.ridge[i], dim, pad, b + i * pad, x + i * pad);
  }
}

// ---- the choice ----------------------------------------------------------------------------------------

static int iteration_limit(const Problem& p) {
  if (p.solver == Solver::cg) return p.max_iters;
  if (p.solver == Solver::direct || p.dim <= kDirectBelow) return 0;
  const int worth = int(kDirectCost * float(p.dim)) > kTrial ? int(kDirectCost * float(p.dim)) : kTrial;
  return worth < p.max_iters ? worth : p.max_iters;
}

static int64_t solve_scratch(const Problem& p) {
  const int64_t pad = pad_to_lane(p.dim);
  const int64_t cg = 3 * (kTileRows * pad + 16), explicit_ = int64_t(p.dim) * pad + 2 * 48 * pad + 64;
  return cg > explicit_ ? cg : explicit_;
}

// Rows whose b is 0 get x = 0 and cost nothing.
static void solve(const System& system, const float* b, float* x, int32_t* iterations, Scratch scratch) {
  const Problem& p = *system.rows->problem;
  bool converged[kTileRows];
  conjugate_gradients(system, b, p.rtol, iteration_limit(p), p.solver == Solver::automatic, x, iterations, converged,
                      scratch);
  if (p.solver != Solver::cg) direct(system, b, converged, x, scratch);
}
