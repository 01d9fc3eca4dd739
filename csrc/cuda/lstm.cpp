// The LSTM over packed sequences on a CUDA device: what does not depend on the step before is one
// product for all of them; between lie the steps (passes.h).
#include "../lstm.h"

#include <torch/csrc/stable/library.h>

#include "host.h"
#include "passes.h"
#include "recurrence.h"
#include "segment_sum.h"

// tests/emulation runs this file on CPU tensors.
#ifndef CAPTIONER_CUDA_KEY
#define CAPTIONER_CUDA_KEY CUDA
#endif

namespace captioner::cuda {
namespace {

// The sum [U, 4H] of the gradients of all tokens that read the same row of input.
template <typename Scalar>
Tensor sum_by_input_row(const LstmShape& shape, const Tensor& grad_gates,  // [N, 4H]
                        const Tensor& input_rows,                          // [N]
                        cudaStream_t stream) {
  const int64_t columns = 4 * shape.hidden_size;
  const auto [sorted, order] = stable_sort(input_rows);
  const Tensor starts = empty(input_rows, {shape.input_rows + 1});
  const Tensor sums = empty(grad_gates, {shape.input_rows, columns});
  STD_CUDA_CHECK(launch_segment_starts(read<int64_t>(sorted), shape.tokens, shape.input_rows,
                                       write<int64_t>(starts), stream));
  STD_CUDA_CHECK(launch_segment_sums(read<Scalar>(grad_gates), read<int64_t>(order),
                                     read<int64_t>(starts), shape.input_rows, columns,
                                     write<Scalar>(sums), stream));
  return sums;
}

std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(captioner::dense(*tensor)) : std::nullopt;
}
using captioner::dense;

// batch_sizes where the other arguments are; a copy does not wait for the device.
Tensor beside(const Tensor& input, const Tensor& batch_sizes) {
  if (batch_sizes.device() == input.device()) return dense(batch_sizes);
  Tensor there = empty(input, {batch_sizes.size(0)}, ScalarType::Long);
  torch::stable::copy_(there, batch_sizes, true);
  return there;
}

// Dense, and beginning where 16 bytes can be read at once.
Tensor aligned(const Tensor& tensor) {
  const Tensor plain = dense(tensor);
  const auto address = reinterpret_cast<uintptr_t>(plain.const_data_ptr());
  return address % 16 == 0 ? plain : copied(plain, plain.scalar_type());
}

Path checked_path(int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number <= 2, "path must be 0, 1 or 2, got ", number);
  return static_cast<Path>(number);
}

Exchange exchange_of(Path path) {
  return path == Path::clusters ? Exchange::cluster : Exchange::flags;
}

Sequences sequences_of(const Tensor& input, const Tensor& batch_sizes, const Tensor& hx,
                       const Tensor& cx, const Tensor& weight_ih, const Tensor& weight_hh,
                       const std::optional<Tensor>& input_rows, bool capacity, Path path) {
  STD_TORCH_CHECK(path != Path::plain || !capacity,
                  "the capacity form needs the persistent LSTM: a kernel a step is steered by the "
                  "host, which does not know batch_sizes");
  const auto shape_of = capacity ? room_shape : lstm_shape;
  return {shape_of(input, batch_sizes, hx, cx, weight_ih, weight_hh, input_rows),
          path == Path::plain ? batch_sizes : beside(input, batch_sizes),
          aligned(hx),
          dense(cx, state_type(input.scalar_type())),
          aligned(weight_hh),
          dense(input_rows),
          nullptr};
}

LstmOutputs lstm_packed(Tensor input, Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih,
                        Tensor weight_hh, Tensor bias_ih, Tensor bias_hh,
                        std::optional<Tensor> input_rows, bool capacity, int64_t path_number) {
  const Path path = checked_path(path_number);
  const OnDevice device(input);
  Sequences sequences =
      sequences_of(input, batch_sizes, hx, cx, weight_ih, weight_hh, input_rows, capacity, path);
  sequences.stream = device.stream();
  const LstmShape& shape = sequences.shape;
  check_biases(shape, input, bias_ih, bias_hh);
  const ScalarType type = input.scalar_type();
  const LstmOutputs outputs{empty(input, {shape.tokens, shape.hidden_size}),
                            empty(input, {shape.batch, shape.hidden_size}),
                            empty(input, {shape.batch, shape.hidden_size}),
                            empty(input, {5 * shape.tokens * shape.hidden_size}, state_type(type))};
  const InputSums sums{product(dense(input), transposed(dense(weight_ih))), dense(bias_ih),
                       dense(bias_hh)};
  if (path == Path::plain) {
    plain_forward(sequences, sums, outputs);
  } else {
    persistent_forward(sequences, sums, outputs, exchange_of(path));
  }
  return outputs;
}

LstmGradients lstm_packed_backward(Tensor grad_output, Tensor grad_hy, Tensor grad_cy, Tensor input,
                                   Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih,
                                   Tensor weight_hh, Tensor output, Tensor workspace,
                                   std::optional<Tensor> input_rows, bool wants_hx, bool capacity,
                                   int64_t path_number) {
  const Path path = checked_path(path_number);
  const OnDevice device(input);
  Sequences sequences =
      sequences_of(input, batch_sizes, hx, cx, weight_ih, weight_hh, input_rows, capacity, path);
  sequences.stream = device.stream();
  const LstmShape& shape = sequences.shape;
  check_saved(shape, input, grad_output, grad_hy, grad_cy, output, workspace);
  const Saved saved{dense(grad_output), dense(grad_hy), dense(grad_cy), dense(output),
                    dense(workspace)};
  const Recurrent found = path == Path::plain
                              ? plain_backward(sequences, saved, wants_hx)
                              : persistent_backward(sequences, saved, wants_hx, exchange_of(path));
  Tensor by_input = found.grad_gates;
  if (sequences.input_rows) {
    with_scalar(input.scalar_type(), [&](auto scalar) {
      by_input = sum_by_input_row<decltype(scalar)>(shape, found.grad_gates, *sequences.input_rows,
                                                    sequences.stream);
    });
  }
  return {product(by_input, weight_ih),
          found.grad_hx,
          found.grad_cx,
          product(transposed(by_input), input),
          product(transposed(found.grad_gates), found.h_before),
          sum_of_rows(found.grad_gates)};
}

bool lstm_path_fits(Tensor weight_hh, int64_t batch, int64_t path_number) {
  const Path path = checked_path(path_number);
  const OnDevice device(weight_hh);
  return path == Path::plain ||
         persistent_fits(weight_hh.scalar_type(), batch, weight_hh.size(1), exchange_of(path));
}

std::tuple<Tensor, Tensor> lstm_step(Tensor sums, Tensor rows, Tensor hx, Tensor cx,
                                     Tensor weight_hh) {
  const LstmShape shape = step_shape(sums, rows, hx, cx, weight_hh);
  const OnDevice device(hx);
  const int64_t batch = shape.batch, hidden = shape.hidden_size;
  const ScalarType state = state_type(hx.scalar_type());
  const Tensor hy = empty(hx, {batch, hidden}), cy = empty(hx, {batch, hidden});
  const Tensor output = empty(hx, {batch, hidden});
  const Tensor gates = empty(hx, {batch, 4 * hidden}, state);
  const Tensor cells = empty(hx, {batch, hidden}, state);
  const Tensor hidden_sums = product(hx, transposed(weight_hh));
  const Tensor input_sums = dense(sums), index = dense(rows), c_before = dense(cx, state);
  with_scalar(hx.scalar_type(), [&](auto scalar) {
    using Scalar = decltype(scalar);
    ForwardStep<Scalar> step{};
    step.sequences = batch;
    step.hidden_size = hidden;
    step.sums_rows = shape.input_rows;
    step.input_sums = read<Scalar>(input_sums);
    step.input_rows = read<int64_t>(index);
    step.hidden_sums = read<Scalar>(hidden_sums);
    step.c_before = read<State<Scalar>>(c_before);
    step.gates = write<State<Scalar>>(gates);
    step.cells = write<State<Scalar>>(cells);
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
  library.impl("lstm_path_fits", TORCH_BOX(&lstm_path_fits));
}

}  // namespace captioner::cuda
