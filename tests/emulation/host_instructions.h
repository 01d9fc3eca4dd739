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
  constexpr int kNumbers = 4 / sizeof(Scalar);
  struct Lane {
    uint32_t a[4], b[2];
  } lanes[::emulation::kWarp];
  const auto exchange = [&](uint32_t low, uint32_t high) {
    return ::emulation::exchange({__FILE__, __LINE__}, 0xffffffffu, uint64_t{high} << 32 | low);
  };
  const auto collect = [&](const uint64_t* seen, auto set) {
    for (int k = 0; k < ::emulation::kWarp; ++k) {
      set(lanes[k], static_cast<uint32_t>(seen[k]), static_cast<uint32_t>(seen[k] >> 32));
    }
  };
  collect(exchange(a0, a1),
          [](Lane& lane, uint32_t x, uint32_t y) { lane.a[0] = x, lane.a[1] = y; });
  collect(exchange(a2, a3),
          [](Lane& lane, uint32_t x, uint32_t y) { lane.a[2] = x, lane.a[3] = y; });
  collect(exchange(b0, b1),
          [](Lane& lane, uint32_t x, uint32_t y) { lane.b[0] = x, lane.b[1] = y; });
  const auto number = [](uint32_t word, int k) {
    Scalar numbers[kNumbers];
    std::memcpy(numbers, &word, sizeof(word));
    return static_cast<float>(numbers[k]);
  };
  const int g = ::emulation::lane() / 4, q = ::emulation::lane() % 4;
  for (int k = 0; k < 4; ++k) {
    const int row_half = k / 2, column = 2 * q + k % 2;
    for (int other = 0; other < 4; ++other) {  // the lanes of the row and of the column
      const Lane &row = lanes[4 * g + other], &col = lanes[4 * column + other];
      for (int part = 0; part < 2; ++part) {
        for (int n = 0; n < kNumbers; ++n) {
          d[k] += number(row.a[2 * part + row_half], n) * number(col.b[part], n);
        }
      }
    }
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
