// Calls of the CPU kernels without Python, for tools that watch memory and threads: `make sanitize`, `make valgrind`.
//
// Every operand and every result is an allocation of exactly its size, and results are uninitialised until the
// kernels write them. They must have the same bits whether a call has one thread, has several, or overlaps with
// another, and hold no NaN unless an operand is infinite somewhere.
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "runtime.h"

using namespace flashlla;

namespace {

struct Shape {
  int64_t q_len, k_len;
  int heads, kv_heads, dim, value_dim;
  bool causal = true;
  int64_t window = 0;
};
// The last of each and the second but last are enough work for several threads.
constexpr Shape kDense[] = {
    {1, 1, 1, 1, 1, 1},
    {3, 0, 2, 1, 8, 8},
    {3, 40, 1, 1, 256, 256},
    {17, 65, 2, 1, 20, 33},
    {70, 40, 2, 2, 16, 48, true, 7},
    {70, 70, 2, 1, 24, 20},
    {520, 40, 1, 1, 8, 8, false},
};
constexpr Shape kCached[] = {
    {1, 1, 1, 1, 1, 1},
    {2, 300, 4, 2, 24, 20, true, 40},
    {16, 130, 4, 1, 33, 20},
    {1, 2049, 4, 1, 24, 20},
};
constexpr int64_t kBatch = 2, kPage = 16;

enum class Member { softmax, given, cg, direct, automatic };
constexpr Member kMembers[] = {Member::softmax, Member::given, Member::cg, Member::direct, Member::automatic};
constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

int64_t width(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

using Bytes = std::vector<unsigned char>;

// Numbers of either sign and a size between 0.5 and 1.
Bytes numbers(std::mt19937& random, int64_t count, DType dtype, bool positive) {
  Bytes bytes(size_t(count * width(dtype)));
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits = random() & (positive ? 0x7fffffffu : 0xffffffffu);
    if (dtype == DType::f32) bits = (bits & 0x807fffffu) | 0x3f000000u;
    if (dtype == DType::bf16) bits = (bits >> 16 & 0x807fu) | 0x3f00u;
    if (dtype == DType::f16) bits = (bits >> 16 & 0x83ffu) | 0x3800u;
    std::memcpy(bytes.data() + i * width(dtype), &bits, size_t(width(dtype)));
  }
  return bytes;
}

uint32_t infinity(DType dtype) { return dtype == DType::f32 ? 0x7f800000u : dtype == DType::bf16 ? 0x7f80u : 0x7c00u; }

class Results {
 public:
  // Uninitialised, or zeros where the kernels write only what some query sees.
  void* add(int64_t count, DType dtype, bool zeros = false) {
    const size_t size = size_t(count * width(dtype));
    parts_.push_back({dtype, size, std::unique_ptr<unsigned char[]>(new unsigned char[size])});
    if (zeros) std::memset(parts_.back().data.get(), 0, size);
    return parts_.back().data.get();
  }
  float* floats(int64_t count, bool zeros = false) { return static_cast<float*>(add(count, DType::f32, zeros)); }

  bool has_nan() const {
    bool found = false;
    for (const Part& part : parts_) {
      const uint32_t magnitude = part.dtype == DType::f32 ? 0x7fffffffu : 0x7fffu;
      for (size_t i = 0; i < part.size; i += size_t(width(part.dtype))) {
        uint32_t bits = 0;
        std::memcpy(&bits, part.data.get() + i, size_t(width(part.dtype)));
        if ((bits & magnitude) > infinity(part.dtype)) found = true;
      }
    }
    return found;
  }
  bool operator==(const Results& other) const {
    for (size_t i = 0; i < parts_.size(); ++i)
      if (std::memcmp(parts_[i].data.get(), other.parts_[i].data.get(), parts_[i].size) != 0) return false;
    return true;
  }

 private:
  struct Part {
    DType dtype;
    size_t size;
    std::unique_ptr<unsigned char[]> data;
  };
  std::vector<Part> parts_;
};

struct Kind {
  Member member;
  DType dtype;
  bool broken;  // an infinite number in the middle of q, k, v and a given probe
};

// The operands of a call. The second sequence of a cache is half as long as the first; pages lie in reverse order.
class Call {
 public:
  Call(const Shape& shape, const Kind& kind, bool cached, bool paged)
      : shape_(shape), dtype_(kind.dtype), cached_(cached) {
    const Member member = kind.member;
    const int64_t slots = paged ? (shape.k_len + kPage - 1) / kPage * kPage : shape.k_len;
    const int64_t rows = kBatch * shape.q_len * shape.heads;
    const auto operand = [&](int64_t length, int64_t block, int64_t heads, int64_t dim) {
      const int64_t count = kBatch * length * heads * dim;
      memory_.push_back(numbers(random_, count, dtype_, false));
      const uint32_t bits = infinity(dtype_);
      if (kind.broken && count > 0)
        std::memcpy(memory_.back().data() + (count / 2 - 1) * width(dtype_), &bits, size_t(width(dtype_)));
      return Array{memory_.back().data(), block * heads * dim, heads * dim, dim, dtype_};
    };
    const auto per_row = [&](bool positive) {
      memory_.push_back(numbers(random_, rows, DType::f32, positive));
      const auto* data = reinterpret_cast<const float*>(memory_.back().data());
      return PerRow{data, shape.q_len * shape.heads, shape.heads, 1};
    };
    p_.q = operand(shape.q_len, shape.q_len, shape.heads, shape.dim);
    p_.k = operand(slots, paged ? kPage : slots, shape.kv_heads, shape.dim);
    p_.v = operand(slots, paged ? kPage : slots, shape.kv_heads, shape.value_dim);
    p_.gate = per_row(false);
    if (member == Member::given) p_.probe = operand(shape.q_len, shape.q_len, shape.heads, shape.dim);
    if (member >= Member::cg) p_.ridge = per_row(true);
    p_.solver = member == Member::cg ? Solver::cg : member == Member::direct ? Solver::direct : Solver::automatic;
    p_.heads = shape.heads;
    p_.kv_heads = shape.kv_heads;
    p_.dim = shape.dim;
    p_.value_dim = shape.value_dim;
    p_.scale = 0.3f;
    p_.causal = shape.causal;
    p_.window = shape.window;
    p_.max_iters = shape.dim;
    for (int64_t b = 0; b < kBatch; ++b)
      sequences_.push_back({b, 0, shape.q_len, b, 0, cached && b ? (shape.k_len + 1) / 2 : shape.k_len});
    p_.sequences = sequences_.data();
    p_.n_sequences = kBatch;
    if (!paged) return;
    for (int64_t page = kBatch * slots / kPage; page-- > 0;) pages_.push_back(page);
    p_.block_table = pages_.data();
    p_.table_stride = slots / kPage;
    p_.page_size = kPage;
  }

  Results run(const Kernels& kernels, int threads) const {
    const int64_t rows = kBatch * shape_.q_len * p_.heads, keys = kBatch * shape_.k_len * p_.kv_heads;
    Results results;
    const ForwardOut out{results.add(rows * p_.value_dim, dtype_),
                         results.floats(rows),
                         results.floats(rows * p_.dim),
                         results.floats(rows * p_.dim, !p_.has_probe()),
                         results.floats(rows),
                         reinterpret_cast<int32_t*>(results.floats(rows)),
                         shape_.q_len};
    (cached_ ? decode : forward)(kernels, p_, out, threads);
    if (cached_) return results;
    Array d_o = p_.q;
    d_o.data = out.o;
    d_o.batch_stride = shape_.q_len * p_.heads * p_.value_dim;
    d_o.row_stride = int64_t(p_.heads) * p_.value_dim;
    d_o.head_stride = p_.value_dim;
    const BackwardOut gradients{d_o,
                                out.kbar,
                                out.g,
                                results.add(rows * p_.dim, dtype_, true),
                                p_.probe.data ? results.add(rows * p_.dim, dtype_, true) : nullptr,
                                p_.solved() ? results.floats(rows, true) : nullptr,
                                results.floats(rows, true),
                                results.add(keys * p_.dim, dtype_, true),
                                results.add(keys * p_.value_dim, dtype_, true),
                                shape_.q_len,
                                shape_.k_len};
    backward(kernels, p_, gradients, threads);
    return results;
  }

 private:
  Shape shape_;
  DType dtype_;
  bool cached_;
  std::mt19937 random_;
  std::vector<Bytes> memory_;
  std::vector<Sequence> sequences_;
  std::vector<int64_t> pages_;
  Problem p_;
};

bool holds(const Call& call, const Kernels& kernels, bool finite) {
  const Results alone = call.run(kernels, 1);
  Results overlapping;
  std::thread other([&] { overlapping = call.run(kernels, 1); });
  const Results threaded = call.run(kernels, 3);
  other.join();
  return !(finite && alone.has_nan()) && alone == threaded && alone == overlapping;
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  int calls = 0, wrong = 0;
  const auto check = [&](const Kernels& kernels, const Shape& shape, const Kind& kind, bool cached, bool paged) {
    ++calls;
    if (holds(Call(shape, kind, cached, paged), kernels, !kind.broken)) return;
    ++wrong;
    std::printf(
        "%s: member %d, dtype %d, broken %d, %lld queries, %lld %s keys, dimensions %d and %d: NaN or other bits\n",
        kernels.name, int(kind.member), int(kind.dtype), int(kind.broken), static_cast<long long>(shape.q_len),
        static_cast<long long>(shape.k_len),
        paged    ? "paged"
        : cached ? "cached"
                 : "dense",
        shape.dim, shape.value_dim);
  };
  for (const std::string& name : available_kernels()) {
    const Kernels& kernels = select_kernels(name);
    for (const Member member : kMembers)
      for (const DType dtype : kDTypes)
        for (const bool broken : {false, true}) {
          const Kind kind{member, dtype, broken};
          for (const Shape& shape : kDense) check(kernels, shape, kind, false, false);
          for (const Shape& shape : kCached)
            for (const bool paged : {false, true}) check(kernels, shape, kind, true, paged);
        }
    std::printf("%s: %d calls so far, %d wrong\n", kernels.name, calls, wrong);
  }
  return wrong != 0;
}
