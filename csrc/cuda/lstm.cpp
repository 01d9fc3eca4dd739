// The LSTM over packed sequences on a CUDA device: the input projection and the gradients of
// weights and input are one GEMM each over all tokens; between them run the time steps
// (algorithms.h).
#include "../lstm.h"

#include <torch/csrc/stable/library.h>

#include "algorithms.h"
#include "host.h"
#include "recurrence.h"
#include "segment_sum.h"

// tests/emulation runs this file on CPU tensors.
#ifndef CAPTIONER_CUDA_KEY
#define CAPTIONER_CUDA_KEY CUDA
#endif

namespace captioner::cuda {
namespace {

// The sum [U, 4H] of the gradients of all tokens that read the same row of input, for each model.
template <typename Scalar>
Tensor sum_by_input_row(const LstmShape& shape, const Tensor& grad_gates,  // [N, 4H]
                        const Tensor& input_rows,                          // [N]
                        cudaStream_t stream) {
  const int64_t columns = 4 * shape.hidden_size;
  const auto [sorted, order] = stable_sort(input_rows);
  const Tensor starts = empty(input_rows, {shape.input_rows + 1});
  const Tensor sums = empty_of_models(grad_gates, shape, {shape.input_rows, columns});
  STD_CUDA_CHECK(launch_segment_starts(read<int64_t>(sorted), shape.tokens, shape.input_rows,
                                       write<int64_t>(starts), stream));
  const SegmentSums<Scalar> params{
      shape.models(),           shape.tokens,         shape.input_rows,      columns,
      read<Scalar>(grad_gates), read<int64_t>(order), read<int64_t>(starts), write<Scalar>(sums)};
  STD_CUDA_CHECK(launch_segment_sums(params, stream));
  return sums;
}

std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(captioner::dense(*tensor)) : std::nullopt;
}
using captioner::dense;

// batch_sizes on the device of the other arguments; a copy does not synchronise with the host.
Tensor on_device_of(const Tensor& input, const Tensor& batch_sizes) {
  if (batch_sizes.device() == input.device()) return dense(batch_sizes);
  Tensor copy = empty(input, {batch_sizes.size(0)}, ScalarType::Long);
  torch::stable::copy_(copy, batch_sizes, true);
  return copy;
}

// Dense and aligned to 16 bytes.
Tensor aligned(const Tensor& tensor) {
  const Tensor plain = dense(tensor);
  const auto address = reinterpret_cast<uintptr_t>(plain.const_data_ptr());
  return address % 16 == 0 ? plain : copied(plain, plain.scalar_type());
}

Algorithm checked_algorithm(int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number <= 2,
                  "algorithm must be 0 (plain), 1 (persistent) or 2 (cluster), got ", number);
  return static_cast<Algorithm>(number);
}

Sequences sequences_of(const Tensor& input, const Tensor& batch_sizes, const Tensor& hx,
                       const Tensor& cx, const Tensor& weight_ih, const Tensor& weight_hh,
                       const std::optional<Tensor>& input_rows, bool capacity,
                       Algorithm algorithm) {
  STD_TORCH_CHECK(algorithm != Algorithm::plain || !capacity,
                  "the capacity form needs the persistent LSTM: a kernel a step is launched by "
                  "the host, which does not know batch_sizes");
  const auto shape_of = capacity ? capacity_shape : lstm_shape;
  return {shape_of(input, batch_sizes, hx, cx, weight_ih, weight_hh, input_rows),
          algorithm == Algorithm::plain ? batch_sizes : on_device_of(input, batch_sizes),
          aligned(hx),
          dense(cx, acc_type(input.scalar_type())),
          aligned(weight_hh),
          dense(input_rows),
          nullptr};
}

LstmOutputs lstm_packed(Tensor input, Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih,
                        Tensor weight_hh, Tensor bias_ih, Tensor bias_hh,
                        std::optional<Tensor> input_rows, bool capacity, int64_t algorithm_number) {
  const Algorithm algorithm = checked_algorithm(algorithm_number);
  const OnDevice device(input);
  Sequences sequences = sequences_of(input, batch_sizes, hx, cx, weight_ih, weight_hh, input_rows,
                                     capacity, algorithm);
  sequences.stream = device.stream();
  const LstmShape& shape = sequences.shape;
  check_biases(shape, input, bias_ih, bias_hh);
  const ScalarType type = input.scalar_type();
  const int64_t hidden = shape.hidden_size;
  const LstmOutputs outputs{
      empty_of_models(input, shape, {shape.tokens, hidden}),
      empty_of_models(input, shape, {shape.batch, hidden}),
      empty_of_models(input, shape, {shape.batch, hidden}),
      empty_of_models(input, shape, {5 * shape.tokens * hidden}, acc_type(type))};
  const InputProjection projected{gemm(dense(input), transposed(dense(weight_ih))), dense(bias_ih),
                                  dense(bias_hh)};
  if (algorithm == Algorithm::plain) {
    plain_forward(sequences, projected, outputs);
  } else {
    persistent_forward(sequences, projected, outputs, algorithm);
  }
  return outputs;
}

LstmGradients lstm_packed_backward(Tensor grad_output, Tensor grad_hy, Tensor grad_cy, Tensor input,
                                   Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih,
                                   Tensor weight_hh, Tensor output, Tensor workspace,
                                   std::optional<Tensor> input_rows, bool wants_hx, bool capacity,
                                   int64_t algorithm_number) {
  const Algorithm algorithm = checked_algorithm(algorithm_number);
  const OnDevice device(input);
  Sequences sequences = sequences_of(input, batch_sizes, hx, cx, weight_ih, weight_hh, input_rows,
                                     capacity, algorithm);
  sequences.stream = device.stream();
  const LstmShape& shape = sequences.shape;
  check_saved(shape, input, grad_output, grad_hy, grad_cy, output, workspace);
  const Saved saved{dense(grad_output), dense(grad_hy), dense(grad_cy), dense(output),
                    dense(workspace)};
  const RecurrentGradients recurrent =
      algorithm == Algorithm::plain ? plain_backward(sequences, saved, wants_hx)
                                    : persistent_backward(sequences, saved, wants_hx, algorithm);
  Tensor by_input = recurrent.grad_gates;
  if (sequences.input_rows) {
    with_scalar(input.scalar_type(), [&](auto scalar) {
      by_input = sum_by_input_row<decltype(scalar)>(shape, recurrent.grad_gates,
                                                    *sequences.input_rows, sequences.stream);
    });
  }
  return {gemm(by_input, weight_ih),
          recurrent.grad_hx,
          recurrent.grad_cx,
          gemm(transposed(by_input), input),
          gemm(transposed(recurrent.grad_gates), recurrent.h_before),
          sum_of_rows(recurrent.grad_gates)};
}

bool lstm_algorithm_fits(Tensor weight_hh, int64_t batch, int64_t algorithm_number) {
  const Algorithm algorithm = checked_algorithm(algorithm_number);
  const OnDevice device(weight_hh);
  return algorithm == Algorithm::plain ||
         persistent_fits(weight_hh.scalar_type(), batch, weight_hh.size(weight_hh.dim() - 1),
                         algorithm);
}

std::tuple<Tensor, Tensor> lstm_step(Tensor projection, Tensor rows, Tensor hx, Tensor cx,
                                     Tensor weight_hh) {
  const LstmShape shape = step_shape(projection, rows, hx, cx, weight_hh);
  const OnDevice device(hx);
  const int64_t batch = shape.batch, hidden = shape.hidden_size;
  const ScalarType state = acc_type(hx.scalar_type());
  const Tensor hy = empty(hx, {batch, hidden}), cy = empty(hx, {batch, hidden});
  const Tensor output = empty(hx, {batch, hidden});
  const Tensor gates = empty(hx, {batch, 4 * hidden}, state);
  const Tensor cells = empty(hx, {batch, hidden}, state);
  const Tensor hidden_projection = gemm(hx, transposed(weight_hh));
  const Tensor input_projection = dense(projection), index = dense(rows),
               c_before = dense(cx, state);
  with_scalar(hx.scalar_type(), [&](auto scalar) {
    using Scalar = decltype(scalar);
    ForwardStep<Scalar> step{};
    step.models = 1;
    step.sequences = batch;
    step.hidden_size = hidden;
    step.projection_rows = shape.input_rows;
    step.input_projection = read<Scalar>(input_projection);
    step.input_rows = read<int64_t>(index);
    step.hidden_projection = read<Scalar>(hidden_projection);
    step.c_before = read<acc_t<Scalar>>(c_before);
    step.gates = write<acc_t<Scalar>>(gates);
    step.cells = write<acc_t<Scalar>>(cells);
    step.output = write<Scalar>(output);
    step.hy = write<Scalar>(hy);
    step.cy = write<Scalar>(cy);
    STD_CUDA_CHECK(launch_forward(step, device.stream()));
  });
  return {hy, cy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(captioner, CAPTIONER_CUDA_KEY, library) {
  library.impl("lstm_step", TORCH_BOX(&lstm_step));
  library.impl("lstm_packed", TORCH_BOX(&lstm_packed));
  library.impl("lstm_packed_backward", TORCH_BOX(&lstm_packed_backward));
  library.impl("lstm_algorithm_fits", TORCH_BOX(&lstm_algorithm_fits));
}

}  // namespace captioner::cuda
