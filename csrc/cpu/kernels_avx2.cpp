// The kernels for processors with AVX2 and fused multiply-add: 16 registers of 32 bytes.
#include <cstdint>

#include "kernels.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define CAPTIONER_ISA avx2
#define CAPTIONER_VECTOR_BYTES 32
#define CAPTIONER_ROWS 3
#include "kernels.inl"

namespace captioner::cpu::avx2 {
template const Kernels<float>& functions<float>();
template const Kernels<double>& functions<double>();
}  // namespace captioner::cpu::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__
