// A block of threads on a host: what csrc/include/flashlla/primitives.h asks for, and a driver for one kernel.
//
// Threads are fibers that run until they have to wait, warps as far ahead of each other as barriers allow, in ascending
// or in descending order: a missing barrier shows. Asynchronous copies happen when they are waited for and no sooner;
// shared memory starts as NaN and ends with a guard.
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <ucontext.h>
#include <vector>

#include FLASHLLA_SOURCE

namespace {

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Fiber {
  ucontext_t start;
  std::jmp_buf resume;
  std::unique_ptr<char[]> stack;
  bool started = false, waiting = false, done = false;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> copies;
};

enum class Meeting { none, block, first, warp, shuffle, matrices, transposed, f16, bf16, tf32 };

// Where a warp, or the block, waits for all of its threads.
struct Barrier {
  Meeting meeting = Meeting::none;
  int arrived = 0;
  void* arguments[flashlla::kWarp];
};

constexpr size_t kStack = 1 << 17, kGuard = 64;

struct Block {
  int index = 0, threads = 0, order = 1, current = 0;
  const flashlla::Problem* problem = nullptr;
  std::vector<Fiber> fibers;
  std::vector<Barrier> warps;
  Barrier barrier, first;
  std::vector<char> shared;
  std::jmp_buf finished;
};

Block block;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s in block %d, thread %d\n", what, block.index, block.current);
  std::abort();
}

void next();

void run_kernel() {
  FLASHLLA_NAME(*block.problem);
  block.fibers[block.current].done = true;
  next();
}

// Goes on with a thread of the same warp, or else with the first one there is: a warp runs as far ahead as it may.
void next() {
  const int warp = block.current / flashlla::kWarp * flashlla::kWarp;
  for (int n = -flashlla::kWarp; n < block.threads; ++n) {
    const int i = n < 0 ? warp + n + flashlla::kWarp : block.order > 0 ? n : block.threads - 1 - n;
    Fiber& fiber = block.fibers[i];
    if (fiber.done || fiber.waiting) continue;
    block.current = i;
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    setcontext(&fiber.start);
  }
  for (Fiber& fiber : block.fibers)
    if (!fiber.done) fail("deadlock");
  _longjmp(block.finished, 1);
}

void wait() {
  Fiber& fiber = block.fibers[block.current];
  fiber.waiting = true;
  if (!_setjmp(fiber.resume)) next();
}

// The last of `count` threads from `first` on does the work and lets the others go.
template <class Work>
void meet(Barrier& barrier, Meeting meeting, int first, int count, void* arguments, Work work) {
  if (barrier.arrived == 0) barrier.meeting = meeting;
  if (barrier.meeting != meeting) fail("threads of a warp do different things");
  if (count == flashlla::kWarp) barrier.arguments[block.current - first] = arguments;
  if (++barrier.arrived < count) return wait();
  barrier.arrived = 0;
  work(barrier.arguments);
  for (int i = first; i < first + count; ++i) block.fibers[i].waiting = false;
}

template <class Arguments, class Work>
void meet_warp(Meeting meeting, Arguments& arguments, Work work) {
  const int warp = block.current / flashlla::kWarp;
  meet(block.warps[warp], meeting, warp * flashlla::kWarp, flashlla::kWarp, &arguments, [&](void** all) {
    Arguments* lanes[flashlla::kWarp];
    for (int i = 0; i < flashlla::kWarp; ++i) lanes[i] = static_cast<Arguments*>(all[i]);
    work(lanes);
  });
}

float bf16_to_float(uint32_t x) { return flashlla::from_bits(x << 16); }

const std::vector<float>& half_table() {
  static const std::vector<float> table = [] {
    std::vector<float> t(1 << 16);
    for (uint32_t i = 0; i < t.size(); ++i) {
      const uint16_t x = uint16_t(i);
      _Float16 h;
      std::memcpy(&h, &x, 2);
      t[i] = float(h);
    }
    return t;
  }();
  return table;
}

struct Operands {
  float* d;
  const uint32_t* a;
  uint32_t b0, b1;
};

// d += a b for any shape: `k` numbers deep, `per_word` of them in a register.
template <int k, int per_word, class Convert>
void multiply_warp(Operands* const* lanes, Convert convert) {
  float a[16][k], b[k][8];
  for (int lane = 0; lane < flashlla::kWarp; ++lane) {
    const int row = lane / 4, column = lane % 4 * per_word;
    for (int e = 0; e < per_word; ++e) {
      for (int i = 0; i < 4; ++i) a[row + i % 2 * 8][column + e + i / 2 * (k / 2)] = convert(lanes[lane]->a[i], e);
      b[column + e][row] = convert(lanes[lane]->b0, e);
      b[column + e + k / 2][row] = convert(lanes[lane]->b1, e);
    }
  }
  for (int lane = 0; lane < flashlla::kWarp; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = 0.0f;
      for (int n = 0; n < k; ++n) sum += a[row][n] * b[n][column];
      lanes[lane]->d[i] += sum;
    }
}

struct Matrices {
  uint32_t* r;
  const uint16_t* row;
};

void load_warp(Matrices* const* lanes, bool transposed) {
  for (int m = 0; m < 4; ++m)
    for (int lane = 0; lane < flashlla::kWarp; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const auto at = [&](int r, int c) {
        return uint32_t(transposed ? lanes[m * 8 + c]->row[r] : lanes[m * 8 + r]->row[c]);
      };
      lanes[lane]->r[m] = at(row, column) | at(row, column + 1) << 16;
    }
}

}  // namespace

namespace flashlla {

int thread_index() { return block.current; }
int block_index() { return block.index; }
void sync_block() { meet(block.barrier, Meeting::block, 0, block.threads, nullptr, [](void**) {}); }
void sync_first(int threads) {
  if (block.current >= threads) fail("a thread at a barrier of others");
  meet(block.first, Meeting::first, 0, threads, nullptr, [](void**) {});
}
void sync_warp() {
  int nothing = 0;
  meet_warp(Meeting::warp, nothing, [](int**) {});
}
float shuffle(float x, int lane) {
  struct {
    float x;
    int lane;
    float result;
  } mine{x, lane, 0.0f};
  meet_warp(Meeting::shuffle, mine, [](auto** lanes) {
    for (int i = 0; i < kWarp; ++i) lanes[i]->result = lanes[lanes[i]->lane]->x;
  });
  return mine.result;
}
float shuffle_xor(float x, int mask) { return shuffle(x, block.current % kWarp ^ mask); }
int atomic_add(int* p, int x) { return (*p += x) - x; }
void fence() {}

char* shared_memory() { return block.shared.data(); }
float load_fresh(const float* p) { return *p; }
Float4 load_fresh(const Float4* p) { return *p; }
void copy_async(void* to, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(from) % 16 || reinterpret_cast<uintptr_t>(to) % 16) fail("unaligned copy");
  block.fibers[block.current].copies.push_back({to, from, bytes});
}
void commit_copies() {
  Fiber& fiber = block.fibers[block.current];
  fiber.groups.push_back(std::move(fiber.copies));
  fiber.copies.clear();
}
void wait_for_copies(int pending) {
  auto& groups = block.fibers[block.current].groups;
  while (int(groups.size()) > pending) {
    for (const Copy& copy : groups.front()) {
      std::memset(copy.to, 0, 16);
      std::memcpy(copy.to, copy.from, size_t(copy.bytes));
    }
    groups.erase(groups.begin());
  }
}

void load_matrices(uint32_t (&r)[4], const void* row) {
  Matrices mine{r, static_cast<const uint16_t*>(row)};
  meet_warp(Meeting::matrices, mine, [](Matrices** lanes) { load_warp(lanes, false); });
}
void load_transposed(uint32_t (&r)[4], uint32_t row) {
  Matrices mine{r, reinterpret_cast<const uint16_t*>(shared_memory() + row)};
  meet_warp(Meeting::transposed, mine, [](Matrices** lanes) { load_warp(lanes, true); });
}
void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Operands mine{d, a, b0, b1};
  meet_warp(Meeting::f16, mine, [](Operands** lanes) {
    const float* table = half_table().data();
    multiply_warp<16, 2>(lanes, [=](uint32_t x, int e) { return table[e ? x >> 16 : x & 0xffff]; });
  });
}
void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Operands mine{d, a, b0, b1};
  meet_warp(Meeting::bf16, mine, [](Operands** lanes) {
    multiply_warp<16, 2>(lanes, [](uint32_t x, int e) { return bf16_to_float(e ? x >> 16 : x & 0xffff); });
  });
}
void multiply_tf32(float (&d)[4], const float (&a)[4], float b0, float b1) {
  const uint32_t words[4] = {bits(a[0]), bits(a[1]), bits(a[2]), bits(a[3])};
  Operands mine{d, words, bits(b0), bits(b1)};
  meet_warp(Meeting::tf32, mine, [](Operands** lanes) {
    multiply_warp<8, 1>(lanes, [](uint32_t x, int) { return from_bits(x & ~0x1fffu); });
  });
}

uint32_t bits(float x) {
  uint32_t y;
  std::memcpy(&y, &x, 4);
  return y;
}
float from_bits(uint32_t x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
float half_to_float(uint32_t low) { return half_table()[low]; }
static uint32_t half_bits(float x) {
  const _Float16 h = static_cast<_Float16>(x);
  uint16_t y;
  std::memcpy(&y, &h, 2);
  return y;
}
uint32_t pack_f16(float low, float high) { return half_bits(low) | half_bits(high) << 16; }
static uint32_t bf16_bits(float x) {
  if (std::isnan(x)) return 0x7fff;
  const uint32_t y = bits(x);
  return (y + 0x7fff + (y >> 16 & 1)) >> 16;
}
uint32_t pack_bf16(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }
float round_to_tf32(float x) { return std::isfinite(x) ? from_bits((bits(x) + 0x1000) & ~0x1fffu) : x; }

}  // namespace flashlla

// What the launching side believes.
extern "C" void describe(int* sizes) {
  const int own[] = {Shape::kThreads, Shape::kSharedBytes, Shape::kState, int(sizeof(flashlla::Problem)),
                     flashlla::kMinSplit};
  std::memcpy(sizes, own, sizeof own);
}

// `order` is 1 or -1.
extern "C" void run(const flashlla::Problem* problem, int blocks, int threads, int shared_bytes, int order) {
  block.problem = problem;
  block.threads = threads;
  block.order = order;
  for (block.index = 0; block.index < blocks; ++block.index) {
    block.barrier = {};
    block.warps.assign(size_t(threads / flashlla::kWarp), {});
    block.shared.assign(size_t(shared_bytes) + kGuard, char(0xff));
    block.fibers.resize(size_t(threads));
    for (Fiber& fiber : block.fibers) {
      if (!fiber.stack) fiber.stack.reset(new char[kStack]);
      fiber.started = fiber.waiting = fiber.done = false;
      fiber.groups.clear();
      getcontext(&fiber.start);
      fiber.start.uc_stack.ss_sp = fiber.stack.get();
      fiber.start.uc_stack.ss_size = kStack;
      fiber.start.uc_link = nullptr;
      makecontext(&fiber.start, run_kernel, 0);
    }
    block.current = order > 0 ? 0 : threads - 1;
    if (!_setjmp(block.finished)) next();
    for (size_t i = size_t(shared_bytes); i < block.shared.size(); ++i)
      if (block.shared[i] != char(0xff)) fail("write behind shared memory");
  }
}
