// The sizes that work_partition.cpp chooses and the persistent kernels (block.h) rely on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persistent.h"

#define CAPTIONER_HOST_AND_DEVICE __host__ __device__ inline

namespace captioner::cuda {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 8;
constexpr int kThreads = kWarp * kMaxWarps;
constexpr int kTile = 8;          // sequences of one mma of a warp
constexpr int kRows = 2 * kTile;  // sequences between two barriers of a block
constexpr int kElements = 4;      // cells of a thread among them, at most
// A chunk is 64 bytes of each operand's row: 16 bytes a lane, the operands of two instructions. A
// warp keeps 32 times 16 bytes a lane of weight_hh in registers.
constexpr int kChunkBytes = 64;
constexpr int kHeldWords = 32;
constexpr int kForwardUnits = 8;  // of a warp group: 4 gates of each, 8 chunks of 32 rows
// In backward a warp group has 16 columns, 16 chunks of each, or 8, 32 chunks of each.

// Of one direction's GEMM.
struct GemmSize {
  int64_t length;        // K: numbers of a row of the exchanged operand
  int64_t unit_columns;  // accumulators of a unit: its four gates in forward, one in backward
};

CAPTIONER_HOST_AND_DEVICE GemmSize forward_gemm(int64_t hidden_size) { return {hidden_size, 4}; }
CAPTIONER_HOST_AND_DEVICE GemmSize backward_gemm(int64_t hidden_size) {
  return {4 * hidden_size, 1};
}

CAPTIONER_HOST_AND_DEVICE size_t partial_sums_bytes(const WorkPartition& partition,
                                                    const GemmSize& gemm) {
  const size_t columns = gemm.unit_columns * partition.units;
  return sizeof(float) * partition.k_slices * kRows * (columns + 4);
}

CAPTIONER_HOST_AND_DEVICE int64_t rows_of_a_group(const WorkPartition& partition, int64_t batch) {
  return (batch + partition.groups - 1) / partition.groups;
}

CAPTIONER_HOST_AND_DEVICE size_t cells_bytes(const WorkPartition& partition, int64_t batch) {
  return (sizeof(float) * rows_of_a_group(partition, batch) * partition.units + 15) / 16 * 16;
}

// A row of a step's exchanged results, padded by 16 bytes against bank conflicts.
CAPTIONER_HOST_AND_DEVICE size_t staged_row_bytes(int64_t length, size_t number_bytes) {
  return length * number_bytes + 16;
}

// Of a cluster's block: a double buffer for the results that all rows of the group exchange.
CAPTIONER_HOST_AND_DEVICE size_t double_buffer_bytes(const WorkPartition& partition, int64_t batch,
                                                     int64_t length, size_t number_bytes) {
  if (partition.algorithm != Algorithm::cluster) return 0;
  return 2 * rows_of_a_group(partition, batch) * staged_row_bytes(length, number_bytes);
}

// The dynamic shared memory of a block: partial sums, cells, double buffer, in this order.
CAPTIONER_HOST_AND_DEVICE size_t shared_bytes(const WorkPartition& partition, const GemmSize& gemm,
                                              int64_t batch, size_t number_bytes) {
  return partial_sums_bytes(partition, gemm) + cells_bytes(partition, batch) +
         double_buffer_bytes(partition, batch, gemm.length, number_bytes);
}

// ---- the kernels of tiled.h

constexpr int kTiledForwardUnits = 4;    // of a warp group: four gates of each
constexpr int kTiledBackwardUnits = 16;  // of a warp group
constexpr int64_t kTiledMaxHidden = 1024;
constexpr int kSizesInShared = 1024;  // batch_sizes of so many steps are read from shared memory

// How a row of K half numbers is cut: `slices` warps have `chunks` chunks each.
struct TileShape {
  int chunks, slices;
};

CAPTIONER_HOST_AND_DEVICE TileShape forward_tile_shape(int64_t hidden_size) {
  return {hidden_size <= 256 ? 8 : 16, hidden_size <= 512 ? 1 : 2};
}
CAPTIONER_HOST_AND_DEVICE TileShape backward_tile_shape(int64_t hidden_size) {
  return {hidden_size <= 256 ? 8 : 16, hidden_size <= 512 ? 4 : 8};
}

// The stride keeps the 16-byte loads of a warp, from eight rows, free of bank conflicts.
CAPTIONER_HOST_AND_DEVICE constexpr int tile_row_stride(int chunks, int slices) {
  return chunks * slices * kChunkBytes + 64;
}

CAPTIONER_HOST_AND_DEVICE int64_t tiles_of_a_group(const WorkPartition& partition, int64_t batch) {
  return (rows_of_a_group(partition, batch) + kTile - 1) / kTile;
}

// The dynamic shared memory of a block: two buffers of rows, partial sums, cells, batch_sizes.
CAPTIONER_HOST_AND_DEVICE size_t tiled_bytes(const WorkPartition& partition, const TileShape& shape,
                                             int64_t partial_sums, int64_t batch, int64_t steps) {
  const int64_t cells = tiles_of_a_group(partition, batch) * kTile * partition.units;
  return 2 * kTile * tile_row_stride(shape.chunks, shape.slices) +
         sizeof(float) * (partial_sums + cells) +
         sizeof(int64_t) * (steps <= kSizesInShared ? steps : 0);
}
CAPTIONER_HOST_AND_DEVICE size_t tiled_forward_bytes(const WorkPartition& partition,
                                                     int64_t hidden_size, int64_t batch,
                                                     int64_t steps) {
  const TileShape shape = forward_tile_shape(hidden_size);
  const int64_t partial_sums = (shape.slices - 1) * partition.warp_groups * 4 * kWarp;
  return tiled_bytes(partition, shape, partial_sums, batch, steps);
}
CAPTIONER_HOST_AND_DEVICE size_t tiled_backward_bytes(const WorkPartition& partition,
                                                      int64_t hidden_size, int64_t batch,
                                                      int64_t steps) {
  const TileShape shape = backward_tile_shape(hidden_size);
  const int64_t partial_sums = int64_t{shape.slices} * partition.units * (kTile + 1);
  return tiled_bytes(partition, shape, partial_sums, batch, steps);
}

#undef CAPTIONER_HOST_AND_DEVICE

}  // namespace captioner::cuda
