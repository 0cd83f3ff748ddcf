// Vectors of float32 through the compiler's vector extension: one source for every instruction set.
// Included inside a namespace of its own for each, see isa.inc.

#if defined(__AVX512F__)
constexpr int kLane = 16, kPanelVectors = 4;
#elif defined(__AVX2__)
constexpr int kLane = 8, kPanelVectors = 2;
#elif defined(__aarch64__)
constexpr int kLane = 4, kPanelVectors = 4;
#else
constexpr int kLane = 4, kPanelVectors = 2;
#endif
constexpr int kPanel = kLane * kPanelVectors;

typedef float Vec __attribute__((vector_size(kLane * 4), aligned(4), may_alias));
typedef int32_t IVec __attribute__((vector_size(kLane * 4), aligned(4), may_alias));

#define FLASHLLA_INLINE static inline __attribute__((always_inline))

FLASHLLA_INLINE Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
FLASHLLA_INLINE void store(float* p, Vec x) { *reinterpret_cast<Vec*>(p) = x; }
// x - 0 is x, also for x = -0, so that compilers see a plain broadcast; 0 + x would cost an addition.
FLASHLLA_INLINE Vec splat(float x) { return x - Vec{}; }
FLASHLLA_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));
FLASHLLA_INLINE float sum(Vec x) {
  Quad total;
  __builtin_memcpy(&total, &x, sizeof total);
  for (int i = 4; i < kLane; i += 4) {
    Quad part;
    __builtin_memcpy(&part, reinterpret_cast<const char*>(&x) + 4 * i, sizeof part);
    total += part;
  }
  return (total[0] + total[2]) + (total[1] + total[3]);
}
FLASHLLA_INLINE float max(Vec x) {
  float top = x[0];
  for (int i = 1; i < kLane; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

constexpr int pad_to_lane(int n) { return (n + kLane - 1) / kLane * kLane; }

// 2^x, for x <= 0 mostly; 0 below -126. Taylor series of degree 7 around the nearest integer: 1 ulp.
FLASHLLA_INLINE Vec exp2(Vec x) {
  const Vec floor_at = splat(-126.0f);
  const IVec alive = x >= floor_at;
  x = alive ? x : floor_at;
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Vec shifted = x + magic;
  const Vec r = x - (shifted - magic);
  const Vec c7 = splat(1.52527338e-5f);  // ln(2)^n / n!
  Vec y = c7 * r + 1.54035304e-4f;
  y = y * r + 1.33335581e-3f;
  y = y * r + 9.61812911e-3f;
  y = y * r + 5.55041087e-2f;
  y = y * r + 2.40226507e-1f;
  y = y * r + 6.93147181e-1f;
  y = y * r + 1.0f;
  const IVec power = (reinterpret_cast<IVec>(shifted) << 23) + (127 << 23);
  y = y * reinterpret_cast<Vec>(power);
  return reinterpret_cast<Vec>(reinterpret_cast<IVec>(y) & alive);
}

FLASHLLA_INLINE float dot(const float* a, const float* b, int n_padded) {
  Vec s = Vec{};
  for (int i = 0; i < n_padded; i += kLane) s += load(a + i) * load(b + i);
  return sum(s);
}
FLASHLLA_INLINE void axpy(float a, const float* x, float* y, int n_padded) {
  for (int i = 0; i < n_padded; i += kLane) store(y + i, load(y + i) + a * load(x + i));
}

// ---- conversions -----------------------------------------------------------------------------------

FLASHLLA_INLINE float bits_to_float(uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
FLASHLLA_INLINE uint32_t float_to_bits(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  return u;
}

FLASHLLA_INLINE float from_bf16(uint16_t h) { return bits_to_float(uint32_t(h) << 16); }
FLASHLLA_INLINE uint16_t to_bf16(float f) {
  const uint32_t u = float_to_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 0x40u);  // NaN stays NaN
  return uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

#if defined(__F16C__)
FLASHLLA_INLINE float from_f16(uint16_t h) { return _cvtsh_ss(h); }
FLASHLLA_INLINE uint16_t to_f16(float f) { return _cvtss_sh(f, 0); }
#elif defined(__aarch64__)
FLASHLLA_INLINE float from_f16(uint16_t h) {
  __fp16 x;
  __builtin_memcpy(&x, &h, 2);
  return float(x);
}
FLASHLLA_INLINE uint16_t to_f16(float f) {
  const __fp16 x = __fp16(f);
  uint16_t h;
  __builtin_memcpy(&h, &x, 2);
  return h;
}
#else
// In integers, because float arithmetic on subnormals is flushed while the kernels run.
FLASHLLA_INLINE float from_f16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 1023u;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0) return bits_to_float(sign | ((exponent + 112u) << 23) | (fraction << 13));
  const float magnitude = float(fraction) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -magnitude : magnitude;
}
FLASHLLA_INLINE uint16_t to_f16(float f) {
  const uint32_t u = float_to_bits(f), magnitude = u & 0x7fffffffu;
  const auto sign = uint16_t((u >> 16) & 0x8000u);
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to infinity
  if (magnitude < 0x38800000u) {                        // subnormal: count units of 2^-24, ties to even
    const float units = bits_to_float(magnitude) * 16777216.0f;
    return uint16_t(sign | uint16_t((units + 8388608.0f) - 8388608.0f));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return uint16_t(sign | uint16_t((rounded - (112u << 23)) >> 13));
}
#endif

// kLane elements as float32.
FLASHLLA_INLINE Vec load_bf16(const uint16_t* in) {
  typedef uint16_t Half __attribute__((vector_size(kLane * 2), aligned(2), may_alias));
  return reinterpret_cast<Vec>(__builtin_convertvector(*reinterpret_cast<const Half*>(in), IVec) << 16);
}
FLASHLLA_INLINE Vec load_f16(const uint16_t* in) {
  Vec x;
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
  x = reinterpret_cast<Vec>(_mm512_maskz_cvtph_ps(0xffff, bits));  // plain cvtph warns in GCC 12
#elif defined(__F16C__)
  x = reinterpret_cast<Vec>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in))));
#else
  for (int i = 0; i < kLane; ++i) x[i] = from_f16(in[i]);
#endif
  return x;
}

// A row of `dim` elements as float32, zeros up to `pad`.
static void load_row(const Array& a, int64_t offset, int dim, int pad, float* out) {
  if (a.dtype == DType::f32) {
    __builtin_memcpy(out, static_cast<const float*>(a.data) + offset, size_t(dim) * 4);
  } else {
    const uint16_t* in = static_cast<const uint16_t*>(a.data) + offset;
    if (a.dtype == DType::bf16) {
      for (int i = 0; i < dim; ++i) out[i] = from_bf16(in[i]);
    } else {
      for (int i = 0; i < dim; ++i) out[i] = from_f16(in[i]);
    }
  }
  for (int i = dim; i < pad; ++i) out[i] = 0.0f;
}

static void store_row(const float* row, int dim, DType dtype, void* out, int64_t offset) {
  if (dtype == DType::f32) {
    __builtin_memcpy(static_cast<float*>(out) + offset, row, size_t(dim) * 4);
    return;
  }
  auto* to = static_cast<uint16_t*>(out) + offset;
  if (dtype == DType::bf16) {
    for (int i = 0; i < dim; ++i) to[i] = to_bf16(row[i]);
  } else {
    for (int i = 0; i < dim; ++i) to[i] = to_f16(row[i]);
  }
}

FLASHLLA_INLINE bool all_finite(const float* row, int n_padded) {
  Vec nothing = Vec{};
  for (int i = 0; i < n_padded; i += kLane) nothing += load(row + i) * 0.0f;  // 0, or NaN
  const float total = sum(nothing);
  return total == total;
}
