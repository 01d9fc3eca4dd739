#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../lstm_cell.h"
#include "exchange.h"
#include "launch.h"

namespace captioner::cuda {

template <typename Scalar, template <typename> class Way>
__global__ void __launch_bounds__(kThreads) forward_steps(const PersistentForward<Scalar> pass) {
  constexpr int kChunks = kHeldWords / 4;
  CAPTIONER_DYNAMIC_SHARED(float, shared);
  const Deal& deal = pass.deal;
  const Place place(deal);
  const int64_t hidden = pass.hidden_size, first_unit = int64_t{place.member} * deal.units;
  const int64_t group_rows = rows_of_a_group(deal, pass.batch);
  const Partial partial{shared, 4 * deal.units};
  float* const cells = shared + sums_bytes(deal, 4 * deal.units) / sizeof(float);  // [rows, U]
  Way<Scalar> exchange(deal, place, pass.flags,
                       cells + cells_bytes(deal, pass.batch) / sizeof(float), group_rows, hidden);

  // Rows of a product: eight units' i above f, then g above o.
  const int chunks = (hidden + Numbers<Scalar>::kPerChunk - 1) / Numbers<Scalar>::kPerChunk;
  const int per_split = (chunks + deal.splits - 1) / deal.splits;
  const LanePart<Scalar> part(hidden, place.split * per_split, per_split);
  const int64_t own_unit = first_unit + place.team * kForwardUnits + place.g;
  Words weights[kChunks][4];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const Scalar* row = pass.weight_hh + (gate * hidden + own_unit) * hidden;
      weights[c][gate] =
          LanePart<Scalar>::load(row + part.first, c, own_unit < hidden ? part.held : 0);
    }
  }

  const int64_t filled = count_tokens(pass.batch_sizes, pass.steps);
  if (filled > pass.tokens || pass.batch_sizes[0] > pass.batch) __trap();
  for_each(filled * hidden, pass.tokens * hidden,
           [&](int64_t k) { pass.output[k] = Scalar(0.0f); });
  for_each(pass.batch_sizes[0] * hidden, pass.batch * hidden, [&](int64_t k) {
    pass.hy[k] = pass.hx[k];
    pass.cy[k] = static_cast<Scalar>(pass.cx[k]);
  });

  int64_t before = 0, first = 0;  // first packed rows of the step before and of this one
  for (int64_t t = 0; t < pass.steps; ++t) {
    const int64_t sequences = pass.batch_sizes[t];
    const int64_t staying = t + 1 < pass.steps ? pass.batch_sizes[t + 1] : 0;
    const int rows = place.rows(deal, sequences), rows_after = place.rows(deal, staying);
    if (rows == 0) break;
    for (int row0 = 0; row0 < rows; row0 += kRows) {
      // The part of the sums that does not wait for the step before.
      Gates<float> sums[kElements];
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const Cell own = place.cell(deal, k, row0, rows, hidden);
        if (!own.held) continue;
        const int64_t unit = own.unit, token = first + place.sequence(deal, own.row);
        const int64_t source = pass.input_rows ? pass.input_rows[token] : token;
        if (source < 0 || source >= pass.sums_rows) __trap();
        const Scalar* input = pass.input_sums + source * 4 * hidden + unit;
        const auto sum = [&](int gate) {
          const int64_t at = gate * hidden;
          return static_cast<float>(input[at]) + static_cast<float>(pass.bias_ih[at + unit]) +
                 static_cast<float>(pass.bias_hh[at + unit]);
        };
        sums[k] = {sum(0), sum(1), sum(2), sum(3)};
      }
      if (row0 == 0 && t > 0) exchange.await();

      for (int tile = 0; tile < kRows && row0 + tile < rows; tile += kTile) {
        const int row = row0 + tile + place.g;
        const int64_t sequence = place.sequence(deal, row);
        const Scalar* h = t == 0 ? pass.hx + sequence * hidden
                                 : exchange.row(pass.output + (before + sequence) * hidden, row);
        const int held = row < rows ? part.held : 0;
        float upper[4] = {}, lower[4] = {};
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          if (c >= per_split) continue;
          const Words words = LanePart<Scalar>::load(h + part.first, c, held);
          multiply_chunk<Scalar>(upper, weights[c][0], weights[c][1], words);
          multiply_chunk<Scalar>(lower, weights[c][2], weights[c][3], words);
        }
        const int column = place.team * kForwardUnits + place.g;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          float* const at = partial.at(place.split, tile + 2 * place.q + k) + column;
          at[0] = upper[k];
          at[deal.units] = upper[2 + k];
          at[2 * deal.units] = lower[k];
          at[3 * deal.units] = lower[2 + k];
        }
      }
      __syncthreads();

#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const Cell own = place.cell(deal, k, row0, rows, hidden);
        if (!own.held) continue;
        const int row = own.row, column = own.column;
        const int64_t unit = own.unit;
        const int64_t sequence = place.sequence(deal, row), token = first + sequence;
        const auto product = [&](int gate) {
          return partial.sum(deal.splits, row - row0, gate * deal.units + column);
        };
        const Gates<float> gates =
            activate(Gates<float>{sums[k].i + product(0), sums[k].f + product(1),
                                  sums[k].g + product(2), sums[k].o + product(3)});
        float& cell = cells[row * deal.units + column];
        const CellState<float> state =
            cell_forward(gates, t == 0 ? pass.cx[sequence * hidden + unit] : cell);
        cell = state.c;
        float* const saved = pass.gates + token * 4 * hidden + unit;
        saved[0] = gates.i;
        saved[hidden] = gates.f;
        saved[2 * hidden] = gates.g;
        saved[3 * hidden] = gates.o;
        pass.cells[token * hidden + unit] = state.c;
        const Scalar h = static_cast<Scalar>(state.h);
        pass.output[token * hidden + unit] = h;
        exchange.keep(row, unit, h);
        if (sequence >= staying) {
          pass.hy[sequence * hidden + unit] = h;
          pass.cy[sequence * hidden + unit] = static_cast<Scalar>(state.c);
        }
      }
      if (row0 + kRows < rows) __syncthreads();  // the sums are read before they are overwritten
    }
    if (rows_after > 0) {
      exchange.hand_on(rows_after, first_unit, owned_units(deal, first_unit, hidden), hidden, 1);
    }
    before = first;
    first += sequences;
  }
}

template <typename Scalar>
cudaError_t launch_persistent_forward(const PersistentForward<Scalar>& pass, cudaStream_t stream) {
  const size_t shared = sums_bytes(pass.deal, 4 * pass.deal.units) +
                        cells_bytes(pass.deal, pass.batch) +
                        inbox_bytes(pass.deal, pass.batch, pass.hidden_size, sizeof(Scalar));
  const auto kernel = pass.deal.exchange == Exchange::flags ? forward_steps<Scalar, ByFlags>
                                                            : forward_steps<Scalar, ByCluster>;
  return launch_groups(kernel, pass, shared, stream);
}

template cudaError_t launch_persistent_forward(const PersistentForward<float>&, cudaStream_t);
template cudaError_t launch_persistent_forward(const PersistentForward<c10::BFloat16>&,
                                               cudaStream_t);
template cudaError_t launch_persistent_forward(const PersistentForward<c10::Half>&, cudaStream_t);

}  // namespace captioner::cuda
