// Compiles the header named by METAREC_KERNEL once per instruction set, each in a namespace of that name.
//
// A kernel is plain C++ over vectors of METAREC_VECTOR_BYTES. All other headers must come before this one: a function
// that is defined while a target is set is compiled for it, and the linker may keep that copy for the whole program.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "isa.h"
#include "metarec/bfloat16.h"
#include "metarec/random.h"

#define METAREC_ISA baseline
#define METAREC_VECTOR_BYTES 16
#include METAREC_KERNEL
#undef METAREC_ISA
#undef METAREC_VECTOR_BYTES

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define METAREC_ISA avx2
#define METAREC_VECTOR_BYTES 32
#include METAREC_KERNEL
#undef METAREC_ISA
#undef METAREC_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#define METAREC_ISA avx512
#define METAREC_VECTOR_BYTES 64
#include METAREC_KERNEL
#undef METAREC_ISA
#undef METAREC_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
#undef METAREC_KERNEL

// Calls a function of the kernel in the variant that fits this processor.
#if defined(__x86_64__)
#define METAREC_DISPATCH(call) \
  (isa() == Isa::avx512 ? avx512::call : isa() == Isa::avx2 ? avx2::call : baseline::call)
#else
#define METAREC_DISPATCH(call) baseline::call
#endif
