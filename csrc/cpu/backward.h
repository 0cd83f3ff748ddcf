// The backward pass of one tile: closed form, one more solve with the same matrix, no second covariance pass.
//
// With e = do v^T centred per row, c = (k - kbar) g, u = (k - kbar) f and f the adjoint of the solve:
//   y  = e (1 + gate c) - u (1 + c),   ds = scale p (y - mean_p y)
//   dq = ds k + f,   dk = ds^T q + (p (gate e - u))^T g - (p (1 + c))^T f,   dv = (p (1 + gate c))^T do
//   dgate = sum p e c,   dridge = -f . g = -sum p c (gate e - u) / ridge
// (f . g from the keys, because the products with g and f are known better than g and f themselves)

static int64_t backward_scratch(const Problem& p, int64_t keys) {
  const int64_t row_arrays = kTileRows * (6 * pad_to_lane(p.dim) + pad_to_lane(p.value_dim)) + 256;
  return rows_scratch(p, keys) + 2 * blocks_of(keys + 2 * kPanel) * kBlockFloats + row_arrays + 2 * kBlockFloats +
         dual_scratch(p) + solve_scratch(p);
}

struct Adjoint {
  Rows rows;
  Dual dual;
  float *d_o, *kbar, *g, *f, *h, *dq;  // [n][pad]
  float *e, *c;                        // like rows.weights: do . v, and k . g
  float *u, *t;                        // scratch blocks
  float e_mean[kTileRows], g_mean[kTileRows], f_mean[kTileRows], y_mean[kTileRows], gate_gradient[kTileRows],
      f_dot_g[kTileRows];
};

FLASHLLA_INLINE float* block_of(const Adjoint& a, float* like_weights, const Block& b) {
  return like_weights + (b.weights - a.rows.weights);
}

static void load_adjoint(const Problem& p, const Tile& tile, const BackwardOut& out, Adjoint& a) {
  const Sequence& s = *tile.sequence;
  Rows& rows = a.rows;
  for (int i = 0; i < rows.n; ++i) {
    const int64_t row = s.q_start + tile.row + i;
    const int64_t at = (s.q_batch * out.q_rows + row) * p.heads + tile.head;
    float *d_o = a.d_o + i * rows.value_pad, *g = a.g + i * rows.dim_pad;
    load_row(out.d_o, out.d_o.offset(s.q_batch, row, tile.head), p.value_dim, rows.value_pad, d_o);
    const Array saved{nullptr, 0, 0, 0, DType::f32};
    Array kbar = saved, probe = saved;
    kbar.data = out.kbar;
    probe.data = out.g;
    load_row(kbar, at * p.dim, p.dim, rows.dim_pad, a.kbar + i * rows.dim_pad);
    if (p.has_probe()) load_row(probe, at * p.dim, p.dim, rows.dim_pad, g);
    rows.bad[i] |= !all_finite(d_o, rows.value_pad);
    if (p.probe.data) {
      float* given = a.f + i * rows.dim_pad;
      load_row(p.probe, p.probe.offset(s.q_batch, row, tile.head), p.dim, rows.dim_pad, given);
      rows.bad[i] |= !all_finite(given, rows.dim_pad);
    }
    if (!rows.bad[i]) continue;
    __builtin_memset(d_o, 0, size_t(rows.value_pad) * 4);
    __builtin_memset(g, 0, size_t(rows.dim_pad) * 4);
    rows.gate[i] = 0.0f;
  }
}

// Weights, and e with its means.
static void weigh_values(const Problem& p, Adjoint& a, const float* top) {
  Rows& rows = a.rows;
  const int n = rows.n;
  Vec sums[kTileRows], e_sums[kTileRows];
  for (int i = 0; i < n; ++i) sums[i] = e_sums[i] = Vec{};
  for_blocks(rows, [&](const Block& b) {
    exponentiate(rows, b, top, sums);
    float* e = block_of(a, a.e, b);
    multiply<Into::set>(n, b.cols, p.value_dim, {a.d_o, rows.value_pad, 1}, b.vt, e, kKeyBlock);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < b.cols; j += kLane)
        e_sums[i] += load(b.weights + i * kKeyBlock + j) * load(e + i * kKeyBlock + j);
  });
  finish_softmax(rows, top, sums);
  for (int i = 0; i < n; ++i) a.e_mean[i] = sum(e_sums[i]) * rows.inv_sum[i];
}

// h = sum_j p_j (e_j - mean e) (k_j - kbar), the gradient of the probe
static void probe_gradient(const Problem& p, Adjoint& a) {
  Rows& rows = a.rows;
  const int n = rows.n, pad = rows.dim_pad;
  Vec sums[kTileRows];
  for (int i = 0; i < n; ++i) sums[i] = Vec{};
  for (int i = 0; i < n * pad; i += kLane) store(a.h + i, Vec{});
  if (!p.has_probe()) return;
  for_blocks(rows, [&](const Block& b) {
    const float* e = block_of(a, a.e, b);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < b.cols; j += kLane) {
        const Vec t = load(b.weights + i * kKeyBlock + j) * (load(e + i * kKeyBlock + j) - a.e_mean[i]);
        sums[i] += t;
        store(a.t + i * kKeyBlock + j, t);
      }
    multiply<Into::add>(n, pad, b.cols, {a.t, kKeyBlock, 1}, b.k, a.h, pad);
  });
  for (int i = 0; i < n; ++i) {
    const float left = sum(sums[i]);
    for (int d = i * pad; d < (i + 1) * pad; d += kLane)
      store(a.h + d, (load(a.h + d) - load(a.kbar + d) * left) * rows.inv_sum[i]);
  }
}

// f = (Cov + ridge I)^-1 gate h, or 0 where the probe is not solved for.
static void solve_adjoint(const Problem& p, Adjoint& a, float* rhs, Scratch scratch) {
  const Rows& rows = a.rows;
  const int pad = rows.dim_pad;
  if (!p.solved()) {
    __builtin_memset(a.f, 0, size_t(rows.n) * pad * 4);
    return;
  }
  for (int i = 0; i < rows.n; ++i)
    for (int d = 0; d < pad; d += kLane)
      store(rhs + i * pad + d, load(a.h + i * pad + d) * (a.dual.row[i] ? 0.0f : rows.gate[i]));
  int32_t iterations[kTileRows];
  solve({&rows, a.kbar, a.t}, rhs, a.f, iterations, scratch);
  if (!a.dual.any) return;
  right_hand_sides(rows, a.dual, a.kbar, true, rhs);
  solve_dual_adjoint(rows, a.dual, rhs, a.kbar, a.e, a.e_mean, a.f, scratch);
}

// One row of a block: e becomes y; c, u, t become what dv, and dk through g and f, are products of.
FLASHLLA_INLINE void combine(const Adjoint& a, const Block& b, int i, float* e_row, float* c_row, Vec& y_sum,
                             Vec& ec_sum, Vec& fg_sum) {
  const Rows& rows = a.rows;
  const float *w = b.weights + i * kKeyBlock, gate = rows.gate[i], inv = rows.inv_sum[i];
  float *u_row = a.u + i * kKeyBlock, *t_row = a.t + i * kKeyBlock;
  for (int j = 0; j < b.cols; j += kLane) {
    const Vec weight = load(w + j) * inv, e = load(e_row + j) - a.e_mean[i];
    const Vec c = load(c_row + j) - a.g_mean[i], u = load(u_row + j) - a.f_mean[i];
    const Vec gated = 1.0f + c * gate, y = e * gated - u * (1.0f + c);
    y_sum += weight * y;
    ec_sum += weight * e * c;
    fg_sum += weight * c * (e * gate - u);
    store(e_row + j, y);
    store(c_row + j, weight * gated);
    store(u_row + j, weight * (e * gate - u));
    store(t_row + j, weight * (1.0f + c));
  }
}

static void accumulate_through_weights(const Problem& p, Adjoint& a, const float* minus_f, float* dk, float* dv) {
  Rows& rows = a.rows;
  const int n = rows.n, pad = rows.dim_pad;
  Vec y_sums[kTileRows], ec_sums[kTileRows], fg_sums[kTileRows];
  for (int i = 0; i < n; ++i) y_sums[i] = ec_sums[i] = fg_sums[i] = Vec{};
  for_blocks(rows, [&](const Block& b) {
    float *e = block_of(a, a.e, b), *c = block_of(a, a.c, b);
    if (p.solved())
      multiply<Into::set>(n, b.cols, p.dim, {a.f, pad, 1}, b.kt, a.u, kKeyBlock);
    else
      __builtin_memset(a.u, 0, sizeof(float) * kBlockFloats);
    for (int i = 0; i < n; ++i) {
      if (a.dual.row[i]) {
        scatter_row(a.dual, b, i, a.dual.c, c + i * kKeyBlock);
        scatter_row(a.dual, b, i, a.dual.u, a.u + i * kKeyBlock);
      }
      combine(a, b, i, e + i * kKeyBlock, c + i * kKeyBlock, y_sums[i], ec_sums[i], fg_sums[i]);
    }
    multiply<Into::add>(b.cols, rows.value_pad, n, {c, 1, kKeyBlock}, {a.d_o, kPanel, rows.value_pad},
                        dv + b.key * rows.value_pad, rows.value_pad);
    if (p.has_probe())
      multiply<Into::add>(b.cols, pad, n, {a.u, 1, kKeyBlock}, {a.g, kPanel, pad}, dk + b.key * pad, pad);
    if (p.solved())
      multiply<Into::add>(b.cols, pad, n, {a.t, 1, kKeyBlock}, {minus_f, kPanel, pad}, dk + b.key * pad, pad);
  });
  for (int i = 0; i < n; ++i) {
    a.y_mean[i] = sum(y_sums[i]);
    a.gate_gradient[i] = sum(ec_sums[i]);
    a.f_dot_g[i] = rows.ridge[i] > 0.0f ? sum(fg_sums[i]) / rows.ridge[i] : 0.0f;
  }
}

static void accumulate_through_logits(const Problem& p, Adjoint& a, const float* scaled_q, float* dk) {
  Rows& rows = a.rows;
  const int n = rows.n, pad = rows.dim_pad;
  for (int i = 0; i < n * pad; i += kLane) store(a.dq + i, Vec{});
  for_blocks(rows, [&](const Block& b) {
    const float* y = block_of(a, a.e, b);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < b.cols; j += kLane)
        store(a.t + i * kKeyBlock + j,
              load(b.weights + i * kKeyBlock + j) * rows.inv_sum[i] * (load(y + i * kKeyBlock + j) - a.y_mean[i]));
    multiply<Into::add>(n, pad, b.cols, {a.t, kKeyBlock, 1}, b.k, a.dq, pad);
    multiply<Into::add>(b.cols, pad, n, {a.t, 1, kKeyBlock}, {scaled_q, kPanel, pad}, dk + b.key * pad, pad);
  });
  for (int i = 0; i < n; ++i)
    for (int d = 0; d < pad; d += kLane)
      store(a.dq + i * pad + d, load(a.dq + i * pad + d) * p.scale + load(a.f + i * pad + d));
}

static void store_adjoint(const Problem& p, const Adjoint& a, const BackwardOut& out, float* dk, float* dv) {
  const Rows& rows = a.rows;
  const Tile& tile = *rows.tile;
  const Sequence& s = *tile.sequence;
  const int pad = rows.dim_pad;
  const float nan = __builtin_nanf("");
  for (int i = 0; i < rows.n; ++i) {
    const int64_t to = (s.q_batch * out.q_rows + s.q_start + tile.row + i) * p.heads + tile.head;
    float *dq = a.dq + i * pad, *h = a.h + i * pad;
    const bool poisoned = rows.bad[i] && !empty(rows, i);
    const float unless_bad = poisoned ? nan : 1.0f;
    if (poisoned) scale_row(dq, nan, pad);
    store_row(dq, p.dim, p.q.dtype, out.dq, to * p.dim);
    if (out.dgate) out.dgate[to] = a.gate_gradient[i] * unless_bad;
    const float f_dot_g = a.dual.row[i] ? a.dual.f_dot_g[i] : a.f_dot_g[i];
    if (out.dridge) out.dridge[to] = -f_dot_g * unless_bad;
    if (out.dprobe) {
      scale_row(h, rows.gate[i] * unless_bad, pad);
      store_row(h, p.dim, p.q.dtype, out.dprobe, to * p.dim);
    }
    if (!poisoned) continue;
    for (int64_t j = rows.lo[i]; j < rows.hi[i]; ++j) {
      scale_row(dk + j * pad, nan, pad);
      scale_row(dv + j * rows.value_pad, nan, rows.value_pad);
    }
  }
}

static void backward_tile(const Problem& p, const Keys& keys, const Tile& tile, const BackwardOut& out, float* dk,
                          float* dv, float* memory) {
  Scratch scratch{memory};
  Adjoint a;
  load_tile(p, keys, tile, scratch, a.rows);
  Rows& rows = a.rows;
  const int pad = rows.dim_pad;
  a.d_o = scratch.take(kTileRows * rows.value_pad);
  a.kbar = scratch.take(kTileRows * pad);
  a.g = scratch.take(kTileRows * pad);
  a.f = scratch.take(kTileRows * pad);
  a.h = scratch.take(kTileRows * pad);
  a.dq = scratch.take(kTileRows * pad);
  float* row_operand = scratch.take(kTileRows * pad);
  a.e = scratch.take(blocks_of(rows.key_end - rows.key_begin) * kBlockFloats);
  a.c = scratch.take(blocks_of(rows.key_end - rows.key_begin) * kBlockFloats);
  a.u = scratch.take(kBlockFloats);
  a.t = scratch.take(kBlockFloats);
  prepare_dual(rows, scratch, a.dual);
  __builtin_memset(a.g, 0, size_t(kTileRows) * pad * 4);
  load_adjoint(p, tile, out, a);

  float top[kTileRows];
  logits(rows, row_operand, top);
  weigh_values(p, a, top);
  probe_gradient(p, a);
  centred_products(rows, a.g, a.kbar, a.c, a.g_mean);
  solve_adjoint(p, a, row_operand, scratch);
  for (int i = 0; i < rows.n; ++i) {
    if (a.dual.row[i]) a.g_mean[i] = 0.0f;
    a.f_mean[i] = a.dual.row[i] ? 0.0f : dot(a.f + i * pad, a.kbar + i * pad, pad);
    for (int d = 0; d < pad; d += kLane) store(row_operand + i * pad + d, -load(a.f + i * pad + d));
  }
  accumulate_through_weights(p, a, row_operand, dk, dv);
  for (int i = 0; i < rows.n; ++i)
    for (int d = 0; d < pad; ++d) row_operand[i * pad + d] = rows.bad[i] ? 0.0f : rows.q[i * pad + d] * p.scale;
  accumulate_through_logits(p, a, row_operand, dk);
  store_adjoint(p, a, out, dk, dv);
}
