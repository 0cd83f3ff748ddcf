#define FLASHLLA_ISA avx512
#define FLASHLLA_ISA_NAME "avx512"
#include "isa.inc"

const flashlla::Kernels* flashlla::kernels_avx512() { return &avx512::table; }
