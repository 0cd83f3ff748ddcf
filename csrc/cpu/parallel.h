// Threads for one call: started when a call has enough work for them, joined before it returns. No pool is kept,
// so a process may fork at any time.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace flashlla {

// Denormal numbers are flushed to zero while this lives: tiny weights times tiny directions would otherwise
// slow the arithmetic down by an order of magnitude.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | (uint64_t(1) << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// Floats aligned for any vector; freed with the object.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t floats) {
    const size_t bytes = (size_t(floats > 0 ? floats : 1) * 4 + 63) / 64 * 64;
    data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
  }
  float* get() const { return data_.get(); }
  void reset() { data_.reset(); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
};

// Memory for the length of a call, kept for the next one up to kKept floats: a step of decoding takes less time than
// the system does to hand out the pages that it works on. One block a process; calls that overlap allocate anew.
class Workspace {
 public:
  explicit Workspace(int64_t floats) {
    Block* kept = kept_.exchange(nullptr);
    if (kept && kept->floats >= floats) {
      block_.reset(kept);
    } else {
      delete kept;
      block_ = std::make_unique<Block>(Block{floats, Buffer(floats)});
    }
  }
  ~Workspace() {
    if (block_->floats <= kKept) delete kept_.exchange(block_.release());
  }
  float* get() const { return block_->memory.get(); }

 private:
  struct Block {
    int64_t floats;
    Buffer memory;
  };
  static constexpr int64_t kKept = int64_t(1) << 24;
  static inline std::atomic<Block*> kept_{nullptr};
  std::unique_ptr<Block> block_;
};

// Runs body(task, scratch) for tasks 0 .. count, each thread with `scratch_floats` of its own. The first
// exception of a body is thrown again here. Where no more threads can be had, those that there are do the work.
template <class Body>
void parallel_for(int64_t count, int threads, int64_t scratch_floats, Body body) {
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  auto work = [&] {
    try {
      const FlushDenormals guard;
      const Buffer scratch(scratch_floats);
      for (int64_t task; (task = next.fetch_add(1)) < count;) body(task, scratch.get());
    } catch (...) {
      const std::scoped_lock lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> helpers;
  const int64_t wanted = threads < count ? threads : count;
  helpers.reserve(size_t(wanted > 0 ? wanted : 0));
  try {
    for (int64_t i = 1; i < wanted; ++i) helpers.emplace_back(work);
  } catch (const std::system_error&) {  // NOLINT(bugprone-empty-catch): the others do the work
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace flashlla
