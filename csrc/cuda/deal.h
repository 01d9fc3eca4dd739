// How many blocks, warps and bytes of shared memory the persistent kernels take: what deal.cpp
// decides and the kernels (block.h) rely on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persistent.h"

// For the host and for kernels.
#define CAPTIONER_BOTH __host__ __device__ inline

namespace captioner::cuda {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 8;
constexpr int kThreads = kWarp * kMaxWarps;
constexpr int kTile = 8;          // sequences of one product of a warp
constexpr int kRows = 2 * kTile;  // sequences between two barriers of a block
constexpr int kElements = 4;      // cells of a thread among them, at most
// A chunk is 64 bytes of each operand's row: 16 bytes a lane, the operands of two instructions. A
// warp keeps 32 times 16 bytes a lane of weight_hh in registers.
constexpr int kChunkBytes = 64;
constexpr int kHeldWords = 32;
constexpr int kForwardUnits = 8;  // of a team: 4 gates of each, 8 chunks of 32 rows
// On the way back a team has 16 columns, 16 chunks of each, or 8, 32 chunks of each.

// Columns of the sums of a block: four gates of each unit forward, one backward.
CAPTIONER_BOTH size_t sums_bytes(const Deal& deal, int columns) {
  return sizeof(float) * deal.splits * kRows * (columns + 4);
}

CAPTIONER_BOTH int64_t rows_of_a_group(const Deal& deal, int64_t batch) {
  return (batch + deal.groups - 1) / deal.groups;
}

CAPTIONER_BOTH size_t cells_bytes(const Deal& deal, int64_t batch) {
  return (sizeof(float) * rows_of_a_group(deal, batch) * deal.units + 15) / 16 * 16;
}

// A row of what a step hands on, and 16 bytes that keep the rows apart in the banks.
CAPTIONER_BOTH size_t inbox_row_bytes(int64_t length, size_t number_bytes) {
  return length * number_bytes + 16;
}

// Of a cluster's block: two places for what all rows of the group hand on, `length` numbers each.
CAPTIONER_BOTH size_t inbox_bytes(const Deal& deal, int64_t batch, int64_t length,
                                  size_t number_bytes) {
  if (deal.exchange == Exchange::flags) return 0;
  return 2 * rows_of_a_group(deal, batch) * inbox_row_bytes(length, number_bytes);
}

#undef CAPTIONER_BOTH

}  // namespace captioner::cuda
