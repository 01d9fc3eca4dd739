// How the blocks of a group hand on what one step gives and the next one reads: rows of `length`
// numbers, of which each block contributes some columns.
//
// Both ways have the same calls. A step that reads what the one before gave begins with await(); a
// number that the next step will read is stored in global memory by the kernel and given to keep();
// hand_on() ends a step after which another one reads. row() says where a row is to be read.
#pragma once

#include "block.h"
#include "launch.h"

namespace captioner::cuda {

template <typename Scalar>
class ByFlags {
 public:
  static constexpr Exchange kExchange = Exchange::flags;

  __device__ __forceinline__ ByFlags(const Deal& deal, const Place& place, uint32_t* flags,
                                     void* /* shared */, int64_t /* rows */, int64_t /* length */)
      : flags_(flags + place.group * deal.blocks), blocks_(deal.blocks), member_(place.member) {}

  __device__ __forceinline__ const Scalar* row(const Scalar* stored, int /* row */) const {
    return stored;
  }
  __device__ __forceinline__ void keep(int /* row */, int64_t /* column */, Scalar) {}

  // Tells the group that this block has stored its results of one step more.
  __device__ __forceinline__ void hand_on(int /* rows */, int64_t /* first */, int /* units */,
                                          int64_t /* stride */, int /* parts */) {
    ++steps_;
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags_ + member_, steps_);
  }

  // Waits until all of the group have. A flag that never comes ends the launch with an error:
  // seconds are a thousand times what a step takes, and all blocks run at the same time.
  __device__ __forceinline__ void await() {
    constexpr int kEager = 1 << 10, kForEver = 1 << 26;
    if (threadIdx.x < kWarp) {
      for (int k = threadIdx.x; k < blocks_; k += kWarp) {
        for (int tries = 0; load_acquire(flags_ + k) < steps_; ++tries) {
          if (tries > kEager) __nanosleep(32);
          if (tries > kForEver) __trap();
        }
      }
    }
    __syncthreads();
  }

 private:
  uint32_t* flags_;  // [G] of the group
  int blocks_, member_;
  uint32_t steps_ = 0;
};

template <typename Scalar>
class ByCluster {
 public:
  static constexpr Exchange kExchange = Exchange::cluster;

  __device__ __forceinline__ ByCluster(const Deal& deal, const Place& place, uint32_t* /* flags */,
                                       void* shared, int64_t rows, int64_t length)
      : next_(static_cast<Scalar*>(shared)),
        pitch_(length + Numbers<Scalar>::kPerLane),
        place_(rows * pitch_),
        blocks_(deal.blocks),
        member_(place.member) {
    cluster_arrive();  // nobody's shared memory is written before it has begun
    cluster_wait();
  }

  __device__ __forceinline__ const Scalar* row(const Scalar* /* stored */, int row) const {
    return read_ + row * pitch_;
  }
  __device__ __forceinline__ void keep(int row, int64_t column, Scalar value) {
    next_[row * pitch_ + column] = value;
  }

  // Pushes the block's columns of `rows` rows, `parts` times `units` of them, `stride` apart, into
  // the same place of all others. Who reads a place has left the barrier after which it is written
  // again: the steps alternate between two.
  __device__ __forceinline__ void hand_on(int rows, int64_t first, int units, int64_t stride,
                                          int parts) {
    constexpr int kPerLane = Numbers<Scalar>::kPerLane;
    __syncthreads();
    const int words = units / kPerLane, per_row = parts * words;
    for (int k = threadIdx.x; k < rows * per_row; k += blockDim.x) {
      const int row = k / per_row, part = k % per_row / words, word = k % words;
      Scalar* const own = next_ + row * pitch_ + part * stride + first + word * kPerLane;
      const Words value = *reinterpret_cast<const Words*>(own);
      for (int other = 1; other < blocks_; ++other) {
        const int rank = (member_ + other) % blocks_;
        *reinterpret_cast<Words*>(in_block(own, rank)) = value;
      }
    }
    cluster_arrive();
    read_ = next_;
    next_ += second_ ? -place_ : place_;
    second_ = !second_;
  }

  __device__ __forceinline__ void await() { cluster_wait(); }

 private:
  Scalar *read_ = nullptr, *next_;
  int64_t pitch_, place_;
  int blocks_, member_;
  bool second_ = false;
};

// Launches all groups of a pass.
template <typename Pass>
cudaError_t launch_groups(void (*kernel)(Pass), const Pass& pass, size_t shared,
                          cudaStream_t stream) {
  const Deal& deal = pass.deal;
  return launch_together(kernel, deal.exchange == Exchange::cluster ? deal.blocks : 0,
                         dim3(deal.groups * deal.blocks), dim3(kWarp * deal.splits * deal.teams),
                         shared, stream, pass);
}

}  // namespace captioner::cuda
