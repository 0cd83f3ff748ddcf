#define FLASHLLA_ISA avx2
#define FLASHLLA_ISA_NAME "avx2"
#include "isa.inc"

const flashlla::Kernels* flashlla::kernels_avx2() { return &avx2::table; }
