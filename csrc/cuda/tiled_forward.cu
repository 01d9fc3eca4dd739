#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../lstm_cell.h"
#include "tiled.h"

namespace captioner::cuda {

// A warp group owns four units. The 16 rows of its mma are their i, f, g, o, four each: a lane gets
// i and g, or f and o, of one unit for two sequences, and lane ^ 16 has the other two.
template <typename Scalar, int kChunks, int kSlices>
__global__ void __launch_bounds__(kThreads, 1)
    forward_tiles(const PersistentForward<Scalar> params) {
  using Row = TileRow<kChunks, kSlices>;
  constexpr int kUnits = kTiledForwardUnits * Row::kWarpGroups;
  CAPTIONER_DYNAMIC_SHARED(char, memory);
  const WorkPartition& partition = params.partition;
  const ThreadRole role(partition);
  const ModelRows begin(params, role);
  const int64_t hidden = params.hidden_size;
  const int bytes = static_cast<int>(hidden * sizeof(Scalar)), lane = threadIdx.x % kWarp;
  char* const buffers = memory;
  float* const partial = reinterpret_cast<float*>(buffers + 2 * Row::kTileBytes);
  float* const cells = partial + (kSlices - 1) * Row::kWarpGroups * 4 * kWarp;
  const int64_t group_tiles = tiles_of_a_group(partition, params.batch);
  const int64_t* const sizes =
      stage_sizes(reinterpret_cast<int64_t*>(cells + group_tiles * Row::kWarpGroups * kWarp),
                  params.batch_sizes, params.steps);
  zero_padding<Row::kBytes, Row::kStride>(buffers, bytes);
  uint32_t* const counters = role.of_group(params.flags, partition);

  const int64_t unit =
      int64_t{role.block_rank} * kUnits + role.warp_group * kTiledForwardUnits + role.g % 4;
  const bool upper = role.g >= 4;  // whether the lane has f and o, and the second sequence
  TileWeights<kChunks> weights;
  {
    const LaneSlice<Scalar> slice(hidden, role.k_slice * kChunks, kChunks);
    const int held = unit < hidden ? slice.held : 0;
    const Scalar* const low =
        params.weight_hh + (begin.gate + role.g / 4 * hidden + unit) * hidden + slice.first;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      weights.low[c] = LaneSlice<Scalar>::load(low, c, held);
      weights.high[c] = LaneSlice<Scalar>::load(low + 2 * hidden * hidden, c, held);
    }
  }
  float bias[4] = {};
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    if (unit < hidden) {
      const int64_t row = begin.gate + gate * hidden + unit;
      bias[gate] =
          static_cast<float>(params.bias_ih[row]) + static_cast<float>(params.bias_hh[row]);
    }
  }

  const int64_t filled = checked_tokens(params);
  pad_forward(params, role, begin, filled);
  __syncthreads();  // sizes and padding are there

  const auto advance = [&](TileCursor& cursor) {
    ++cursor.index;
    cursor.row0 += kTile;
    if (cursor.row0 < cursor.rows) return;
    cursor.row0 = 0;
    cursor.rows_previous = cursor.rows;
    cursor.previous = cursor.first;
    cursor.first += sizes[cursor.t];
    ++cursor.t;
    cursor.rows = cursor.t < params.steps ? role.rows(partition, sizes[cursor.t]) : 0;
  };
  const auto row_of_lane = [&](const TileCursor& cursor) {
    return cursor.row0 + 2 * role.q + (upper ? 1 : 0);
  };
  const auto is_held = [&](const TileCursor& cursor) {
    return role.k_slice == 0 && row_of_lane(cursor) < cursor.rows && unit < hidden;
  };
  const auto source_of = [&](const TileCursor& cursor) -> int64_t {
    if (!is_held(cursor)) return 0;
    const int64_t token =
        cursor.first - begin.token + role.sequence(partition, row_of_lane(cursor));
    return params.input_rows ? params.input_rows[token] : token;
  };
  const auto request = [&](const TileCursor& cursor, int64_t source, Scalar(&projected)[4]) {
    if (is_held(cursor)) {
      if (source < 0 || source >= params.projection_rows) __trap();
      const Scalar* const input = params.input_projection +
                                  (begin.model * params.projection_rows + source) * 4 * hidden +
                                  unit;
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) projected[gate] = input[gate * hidden];
    }
    const uint32_t count = Row::kWarpGroups * (cursor.dependency() + 1);
    const auto address = [&](int row) {
      const int64_t sequence = role.sequence(partition, row);
      return cursor.t == 0 ? params.hx + (begin.sequence + sequence) * hidden
                           : params.output + (cursor.previous + sequence) * hidden;
    };
    const auto wait = [&](int column) {
      if (cursor.t > 0) {
        wait_for(counters + column / static_cast<int>(kUnits * sizeof(Scalar)), count);
      }
    };
    copy_rows<Row::kStride>(buffers + cursor.index % 2 * Row::kTileBytes, cursor.row0, cursor.rows,
                            bytes, address, wait);
  };

  TileCursor now{sizes, 0, begin.token, begin.token, role.rows(partition, sizes[0]), 0, 0, 0};
  if (now.rows == 0) return;
  TileCursor next = now;
  advance(next);
  Scalar projected[4], next_projected[4];
  request(now, source_of(now), projected);
  while (now.rows > 0) {
    const bool last = next.rows == 0;
    const int64_t next_source = last ? 0 : source_of(next);
    copy_async_wait();
    __syncthreads();
    const bool early = !last && (next.t == 0 || next.dependency() <= now.index - 2);
    if (early) request(next, next_source, next_projected);

    float acc[4];
    weights.template multiply<Scalar, Row::kStride>(
        buffers + now.index % 2 * Row::kTileBytes + role.k_slice * kChunks * kChunkBytes, acc);
    if constexpr (kSlices > 1) {
      const auto at = [&](int slice, int k) -> float& {
        return partial[((slice - 1) * Row::kWarpGroups + role.warp_group) * 4 * kWarp + k * kWarp +
                       lane];
      };
      if (role.k_slice > 0) {
#pragma unroll
        for (int k = 0; k < 4; ++k) at(role.k_slice, k) = acc[k];
      }
      __syncthreads();
      if (role.k_slice == 0) {
#pragma unroll
        for (int slice = 1; slice < kSlices; ++slice) {
#pragma unroll
          for (int k = 0; k < 4; ++k) acc[k] += at(slice, k);
        }
      }
    }
    if (role.k_slice == 0) {
      const float first = __shfl_xor_sync(0xffffffffu, upper ? acc[0] : acc[1], 16);
      const float second = __shfl_xor_sync(0xffffffffu, upper ? acc[2] : acc[3], 16);
      const int64_t sequence = role.sequence(partition, row_of_lane(now));
      const int64_t at = (now.first + sequence) * hidden + unit;
      const int64_t at_first = (begin.sequence + sequence) * hidden + unit;
      const bool held = is_held(now);
      Gates<float> gates{};
      CellState<float> state{};
      Scalar h{};
      if (held) {
        gates = activate(
            Gates<float>{(upper ? first : acc[0]) + (static_cast<float>(projected[0]) + bias[0]),
                         (upper ? acc[1] : first) + (static_cast<float>(projected[1]) + bias[1]),
                         (upper ? second : acc[2]) + (static_cast<float>(projected[2]) + bias[2]),
                         (upper ? acc[3] : second) + (static_cast<float>(projected[3]) + bias[3])});
        float& cell = cells[(now.row0 / kTile * Row::kWarpGroups + role.warp_group) * kWarp + lane];
        state = cell_forward(gates, now.t == 0 ? params.cx[at_first] : cell);
        cell = state.c;
        h = static_cast<Scalar>(state.h);
        params.output[at] = h;
      }
      publish_warp(counters + role.block_rank);
      if (held) {
        float* const saved =
            params.gates + begin.cells + (now.first + sequence) * 4 * hidden + unit;
        saved[0] = gates.i;
        saved[hidden] = gates.f;
        saved[2 * hidden] = gates.g;
        saved[3 * hidden] = gates.o;
        params.cells[4 * begin.cells + at] = state.c;
        if (sequence >= (now.t + 1 < params.steps ? sizes[now.t + 1] : 0)) {
          params.hy[at_first] = h;
          params.cy[at_first] = static_cast<Scalar>(state.c);
        }
      }
    }
    if (!early && !last) request(next, next_source, next_projected);
    now = next;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) projected[gate] = next_projected[gate];
    if (!last) advance(next);
  }
}

template <typename Scalar>
cudaError_t launch_tiled_forward(const PersistentForward<Scalar>& params, cudaStream_t stream) {
  const TileShape shape = forward_tile_shape(params.hidden_size);
  const auto kernel = shape.slices == 2   ? forward_tiles<Scalar, 16, 2>
                      : shape.chunks == 8 ? forward_tiles<Scalar, 8, 1>
                                          : forward_tiles<Scalar, 16, 1>;
  const WorkPartition& partition = params.partition;
  return launch_together(
      kernel, 0, dim3(partition.models * partition.groups * partition.blocks), dim3(kThreads),
      tiled_forward_bytes(partition, params.hidden_size, params.batch, params.steps), stream,
      params);
}

template cudaError_t launch_tiled_forward(const PersistentForward<c10::BFloat16>&, cudaStream_t);
template cudaError_t launch_tiled_forward(const PersistentForward<c10::Half>&, cudaStream_t);

}  // namespace captioner::cuda
