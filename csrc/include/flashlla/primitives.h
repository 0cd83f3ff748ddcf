// What a GPU does and C++ has no word for. Kernels use these names and nothing else of CUDA, so that the same source
// compiles with nvcc and NVRTC, and as C++ for a host that provides the functions of the last section.
#pragma once

#if defined(__CUDACC__)
#define FLASHLLA_DEVICE __device__ __forceinline__
#define FLASHLLA_BOTH __host__ __device__ __forceinline__
#define FLASHLLA_KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#else
#include <cmath>
#define FLASHLLA_DEVICE inline
#define FLASHLLA_BOTH inline
#define FLASHLLA_KERNEL(threads, blocks) extern "C" void
#endif

namespace flashlla {

using int64_t = long long;  // NVRTC comes without <cstdint>
using uint16_t = unsigned short;
using uint32_t = unsigned int;

constexpr int kWarp = 32;

struct alignas(8) Float2 {
  float x, y;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};
struct alignas(16) Chunk {  // 8 numbers of 16 bits, what one asynchronous copy moves
  uint32_t word[4];
};

#if defined(__CUDACC__)

// ---- threads -----------------------------------------------------------------------------------------------------

FLASHLLA_DEVICE int thread_index() { return threadIdx.x; }
FLASHLLA_DEVICE int block_index() { return blockIdx.x; }
FLASHLLA_DEVICE void sync_block() { __syncthreads(); }
// A barrier of the first `threads` threads of the block, whole warps, and nobody else.
template <int threads>
FLASHLLA_DEVICE void sync_first() {
  asm volatile("bar.sync 1, %0;" ::"n"(threads) : "memory");
}
FLASHLLA_DEVICE void sync_warp() { __syncwarp(); }
FLASHLLA_DEVICE float shuffle(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
FLASHLLA_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
FLASHLLA_DEVICE int atomic_add(int* p, int x) { return atomicAdd(p, x); }
FLASHLLA_DEVICE void fence() { __threadfence(); }

// ---- memory ------------------------------------------------------------------------------------------------------

FLASHLLA_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}
// Where something lies in shared memory: half of the registers that a pointer takes.
FLASHLLA_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
// What another block wrote: past the first-level cache.
FLASHLLA_DEVICE float load_fresh(const float* p) { return __ldcg(p); }
FLASHLLA_DEVICE Float4 load_fresh(const Float4* p) {
  const float4 x = __ldcg(reinterpret_cast<const float4*>(p));
  return {x.x, x.y, x.z, x.w};
}
// 16 bytes from global to shared memory, the first `bytes` of them copied and the rest zero.
FLASHLLA_DEVICE void copy_async(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from),
               "r"(bytes)
               : "memory");
}
FLASHLLA_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's latest groups of copies are under way.
template <int pending>
FLASHLLA_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- tensor cores ------------------------------------------------------------------------------------------------

// Four 8x8 matrices of 16 bits; lane n passes where row n % 8 of matrix n / 8 lies.
FLASHLLA_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}
FLASHLLA_DEVICE void load_transposed(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
// d (16x8) += a (16x16) b (16x8)
FLASHLLA_DEVICE void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
FLASHLLA_DEVICE void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// d (16x8) += a (16x8) b (8x8), of numbers that have 10 bits behind the point
FLASHLLA_DEVICE void multiply_tf32(float (&d)[4], const float (&a)[4], float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// ---- numbers -----------------------------------------------------------------------------------------------------

FLASHLLA_DEVICE uint32_t bits(float x) { return __float_as_uint(x); }
FLASHLLA_DEVICE float from_bits(uint32_t x) { return __uint_as_float(x); }
FLASHLLA_DEVICE float half_to_float(uint32_t low) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(uint16_t(low)));
  return x;
}
FLASHLLA_DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t x;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
  return x;
}
FLASHLLA_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t x;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
  return x;
}
FLASHLLA_DEVICE float round_to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y);
}

#else

// ---- what a host provides, with the meaning that it has above -------------------------------------------------------

int thread_index();
int block_index();
void sync_block();
void sync_first(int threads);
template <int threads>
void sync_first() {
  sync_first(threads);
}
void sync_warp();
float shuffle(float x, int lane);
float shuffle_xor(float x, int mask);
int atomic_add(int* p, int x);
void fence();

char* shared_memory();
inline uint32_t shared_address(const void* p) { return uint32_t(static_cast<const char*>(p) - shared_memory()); }
float load_fresh(const float* p);
Float4 load_fresh(const Float4* p);
void copy_async(void* to, const void* from, int bytes);
void commit_copies();
void wait_for_copies(int pending);
template <int pending>
void wait_for_copies() {
  wait_for_copies(pending);
}

void load_matrices(uint32_t (&r)[4], const void* row);
void load_transposed(uint32_t (&r)[4], uint32_t row);
void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void multiply_tf32(float (&d)[4], const float (&a)[4], float b0, float b1);

uint32_t bits(float x);
float from_bits(uint32_t x);
float half_to_float(uint32_t low);
uint32_t pack_f16(float low, float high);
uint32_t pack_bf16(float low, float high);
float round_to_tf32(float x);
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

#endif

FLASHLLA_BOTH int min_of(int a, int b) { return a < b ? a : b; }
FLASHLLA_BOTH int max_of(int a, int b) { return a > b ? a : b; }

FLASHLLA_DEVICE float infinity() { return from_bits(0x7f800000u); }
FLASHLLA_DEVICE float nan() { return from_bits(0x7fc00000u); }
FLASHLLA_DEVICE float not_a_number() { return from_bits(0x7fffffffu); }

// The two numbers of a word, and back.
template <bool bf16>
FLASHLLA_DEVICE float low_half(uint32_t x) {
  return bf16 ? from_bits(x << 16) : half_to_float(x & 0xffffu);
}
template <bool bf16>
FLASHLLA_DEVICE float high_half(uint32_t x) {
  return bf16 ? from_bits(x & 0xffff0000u) : half_to_float(x >> 16);
}
template <bool bf16>
FLASHLLA_DEVICE uint32_t pack(float low, float high) {
  return bf16 ? pack_bf16(low, high) : pack_f16(low, high);
}
template <bool bf16>
FLASHLLA_DEVICE void unpack(const Chunk& from, float (&to)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = low_half<bf16>(from.word[i]);
    to[2 * i + 1] = high_half<bf16>(from.word[i]);
  }
}

FLASHLLA_DEVICE float warp_max(float x) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}
FLASHLLA_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

}  // namespace flashlla
