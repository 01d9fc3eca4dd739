#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../lstm_cell.h"
#include "tiled.h"

namespace captioner::cuda {

namespace {

// What a cell needs beside the gradient that comes through weight_hh.
template <typename Scalar>
struct SavedCell {
  float gates[4], cell, c_before;
  Scalar grad_output, grad_hy, grad_cy, h_before;
};

}  // namespace

// A warp group owns sixteen units, the 16 rows of its mma; its warps have a slice each of K = 4H.
// The partial sums meet in shared memory, and each thread computes a cell. After step 0 a further
// step computes the gradient of hx.
template <typename Scalar, int kChunks, int kSlices>
__global__ void __launch_bounds__(kThreads, 1)
    backward_tiles(const PersistentBackward<Scalar> params) {
  using Row = TileRow<kChunks, kSlices>;
  constexpr int kUnits = kTiledBackwardUnits * Row::kWarpGroups, kCells = kTile * kUnits;
  static_assert(kCells <= kThreads);
  CAPTIONER_DYNAMIC_SHARED(char, memory);
  const WorkPartition& partition = params.partition;
  const ThreadRole role(partition);
  const ModelRows begin(params, role);
  const int64_t hidden = params.hidden_size, length = 4 * hidden;
  const int bytes = static_cast<int>(length * sizeof(Scalar));
  const int gate_bytes = static_cast<int>(hidden * sizeof(Scalar));
  char* const buffers = memory;
  float* const partial = reinterpret_cast<float*>(buffers + 2 * Row::kTileBytes);
  float* const grad_cells = partial + kSlices * kUnits * (kTile + 1);
  const int64_t group_tiles = tiles_of_a_group(partition, params.batch);
  const int64_t* const sizes =
      stage_sizes(reinterpret_cast<int64_t*>(grad_cells + group_tiles * kCells), params.batch_sizes,
                  params.steps);
  zero_padding<Row::kBytes, Row::kStride>(buffers, bytes);
  uint32_t* const counters = role.of_group(params.flags, partition);

  const int64_t first_unit = int64_t{role.block_rank} * kUnits;
  TileWeights<kChunks> weights;
  {
    const LaneSlice<Scalar> slice(length, role.k_slice * kChunks, kChunks);
    const Scalar* const weight = params.weight_hh + begin.gate * hidden;
    const int64_t column = first_unit + role.warp_group * kTiledBackwardUnits + role.g;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      weights.low[c] = slice.load_column(weight, hidden, column, c);
      weights.high[c] = slice.load_column(weight, hidden, column + 8, c);
    }
  }

  const int64_t filled = checked_tokens(params);
  pad_backward(params, role, begin, filled);
  __syncthreads();  // sizes and padding are there

  // The thread's cell in every tile.
  const int own_row = threadIdx.x / kUnits, own_column = threadIdx.x % kUnits;
  const int64_t unit = first_unit + own_column;
  const bool has_cell = threadIdx.x < kCells && unit < hidden;

  const auto next_step = [&](TileCursor& cursor) {
    cursor.row0 = 0;
    do {
      cursor.rows_previous = cursor.rows;
      cursor.previous = cursor.first;
      if (--cursor.t < 0) {
        if (params.grad_hx == nullptr) cursor.rows = 0;
        return;
      }
      cursor.first -= sizes[cursor.t];
      cursor.rows = role.rows(partition, sizes[cursor.t]);
    } while (cursor.rows == 0);
  };
  const auto advance = [&](TileCursor& cursor) {
    ++cursor.index;
    cursor.row0 += kTile;
    if (cursor.row0 >= cursor.rows) {
      if (cursor.t < 0) {
        cursor.rows = 0;
      } else {
        next_step(cursor);
      }
    }
  };
  const auto is_held = [&](const TileCursor& cursor) {
    return has_cell && cursor.row0 + own_row < cursor.rows;
  };
  const auto request = [&](const TileCursor& cursor, SavedCell<Scalar>& saved) {
    if (is_held(cursor) && cursor.t >= 0) {
      const int row = cursor.row0 + own_row;
      const int64_t sequence = role.sequence(partition, row), token = cursor.first + sequence;
      const int64_t at = token * hidden + unit;
      const int64_t at_first = (begin.sequence + sequence) * hidden + unit;
      const float* const gates = params.gates + begin.cells + token * length + unit;
      const float* const cells = params.cells + 4 * begin.cells;
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) saved.gates[gate] = gates[gate * hidden];
      saved.cell = cells[at];
      saved.grad_output = params.grad_output[at];
      if (cursor.t > 0) {
        const int64_t before = cursor.first - sizes[cursor.t - 1];
        const int64_t at_before = (before + sequence) * hidden + unit;
        saved.c_before = cells[at_before];
        saved.h_before = params.output[at_before];
      } else {
        saved.c_before = params.cx[at_first];
        saved.h_before = params.hx[at_first];
      }
      if (row >= cursor.rows_previous) {
        saved.grad_hy = params.grad_hy[at_first];
        saved.grad_cy = params.grad_cy[at_first];
      }
    }
    if (cursor.row0 >= cursor.rows_previous) return;
    const uint32_t count = kCells / kWarp * (cursor.dependency() + 1);
    const auto address = [&](int row) {
      return params.grad_gates + (cursor.previous + role.sequence(partition, row)) * length;
    };
    const auto wait = [&](int column) {
      wait_for(counters + column % gate_bytes / static_cast<int>(kUnits * sizeof(Scalar)), count);
    };
    copy_rows<Row::kStride>(buffers + cursor.index % 2 * Row::kTileBytes, cursor.row0,
                            cursor.rows_previous, bytes, address, wait);
  };

  const int64_t end = begin.token + filled;
  TileCursor now{sizes, params.steps, end, end, 0, 0, 0, 0};
  next_step(now);
  if (now.rows == 0) return;
  TileCursor next = now;
  advance(next);
  SavedCell<Scalar> saved{}, next_saved{};
  request(now, saved);
  while (now.rows > 0) {
    const bool last = next.rows == 0;
    copy_async_wait();
    __syncthreads();
    const bool early =
        !last && (next.row0 >= next.rows_previous || next.dependency() <= now.index - 2);
    if (early) request(next, next_saved);

    if (now.row0 < now.rows_previous) {
      float acc[4];
      weights.template multiply<Scalar, Row::kStride>(
          buffers + now.index % 2 * Row::kTileBytes + role.k_slice * kChunks * kChunkBytes, acc);
      float* const to =
          partial +
          (role.k_slice * kUnits + role.warp_group * kTiledBackwardUnits + role.g) * (kTile + 1) +
          2 * role.q;
      to[0] = acc[0];
      to[1] = acc[1];
      to[8 * (kTile + 1)] = acc[2];
      to[8 * (kTile + 1) + 1] = acc[3];
    }
    __syncthreads();

    if (threadIdx.x < kCells) {
      const int row = now.row0 + own_row;
      const bool held = is_held(now), continues = row < now.rows_previous;
      const int64_t sequence = role.sequence(partition, row), token = now.first + sequence;
      const int64_t at_first = (begin.sequence + sequence) * hidden + unit;
      float recurrent = 0;
      if (held && continues) {
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice) {
          recurrent += partial[(slice * kUnits + own_column) * (kTile + 1) + own_row];
        }
      }
      if (now.t < 0) {
        if (held) params.grad_hx[at_first] = static_cast<Scalar>(recurrent);
      } else {
        float c_gradient = 0;
        if (held) {
          float& grad_cell = grad_cells[now.row0 / kTile * kCells + threadIdx.x];
          const float dh = static_cast<float>(saved.grad_output) +
                           (continues ? static_cast<float>(static_cast<Scalar>(recurrent))
                                      : static_cast<float>(saved.grad_hy));
          const float dc = continues ? grad_cell : static_cast<float>(saved.grad_cy);
          const CellGradient<float> gradient = cell_backward(
              Gates<float>{saved.gates[0], saved.gates[1], saved.gates[2], saved.gates[3]},
              saved.c_before, saved.cell, dh, dc);
          c_gradient = grad_cell = gradient.c_before;
          const Gates<float>& d = gradient.pre_activations;
          const float of_gates[4] = {d.i, d.f, d.g, d.o};
#pragma unroll
          for (int gate = 0; gate < 4; ++gate) {
            params.grad_gates[token * length + gate * hidden + unit] =
                static_cast<Scalar>(of_gates[gate]);
          }
        }
        publish_warp(counters + role.block_rank);
        if (held) {
          params.h_before[token * hidden + unit] = saved.h_before;
          if (now.t == 0) params.grad_cx[at_first] = static_cast<Scalar>(c_gradient);
        }
      }
    }
    if (!early && !last) request(next, next_saved);
    now = next;
    saved = next_saved;
    if (!last) advance(next);
  }
}

template <typename Scalar>
cudaError_t launch_tiled_backward(const PersistentBackward<Scalar>& params, cudaStream_t stream) {
  const TileShape shape = backward_tile_shape(params.hidden_size);
  const auto kernel = shape.slices == 8   ? backward_tiles<Scalar, 16, 8>
                      : shape.chunks == 8 ? backward_tiles<Scalar, 8, 4>
                                          : backward_tiles<Scalar, 16, 4>;
  const WorkPartition& partition = params.partition;
  return launch_together(
      kernel, 0, dim3(partition.models * partition.groups * partition.blocks), dim3(kThreads),
      tiled_backward_bytes(partition, params.hidden_size, params.batch, params.steps), stream,
      params);
}

template cudaError_t launch_tiled_backward(const PersistentBackward<c10::BFloat16>&, cudaStream_t);
template cudaError_t launch_tiled_backward(const PersistentBackward<c10::Half>&, cudaStream_t);

}  // namespace captioner::cuda
