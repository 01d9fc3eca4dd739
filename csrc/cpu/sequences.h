// What the recurrent layers over packed sequences share on the host: rows of input, packed weights,
// ranges of sequences for threads.
//
// Letters as in ../lstm.h.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../lstm.h"
#include "../tensors.h"
#include "kernels.h"
#include "ranges.h"

namespace captioner::cpu {

inline Steps steps_of(const LstmShape& shape) {
  return {shape.steps, shape.hidden_size, shape.batch_sizes.data(), shape.offsets.data()};
}

inline const int64_t* checked_rows(const std::optional<Tensor>& input_rows,
                                   const LstmShape& shape) {
  if (!input_rows) return nullptr;
  const auto* rows = values<const int64_t>(*input_rows);
  for (int64_t n = 0; n < shape.tokens; ++n) {
    STD_TORCH_CHECK(rows[n] >= 0 && rows[n] < shape.input_rows, "input_rows must be from 0 to ",
                    shape.input_rows - 1, ", got ", rows[n], " for token ", n);
  }
  return rows;
}

// weight_hh, packed for the forward pass.
template <typename T>
Tensor packed_gates(const Tensor& weight_hh, const GatePacking<T>& packing) {
  const int64_t hidden = weight_hh.size(1);
  Tensor to = empty(weight_hh, {packing.size(hidden)});
  torch::stable::parallel_for(
      0, kernels<T>().gate_panels(hidden), 1, [&](int64_t first, int64_t last) {
        packing.pack(values<const T>(weight_hh), hidden, values<T>(to), first, last);
      });
  return to;
}

// hx, or nullptr if all of it is 0: sequences mostly begin without a state, and then the first step
// needs no GEMM with weight_hh.
template <typename T>
const T* unless_zero(const Tensor& hx) {
  const T* begin = values<const T>(hx);
  const bool zero = std::all_of(begin, begin + hx.numel(), [](T value) { return value == T(0); });
  return zero ? nullptr : begin;
}

// Calls run(k, first, last) for every range of sequences, each on a thread.
template <typename Run>
void for_each_range(const std::vector<int64_t>& bounds, const Run& run) {
  torch::stable::parallel_for(0, static_cast<int64_t>(bounds.size()) - 1, 1,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t k = begin; k < end; ++k) {
                                  run(k, bounds[k], bounds[k + 1]);
                                }
                              });
}

// The rows of `grad_gates` [N, columns] added up for each row of input, [U, columns]. Each thread
// has some columns of all rows, so the order of the sum does not depend on the number of threads.
template <typename T>
Tensor sum_by_input_row(const Tensor& grad_gates, const LstmShape& shape,
                        const int64_t* input_rows) {
  const int64_t columns = grad_gates.size(1);
  Tensor sums = torch::stable::new_zeros(grad_gates, {shape.input_rows, columns});
  const int64_t block = 64, blocks = (columns + block - 1) / block;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * block, last = std::min(end * block, columns);
    for (int64_t n = 0; n < shape.tokens; ++n) {
      const T* from = values<const T>(grad_gates) + n * columns;
      T* to = values<T>(sums) + input_rows[n] * columns;
      for (int64_t k = first; k < last; ++k) to[k] += from[k];
    }
  });
  return sums;
}

}  // namespace captioner::cpu
