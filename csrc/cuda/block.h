// What the persistent kernels share: operand fragments of the tensor cores, which thread computes
// what, split-K partial sums, the capacity check and the loop over a step's tiles.
#pragma once

#include "instructions.h"
#include "work_partition.h"

namespace captioner::cuda {

// Sixteen bytes of a row: the operand of two mma instructions that a lane holds.
struct alignas(16) Words {
  uint32_t at[4];
};

template <typename Scalar>
struct Numbers {
  static constexpr int kPerLane = 16 / sizeof(Scalar);
  static constexpr int kPerChunk = kChunkBytes / sizeof(Scalar);
};

template <typename Scalar>
__device__ __forceinline__ Words as_operand(Words words) {
  if constexpr (sizeof(Scalar) == 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) words.at[k] = rounded_to_tf32(words.at[k]);
  }
  return words;
}

// The part of a row of `length` numbers that a lane reads: its share of its warp's K slice, in
// chunks kPerChunk apart.
template <typename Scalar>
struct LaneSlice {
  int64_t first;  // number
  int held;       // chunks whose numbers lie within the row

  __device__ __forceinline__ LaneSlice(int64_t length, int first_chunk, int per_slice)
      : first(int64_t{first_chunk} * Numbers<Scalar>::kPerChunk +
              threadIdx.x % 4 * Numbers<Scalar>::kPerLane) {
    const int64_t left = length - first + Numbers<Scalar>::kPerChunk - 1;
    const int64_t chunks = left > 0 ? left / Numbers<Scalar>::kPerChunk : 0;
    held = static_cast<int>(chunks < per_slice ? chunks : per_slice);
  }

  // The numbers of chunk `chunk`, zero beyond the last of `held`; `start` is the row's `first`.
  static __device__ __forceinline__ Words load(const Scalar* start, int chunk, int held) {
    if (chunk >= held) return {};
    return as_operand<Scalar>(
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
    return as_operand<Scalar>(gathered.words);
  }
};

// acc += the two mma of a chunk: 16 rows of weights, `low` the first eight, with 8 sequences.
template <typename Scalar>
__device__ __forceinline__ void mma_chunk(float (&acc)[4], const Words& low, const Words& high,
                                          const Words& sequences) {
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    mma(Scalar{}, acc, low.at[k], high.at[k], low.at[k + 1], high.at[k + 1], sequences.at[k],
        sequences.at[k + 1]);
  }
}

// One unit of one of the group's sequences; `held` unless the thread has none.
struct Cell {
  int row, column;  // among the group's sequences, among the block's units
  int64_t unit;
  bool held;
};

// What a thread is to its model, group, block and warp.
struct ThreadRole {
  int model;                // among those of the launch
  int group, block_rank;    // among those of the model, of the group
  int k_slice, warp_group;  // of the warp
  int g, q;                 // of the lane: see instructions.h

  __device__ __forceinline__ explicit ThreadRole(const WorkPartition& partition)
      : model(blockIdx.x / partition.blocks / partition.groups),
        group(blockIdx.x / partition.blocks % partition.groups),
        block_rank(blockIdx.x % partition.blocks),
        k_slice(threadIdx.x / kWarp % partition.k_slices),
        warp_group(threadIdx.x / kWarp / partition.k_slices),
        g(threadIdx.x % kWarp / 4),
        q(threadIdx.x % 4) {}

  // The flags or counters of the group's blocks.
  __device__ __forceinline__ uint32_t* of_group(uint32_t* flags,
                                                const WorkPartition& partition) const {
    return flags + (model * partition.groups + group) * partition.blocks;
  }
  // How many of the first `sequences` are the group's, and the index of its row-th.
  __device__ __forceinline__ int rows(const WorkPartition& partition, int64_t sequences) const {
    const int64_t beyond = sequences - group + partition.groups - 1;
    return beyond > 0 ? static_cast<int>(beyond / partition.groups) : 0;
  }
  __device__ __forceinline__ int64_t sequence(const WorkPartition& partition, int row) const {
    return group + static_cast<int64_t>(row) * partition.groups;
  }
  // The k-th cell of the thread among kRows sequences from row0 on.
  __device__ __forceinline__ Cell cell(const WorkPartition& partition, int k, int row0, int rows,
                                       int64_t hidden) const {
    const int element = threadIdx.x + k * blockDim.x;
    const int row = row0 + element / partition.units, column = element % partition.units;
    const int64_t unit = int64_t{block_rank} * partition.units + column;
    return {row, column, unit, element < kRows * partition.units && row < rows && unit < hidden};
  }
};

// Where a model begins in tensors with a leading K.
struct ModelRows {
  int64_t model;
  int64_t token;     // row of [K, N]
  int64_t sequence;  // row of [K, B]
  int64_t gate;      // row of [K, 4H]
  int64_t cells;     // number of [K, N, H]

  template <typename Scalar>
  __device__ __forceinline__ ModelRows(const PersistentParams<Scalar>& params,
                                       const ThreadRole& role)
      : model(params.first_model + role.model),
        token(model * params.tokens),
        sequence(model * params.batch),
        gate(model * 4 * params.hidden_size),
        cells(token * params.hidden_size) {}
};

// The units of a block: the last one of a group may have fewer.
__device__ __forceinline__ int owned_units(const WorkPartition& partition, int64_t first_unit,
                                           int64_t hidden) {
  const int64_t left = hidden - first_unit;
  return static_cast<int>(left < partition.units ? (left > 0 ? left : 0) : partition.units);
}

// The split-K partial sums of a block in shared memory: [k_slices, kRows, columns], rows padded
// against bank conflicts.
struct PartialSums {
  float* values;
  int columns;
  __device__ __forceinline__ float* at(int k_slice, int row) const {
    return values + (k_slice * kRows + row) * (columns + 4);
  }
  __device__ __forceinline__ float reduce(int k_slices, int row, int column) const {
    float total = 0;
    for (int k = 0; k < k_slices; ++k) total += at(k, row)[column];
    return total;
  }
};

// The sum of batch_sizes, known to all threads of a warp. Sizes that exceed the capacity end the
// launch with an error.
template <typename Scalar>
__device__ __forceinline__ int64_t checked_tokens(const PersistentParams<Scalar>& params) {
  int64_t tokens = 0;
  for (int64_t t = threadIdx.x % kWarp; t < params.steps; t += kWarp) {
    tokens += params.batch_sizes[t];
  }
#pragma unroll
  for (int k = kWarp / 2; k > 0; k /= 2) tokens += __shfl_xor_sync(0xffffffffu, tokens, k);
  if (tokens > params.tokens || params.batch_sizes[0] > params.batch) __trap();
  return tokens;
}

// Calls run(k) for every k from `first` to `last`, each in one thread of the model's.
template <typename Run>
__device__ __forceinline__ void for_each(const WorkPartition& partition, const ThreadRole& role,
                                         int64_t first, int64_t last, const Run& run) {
  const int64_t blocks = int64_t{partition.groups} * partition.blocks;
  const int64_t block = blockIdx.x - role.model * blocks;
  for (int64_t k = first + block * blockDim.x + threadIdx.x; k < last; k += blocks * blockDim.x) {
    run(k);
  }
}

// Zeroes the padding rows of a model's output; a sequence without a step keeps its state.
template <typename Scalar>
__device__ __forceinline__ void pad_forward(const PersistentForward<Scalar>& params,
                                            const ThreadRole& role, const ModelRows& begin,
                                            int64_t filled) {
  const int64_t hidden = params.hidden_size;
  for_each(params.partition, role, filled * hidden, params.tokens * hidden,
           [&](int64_t k) { params.output[begin.token * hidden + k] = Scalar(0.0f); });
  for_each(params.partition, role, params.batch_sizes[0] * hidden, params.batch * hidden,
           [&](int64_t k) {
             const int64_t at = begin.sequence * hidden + k;
             params.hy[at] = params.hx[at];
             params.cy[at] = static_cast<Scalar>(params.cx[at]);
           });
}

// Likewise for the gradients.
template <typename Scalar>
__device__ __forceinline__ void pad_backward(const PersistentBackward<Scalar>& params,
                                             const ThreadRole& role, const ModelRows& begin,
                                             int64_t filled) {
  const int64_t hidden = params.hidden_size, length = 4 * hidden;
  for_each(params.partition, role, filled * length, params.tokens * length,
           [&](int64_t k) { params.grad_gates[begin.token * length + k] = Scalar(0.0f); });
  for_each(params.partition, role, filled * hidden, params.tokens * hidden,
           [&](int64_t k) { params.h_before[begin.token * hidden + k] = Scalar(0.0f); });
  for_each(params.partition, role, params.batch_sizes[0] * hidden, params.batch * hidden,
           [&](int64_t k) {
             const int64_t at = begin.sequence * hidden + k;
             if (params.grad_hx != nullptr) params.grad_hx[at] = params.grad_hy[at];
             params.grad_cx[at] = params.grad_cy[at];
           });
}

// A step's `rows` rows of the group, kRows at a time: gemm(row0) leaves partial sums in shared
// memory, then compute(cell, row0, k) runs for the thread's k-th cell.
template <typename Gemm, typename Compute>
__device__ __forceinline__ void for_each_tile(const WorkPartition& partition,
                                              const ThreadRole& role, int rows, int64_t hidden,
                                              const Gemm& gemm, const Compute& compute) {
  for (int row0 = 0; row0 < rows; row0 += kRows) {
    gemm(row0);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      const Cell own = role.cell(partition, k, row0, rows, hidden);
      if (own.held) compute(own, row0, k);
    }
    if (row0 + kRows < rows) __syncthreads();  // read before the next tile overwrites them
  }
}

}  // namespace captioner::cuda
