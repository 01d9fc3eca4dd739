// How the blocks of a group exchange a step's results, which the next step reads: rows of `length`
// numbers, of which each block computes some columns.
//
// Both classes have the same interface. stage() takes a number that the next step will read and
// that the kernel has stored in global memory as well; publish() ends a step that has a successor;
// wait() begins a step that reads the results of the previous one; row() returns a row of these.
#pragma once

#include <algorithm>

#include "block.h"
#include "launch.h"

namespace captioner::cuda {

// Through L2: a flag a block, published by a release and read by an acquire.
template <typename Scalar>
class FlagExchange {
 public:
  static constexpr Algorithm kAlgorithm = Algorithm::persistent;

  __device__ __forceinline__ FlagExchange(const WorkPartition& partition, const ThreadRole& role,
                                          uint32_t* flags, void* /* shared */, int64_t /* rows */,
                                          int64_t /* length */)
      : flags_(role.of_group(flags, partition)),
        blocks_(partition.blocks),
        block_rank_(role.block_rank) {}

  __device__ __forceinline__ const Scalar* row(const Scalar* stored, int /* row */) const {
    return stored;
  }
  __device__ __forceinline__ void stage(int /* row */, int64_t /* column */, Scalar) {}

  // Publishes that the whole block has stored its results of one more step.
  __device__ __forceinline__ void publish(int /* rows */, int64_t /* first */, int /* units */,
                                          int64_t /* stride */, int /* parts */) {
    ++steps_;
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags_ + block_rank_, steps_);
  }

  // Spins until every block of the group has published. All blocks are co-resident and a step takes
  // microseconds, so a flag that is not there after seconds is an error and ends the launch.
  __device__ __forceinline__ void wait() {
    constexpr int kEager = 1 << 10, kTimeout = 1 << 26;
    if (threadIdx.x < kWarp) {
      for (int k = threadIdx.x; k < blocks_; k += kWarp) {
        for (int tries = 0; load_acquire(flags_ + k) < steps_; ++tries) {
          if (tries > kEager) __nanosleep(32);
          if (tries > kTimeout) __trap();
        }
      }
    }
    __syncthreads();
  }

 private:
  uint32_t* flags_;  // [G] of the group
  int blocks_, block_rank_;
  uint32_t steps_ = 0;
};

// Through the distributed shared memory of a cluster, double-buffered: a buffer is written again
// only after a cluster barrier that its readers have passed.
template <typename Scalar>
class ClusterExchange {
 public:
  static constexpr Algorithm kAlgorithm = Algorithm::cluster;

  __device__ __forceinline__ ClusterExchange(const WorkPartition& partition, const ThreadRole& role,
                                             uint32_t* /* flags */, void* shared, int64_t rows,
                                             int64_t length)
      : write_buffer_(static_cast<Scalar*>(shared)),
        row_stride_(length + Numbers<Scalar>::kPerLane),
        buffer_stride_(rows * row_stride_),
        blocks_(partition.blocks),
        block_rank_(role.block_rank) {
    cluster_arrive();  // no block's shared memory may be written before the block has started
    cluster_wait();
  }

  __device__ __forceinline__ const Scalar* row(const Scalar* /* stored */, int row) const {
    return read_buffer_ + row * row_stride_;
  }
  __device__ __forceinline__ void stage(int row, int64_t column, Scalar value) {
    write_buffer_[row * row_stride_ + column] = value;
  }

  // Copies the block's columns of `rows` rows, `parts` times `units` of them, `stride` apart, into
  // the same buffer of all other blocks.
  __device__ __forceinline__ void publish(int rows, int64_t first, int units, int64_t stride,
                                          int parts) {
    constexpr int kPerLane = Numbers<Scalar>::kPerLane;
    __syncthreads();
    const int words = units / kPerLane, per_row = parts * words;
    for (int k = threadIdx.x; k < rows * per_row; k += blockDim.x) {
      const int row = k / per_row, part = k % per_row / words, word = k % words;
      Scalar* const own =
          write_buffer_ + row * row_stride_ + part * stride + first + word * kPerLane;
      const Words value = *reinterpret_cast<const Words*>(own);
      for (int other = 1; other < blocks_; ++other) {
        const int rank = (block_rank_ + other) % blocks_;
        *reinterpret_cast<Words*>(in_block(own, rank)) = value;
      }
    }
    cluster_arrive();
    read_buffer_ = write_buffer_;
    write_buffer_ += second_ ? -buffer_stride_ : buffer_stride_;
    second_ = !second_;
  }

  __device__ __forceinline__ void wait() { cluster_wait(); }

 private:
  Scalar *read_buffer_ = nullptr, *write_buffer_;
  int64_t row_stride_, buffer_stride_;
  int blocks_, block_rank_;
  bool second_ = false;  // whether write_buffer_ is the second of the two
};

// Calls launch(params) for all K models, as many at a time as a launch holds.
template <typename Params, typename Launch>
cudaError_t launch_models(Params params, const Launch& launch) {
  WorkPartition& partition = params.partition;
  const int at_once = partition.models;
  for (; params.first_model < params.models; params.first_model += at_once) {
    partition.models = std::min(at_once, params.models - params.first_model);
    const cudaError_t error = launch(params);
    if (error != cudaSuccess) return error;
    params.flags += at_once * partition.groups * partition.blocks;
  }
  return cudaSuccess;
}

// Launches the groups of a launch's models: cooperatively for flags, as clusters for distributed
// shared memory.
template <typename Scalar, template <typename> class Params>
cudaError_t launch_groups(void (*kernel)(Params<Scalar>), const Params<Scalar>& params,
                          const GemmSize& gemm, cudaStream_t stream) {
  const WorkPartition& partition = params.partition;
  return launch_together(kernel, partition.algorithm == Algorithm::cluster ? partition.blocks : 0,
                         dim3(partition.models * partition.groups * partition.blocks),
                         dim3(kWarp * partition.k_slices * partition.warp_groups),
                         shared_bytes(partition, gemm, params.batch, sizeof(Scalar)), stream,
                         params);
}

}  // namespace captioner::cuda
