#include "runtime.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace flashlla {
namespace {

constexpr double kWorthAThread = 2e6;  // multiply-adds: below that a thread costs more than it brings
constexpr int64_t kFirstUnitRows = 16;
constexpr int64_t kChunkRows = 256;  // query rows whose dk and dv are summed into one accumulator, at least
constexpr int64_t kMaxChunks = 8;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t pad_to(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

// The query rows [begin, end) of one sequence and key head that share packed keys, see unit_rows.
struct Unit {
  const Sequence* sequence;
  int kv_head;
  int64_t begin, end;
  Range common;                        // keys that all rows see
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
  const std::scoped_lock lock(unit.mutex);
  if (unit.memory.get()) return;
  const int64_t padded = pad_to(unit.keys.count, kernels.panel), dim = p.dim, value_dim = p.value_dim;
  const int64_t dim_pad = pad_to(dim, kernels.lane), value_pad = pad_to(value_dim, kernels.lane);
  const int64_t sizes[] = {padded * dim_pad, padded * dim,       padded * value_pad, backward ? padded * value_dim : 0,
                           dim_pad,          unit.keys.count + 1};
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
  parallel_for(int64_t(tasks.size()), useful_threads(p, units, threads, 8),
               kernels.forward_scratch(p, most_keys(units)), [&](int64_t i, float* scratch) {
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

void backward_chunk(const Kernels& kernels, const Problem& p, const Task& task, const BackwardOut& out,
                    float* scratch) {
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
  parallel_for(int64_t(tasks.size()), useful_threads(p, units, threads, 16),
               kernels.backward_scratch(p, most_keys(units)), [&](int64_t i, float* scratch) {
                 const auto& [task, group] = tasks[size_t(i)];
                 prepare(kernels, p, *task.unit, true);
                 backward_chunk(kernels, p, task, out, scratch);
                 if (--task.unit->unfinished == 0) task.unit->memory.reset();
                 if (--group->unfinished == 0) finish_group(kernels, p, *group, out);
               });
}

namespace {

// A query that sees few keys is solved in key space, which is the business of the forward pass.
std::vector<Sequence> take_short_sequences(const Problem& p, std::vector<Sequence>& sequences) {
  std::vector<Sequence> few, many;
  for (const Sequence& s : sequences) {
    const Range keys = visible(p, s, 0);  // of all rows, the first sees the fewest
    (keys.hi - keys.lo <= dual_limit(p) ? few : many).push_back(s);
  }
  sequences = std::move(many);
  return few;
}

std::vector<DecodeUnit> make_decode_units(const Problem& p) {
  std::vector<DecodeUnit> units;
  for (int64_t n = 0; n < p.n_sequences; ++n)
    for (int head = 0; head < p.kv_heads; ++head) {
      const Sequence& s = p.sequences[n];
      const int rows = int(s.q_len) * p.group();
      for (int first = 0; first < rows; first += kTileRows) {
        DecodeUnit u{};
        u.sequence = &s;
        u.kv_head = head;
        u.first = first;
        u.rows = std::min(kTileRows, rows - first);
        u.keys = {visible(p, s, first / p.group()).lo, visible(p, s, (first + u.rows - 1) / p.group()).hi};
        units.push_back(u);
      }
    }
  return units;
}

// Hands out the tasks of the units, those of units already begun first: at most one unit a thread holds memory.
class DecodeSchedule {
 public:
  DecodeSchedule(const Kernels& kernels, const Problem& p, const ForwardOut& out, std::vector<DecodeUnit>& units,
                 int64_t threads)
      : kernels_(kernels),
        p_(p),
        out_(out),
        units_(units),
        slots_(std::min(size_t(threads), units.size())),
        slot_floats_(most_memory(kernels, p, units)),
        memory_(slot_floats_ * int64_t(slots_.size())) {
    for (size_t i = 0; i < slots_.size(); ++i) slots_[i].memory = memory_.get() + int64_t(i) * slot_floats_;
  }

  // What one thread does; returns when all units are finished.
  void work(size_t worker, float* scratch) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (finished_ < units_.size()) {
      if (Slot* slot = find_task(worker)) {
        const int64_t task = slot->next++;
        lock.unlock();
        kernels_.decode_task(p_, *slot->unit, task, scratch);
        lock.lock();
        if (--slot->unfinished == 0) finish_phase(*slot, lock, scratch);
      } else {  // until others finish their phase
        lock.unlock();
        std::this_thread::yield();
        lock.lock();
      }
    }
  }

 private:
  struct Slot {
    DecodeUnit* unit = nullptr;
    int64_t next = 0, tasks = 0, unfinished = 0;  // of the unit's phase
    float* memory = nullptr;
  };

  static int64_t most_memory(const Kernels& kernels, const Problem& p, std::vector<DecodeUnit>& units) {
    int64_t most = 0;
    for (DecodeUnit& u : units) most = std::max(most, kernels.decode_memory(p, u, nullptr));
    return most;
  }

  // A thread stays with its unit, whose keys its cache holds, and helps with another when it would have to wait.
  Slot* find_task(size_t worker) {
    for (size_t i = 0; i < slots_.size(); ++i) {
      Slot& slot = slots_[(worker + i) % slots_.size()];
      if (slot.next < slot.tasks) return &slot;
      if (slot.unit || begun_ == units_.size()) continue;
      slot.unit = &units_[begun_++];
      kernels_.decode_memory(p_, *slot.unit, slot.memory);
      begin_phase(slot);
      return &slot;
    }
    return nullptr;
  }

  static void begin_phase(Slot& slot) {
    slot.next = 0;
    slot.tasks = slot.unfinished = slot.unit->tasks;
  }

  void finish_phase(Slot& slot, std::unique_lock<std::mutex>& lock, float* scratch) {
    lock.unlock();
    kernels_.decode_join(p_, *slot.unit, out_, scratch);
    lock.lock();
    if (slot.unit->phase != DecodePhase::done) return begin_phase(slot);
    slot.unit = nullptr;
    ++finished_;
  }

  const Kernels& kernels_;
  const Problem& p_;
  const ForwardOut& out_;
  std::vector<DecodeUnit>& units_;
  std::vector<Slot> slots_;
  int64_t slot_floats_;
  Workspace memory_;
  std::mutex mutex_;
  size_t begun_ = 0, finished_ = 0;
};

}  // namespace

void decode(const Kernels& kernels, const Problem& problem, const ForwardOut& out, int threads) {
  Problem p = problem;
  std::vector<Sequence> sequences(p.sequences, p.sequences + p.n_sequences);
  const std::vector<Sequence> few = take_short_sequences(p, sequences);
  p.sequences = few.data();
  p.n_sequences = int64_t(few.size());
  forward(kernels, p, out, threads);
  p.sequences = sequences.data();
  p.n_sequences = int64_t(sequences.size());

  std::vector<DecodeUnit> units = make_decode_units(p);
  double work = 0;
  for (const DecodeUnit& u : units) work += double(u.keys.hi - u.keys.lo) * u.rows * p.dim * (p.solved() ? 16 : 4);
  const int64_t workers = work < kWorthAThread ? 1 : std::max(threads, 1);
  int most_rows = 1;
  for (const DecodeUnit& u : units) most_rows = std::max(most_rows, u.rows);
  const int64_t scratch = kernels.decode_scratch(p, most_rows);
  DecodeSchedule schedule(kernels, p, out, units, workers);
  parallel_for(workers, int(workers), scratch,
               [&](int64_t worker, float* memory) { schedule.work(size_t(worker), memory); });
}

}  // namespace flashlla
