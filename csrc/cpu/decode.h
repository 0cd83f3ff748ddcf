// Decoding: one query row a sequence. The cache is split over its length; each split yields a softmax state and
// the moments of its keys, states merge exactly, the small system is solved once, and a second sweep applies
// the weights to the values.

constexpr int kDecodeBlock = 48;

static int64_t decode_scratch(const Problem& p) {
  const int64_t pad = pad_to_lane(p.dim), value_pad = pad_to_lane(p.value_dim);
  return (kDecodeBlock + 1) * (3 * pad + value_pad) + (p.group() + 2) * pad + 256;
}

// Asks for the row that the next block reads at this place: rows of a cache lie further apart than hardware
// prefetchers look. Rows behind the end are only asked for, never read.
FLASHLLA_INLINE void prefetch_row(const Array& a, int64_t offset, int dim) {
  const int64_t width = a.dtype == DType::f32 ? 4 : 2;
  const char* row = static_cast<const char*>(a.data) + (offset + kDecodeBlock * a.row_stride) * width;
  for (int64_t byte = 0; byte < dim * width; byte += 64) __builtin_prefetch(row + byte);
}

// Keys j .. j + count of a split in float32, shifted.
static void load_keys(const Problem& p, const DecodeSplit& split, const float* shift, int64_t j, int count, float* k) {
  const Sequence& s = *split.sequence;
  const int pad = pad_to_lane(p.dim);
  for (int r = 0; r < count; ++r) {
    float* row = k + r * pad;
    const int64_t offset = p.k.offset(s.k_batch, s.k_start + j + r, split.kv_head);
    prefetch_row(p.k, offset, p.dim);
    load_row(p.k, offset, p.dim, pad, row);
    for (int d = 0; d < pad; d += kLane) store(row + d, load(row + d) - load(shift + d));
  }
}

// Scales a state so that its weights are relative to `top`.
static void rebase(const Problem& p, DecodeState& state, float top) {
  const float factor = state.sum > 0.0f ? __builtin_exp2f(state.max - top) : 0.0f;
  const int pad = pad_to_lane(p.dim);
  state.max = top;
  state.sum *= factor;
  if (p.solved())
    for (int d = 0; d < p.dim; ++d) scale_row(state.second + int64_t(d) * pad, factor, pad);
}

// Moves the mean of a state to that of its union with keys of weight `sum` and mean `mean`. The second moments
// grow by what the two means differ: coefficient * step step^T, left to the caller. Nothing uncentred is ever
// summed, so nothing cancels.
static float join_means(DecodeState& state, float sum, const float* mean, int pad, float* step) {
  const float total = state.sum + sum, share = total > 0.0f ? sum / total : 0.0f;
  for (int d = 0; d < pad; d += kLane) {
    store(step + d, load(mean + d) - load(state.mean + d));
    store(state.mean + d, load(state.mean + d) + load(step + d) * share);
  }
  const float coefficient = state.sum * share;
  state.sum = total;
  return coefficient;
}

// Adds `count` keys with their weights, relative to state.max. centred and scaled hold one row more than a block.
static void add_block(const Problem& p, DecodeState& state, const float* k, const float* weights, int count, float* mean,
                      float* centred, float* scaled) {
  const int pad = pad_to_lane(p.dim);
  float sum = 0.0f;
  for (int r = 0; r < count; ++r) sum += weights[r];
  if (!p.has_probe()) {
    state.sum += sum;
    return;
  }
  for (int d = 0; d < pad; d += kLane) store(mean + d, Vec{});
  multiply<Into::add>(1, pad, count, {weights, 0, 1}, {k, kPanel, pad}, mean, pad);
  scale_row(mean, sum > 0.0f ? 1.0f / sum : 0.0f, pad);
  float* step = centred + count * pad;
  const float coefficient = join_means(state, sum, mean, pad, step);
  if (!p.solved()) return;
  centre_keys(k, mean, weights, count, pad, centred, scaled);
  for (int d = 0; d < pad; d += kLane) store(scaled + count * pad + d, load(step + d) * coefficient);
  add_outer_products(scaled, centred, count + 1, p.dim, pad, state.second);
}

static void decode_moments(const Problem& p, const DecodeSplit& split, const float* shift, float* logits,
                           int64_t logits_stride, DecodeState* states, float* memory) {
  Scratch scratch{memory};
  const Sequence& s = *split.sequence;
  const int pad = pad_to_lane(p.dim), group = p.group();
  float *k = scratch.take(kDecodeBlock * pad), *q = scratch.take(group * pad), *mean = scratch.take(pad);
  float *centred = scratch.take((kDecodeBlock + 1) * pad), *scaled = scratch.take((kDecodeBlock + 1) * pad);
  float weights[kDecodeBlock] = {};
  for (int h = 0; h < group; ++h) {
    load_row(p.q, p.q.offset(s.q_batch, s.q_start, split.kv_head * group + h), p.dim, pad, q + h * pad);
    scale_row(q + h * pad, p.scale * kLog2E, pad);
    states[h].max = -__builtin_inff();
    states[h].sum = 0.0f;
    __builtin_memset(states[h].mean, 0, size_t(pad) * 4);
    if (p.solved()) __builtin_memset(states[h].second, 0, size_t(p.dim) * pad * 4);
  }
  for (int64_t j = split.begin; j < split.end; j += kDecodeBlock) {
    const int count = int(split.end - j < kDecodeBlock ? split.end - j : kDecodeBlock);
    load_keys(p, split, shift, j, count, k);
    if (!all_finite(k, count * pad))  // exp2 would hide it
      for (int h = 0; h < group; ++h) states[h].sum = __builtin_nanf("");
    for (int h = 0; h < group; ++h) {
      float* row = logits + h * logits_stride + (j - split.begin);
      float top = states[h].max;
      for (int r = 0; r < count; ++r) {
        row[r] = dot(k + r * pad, q + h * pad, pad);
        top = row[r] > top ? row[r] : top;
      }
      if (top > states[h].max) rebase(p, states[h], top);
      for (int r = 0; r < count; ++r) weights[r] = row[r] - top;
      for (int r = 0; r < kDecodeBlock; r += kLane) store(weights + r, exp2(load(weights + r)));
      add_block(p, states[h], k, weights, count, mean, centred, scaled);
    }
  }
}

// Merges the states of all splits into the first, and leaves the probe and kbar . probe.
static void decode_solve(const Problem& p, const Sequence& s, int head, const float* shift, DecodeState* parts, int n_parts,
                         float* g, float* kbar_g, float* memory) {
  Scratch scratch{memory};
  const int pad = pad_to_lane(p.dim);
  float *b = scratch.take(pad), *step = scratch.take(pad);
  DecodeState& total = parts[0];
  for (int n = 1; n < n_parts; ++n) {
    const float top = total.max > parts[n].max ? total.max : parts[n].max;
    rebase(p, total, top);
    rebase(p, parts[n], top);
    const float coefficient = join_means(total, parts[n].sum, parts[n].mean, pad, step);
    for (int d = 0; d < p.dim && p.solved(); ++d) {
      float* row = total.second + int64_t(d) * pad;
      axpy(1.0f, parts[n].second + int64_t(d) * pad, row, pad);
      axpy(coefficient * step[d], step, row, pad);
    }
  }
  if (p.solved()) {
    load_row(p.q, p.q.offset(s.q_batch, s.q_start, head), p.dim, pad, b);
    for (int d = 0; d < pad; ++d) b[d] -= shift[d] + total.mean[d];
    const float ridge = p.ridge.at(s.q_batch, s.q_start, head);
    solve_moments(total.second, 1.0f / total.sum, ridge, p.dim, pad, b, g);
  } else if (p.has_probe()) {
    load_row(p.probe, p.probe.offset(s.q_batch, s.q_start, head), p.dim, pad, g);
  }
  *kbar_g = p.has_probe() ? dot(total.mean, g, pad) : 0.0f;
}

// Sums over a split, for every query head: o of w_j (1 + gate (k_j - kbar) . g) v_j, and, where there is a probe,
// vbar of w_j v_j and drift of w_j (k_j - kbar) . g. The latter is 0 up to rounding; see correct_drift.
static void decode_values(const Problem& p, const DecodeSplit& split, const float* shift, const float* logits,
                          int64_t logits_stride, const DecodeState* total, const float* g, const float* kbar_g, float* o,
                          float* vbar, float* drift, float* memory) {
  Scratch scratch{memory};
  const Sequence& s = *split.sequence;
  const int pad = pad_to_lane(p.dim), value_pad = pad_to_lane(p.value_dim), group = p.group();
  float *k = scratch.take(kDecodeBlock * pad), *v = scratch.take(kDecodeBlock * value_pad);
  float weights[kDecodeBlock] = {}, gated[kDecodeBlock] = {};
  __builtin_memset(o, 0, size_t(group) * value_pad * 4);
  __builtin_memset(vbar, 0, size_t(group) * value_pad * 4);
  for (int h = 0; h < group; ++h) drift[h] = 0.0f;
  for (int64_t j = split.begin; j < split.end; j += kDecodeBlock) {
    const int count = int(split.end - j < kDecodeBlock ? split.end - j : kDecodeBlock);
    if (p.has_probe()) load_keys(p, split, shift, j, count, k);
    for (int r = 0; r < count; ++r) {
      const int64_t offset = p.v.offset(s.k_batch, s.k_start + j + r, split.kv_head);
      prefetch_row(p.v, offset, p.value_dim);
      load_row(p.v, offset, p.value_dim, value_pad, v + r * value_pad);
    }
    const Right values{v, kPanel, value_pad};
    for (int h = 0; h < group; ++h) {
      const float* row = logits + h * logits_stride + (j - split.begin);
      const float gate = p.gate.at(s.q_batch, s.q_start, split.kv_head * group + h);
      for (int r = 0; r < count; ++r) weights[r] = row[r] - total[h].max;
      for (int r = 0; r < kDecodeBlock; r += kLane) store(weights + r, exp2(load(weights + r)));
      if (!p.has_probe()) {
        multiply<Into::add>(1, value_pad, count, {weights, 0, 1}, values, o + h * value_pad, value_pad);
        continue;
      }
      for (int r = 0; r < count; ++r) {
        const float c = dot(k + r * pad, g + h * pad, pad) - kbar_g[h];
        gated[r] = weights[r] * (1.0f + gate * c);
        drift[h] += weights[r] * c;
      }
      multiply<Into::add>(1, value_pad, count, {gated, 0, 1}, values, o + h * value_pad, value_pad);
      multiply<Into::add>(1, value_pad, count, {weights, 0, 1}, values, vbar + h * value_pad, value_pad);
    }
  }
}
