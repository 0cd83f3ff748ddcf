// SSE2 on x86-64, NEON on 64-bit ARM: what every machine of the architecture has.
#define FLASHLLA_ISA baseline
#if defined(__aarch64__)
#define FLASHLLA_ISA_NAME "neon"
#else
#define FLASHLLA_ISA_NAME "sse"
#endif
#include "isa.inc"

const flashlla::Kernels* flashlla::kernels_baseline() { return &baseline::table; }
