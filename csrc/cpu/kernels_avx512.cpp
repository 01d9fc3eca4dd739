// The kernels for processors with AVX-512: 32 registers of 64 bytes.
#include <cstdint>

#include "kernels.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx2,fma")
#endif

#define CAPTIONER_ISA avx512
#define CAPTIONER_VECTOR_BYTES 64
#define CAPTIONER_ROWS 6
#include "kernels.inl"

namespace captioner::cpu::avx512 {
template const Kernels<float>& functions<float>();
template const Kernels<double>& functions<double>();
}  // namespace captioner::cpu::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__
