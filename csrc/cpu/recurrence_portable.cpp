// The recurrence for every processor: vectors of 16 bytes, which SSE2 and NEON have.
#include <cstdint>

#include "recurrence.h"

#define CAPTIONER_ISA portable
#define CAPTIONER_VECTOR_BYTES 16
#define CAPTIONER_ROWS 3
#include "recurrence.inl"

namespace captioner::cpu::portable {
template const Recurrence<float>& functions<float>();
template const Recurrence<double>& functions<double>();
}  // namespace captioner::cpu::portable
