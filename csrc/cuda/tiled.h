// The persistent kernels for half types: a step's operands go through shared memory, and what a
// thread block waits for is a tile of eight sequences, not a step.
//
// A group's steps are cut into tiles of kTile sequences, numbered in the order in which they are
// computed. Tile n depends on one earlier tile, that of the same sequences in the previous step.
// For every tile a block
//   1. requests what does not depend on the previous step into registers,
//   2. waits until the other blocks have published the tile that it depends on, and copies its rows
//      of h (forward) or of gate gradients (backward) into shared memory by cp.async,
//   3. multiplies them by its weights, which stay in registers (mma, operands by 16-byte loads),
//   4. computes its cells, stores them and publishes the tile: each warp adds 1 to the block's
//      counter (release),
//   5. saves what only the other direction needs.
// With three or more tiles a step, 1 and 2 of the next tile come before 3 of this one.
//
// The rows are double-buffered: the barrier between 2 and 3 of tile n is passed only after all
// warps have finished 3 of tile n - 1, whose buffer the copies of tile n + 1 overwrite.
#pragma once

#include "block.h"
#include "launch.h"

namespace captioner::cuda {

// How a direction's row of K numbers is cut: chunks of kChunkBytes, kChunks for each of kSlices
// slices of K. Rows in shared memory are zero beyond K.
template <int kChunks, int kSlices>
struct TileRow {
  static constexpr int kBytes = kChunks * kSlices * kChunkBytes;
  static constexpr int kStride = tile_row_stride(kChunks, kSlices);
  static constexpr int kWarpGroups = kMaxWarps / kSlices;
  static constexpr int kTileBytes = kTile * kStride;
};

// The tiles of a group in the order of their computation.
struct TileCursor {
  const int64_t* sizes;  // batch_sizes
  int64_t t;
  int64_t first;     // packed row of step t
  int64_t previous;  // packed row of the step computed before, whose results t reads
  int rows;          // of the group in step t
  int rows_previous;
  int row0;   // first row of the tile
  int index;  // number of the tile

  // The number of the tile that this one depends on.
  __device__ __forceinline__ int dependency() const {
    return index - (rows_previous + kTile - 1) / kTile;
  }
};

// Copies the rows [row0, row0 + kTile) of the group, those below `rows`, into `buffer`. row(r) is
// the r-th row's address, of `bytes` bytes; wait(column) is called before its 16 bytes from
// `column` on are read.
template <int kStride, typename Address, typename Wait>
__device__ __forceinline__ void copy_rows(char* buffer, int row0, int rows, int bytes,
                                          const Address& address, const Wait& wait) {
  const int words = bytes / 16;
  const int columns = words < kThreads ? words : kThreads;
  const int rows_at_once = kThreads / columns;
  const int first = threadIdx.x / columns;
  if (first >= rows_at_once) return;
  for (int column = threadIdx.x % columns; column < words; column += columns) {
    wait(column * 16);
    for (int r = first; r < kTile && row0 + r < rows; r += rows_at_once) {
      copy_async(buffer + r * kStride + column * 16,
                 reinterpret_cast<const char*>(address(row0 + r)) + column * 16);
    }
  }
}

// Spins until `counter` has reached `count`. All blocks are co-resident and a step takes
// microseconds, so a count that is not there after seconds is an error and ends the launch.
__device__ __forceinline__ void wait_for(const uint32_t* counter, uint32_t count) {
  constexpr int kEager = 1 << 10, kTimeout = 1 << 26;
  for (int tries = 0; load_acquire(counter) < count; ++tries) {
    if (tries > kEager) __nanosleep(32);
    if (tries > kTimeout) __trap();
  }
}

// Publishes that this warp has stored its part of one more tile.
__device__ __forceinline__ void publish_warp(uint32_t* counter) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) add_release(counter, 1);
}

// The weights of a warp, 16 rows of `kChunks` chunks, as A operands in registers.
template <int kChunks>
struct TileWeights {
  Words low[kChunks], high[kChunks];  // of rows g and g + 8

  // acc = the product with the warp's slice of the buffer's eight rows.
  template <typename Scalar, int kStride>
  __device__ __forceinline__ void multiply(const char* slice, float (&total)[4]) const {
    const char* const own = slice + threadIdx.x % kWarp / 4 * kStride + threadIdx.x % 4 * 16;
    float acc[4][4] = {};  // four independent chains of mma
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const Words rows = *reinterpret_cast<const Words*>(own + c * kChunkBytes);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        mma(Scalar{}, acc[2 * (c % 2) + k], low[c].at[2 * k], high[c].at[2 * k],
            low[c].at[2 * k + 1], high[c].at[2 * k + 1], rows.at[2 * k], rows.at[2 * k + 1]);
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) total[k] = (acc[0][k] + acc[1][k]) + (acc[2][k] + acc[3][k]);
  }
};

// Zeroes the two buffers beyond the `bytes` of a row, which products read.
template <int kBytes, int kStride>
__device__ __forceinline__ void zero_padding(char* buffers, int bytes) {
  const int words = (kBytes - bytes) / 16;
  for (int k = threadIdx.x; k < 2 * kTile * words; k += kThreads) {
    *reinterpret_cast<Words*>(buffers + k / words * kStride + bytes + k % words * 16) = Words{};
  }
}

// batch_sizes in shared memory where they fit, for the barrier that follows to complete.
__device__ __forceinline__ const int64_t* stage_sizes(int64_t* shared, const int64_t* batch_sizes,
                                                      int64_t steps) {
  if (steps > kSizesInShared) return batch_sizes;
  for (int t = threadIdx.x; t < steps; t += kThreads) shared[t] = batch_sizes[t];
  return shared;
}

template <typename Scalar>
cudaError_t launch_tiled_forward(const PersistentForward<Scalar>& params, cudaStream_t stream);
template <typename Scalar>
cudaError_t launch_tiled_backward(const PersistentBackward<Scalar>& params, cudaStream_t stream);

}  // namespace captioner::cuda
