#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../lstm_cell.h"
#include "exchange.h"
#include "launch.h"

namespace captioner::cuda {

// The columns of weight_hh that a warp holds, eight units or twice eight, and the products of the
// gate gradients [rows, 4H] with them. Sixteen units are the 16 rows of a warp's product, eight
// sequences its columns; eight units are its columns, sixteen sequences its rows: no register holds
// what is not there.
template <typename Scalar, int Eights>
struct Columns {
  static constexpr int kChunks = kHeldWords / Eights;
  static constexpr int kSequences = Eights == 2 ? kTile : 2 * kTile;
  Words at[kChunks][Eights];

  // Of kSequences rows from row0 + tile on, of which there are `rows`; row(j) is where the lane's
  // part of the j-th row begins.
  template <typename Row>
  __device__ __forceinline__ void multiply(const Row& row, int rows, int row0, int tile, int held,
                                           int per_split, const Partial& partial,
                                           const Place& place) const {
    const int first = row0 + tile + place.g, second = first + kTile;
    const Scalar* const gradients = row(first);
    const int held_first = first < rows ? held : 0;
    float sums[4] = {};
    if constexpr (Eights == 2) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (c >= per_split) continue;
        multiply_chunk<Scalar>(sums, at[c][0], at[c][1],
                               LanePart<Scalar>::load(gradients, c, held_first));
      }
    } else {
      const Scalar* const others = row(second);
      const int held_second = second < rows ? held : 0;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (c >= per_split) continue;
        multiply_chunk<Scalar>(sums, LanePart<Scalar>::load(gradients, c, held_first),
                               LanePart<Scalar>::load(others, c, held_second), at[c][0]);
      }
    }
    const int unit = place.team * 8 * Eights;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if constexpr (Eights == 2) {
        float* const to = partial.at(place.split, tile + 2 * place.q + k) + unit + place.g;
        to[0] = sums[k];
        to[kTile] = sums[2 + k];
      } else {
        partial.at(place.split, tile + place.g)[unit + 2 * place.q + k] = sums[k];
        partial.at(place.split, tile + place.g + kTile)[unit + 2 * place.q + k] = sums[2 + k];
      }
    }
  }
};

template <typename Scalar, template <typename> class Way, int Eights>
__global__ void __launch_bounds__(kThreads) backward_steps(const PersistentBackward<Scalar> pass) {
  CAPTIONER_DYNAMIC_SHARED(float, shared);
  const Deal& deal = pass.deal;
  const Place place(deal);
  const int64_t hidden = pass.hidden_size, first_unit = int64_t{place.member} * deal.units;
  const int64_t length = 4 * hidden, group_rows = rows_of_a_group(deal, pass.batch);
  const Partial partial{shared, deal.units};
  float* const grad_cells = shared + sums_bytes(deal, deal.units) / sizeof(float);  // [rows, U]
  Way<Scalar> exchange(deal, place, pass.flags,
                       grad_cells + cells_bytes(deal, pass.batch) / sizeof(float), group_rows,
                       length);

  const int chunks = (length + Numbers<Scalar>::kPerChunk - 1) / Numbers<Scalar>::kPerChunk;
  const int per_split = (chunks + deal.splits - 1) / deal.splits;
  const LanePart<Scalar> part(length, place.split * per_split, per_split);
  const int64_t own_unit = first_unit + place.team * 8 * Eights + place.g;
  Columns<Scalar, Eights> weights;
#pragma unroll
  for (int c = 0; c < weights.kChunks; ++c) {
#pragma unroll
    for (int eight = 0; eight < Eights; ++eight) {
      weights.at[c][eight] = part.load_column(pass.weight_hh, hidden, own_unit + 8 * eight, c);
    }
  }

  const int64_t filled = count_tokens(pass.batch_sizes, pass.steps);
  if (filled > pass.tokens || pass.batch_sizes[0] > pass.batch) __trap();
  for_each(filled * length, pass.tokens * length,
           [&](int64_t k) { pass.grad_gates[k] = Scalar(0.0f); });
  for_each(filled * hidden, pass.tokens * hidden,
           [&](int64_t k) { pass.h_before[k] = Scalar(0.0f); });
  for_each(pass.batch_sizes[0] * hidden, pass.batch * hidden, [&](int64_t k) {
    if (pass.grad_hx != nullptr) pass.grad_hx[k] = pass.grad_hy[k];
    pass.grad_cx[k] = pass.grad_cy[k];
  });

  int64_t first = filled, after = first, staying = 0;
  for (int64_t t = pass.steps - 1; t >= 0; --t) {
    const int64_t sequences = pass.batch_sizes[t];
    after = first;
    first -= sequences;
    const int64_t before = t > 0 ? first - pass.batch_sizes[t - 1] : 0;
    const int rows = place.rows(deal, sequences), rows_after = place.rows(deal, staying);
    for (int row0 = 0; row0 < rows; row0 += kRows) {
      if (row0 == 0 && rows_after > 0) exchange.await();
      const auto row_after = [&](int row) {
        const int64_t token = after + place.sequence(deal, row);
        return exchange.row(pass.grad_gates + token * length, row) + part.first;
      };
      for (int tile = 0; tile < kRows && row0 + tile < rows_after; tile += weights.kSequences) {
        weights.multiply(row_after, rows_after, row0, tile, part.held, per_split, partial, place);
      }
      __syncthreads();

#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const Cell own = place.cell(deal, k, row0, rows, hidden);
        if (!own.held) continue;
        const int row = own.row, column = own.column;
        const int64_t unit = own.unit;
        const int64_t sequence = place.sequence(deal, row), token = first + sequence;
        const int64_t at = token * hidden + unit, at_first = sequence * hidden + unit;
        const int64_t at_before = (before + sequence) * hidden + unit;
        const float* const saved = pass.gates + token * length + unit;
        const Gates<float> gates{saved[0], saved[hidden], saved[2 * hidden], saved[3 * hidden]};
        const bool stays = row < rows_after;
        float& grad_cell = grad_cells[row * deal.units + column];
        const float dh = static_cast<float>(pass.grad_output[at]) +
                         (stays ? static_cast<float>(static_cast<Scalar>(
                                      partial.sum(deal.splits, row - row0, column)))
                                : static_cast<float>(pass.grad_hy[at_first]));
        const float dc = stays ? grad_cell : static_cast<float>(pass.grad_cy[at_first]);
        const CellGradient<float> found = cell_backward(
            gates, t == 0 ? pass.cx[at_first] : pass.cells[at_before], pass.cells[at], dh, dc);
        grad_cell = found.c_before;
        const float of_gates[4] = {found.sums.i, found.sums.f, found.sums.g, found.sums.o};
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          const Scalar gradient = static_cast<Scalar>(of_gates[gate]);
          pass.grad_gates[token * length + gate * hidden + unit] = gradient;
          exchange.keep(row, gate * hidden + unit, gradient);
        }
        pass.h_before[at] = t == 0 ? pass.hx[at_first] : pass.output[at_before];
        if (t == 0) pass.grad_cx[at_first] = static_cast<Scalar>(found.c_before);
      }
      if (row0 + kRows < rows) __syncthreads();
    }
    if (rows > 0 && (t > 0 || pass.grad_hx != nullptr)) {
      exchange.hand_on(rows, first_unit, owned_units(deal, first_unit, hidden), hidden, 4);
    }
    staying = sequences;
  }

  const int rows = place.rows(deal, staying);
  if (pass.grad_hx == nullptr || rows == 0) return;
  exchange.await();
  const auto row_of_first = [&](int row) {
    return exchange.row(pass.grad_gates + place.sequence(deal, row) * length, row) + part.first;
  };
  for (int row0 = 0; row0 < rows; row0 += kRows) {
    for (int tile = 0; tile < kRows && row0 + tile < rows; tile += weights.kSequences) {
      weights.multiply(row_of_first, rows, row0, tile, part.held, per_split, partial, place);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      const Cell own = place.cell(deal, k, row0, rows, hidden);
      if (!own.held) continue;
      pass.grad_hx[place.sequence(deal, own.row) * hidden + own.unit] =
          static_cast<Scalar>(partial.sum(deal.splits, own.row - row0, own.column));
    }
    __syncthreads();
  }
}

namespace {

template <typename Scalar, template <typename> class Way>
auto kernel_of(const Deal& deal) {
  return deal.team_units == 16 ? backward_steps<Scalar, Way, 2> : backward_steps<Scalar, Way, 1>;
}

}  // namespace

template <typename Scalar>
cudaError_t launch_persistent_backward(const PersistentBackward<Scalar>& pass,
                                       cudaStream_t stream) {
  const size_t shared = sums_bytes(pass.deal, pass.deal.units) +
                        cells_bytes(pass.deal, pass.batch) +
                        inbox_bytes(pass.deal, pass.batch, 4 * pass.hidden_size, sizeof(Scalar));
  const auto kernel = pass.deal.exchange == Exchange::flags
                          ? kernel_of<Scalar, ByFlags>(pass.deal)
                          : kernel_of<Scalar, ByCluster>(pass.deal);
  return launch_groups(kernel, pass, shared, stream);
}

template cudaError_t launch_persistent_backward(const PersistentBackward<float>&, cudaStream_t);
template cudaError_t launch_persistent_backward(const PersistentBackward<c10::BFloat16>&,
                                                cudaStream_t);
template cudaError_t launch_persistent_backward(const PersistentBackward<c10::Half>&, cudaStream_t);

}  // namespace captioner::cuda
