// csrc/cuda/instructions.h on the host: a lane gives its operands to the warp and computes its own
// accumulators from those of all lanes.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

namespace captioner::cuda {

template <typename Scalar>
void mma(Scalar, float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
         uint32_t b1) {
  constexpr int kNumbers = 4 / sizeof(Scalar), kLength = 8 * kNumbers;
  float rows[2][kLength], columns[2][kLength];  // g and g + 8; 2q and 2q + 1
  const auto exchange = [&](uint32_t low, uint32_t high) {
    return ::emulation::exchange({__FILE__, __LINE__}, 0xffffffffu, uint64_t{high} << 32 | low);
  };
  // The numbers of the `part`-th word that the `other`-th of four lanes has of a row or a column.
  const auto put = [](float* numbers, int other, int part, uint64_t word) {
    Scalar of_word[kNumbers];
    const uint32_t bits = static_cast<uint32_t>(word);
    std::memcpy(of_word, &bits, sizeof(bits));
    for (int n = 0; n < kNumbers; ++n) {
      numbers[(2 * other + part) * kNumbers + n] = static_cast<float>(of_word[n]);
    }
  };
  const int g = ::emulation::lane() / 4, q = ::emulation::lane() % 4;
  for (int part = 0; part < 2; ++part) {
    const uint64_t* const seen = part == 0 ? exchange(a0, a1) : exchange(a2, a3);
    for (int other = 0; other < 4; ++other) {
      put(rows[0], other, part, seen[4 * g + other]);
      put(rows[1], other, part, seen[4 * g + other] >> 32);
    }
  }
  const uint64_t* const seen = exchange(b0, b1);
  for (int other = 0; other < 4; ++other) {
    for (int k = 0; k < 2; ++k) {
      put(columns[k], other, 0, seen[4 * (2 * q + k) + other]);
      put(columns[k], other, 1, seen[4 * (2 * q + k) + other] >> 32);
    }
  }
  for (int k = 0; k < 4; ++k) {
    for (int n = 0; n < kLength; ++n) d[k] += rows[k / 2][n] * columns[k % 2][n];
  }
}

inline uint32_t rounded_to_tf32(uint32_t bits) {
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return finite ? (bits + 0x1000u) & ~0x1fffu : bits;
}

inline uint32_t load_acquire(const uint32_t* flag) { return *flag; }
inline void store_release(uint32_t* flag, uint32_t value) { *flag = value; }

inline void add_release(uint32_t* counter, uint32_t value) { *counter += value; }

inline void copy_async(void* shared, const void* global) {
  ::emulation::copy_async(shared, global, 16);
}
inline void copy_async_wait() { ::emulation::copy_async_wait(); }

inline void cluster_arrive() { ::emulation::arrive_at_cluster(EMULATION_HERE); }
inline void cluster_wait() { ::emulation::wait_for_cluster(EMULATION_HERE); }
template <typename T>
T* in_block(T* own, unsigned rank) {
  return static_cast<T*>(::emulation::in_block(own, rank, EMULATION_HERE));
}

}  // namespace captioner::cuda
