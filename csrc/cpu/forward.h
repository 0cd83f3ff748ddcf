// The forward pass of one tile: logits, moments, solve, apply.

static int64_t forward_scratch(const Problem& p, int64_t keys) {
  const int64_t row_arrays = kTileRows * (5 * pad_to_lane(p.dim) + pad_to_lane(p.value_dim)) + 128;
  const int64_t products = p.has_probe() ? blocks_of(keys + 2 * kPanel) * kBlockFloats : 0;
  return rows_scratch(p, keys) + row_arrays + products + kBlockFloats + dual_scratch(p) + solve_scratch(p);
}

// Products (k_j - kbar) . x of all rows, laid out like the weights, and their means under the weights. These are 0 up
// to rounding; subtracting them makes the weights of a row sum to 1 for any x.
static void centred_products(const Rows& rows, const float* x, const float* kbar, float* products, float* mean) {
  const int pad = rows.dim_pad;
  float offset[kTileRows];
  Vec sums[kTileRows];
  for (int i = 0; i < rows.n; ++i) {
    offset[i] = dot(x + i * pad, kbar + i * pad, pad);
    sums[i] = Vec{};
  }
  for_blocks(rows, [&](const Block& b) {
    float* to = products + (b.weights - rows.weights);
    multiply<Into::set>(rows.n, b.cols, rows.problem->dim, {x, pad, 1}, b.kt, to, kKeyBlock);
    for (int i = 0; i < rows.n; ++i)
      for (int j = 0; j < b.cols; j += kLane) {
        const Vec c = load(to + i * kKeyBlock + j) - offset[i];
        store(to + i * kKeyBlock + j, c);
        sums[i] += load(b.weights + i * kKeyBlock + j) * c;
      }
  });
  for (int i = 0; i < rows.n; ++i) mean[i] = sum(sums[i]) * rows.inv_sum[i];
}

// products = weight * (1 + gate c) in place of the centred products c
FLASHLLA_INLINE void gated_weights(const Rows& rows, const Dual& dual, const Block& b, const float* mean,
                                   float* products) {
  for (int i = 0; i < rows.n; ++i) {
    const float *w = b.weights + i * kKeyBlock, gate = rows.gate[i];
    float* row = products + i * kKeyBlock;
    if (dual.row[i]) scatter_row(dual, b, i, dual.c, row);
    const float shift = dual.row[i] ? 0.0f : mean[i];
    for (int j = 0; j < b.cols; j += kLane) store(row + j, load(w + j) * (1.0f + (load(row + j) - shift) * gate));
  }
}

// q - kbar in the frame of the shifted keys; 0 for rows with nothing to solve, and for those in key space unless
// these are wanted.
static void right_hand_sides(const Rows& rows, const Dual& dual, const float* kbar, bool with_dual, float* b) {
  for (int i = 0; i < rows.n; ++i) {
    const bool nothing = rows.bad[i] || empty(rows, i) || (dual.row[i] && !with_dual);
    for (int d = 0; d < rows.dim_pad; ++d) {
      const int at = i * rows.dim_pad + d;
      b[at] = nothing ? 0.0f : rows.q[at] - rows.keys->shift[d] - kbar[at];
    }
  }
}

static void relative_residual(const System& system, const float* b, const float* g, float* image, float* residual) {
  const Rows& rows = *system.rows;
  const int pad = rows.dim_pad;
  apply(system, g, image, nullptr);
  for (int i = 0; i < rows.n; ++i) {
    const float* bi = b + i * pad;
    float* ri = image + i * pad;
    axpy(-1.0f, bi, ri, pad);
    const float norm = dot(bi, bi, pad);
    residual[i] = norm > 0.0f ? __builtin_sqrtf(dot(ri, ri, pad) / norm) : 0.0f;
  }
}

static void forward_tile(const Problem& p, const Keys& keys, const Tile& tile, const ForwardOut& out, float* memory) {
  Scratch scratch{memory};
  Rows rows;
  load_tile(p, keys, tile, scratch, rows);
  const int n = rows.n, pad = rows.dim_pad;
  const Sequence& s = *tile.sequence;
  float *kbar = scratch.take(kTileRows * pad), *b = scratch.take(kTileRows * pad), *g = scratch.take(kTileRows * pad);
  float *image = scratch.take(kTileRows * pad), *o = scratch.take(kTileRows * rows.value_pad);
  float* block = scratch.take(kBlockFloats);
  float* products = p.has_probe() ? scratch.take(blocks_of(rows.key_end - rows.key_begin) * kBlockFloats) : nullptr;
  Dual dual;
  prepare_dual(rows, scratch, dual);

  float top[kTileRows], residual[kTileRows], mean[kTileRows];
  int32_t iterations[kTileRows];
  Vec sums[kTileRows];
  logits(rows, b, top);  // b holds the scaled queries until they are no longer needed
  for (int i = 0; i < n; ++i) sums[i] = Vec{};
  for (int i = 0; i < n * pad; i += kLane) store(kbar + i, Vec{});
  for_blocks(rows, [&](const Block& at) {
    exponentiate(rows, at, top, sums);
    if (p.has_probe()) multiply<Into::add>(n, pad, at.cols, {at.weights, kKeyBlock, 1}, at.k, kbar, pad);
  });
  finish_softmax(rows, top, sums);
  for (int i = 0; i < n; ++i) {
    residual[i] = 0.0f;
    iterations[i] = 0;
    scale_row(kbar + i * pad, rows.inv_sum[i], pad);
  }

  if (p.solved()) {
    const System system{&rows, kbar, block};
    right_hand_sides(rows, dual, kbar, false, b);
    solve(system, b, g, iterations, scratch);
    if (dual.any || p.stats) right_hand_sides(rows, dual, kbar, true, b);
    if (dual.any) solve_dual(rows, dual, b, kbar, g, scratch);
    if (p.stats) relative_residual(system, b, g, image, residual);
  } else if (p.has_probe()) {
    for (int i = 0; i < n; ++i) {
      const int64_t row = s.q_start + tile.row + i;
      load_row(p.probe, p.probe.offset(s.q_batch, row, tile.head), p.dim, pad, g + i * pad);
      rows.bad[i] |= !all_finite(g + i * pad, pad);
      if (rows.bad[i]) __builtin_memset(g + i * pad, 0, size_t(pad) * 4);
    }
  }

  if (p.has_probe()) centred_products(rows, g, kbar, products, mean);
  for (int i = 0; i < n * rows.value_pad; i += kLane) store(o + i, Vec{});
  for_blocks(rows, [&](const Block& at) {
    float* weights = at.weights;
    if (p.has_probe()) {
      weights = products + (at.weights - rows.weights);
      gated_weights(rows, dual, at, mean, weights);
    }
    multiply<Into::add>(n, rows.value_pad, at.cols, {weights, kKeyBlock, 1}, at.v, o, rows.value_pad);
  });

  const float nan = __builtin_nanf("");
  for (int i = 0; i < n; ++i) {
    const int64_t to = (s.q_batch * out.q_rows + s.q_start + tile.row + i) * p.heads + tile.head;
    scale_row(o + i * rows.value_pad, rows.bad[i] && !empty(rows, i) ? nan : rows.inv_sum[i], rows.value_pad);
    store_row(o + i * rows.value_pad, p.value_dim, p.q.dtype, out.o, to * p.value_dim);
    const float offset = p.scale * dot(rows.q + i * pad, keys.shift, pad);
    out.lse[to] = empty(rows, i) ? -__builtin_inff() : rows.bad[i] ? nan : rows.lse[i] * kLn2 + offset;
    out.residual[to] = residual[i];
    out.iterations[to] = iterations[i];
    store_row(kbar + i * pad, p.dim, DType::f32, out.kbar, to * p.dim);
    if (p.has_probe()) store_row(g + i * pad, p.dim, DType::f32, out.g, to * p.dim);
  }
}
