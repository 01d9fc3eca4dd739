// What the blocks of the two persistent kernels have in common: operands as the tensor cores take
// them, who computes which cells, sums that warps share.
#pragma once

#include "deal.h"
#include "instructions.h"

namespace captioner::cuda {

// Sixteen bytes of a row as the tensor cores take them.
struct alignas(16) Words {
  uint32_t at[4];
};

template <typename Scalar>
struct Numbers {
  static constexpr int kPerLane = 16 / sizeof(Scalar);
  static constexpr int kPerChunk = kChunkBytes / sizeof(Scalar);
};

template <typename Scalar>
__device__ __forceinline__ Words ready(Words words) {
  if constexpr (sizeof(Scalar) == 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) words.at[k] = rounded_to_tf32(words.at[k]);
  }
  return words;
}

// The part of a row of `length` numbers that a lane sees: those of its warp's chunks, each
// kPerChunk behind the one before.
template <typename Scalar>
struct LanePart {
  int64_t first;  // number
  int held;       // chunks whose numbers are not beyond the end of the row

  __device__ __forceinline__ LanePart(int64_t length, int first_chunk, int per_split)
      : first(int64_t{first_chunk} * Numbers<Scalar>::kPerChunk +
              threadIdx.x % 4 * Numbers<Scalar>::kPerLane) {
    const int64_t left = length - first + Numbers<Scalar>::kPerChunk - 1;
    const int64_t chunks = left > 0 ? left / Numbers<Scalar>::kPerChunk : 0;
    held = static_cast<int>(chunks < per_split ? chunks : per_split);
  }

  // The numbers of chunk `chunk`, zero beyond the last of `held`; `start` is the row's `first`.
  static __device__ __forceinline__ Words load(const Scalar* start, int chunk, int held) {
    if (chunk >= held) return {};
    return ready<Scalar>(
        *reinterpret_cast<const Words*>(start + chunk * Numbers<Scalar>::kPerChunk));
  }

  // The same numbers of a column of weight [length, hidden].
  __device__ __forceinline__ Words load_column(const Scalar* weight, int64_t hidden, int64_t column,
                                               int chunk) const {
    if (column >= hidden || chunk >= held) return {};
    union {
      Words words;
      Scalar numbers[Numbers<Scalar>::kPerLane];
    } gathered{};
    const int64_t row = first + chunk * Numbers<Scalar>::kPerChunk;
#pragma unroll
    for (int k = 0; k < Numbers<Scalar>::kPerLane; ++k) {
      gathered.numbers[k] = weight[(row + k) * hidden + column];
    }
    return ready<Scalar>(gathered.words);
  }
};

// d += the two products of a chunk: 16 rows of weights, `low` the first eight, with 8 sequences.
template <typename Scalar>
__device__ __forceinline__ void multiply_chunk(float (&d)[4], const Words& low, const Words& high,
                                               const Words& sequences) {
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    multiply_add(Scalar{}, d, low.at[k], high.at[k], low.at[k + 1], high.at[k + 1], sequences.at[k],
                 sequences.at[k + 1]);
  }
}

// One unit of one of the group's sequences; `held` unless there is none.
struct Cell {
  int row, column;  // among the group's sequences, among the block's units
  int64_t unit;
  bool held;
};

// A thread's place in the group's work.
struct Place {
  int group, member;
  int split, team;  // of the warp
  int g, q;         // of the lane: see instructions.h

  __device__ __forceinline__ explicit Place(const Deal& deal)
      : group(blockIdx.x / deal.blocks),
        member(blockIdx.x % deal.blocks),
        split(threadIdx.x / kWarp % deal.splits),
        team(threadIdx.x / kWarp / deal.splits),
        g(threadIdx.x % kWarp / 4),
        q(threadIdx.x % 4) {}

  // How many of the first `sequences` are the group's, and which is the group's j-th.
  __device__ __forceinline__ int rows(const Deal& deal, int64_t sequences) const {
    const int64_t beyond = sequences - group + deal.groups - 1;
    return beyond > 0 ? static_cast<int>(beyond / deal.groups) : 0;
  }
  __device__ __forceinline__ int64_t sequence(const Deal& deal, int row) const {
    return group + static_cast<int64_t>(row) * deal.groups;
  }
  // The k-th cell that is the thread's among kRows sequences from row0 on.
  __device__ __forceinline__ Cell cell(const Deal& deal, int k, int row0, int rows,
                                       int64_t hidden) const {
    const int element = threadIdx.x + k * blockDim.x;
    const int row = row0 + element / deal.units, column = element % deal.units;
    const int64_t unit = int64_t{member} * deal.units + column;
    return {row, column, unit, element < kRows * deal.units && row < rows && unit < hidden};
  }
};

// How many of its units a block has: the last one of a group may have fewer.
__device__ __forceinline__ int owned_units(const Deal& deal, int64_t first_unit, int64_t hidden) {
  const int64_t left = hidden - first_unit;
  return static_cast<int>(left < deal.units ? (left > 0 ? left : 0) : deal.units);
}

// Where the teams leave their parts of the sums: [splits, kRows, columns], rows padded so that the
// lanes of a warp meet in no bank.
struct Partial {
  float* sums;
  int columns;
  __device__ __forceinline__ float* at(int split, int row) const {
    return sums + (split * kRows + row) * (columns + 4);
  }
  __device__ __forceinline__ float sum(int splits, int row, int column) const {
    float total = 0;
    for (int k = 0; k < splits; ++k) total += at(k, row)[column];
    return total;
  }
};

// The sum of batch_sizes, known to all threads of a warp.
__device__ __forceinline__ int64_t count_tokens(const int64_t* batch_sizes, int64_t steps) {
  int64_t tokens = 0;
  for (int64_t t = threadIdx.x % kWarp; t < steps; t += kWarp) tokens += batch_sizes[t];
#pragma unroll
  for (int k = kWarp / 2; k > 0; k /= 2) tokens += __shfl_xor_sync(0xffffffffu, tokens, k);
  return tokens;
}

// Calls run(k) for every k from `first` to `last`, each in one thread of the launch.
template <typename Run>
__device__ __forceinline__ void for_each(int64_t first, int64_t last, const Run& run) {
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t k = first + int64_t{blockIdx.x} * blockDim.x + threadIdx.x; k < last; k += threads) {
    run(k);
  }
}

}  // namespace captioner::cuda
