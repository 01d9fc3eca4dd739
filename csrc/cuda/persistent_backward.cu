#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../lstm_cell.h"
#include "exchange.h"
#include "launch.h"
#include "tiled.h"

namespace captioner::cuda {

// The columns of weight_hh that a warp holds, eight units or twice eight, and the GEMM of the gate
// gradients [rows, 4H] with them. Sixteen units are the 16 rows of a warp's mma, eight sequences
// its columns; eight units are its columns, sixteen sequences its rows: no register is left unused.
template <typename Scalar, int Eights>
struct Columns {
  static constexpr int kChunks = kHeldWords / Eights;
  static constexpr int kSequences = Eights == 2 ? kTile : 2 * kTile;
  Words at[kChunks][Eights];

  // Of kSequences rows from row0 + tile on, of which there are `rows`; row(j) is where the lane's
  // slice of the j-th row begins.
  template <typename Row>
  __device__ __forceinline__ void gemm(const Row& row, int rows, int row0, int tile, int held,
                                       int per_slice, const PartialSums& partial,
                                       const ThreadRole& role) const {
    const int first = row0 + tile + role.g, second = first + kTile;
    const Scalar* const gradients = row(first);
    const int held_first = first < rows ? held : 0;
    float acc[4] = {};
    if constexpr (Eights == 2) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (c >= per_slice) continue;
        mma_chunk<Scalar>(acc, at[c][0], at[c][1],
                          LaneSlice<Scalar>::load(gradients, c, held_first));
      }
    } else {
      const Scalar* const others = row(second);
      const int held_second = second < rows ? held : 0;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (c >= per_slice) continue;
        mma_chunk<Scalar>(acc, LaneSlice<Scalar>::load(gradients, c, held_first),
                          LaneSlice<Scalar>::load(others, c, held_second), at[c][0]);
      }
    }
    const int unit = role.warp_group * 8 * Eights;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if constexpr (Eights == 2) {
        float* const to = partial.at(role.k_slice, tile + 2 * role.q + k) + unit + role.g;
        to[0] = acc[k];
        to[kTile] = acc[2 + k];
      } else {
        partial.at(role.k_slice, tile + role.g)[unit + 2 * role.q + k] = acc[k];
        partial.at(role.k_slice, tile + role.g + kTile)[unit + 2 * role.q + k] = acc[2 + k];
      }
    }
  }
};

template <typename Scalar, template <typename> class Exchange, int Eights>
__global__ void __launch_bounds__(kThreads)
    backward_steps(const PersistentBackward<Scalar> params) {
  CAPTIONER_DYNAMIC_SHARED(float, shared);
  const WorkPartition& partition = params.partition;
  const ThreadRole role(partition);
  const ModelRows begin(params, role);
  const int64_t hidden = params.hidden_size, length = 4 * hidden;
  const int64_t first_unit = int64_t{role.block_rank} * partition.units;
  const PartialSums partial{shared, partition.units};
  float* const grad_cells =  // [rows, U]
      shared + partial_sums_bytes(partition, backward_gemm(hidden)) / sizeof(float);
  Exchange<Scalar> exchange(partition, role, params.flags,
                            grad_cells + cells_bytes(partition, params.batch) / sizeof(float),
                            rows_of_a_group(partition, params.batch), length);

  const int chunks = (length + Numbers<Scalar>::kPerChunk - 1) / Numbers<Scalar>::kPerChunk;
  const int per_slice = (chunks + partition.k_slices - 1) / partition.k_slices;
  const LaneSlice<Scalar> slice(length, role.k_slice * per_slice, per_slice);
  const int64_t own_unit = first_unit + role.warp_group * 8 * Eights + role.g;
  Columns<Scalar, Eights> weights;
#pragma unroll
  for (int c = 0; c < weights.kChunks; ++c) {
#pragma unroll
    for (int eight = 0; eight < Eights; ++eight) {
      weights.at[c][eight] = slice.load_column(params.weight_hh + begin.gate * hidden, hidden,
                                               own_unit + 8 * eight, c);
    }
  }

  const int64_t filled = checked_tokens(params);
  pad_backward(params, role, begin, filled);

  // The GEMM of `rows` rows of gate gradients, those of the step whose first packed row is `token`.
  const auto gemm_of = [&](int64_t token, int rows, int row0) {
    const auto row_of = [&](int row) {
      const int64_t at = token + role.sequence(partition, row);
      return exchange.row(params.grad_gates + at * length, row) + slice.first;
    };
    for (int tile = 0; tile < kRows && row0 + tile < rows; tile += weights.kSequences) {
      weights.gemm(row_of, rows, row0, tile, slice.held, per_slice, partial, role);
    }
  };

  int64_t first = begin.token + filled, after = first, continuing = 0;
  for (int64_t t = params.steps - 1; t >= 0; --t) {
    const int64_t sequences = params.batch_sizes[t];
    after = first;
    first -= sequences;
    const int64_t before = t > 0 ? first - params.batch_sizes[t - 1] : 0;
    const int rows = role.rows(partition, sequences);
    const int rows_after = role.rows(partition, continuing);
    const auto gemm = [&](int row0) {
      if (row0 == 0 && rows_after > 0) exchange.wait();
      gemm_of(after, rows_after, row0);
    };
    for_each_tile(partition, role, rows, hidden, gemm, [&](const Cell& own, int row0, int) {
      const int row = own.row, column = own.column;
      const int64_t unit = own.unit;
      const int64_t sequence = role.sequence(partition, row), token = first + sequence;
      const int64_t at = token * hidden + unit;
      const int64_t at_first = (begin.sequence + sequence) * hidden + unit;
      const int64_t at_before = (before + sequence) * hidden + unit;
      const float* const saved = params.gates + begin.cells + token * length + unit;
      const float* const cells = params.cells + 4 * begin.cells;
      const Gates<float> gates{saved[0], saved[hidden], saved[2 * hidden], saved[3 * hidden]};
      const bool continues = row < rows_after;
      float& grad_cell = grad_cells[row * partition.units + column];
      const float dh = static_cast<float>(params.grad_output[at]) +
                       (continues ? static_cast<float>(static_cast<Scalar>(
                                        partial.reduce(partition.k_slices, row - row0, column)))
                                  : static_cast<float>(params.grad_hy[at_first]));
      const float dc = continues ? grad_cell : static_cast<float>(params.grad_cy[at_first]);
      const CellGradient<float> gradient =
          cell_backward(gates, t == 0 ? params.cx[at_first] : cells[at_before], cells[at], dh, dc);
      grad_cell = gradient.c_before;
      const Gates<float>& d = gradient.pre_activations;
      const float of_gates[4] = {d.i, d.f, d.g, d.o};
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        const Scalar value = static_cast<Scalar>(of_gates[gate]);
        params.grad_gates[token * length + gate * hidden + unit] = value;
        exchange.stage(row, gate * hidden + unit, value);
      }
      params.h_before[at] = t == 0 ? params.hx[at_first] : params.output[at_before];
      if (t == 0) params.grad_cx[at_first] = static_cast<Scalar>(gradient.c_before);
    });
    if (rows > 0 && (t > 0 || params.grad_hx != nullptr)) {
      exchange.publish(rows, first_unit, owned_units(partition, first_unit, hidden), hidden, 4);
    }
    continuing = sequences;
  }

  const int rows = role.rows(partition, continuing);
  if (params.grad_hx == nullptr || rows == 0) return;
  exchange.wait();
  const auto gemm = [&](int row0) { gemm_of(begin.token, rows, row0); };
  for_each_tile(partition, role, rows, hidden, gemm, [&](const Cell& own, int row0, int) {
    const int64_t sequence = begin.sequence + role.sequence(partition, own.row);
    params.grad_hx[sequence * hidden + own.unit] =
        static_cast<Scalar>(partial.reduce(partition.k_slices, own.row - row0, own.column));
  });
}

namespace {

template <typename Scalar, template <typename> class Exchange>
auto kernel_of(const WorkPartition& partition) {
  return partition.warp_group_units == 16 ? backward_steps<Scalar, Exchange, 2>
                                          : backward_steps<Scalar, Exchange, 1>;
}

}  // namespace

template <typename Scalar>
cudaError_t launch_persistent_backward(const PersistentBackward<Scalar>& params,
                                       cudaStream_t stream) {
  const auto kernel = params.partition.algorithm == Algorithm::persistent
                          ? kernel_of<Scalar, FlagExchange>(params.partition)
                          : kernel_of<Scalar, ClusterExchange>(params.partition);
  return launch_models(params, [&](const PersistentBackward<Scalar>& of_launch) {
    if constexpr (sizeof(Scalar) == 2) {
      if (params.partition.tiled) return launch_tiled_backward(of_launch, stream);
    }
    return launch_groups(kernel, of_launch, backward_gemm(params.hidden_size), stream);
  });
}

template cudaError_t launch_persistent_backward(const PersistentBackward<float>&, cudaStream_t);
template cudaError_t launch_persistent_backward(const PersistentBackward<c10::BFloat16>&,
                                                cudaStream_t);
template cudaError_t launch_persistent_backward(const PersistentBackward<c10::Half>&, cudaStream_t);

}  // namespace captioner::cuda
