#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../lstm_cell.h"
#include "exchange.h"
#include "launch.h"
#include "tiled.h"

namespace captioner::cuda {

template <typename Scalar, template <typename> class Exchange>
__global__ void __launch_bounds__(kThreads) forward_steps(const PersistentForward<Scalar> params) {
  constexpr int kChunks = kHeldWords / 4;
  CAPTIONER_DYNAMIC_SHARED(float, shared);
  const WorkPartition& partition = params.partition;
  const ThreadRole role(partition);
  const ModelRows begin(params, role);
  const int64_t hidden = params.hidden_size;
  const int64_t first_unit = int64_t{role.block_rank} * partition.units;
  const PartialSums partial{shared, 4 * partition.units};
  float* const cells =  // [rows, U]
      shared + partial_sums_bytes(partition, forward_gemm(hidden)) / sizeof(float);
  Exchange<Scalar> exchange(partition, role, params.flags,
                            cells + cells_bytes(partition, params.batch) / sizeof(float),
                            rows_of_a_group(partition, params.batch), hidden);

  // Rows of an mma: eight units' i above f, then g above o.
  const int chunks = (hidden + Numbers<Scalar>::kPerChunk - 1) / Numbers<Scalar>::kPerChunk;
  const int per_slice = (chunks + partition.k_slices - 1) / partition.k_slices;
  const LaneSlice<Scalar> slice(hidden, role.k_slice * per_slice, per_slice);
  const int64_t own_unit = first_unit + role.warp_group * kForwardUnits + role.g;
  Words weights[kChunks][4];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const Scalar* row = params.weight_hh + (begin.gate + gate * hidden + own_unit) * hidden;
      weights[c][gate] =
          LaneSlice<Scalar>::load(row + slice.first, c, own_unit < hidden ? slice.held : 0);
    }
  }

  const int64_t filled = checked_tokens(params);
  pad_forward(params, role, begin, filled);

  // First packed rows of the previous step and of this one.
  int64_t before = begin.token, first = begin.token;
  for (int64_t t = 0; t < params.steps; ++t) {
    const int64_t sequences = params.batch_sizes[t];
    const int64_t continuing = t + 1 < params.steps ? params.batch_sizes[t + 1] : 0;
    const int rows = role.rows(partition, sequences);
    const int rows_after = role.rows(partition, continuing);
    if (rows == 0) break;

    Gates<float> projected[kElements];  // what does not depend on the previous step
    const auto load_projection = [&](int row0) {
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const Cell own = role.cell(partition, k, row0, rows, hidden);
        if (!own.held) continue;
        const int64_t unit = own.unit;
        const int64_t token = first - begin.token + role.sequence(partition, own.row);
        const int64_t source = params.input_rows ? params.input_rows[token] : token;
        if (source < 0 || source >= params.projection_rows) __trap();
        const Scalar* input = params.input_projection +
                              (begin.model * params.projection_rows + source) * 4 * hidden + unit;
        const auto value = [&](int gate) {
          const int64_t at = gate * hidden, row = begin.gate + at + unit;
          return static_cast<float>(input[at]) + static_cast<float>(params.bias_ih[row]) +
                 static_cast<float>(params.bias_hh[row]);
        };
        projected[k] = {value(0), value(1), value(2), value(3)};
      }
    };
    const auto gemm = [&](int row0) {
      load_projection(row0);
      if (row0 == 0 && t > 0) exchange.wait();
      for (int tile = 0; tile < kRows && row0 + tile < rows; tile += kTile) {
        const int row = row0 + tile + role.g;
        const int64_t sequence = role.sequence(partition, row);
        const Scalar* h = t == 0 ? params.hx + (begin.sequence + sequence) * hidden
                                 : exchange.row(params.output + (before + sequence) * hidden, row);
        const int held = row < rows ? slice.held : 0;
        float upper[4] = {}, lower[4] = {};
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          if (c >= per_slice) continue;
          const Words words = LaneSlice<Scalar>::load(h + slice.first, c, held);
          mma_chunk<Scalar>(upper, weights[c][0], weights[c][1], words);
          mma_chunk<Scalar>(lower, weights[c][2], weights[c][3], words);
        }
        const int column = role.warp_group * kForwardUnits + role.g;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          float* const at = partial.at(role.k_slice, tile + 2 * role.q + k) + column;
          at[0] = upper[k];
          at[partition.units] = upper[2 + k];
          at[2 * partition.units] = lower[k];
          at[3 * partition.units] = lower[2 + k];
        }
      }
    };
    for_each_tile(partition, role, rows, hidden, gemm, [&](const Cell& own, int row0, int k) {
      const int row = own.row, column = own.column;
      const int64_t unit = own.unit;
      const int64_t sequence = role.sequence(partition, row), token = first + sequence;
      const int64_t at = token * hidden + unit;
      const int64_t at_first = (begin.sequence + sequence) * hidden + unit;
      const auto recurrent = [&](int gate) {
        return partial.reduce(partition.k_slices, row - row0, gate * partition.units + column);
      };
      const Gates<float> gates =
          activate(Gates<float>{projected[k].i + recurrent(0), projected[k].f + recurrent(1),
                                projected[k].g + recurrent(2), projected[k].o + recurrent(3)});
      float& cell = cells[row * partition.units + column];
      const CellState<float> state = cell_forward(gates, t == 0 ? params.cx[at_first] : cell);
      cell = state.c;
      float* const saved = params.gates + begin.cells + token * 4 * hidden + unit;
      saved[0] = gates.i;
      saved[hidden] = gates.f;
      saved[2 * hidden] = gates.g;
      saved[3 * hidden] = gates.o;
      params.cells[4 * begin.cells + at] = state.c;
      const Scalar h = static_cast<Scalar>(state.h);
      params.output[at] = h;
      exchange.stage(row, unit, h);
      if (sequence >= continuing) {
        params.hy[at_first] = h;
        params.cy[at_first] = static_cast<Scalar>(state.c);
      }
    });
    if (rows_after > 0) {
      exchange.publish(rows_after, first_unit, owned_units(partition, first_unit, hidden), hidden,
                       1);
    }
    before = first;
    first += sequences;
  }
}

template <typename Scalar>
cudaError_t launch_persistent_forward(const PersistentForward<Scalar>& params,
                                      cudaStream_t stream) {
  const auto kernel = params.partition.algorithm == Algorithm::persistent
                          ? forward_steps<Scalar, FlagExchange>
                          : forward_steps<Scalar, ClusterExchange>;
  return launch_models(params, [&](const PersistentForward<Scalar>& of_launch) {
    if constexpr (sizeof(Scalar) == 2) {
      if (params.partition.tiled) return launch_tiled_forward(of_launch, stream);
    }
    return launch_groups(kernel, of_launch, forward_gemm(params.hidden_size), stream);
  });
}

template cudaError_t launch_persistent_forward(const PersistentForward<float>&, cudaStream_t);
template cudaError_t launch_persistent_forward(const PersistentForward<c10::BFloat16>&,
                                               cudaStream_t);
template cudaError_t launch_persistent_forward(const PersistentForward<c10::Half>&, cudaStream_t);

}  // namespace captioner::cuda
