// Algorithm plain: a step is a GEMM with weight_hh and one kernel for the rest (recurrence.cu). The
// host loops over batch_sizes, so that a captured CUDA graph serves only those lengths.
#include "algorithms.h"
#include "host.h"
#include "recurrence.h"

namespace captioner::cuda {
namespace {

int64_t continuing(const LstmShape& shape, int64_t t) {
  return t + 1 < shape.steps ? shape.batch_sizes[t + 1] : 0;
}

ModelStrides strides(const LstmShape& shape, int64_t t) {
  return {shape.tokens, shape.batch, shape.input_rows, t == 0 ? shape.batch : 5 * shape.tokens,
          t == 0 ? shape.batch : shape.tokens};
}

// The rows of a packed tensor, or of the initial state, that step t starts from.
Tensor before(const LstmShape& shape, int64_t t, const Tensor& initial, const Tensor& packed) {
  return t == 0 ? initial : rows(packed, shape.offsets[t - 1], shape.batch_sizes[t]);
}

template <typename Scalar>
void forward(const Sequences& sequences, const InputProjection& input, const LstmOutputs& outputs) {
  using S = acc_t<Scalar>;
  const auto& [shape, batch_sizes, hx, cx, weight_hh, input_rows, stream] = sequences;
  const auto& [output, hy, cy, workspace] = outputs;
  const int64_t hidden = shape.hidden_size, cells_at = 4 * shape.tokens * hidden;
  const Tensor hidden_projection = empty_of_models(hx, shape, {shape.batch, 4 * hidden});
  const Tensor recurrent = transposed(weight_hh);  // [H, 4H]

  for (int64_t t = 0; t < shape.steps; ++t) {
    const int64_t first = shape.offsets[t];
    Tensor step_projection = rows(hidden_projection, 0, shape.batch_sizes[t]);
    gemm_into(step_projection, before(shape, t, hx, output), recurrent);

    ForwardStep<Scalar> step{};
    step.models = shape.models();
    step.stride = strides(shape, t);
    step.sequences = shape.batch_sizes[t];
    step.continuing = continuing(shape, t);
    step.hidden_size = hidden;
    step.projection_rows = input_rows ? shape.input_rows : step.sequences;
    step.input_projection = read<Scalar>(input.projection, input_rows ? 0 : first * 4 * hidden);
    step.input_rows = input_rows ? read<int64_t>(*input_rows, first) : nullptr;
    step.hidden_projection = read<Scalar>(hidden_projection);
    step.bias_ih = read<Scalar>(input.bias_ih);
    step.bias_hh = read<Scalar>(input.bias_hh);
    step.c_before =
        t == 0 ? read<S>(cx) : read<S>(workspace, cells_at + shape.offsets[t - 1] * hidden);
    step.gates = write<S>(workspace, first * 4 * hidden);
    step.cells = write<S>(workspace, cells_at + first * hidden);
    step.output = write<Scalar>(output, first * hidden);
    step.hy = write<Scalar>(hy);
    step.cy = write<Scalar>(cy);
    STD_CUDA_CHECK(launch_forward(step, stream));
  }
}

// From the last step to the first.
template <typename Scalar>
RecurrentGradients backward(const Sequences& sequences, const Saved& saved, bool wants_hx) {
  using S = acc_t<Scalar>;
  const auto& [shape, batch_sizes, hx, cx, weight_hh, input_rows, stream] = sequences;
  const auto& [grad_output, grad_hy, grad_cy, output, workspace] = saved;
  const int64_t hidden = shape.hidden_size, cells_at = 4 * shape.tokens * hidden;
  Tensor grad_hx = empty_of_models(hx, shape, {shape.batch, hidden});
  const RecurrentGradients gradients{empty_of_models(hx, shape, {shape.tokens, 4 * hidden}),
                                     empty_of_models(hx, shape, {shape.tokens, hidden}), grad_hx,
                                     empty_of_models(hx, shape, {shape.batch, hidden})};
  const Tensor grad_cell = empty_of_models(cx, shape, {shape.batch, hidden});

  for (int64_t t = shape.steps - 1; t >= 0; --t) {
    const int64_t first = shape.offsets[t];
    BackwardStep<Scalar> step{};
    step.models = shape.models();
    step.stride = strides(shape, t);
    step.sequences = shape.batch_sizes[t];
    step.continuing = continuing(shape, t);
    step.hidden_size = hidden;
    step.grad_output = read<Scalar>(grad_output, first * hidden);
    step.grad_hidden = read<Scalar>(grad_hx);
    step.grad_hy = read<Scalar>(grad_hy);
    step.grad_cy = read<Scalar>(grad_cy);
    step.gates = read<S>(workspace, first * 4 * hidden);
    step.cells = read<S>(workspace, cells_at + first * hidden);
    step.c_before =
        t == 0 ? read<S>(cx) : read<S>(workspace, cells_at + shape.offsets[t - 1] * hidden);
    step.hidden_before = read<Scalar>(before(shape, t, hx, output));
    step.grad_cell = write<S>(grad_cell);
    step.grad_cx = t == 0 ? write<Scalar>(gradients.grad_cx) : nullptr;
    step.grad_gates = write<Scalar>(gradients.grad_gates, first * 4 * hidden);
    step.h_before = write<Scalar>(gradients.h_before, first * hidden);
    STD_CUDA_CHECK(launch_backward(step, stream));

    if (t == 0 && !wants_hx) {
      torch::stable::zero_(grad_hx);
      break;
    }
    // grad_hx holds the gradient of each step's hidden state in turn, in the end that of hx.
    Tensor grad_hidden = rows(grad_hx, 0, step.sequences);
    gemm_into(grad_hidden, rows(gradients.grad_gates, first, step.sequences), weight_hh);
  }
  return gradients;
}

}  // namespace

void plain_forward(const Sequences& sequences, const InputProjection& input,
                   const LstmOutputs& outputs) {
  with_scalar(sequences.hx.scalar_type(),
              [&](auto scalar) { forward<decltype(scalar)>(sequences, input, outputs); });
}

RecurrentGradients plain_backward(const Sequences& sequences, const Saved& saved, bool wants_hx) {
  RecurrentGradients gradients;
  with_scalar(sequences.hx.scalar_type(), [&](auto scalar) {
    gradients = backward<decltype(scalar)>(sequences, saved, wants_hx);
  });
  return gradients;
}

}  // namespace captioner::cuda
