// The kernels for every processor: vectors of 16 bytes, which SSE2 and NEON have.
#include <cstdint>

#include "kernels.h"

#define CAPTIONER_ISA portable
#define CAPTIONER_VECTOR_BYTES 16
#define CAPTIONER_ROWS 3
#include "kernels.inl"

namespace captioner::cpu::portable {
template const Kernels<float>& functions<float>();
template const Kernels<double>& functions<double>();
}  // namespace captioner::cpu::portable
