#include "runtime.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace flashlla {
namespace {

constexpr double kWorthAThread = 2e6;  // multiply-adds: below that a thread costs more than it brings
constexpr int64_t kFirstUnitRows = 16;
constexpr int64_t kChunkRows = 256;    // query rows whose dk and dv are summed into one accumulator, at least
constexpr int64_t kMaxChunks = 8;
constexpr int64_t kSplitKeys = 4096;   // keys of a split in decoding; fixed, so results do not depend on the batch

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t pad_to(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

// The query rows [begin, end) of one sequence and key head that share packed keys, see unit_rows.
struct Unit {
  const Sequence* sequence;
  int kv_head;
  int64_t begin, end;
  Range common;  // keys that all rows see
  int64_t chunks = 1, chunk_rows = 0;  // backward: accumulators, and rows of each
  Keys keys;
  Buffer memory, accumulators;
  std::mutex mutex;
  std::atomic<int64_t> unfinished{0};

  Unit(const Problem& p, const Sequence& s, int head, int64_t first, int64_t last)
      : sequence(&s), kv_head(head), begin(first), end(last) {
    const Range low = visible(p, s, begin), high = visible(p, s, end - 1);
    keys.first = low.lo;
    keys.count = high.hi - low.lo;
    common = {high.lo, low.hi};
  }
};

struct Task {
  Unit* unit;
  int64_t row, rows;  // forward: a tile; backward: a chunk of tiles
  int head;           // forward
  int64_t chunk;      // backward
};

using Units = std::vector<std::unique_ptr<Unit>>;

// Rows of the unit that begins at row `begin`. Keys are shifted by a mean of keys that every row of the unit sees:
// a row must not depend, not even in rounding, on a key that it does not see. So the units of a causal
// sequence double in size, and with a window they are half as long as it is wide.
int64_t unit_rows(const Problem& p, const Sequence& s, int64_t begin) {
  if (!p.causal) return s.q_len;
  const Range seen = visible(p, s, begin);
  if (seen.hi == seen.lo) return s.q_len - s.k_len - begin;
  const int64_t rows = std::max<int64_t>(kFirstUnitRows, seen.hi - seen.lo);
  return p.window > 0 && p.window < s.k_len ? std::min(rows, std::max<int64_t>(1, p.window / 2)) : rows;
}

Units make_units(const Problem& p) {
  Units units;
  for (int64_t n = 0; n < p.n_sequences; ++n) {
    const Sequence& s = p.sequences[n];
    for (int head = 0; head < p.kv_heads; ++head)
      for (int64_t begin = 0, end; begin < s.q_len; begin = end) {
        end = s.k_len == 0 ? s.q_len : std::min(begin + unit_rows(p, s, begin), s.q_len);
        units.push_back(std::make_unique<Unit>(p, s, head, begin, end));
      }
  }
  return units;
}

// Packs the keys of a unit when the first of its tasks begins; other threads wait for it.
void prepare(const Kernels& kernels, const Problem& p, Unit& unit, bool backward) {
  const std::lock_guard<std::mutex> lock(unit.mutex);
  if (unit.memory.get()) return;
  const int64_t padded = pad_to(unit.keys.count, kernels.panel), dim = p.dim, value_dim = p.value_dim;
  const int64_t dim_pad = pad_to(dim, kernels.lane), value_pad = pad_to(value_dim, kernels.lane);
  const int64_t sizes[] = {padded * dim_pad, padded * dim, padded * value_pad, backward ? padded * value_dim : 0,
                           dim_pad, unit.keys.count + 1};
  int64_t total = 0;
  for (int64_t size : sizes) total += pad_to(size, 16);
  Buffer memory(total);
  float* at = memory.get();
  float* parts[6];
  for (int i = 0; i < 6; ++i) {
    parts[i] = at;
    at += pad_to(sizes[i], 16);
  }
  Keys& keys = unit.keys;
  keys.k = parts[0];
  keys.kt = parts[1];
  keys.v = parts[2];
  keys.vt = backward ? parts[3] : nullptr;
  keys.shift = parts[4];
  keys.broken_before = reinterpret_cast<int32_t*>(parts[5]);
  kernels.pack(p, *unit.sequence, unit.kv_head, backward, unit.common, keys);
  if (backward) {
    const int64_t floats = unit.chunks * padded * (dim_pad + value_pad);
    unit.accumulators = Buffer(floats);
    std::fill_n(unit.accumulators.get(), floats, 0.0f);
  }
  unit.memory = std::move(memory);
}

int useful_threads(const Problem& p, const Units& units, int threads, double products) {
  double work = 0;
  for (const auto& unit : units)
    work += double(unit->end - unit->begin) * double(unit->keys.count) * p.group() * (p.dim + p.value_dim) * products;
  return work < kWorthAThread ? 1 : threads;
}

int64_t most_keys(const Units& units) {
  int64_t most = 0;
  for (const auto& unit : units) most = std::max(most, unit->keys.count);
  return most;
}

// Rows of a unit that see no key at all need no keys; the tile kernels would find none packed.
void store_empty_rows(const Kernels& kernels, const Problem& p, const Unit& unit, const ForwardOut& out) {
  const std::vector<float> zeros(size_t(std::max(p.dim, p.value_dim)), 0.0f);
  const Sequence& s = *unit.sequence;
  for (int64_t row = unit.begin; row < unit.end; ++row)
    for (int head = unit.kv_head * p.group(); head < (unit.kv_head + 1) * p.group(); ++head) {
      const int64_t to = (s.q_batch * out.q_rows + s.q_start + row) * p.heads + head;
      kernels.store_row(zeros.data(), p.value_dim, p.q.dtype, out.o, to * p.value_dim);
      kernels.store_row(zeros.data(), p.dim, DType::f32, out.kbar, to * p.dim);
      kernels.store_row(zeros.data(), p.dim, DType::f32, out.g, to * p.dim);
      out.lse[to] = -INFINITY;
      out.residual[to] = 0.0f;
      out.iterations[to] = 0;
    }
}

}  // namespace

void forward(const Kernels& kernels, const Problem& p, const ForwardOut& out, int threads) {
  const Units units = make_units(p);
  std::vector<Task> tasks;
  for (const auto& unit : units) {
    if (unit->keys.count == 0) {
      store_empty_rows(kernels, p, *unit, out);
      continue;
    }
    const int64_t tiles = ceil_div(unit->end - unit->begin, kTileRows);
    for (int64_t tile = tiles - 1; tile >= 0; --tile)  // the longest rows first
      for (int head = unit->kv_head * p.group(); head < (unit->kv_head + 1) * p.group(); ++head) {
        const int64_t row = unit->begin + tile * kTileRows;
        tasks.push_back({unit.get(), row, std::min<int64_t>(kTileRows, unit->end - row), head, 0});
        ++unit->unfinished;
      }
  }
  parallel_for(int64_t(tasks.size()), useful_threads(p, units, threads, 8), kernels.forward_scratch(p, most_keys(units)),
               [&](int64_t i, float* scratch) {
                 const Task& task = tasks[size_t(i)];
                 prepare(kernels, p, *task.unit, false);
                 const Tile tile{task.unit->sequence, task.head, task.row, int(task.rows)};
                 kernels.forward_tile(p, task.unit->keys, tile, out, scratch);
                 if (--task.unit->unfinished == 0) task.unit->memory.reset();
               });
}

namespace {

struct Accumulators {
  float *dk, *dv;
  int64_t dk_size, dv_size;  // floats of one chunk
};

Accumulators accumulators_of(const Kernels& kernels, const Problem& p, const Unit& unit) {
  const int64_t padded = pad_to(unit.keys.count, kernels.panel);
  const int64_t dk = padded * pad_to(p.dim, kernels.lane), dv = padded * pad_to(p.value_dim, kernels.lane);
  return {unit.accumulators.get(), unit.accumulators.get() + unit.chunks * dk, dk, dv};
}

// The units of one sequence and key head, by rising rows. Neighbours share keys.
struct Group {
  std::vector<Unit*> units;
  std::atomic<int64_t> unfinished{0};
};

// Adds what `from` holds for the keys that `to` holds as well.
void add_overlap(const Kernels& kernels, const Problem& p, const Unit& from, const Unit& to) {
  const int64_t dim_pad = pad_to(p.dim, kernels.lane), value_pad = pad_to(p.value_dim, kernels.lane);
  const int64_t skipped = to.keys.first - from.keys.first, shared = from.keys.count - skipped;
  const Accumulators a = accumulators_of(kernels, p, from), b = accumulators_of(kernels, p, to);
  for (int64_t chunk = 0; chunk < from.chunks; ++chunk) {
    for (int64_t i = 0; i < shared * dim_pad; ++i) b.dk[i] += a.dk[chunk * a.dk_size + skipped * dim_pad + i];
    for (int64_t i = 0; i < shared * value_pad; ++i) b.dv[i] += a.dv[chunk * a.dv_size + skipped * value_pad + i];
  }
}

void store_keys(const Kernels& kernels, const Problem& p, const Unit& unit, int64_t count, const BackwardOut& out) {
  const Accumulators a = accumulators_of(kernels, p, unit);
  const Sequence& s = *unit.sequence;
  const int64_t first = (s.k_batch * out.k_rows + s.k_start + unit.keys.first) * p.kv_heads + unit.kv_head;
  const auto store = [&](const float* parts, int64_t size, int dim, DType dtype, void* to) {
    const int64_t width = dtype == DType::f32 ? 4 : 2;
    kernels.store_sum(parts, int(unit.chunks), size, count, dim, int(pad_to(dim, kernels.lane)), dtype,
                      static_cast<char*>(to) + first * dim * width, int64_t(p.kv_heads) * dim);
  };
  store(a.dk, a.dk_size, p.dim, p.k.dtype, out.dk);
  store(a.dv, a.dv_size, p.value_dim, p.v.dtype, out.dv);
}

// dk and dv of a finished group, and its memory back.
void finish_group(const Kernels& kernels, const Problem& p, const Group& group, const BackwardOut& out) {
  for (size_t i = 0; i < group.units.size(); ++i) {
    Unit& unit = *group.units[i];
    int64_t count = unit.keys.count;
    if (i + 1 < group.units.size()) {
      const Unit& next = *group.units[i + 1];
      add_overlap(kernels, p, unit, next);
      count = std::min(count, next.keys.first - unit.keys.first);
    }
    store_keys(kernels, p, unit, count, out);
    unit.accumulators.reset();
  }
}

void backward_chunk(const Kernels& kernels, const Problem& p, const Task& task, const BackwardOut& out, float* scratch) {
  const Unit& unit = *task.unit;
  const Accumulators a = accumulators_of(kernels, p, unit);
  float *dk = a.dk + task.chunk * a.dk_size, *dv = a.dv + task.chunk * a.dv_size;
  for (int64_t row = task.row; row < task.row + task.rows; row += kTileRows)
    for (int head = unit.kv_head * p.group(); head < (unit.kv_head + 1) * p.group(); ++head) {
      const Tile tile{unit.sequence, head, row, int(std::min<int64_t>(kTileRows, task.row + task.rows - row))};
      kernels.backward_tile(p, unit.keys, tile, out, dk, dv, scratch);
    }
}

}  // namespace

void backward(const Kernels& kernels, const Problem& p, const BackwardOut& out, int threads) {
  const Units units = make_units(p);
  std::vector<std::unique_ptr<Group>> groups;
  std::vector<std::pair<Task, Group*>> tasks;
  const Unit* previous = nullptr;
  for (const auto& unit : units) {
    if (unit->keys.count == 0) continue;
    if (!previous || previous->sequence != unit->sequence || previous->kv_head != unit->kv_head)
      groups.push_back(std::make_unique<Group>());
    previous = unit.get();
    Group* group = groups.back().get();
    group->units.push_back(unit.get());
    const int64_t rows = unit->end - unit->begin;
    const int64_t wanted = std::clamp<int64_t>(rows / kChunkRows, 1, kMaxChunks);
    unit->chunk_rows = pad_to(ceil_div(rows, wanted), kTileRows);
    unit->chunks = ceil_div(rows, unit->chunk_rows);
    for (int64_t chunk = unit->chunks - 1; chunk >= 0; --chunk) {
      const int64_t row = unit->begin + chunk * unit->chunk_rows;
      tasks.push_back({{unit.get(), row, std::min(unit->chunk_rows, unit->end - row), 0, chunk}, group});
      ++unit->unfinished;
      ++group->unfinished;
    }
  }
  parallel_for(int64_t(tasks.size()), useful_threads(p, units, threads, 16), kernels.backward_scratch(p, most_keys(units)),
               [&](int64_t i, float* scratch) {
                 const auto& [task, group] = tasks[size_t(i)];
                 prepare(kernels, p, *task.unit, true);
                 backward_chunk(kernels, p, task, out, scratch);
                 if (--task.unit->unfinished == 0) task.unit->memory.reset();
                 if (--group->unfinished == 0) finish_group(kernels, p, *group, out);
               });
}

namespace {

// The splits of one sequence and key head, and the states of its query heads.
struct DecodeUnit {
  const Sequence* sequence;
  int kv_head;
  Range keys;
  int64_t splits, state_floats;
  Buffer shift, states, logits, g;  // logits [group][keys]
  Buffer values, vbar, drift;       // [split][group](value_pad)
  std::vector<DecodeState> state;           // [split][group]
  std::vector<float> kbar_g;
};

DecodeUnit make_decode_unit(const Kernels& kernels, const Problem& p, const Sequence& s, int kv_head) {
  DecodeUnit u;
  u.sequence = &s;
  u.kv_head = kv_head;
  u.keys = visible(p, s, 0);
  const int64_t dim_pad = pad_to(p.dim, kernels.lane), value_pad = pad_to(p.value_dim, kernels.lane), group = p.group();
  const int64_t count = u.keys.hi - u.keys.lo;
  u.splits = ceil_div(count, kSplitKeys);
  u.state_floats = dim_pad * (1 + (p.solved() ? p.dim : 0));
  u.shift = Buffer(dim_pad);
  u.states = Buffer(u.splits * group * u.state_floats);
  u.logits = Buffer(group * count);
  u.values = Buffer(u.splits * group * value_pad);
  u.vbar = Buffer(u.splits * group * value_pad);
  u.drift = Buffer(u.splits * group);
  u.g = Buffer(group * dim_pad);
  u.state.resize(size_t(u.splits * group));
  u.kbar_g.resize(size_t(group));
  for (int64_t i = 0; i < u.splits * group; ++i) {
    float* at = u.states.get() + i * u.state_floats;
    u.state[size_t(i)] = {0.0f, 0.0f, at, at + dim_pad};
  }
  kernels.mean_key(p, s, kv_head, u.keys.lo, u.keys.hi, u.shift.get());
  return u;
}

DecodeSplit split_of(const DecodeUnit& u, int64_t split) {
  const int64_t begin = u.keys.lo + split * kSplitKeys;
  return {u.sequence, u.kv_head, begin, std::min(begin + kSplitKeys, u.keys.hi)};
}

void solve_unit(const Kernels& kernels, const Problem& p, DecodeUnit& u, float* scratch) {
  const int group = p.group();
  std::vector<DecodeState> parts;
  for (int h = 0; h < group && u.splits > 0; ++h) {
    parts.clear();
    for (int64_t split = 0; split < u.splits; ++split) parts.push_back(u.state[size_t(split * group + h)]);
    kernels.decode_solve(p, *u.sequence, u.kv_head * group + h, u.shift.get(), parts.data(), int(u.splits),
                         u.g.get() + h * pad_to(p.dim, kernels.lane), &u.kbar_g[size_t(h)], scratch);
    u.state[size_t(h)] = parts[0];
  }
}

// The centred products of the probe with the keys sum to zero under the weights. What rounding made of that sum,
// the same for all keys, is taken out of the output again.
void store_decoded(const Kernels& kernels, const Problem& p, const DecodeUnit& u, void* o) {
  const int64_t value_pad = pad_to(p.value_dim, kernels.lane), group = p.group();
  std::vector<float> row(size_t(value_pad), 0.0f), vbar(size_t(value_pad), 0.0f);
  for (int64_t h = 0; h < group; ++h) {
    const int64_t head = u.kv_head * group + h;
    const float sum = u.splits ? u.state[size_t(h)].sum : 1.0f;
    float drift = 0.0f;
    std::fill(row.begin(), row.end(), 0.0f);
    std::fill(vbar.begin(), vbar.end(), 0.0f);
    for (int64_t split = 0; split < u.splits; ++split) {
      const int64_t at = split * group + h;
      drift += u.drift.get()[at] / sum;
      for (int64_t d = 0; d < value_pad; ++d) {
        row[size_t(d)] += u.values.get()[at * value_pad + d] / sum;
        vbar[size_t(d)] += u.vbar.get()[at * value_pad + d] / sum;
      }
    }
    drift *= p.gate.at(u.sequence->q_batch, u.sequence->q_start, int(head));
    for (int64_t d = 0; d < value_pad && p.has_probe(); ++d) row[size_t(d)] -= drift * vbar[size_t(d)];
    kernels.store_row(row.data(), p.value_dim, p.q.dtype, o, (u.sequence->q_batch * p.heads + head) * p.value_dim);
  }
}

}  // namespace

// A query that sees few keys is solved in key space, which is the business of the forward pass.
std::vector<Sequence> take_short_sequences(const Problem& p, std::vector<Sequence>& sequences) {
  std::vector<Sequence> few, many;
  for (const Sequence& s : sequences) {
    const Range keys = visible(p, s, 0);
    (keys.hi - keys.lo <= dual_limit(p) ? few : many).push_back(s);
  }
  sequences = many;
  return few;
}

void decode(const Kernels& kernels, const Problem& problem, const ForwardOut& out, int threads) {
  Problem p = problem;
  std::vector<Sequence> sequences(p.sequences, p.sequences + p.n_sequences);
  const std::vector<Sequence> few = take_short_sequences(p, sequences);
  p.sequences = few.data();
  p.n_sequences = int64_t(few.size());
  forward(kernels, p, out, threads);
  p.sequences = sequences.data();
  p.n_sequences = int64_t(sequences.size());

  std::vector<DecodeUnit> units;
  std::vector<std::pair<DecodeUnit*, int64_t>> splits;
  units.reserve(size_t(p.n_sequences * p.kv_heads));
  double work = 0;
  for (int64_t n = 0; n < p.n_sequences; ++n)
    for (int head = 0; head < p.kv_heads; ++head) {
      units.push_back(make_decode_unit(kernels, p, p.sequences[n], head));
      for (int64_t i = 0; i < units.back().splits; ++i) splits.push_back({&units.back(), i});
      work += double(units.back().keys.hi - units.back().keys.lo) * p.heads / p.kv_heads * p.dim * (p.solved() ? p.dim : 4);
    }
  threads = work < kWorthAThread ? 1 : threads;
  const int64_t scratch = kernels.decode_scratch(p), group = p.group();
  const int64_t value_pad = pad_to(p.value_dim, kernels.lane);
  const auto logits_of = [](const DecodeUnit& u, int64_t split) { return u.logits.get() + split * kSplitKeys; };
  parallel_for(int64_t(splits.size()), threads, scratch, [&](int64_t i, float* memory) {
    const auto& [u, split] = splits[size_t(i)];
    kernels.decode_moments(p, split_of(*u, split), u->shift.get(), logits_of(*u, split), u->keys.hi - u->keys.lo,
                           &u->state[size_t(split * group)], memory);
  });
  parallel_for(int64_t(units.size()), threads, scratch,
               [&](int64_t i, float* memory) { solve_unit(kernels, p, units[size_t(i)], memory); });
  parallel_for(int64_t(splits.size()), threads, scratch, [&](int64_t i, float* memory) {
    const auto& [u, split] = splits[size_t(i)];
    kernels.decode_values(p, split_of(*u, split), u->shift.get(), logits_of(*u, split), u->keys.hi - u->keys.lo,
                          u->state.data(), u->g.get(), u->kbar_g.data(),
                          u->values.get() + split * group * value_pad, u->vbar.get() + split * group * value_pad,
                          u->drift.get() + split * group, memory);
  });
  for (const DecodeUnit& u : units) store_decoded(kernels, p, u, out.o);
}

}  // namespace flashlla
