// The GRU over packed sequences on the CPU, computed as the LSTM is (lstm.cpp): the large GEMMs are
// torch's BLAS, and between them the recurrence runs in one parallel region, each thread with its
// own sequences (gru.h).
//
// Letters as in ../lstm.h.
#include "../gru.h"

#include <torch/csrc/stable/library.h>

#include "../tensors.h"
#include "gemm.h"
#include "kernels.h"
#include "ranges.h"
#include "sequences.h"

namespace captioner::cpu {
namespace {

void check_type(const Tensor& input) {
  STD_TORCH_CHECK(
      input.scalar_type() == ScalarType::Float || input.scalar_type() == ScalarType::Double,
      "input must be of float or double");
}

// [4H]: of r and z both biases added, of n the input's and the state's.
template <typename T>
Tensor joined_biases(const Tensor& bias_ih, const Tensor& bias_hh, int64_t hidden) {
  Tensor joined = empty(bias_ih, {4 * hidden});
  const Tensor of_input = dense(bias_ih), of_state = dense(bias_hh);
  const T *ih = values<const T>(of_input), *hh = values<const T>(of_state);
  T* to = values<T>(joined);
  for (int64_t k = 0; k < 2 * hidden; ++k) to[k] = ih[k] + hh[k];
  for (int64_t k = 2 * hidden; k < 3 * hidden; ++k) to[k] = ih[k], to[k + hidden] = hh[k];
  return joined;
}

template <typename T>
GruOutputs forward(const LstmShape& shape, const Tensor& input, const Tensor& hx,
                   const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& bias_ih,
                   const Tensor& bias_hh, const int64_t* input_rows) {
  const int64_t hidden = shape.hidden_size;
  const Tensor output = empty(input, {shape.tokens, hidden}), hy = empty(hx, {shape.batch, hidden});
  const Tensor workspace = empty(input, {shape.tokens, 4 * hidden});
  const Tensor projection = fast_gemm<T>(input, transposed(weight_ih));
  const Tensor bias = joined_biases<T>(bias_ih, bias_hh, hidden), h0 = dense(hx);
  const T* h_first = unless_zero<T>(h0);
  // A single step reads its weights once: packing them would take longer than the GEMM.
  const bool single = shape.steps == 1;
  Tensor weight, recurrent;
  if (!single) weight = packed_gates<T>(dense(weight_hh), kernels<T>().gru_gates);
  if (single && h_first) recurrent = gemm(hx, transposed(weight_hh));
  const GruForwardParams<T> params{steps_of(shape),
                                   values<const T>(projection),
                                   input_rows,
                                   values<const T>(bias),
                                   single ? nullptr : values<const T>(weight),
                                   single && h_first ? values<const T>(recurrent) : nullptr,
                                   h_first,
                                   values<T>(output),
                                   values<T>(hy),
                                   values<T>(workspace)};
  const auto bounds = sequence_ranges(shape, torch::stable::get_num_threads());
  for_each_range(bounds, [&](int64_t, int64_t first, int64_t last) {
    kernels<T>().gru_forward(params, first, last);
  });
  return {output, hy, workspace};
}

template <typename T>
GruGradients backward(const LstmShape& shape, const Tensor& grad_output, const Tensor& grad_hy,
                      const Tensor& input, const Tensor& hx, const Tensor& weight_ih,
                      const Tensor& weight_hh, const Tensor& output, const Tensor& workspace,
                      const int64_t* input_rows, bool wants_hx) {
  const int64_t hidden = shape.hidden_size;
  const bool single = shape.steps == 1;
  const Tensor grad = dense(grad_output), h = dense(output), saved = dense(workspace);
  const Tensor h0 = dense(hx);
  const T* h_first = unless_zero<T>(h0);
  Tensor weight;
  if (!single) weight = packed<T>(dense(weight_hh));
  Tensor grad_hx = copied(grad_hy, grad_hy.scalar_type());
  const Tensor passed = torch::stable::new_zeros(hx, {shape.batch, hidden});
  const Tensor of_input = empty(input, {shape.tokens, 3 * hidden});
  const Tensor of_state = empty(input, {shape.tokens, 3 * hidden});
  const Tensor h_before = empty(input, {shape.tokens, hidden});
  const GruBackwardParams<T> params{steps_of(shape),
                                    values<const T>(grad),
                                    values<const T>(saved),
                                    values<const T>(h),
                                    h_first,
                                    single ? nullptr : values<const T>(weight),
                                    wants_hx,
                                    values<T>(grad_hx),
                                    values<T>(passed),
                                    values<T>(of_input),
                                    values<T>(of_state),
                                    values<T>(h_before)};
  const auto bounds = sequence_ranges(shape, torch::stable::get_num_threads());
  for_each_range(bounds, [&](int64_t, int64_t first, int64_t last) {
    kernels<T>().gru_backward(params, first, last);
  });
  if (!wants_hx) {
    torch::stable::zero_(grad_hx);
  } else {
    if (single) gemm_into(grad_hx, of_state, weight_hh);
    for (int64_t k = 0; k < passed.numel(); ++k) values<T>(grad_hx)[k] += values<T>(passed)[k];
  }
  const int64_t without = h_first ? 0 : shape.batch, read = shape.tokens - without;
  const Tensor grad_weight_hh =
      gemm(transposed(rows(of_state, without, read)), rows(h_before, without, read));
  const Tensor by_row = input_rows ? sum_by_input_row<T>(of_input, shape, input_rows) : of_input;
  return {fast_gemm<T>(by_row, weight_ih), grad_hx,
          gemm(transposed(by_row), input), grad_weight_hh,
          sum_of_rows(of_input),           sum_of_rows(of_state)};
}

GruOutputs gru_packed(Tensor input, Tensor batch_sizes, Tensor hx, Tensor weight_ih,
                      Tensor weight_hh, Tensor bias_ih, Tensor bias_hh,
                      std::optional<Tensor> input_rows) {
  const LstmShape shape = gru_shape(input, batch_sizes, hx, weight_ih, weight_hh, input_rows);
  check_type(input);
  check_gru_biases(shape, input, bias_ih, bias_hh);
  if (input_rows) input_rows = dense(*input_rows);
  const int64_t* rows = checked_rows(input_rows, shape);
  const auto run = input.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
  return run(shape, input, hx, weight_ih, weight_hh, bias_ih, bias_hh, rows);
}

GruGradients gru_packed_backward(Tensor grad_output, Tensor grad_hy, Tensor input,
                                 Tensor batch_sizes, Tensor hx, Tensor weight_ih, Tensor weight_hh,
                                 Tensor output, Tensor workspace, std::optional<Tensor> input_rows,
                                 bool wants_hx) {
  const LstmShape shape = gru_shape(input, batch_sizes, hx, weight_ih, weight_hh, input_rows);
  check_type(input);
  check_gru_saved(shape, input, grad_output, grad_hy, output, workspace);
  if (input_rows) input_rows = dense(*input_rows);
  const int64_t* rows = checked_rows(input_rows, shape);
  const auto run = input.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  return run(shape, grad_output, grad_hy, input, hx, weight_ih, weight_hh, output, workspace, rows,
             wants_hx);
}

STABLE_TORCH_LIBRARY_IMPL(captioner, CPU, library) {
  library.impl("gru_packed", TORCH_BOX(&gru_packed));
  library.impl("gru_packed_backward", TORCH_BOX(&gru_packed_backward));
}

}  // namespace
}  // namespace captioner::cpu
