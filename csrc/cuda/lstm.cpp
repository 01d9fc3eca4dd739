// The LSTM over packed sequences on a CUDA device, one step after another: a product with weight_hh
// and one kernel for the rest of the step (recurrence.cu). What does not depend on the step before
// is one product for all of them. batch_sizes steers the loop on the host, so that a CUDA graph
// which captures it serves only those lengths.
#include "../lstm.h"

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include "../tensors.h"
#include "recurrence.h"
#include "segment_sum.h"

#ifndef USE_CUDA
#error "compile with -DUSE_CUDA: without it torch's headers hide the functions for streams"
#endif

// tests/emulation runs this file on CPU tensors.
#ifndef CAPTIONER_CUDA_KEY
#define CAPTIONER_CUDA_KEY CUDA
#endif

namespace captioner::cuda {
namespace {

// Makes the arguments' device the current one while it lives.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& argument) : guard_(argument.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(argument.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

template <typename T>
const T* read(const Tensor& tensor, int64_t first = 0) {
  return static_cast<const T*>(tensor.const_data_ptr()) + first;
}

template <typename T>
T* write(const Tensor& tensor, int64_t first = 0) {
  return static_cast<T*>(tensor.mutable_data_ptr()) + first;
}

// Calls `function` with a value of the type that the tensors hold.
template <typename Function>
void with_scalar(ScalarType type, Function function) {
  switch (type) {
    case ScalarType::Double:
      return function(double{});
    case ScalarType::Float:
      return function(float{});
    case ScalarType::BFloat16:
      return function(c10::BFloat16{});
    case ScalarType::Half:
      return function(c10::Half{});
    default:
      STD_TORCH_CHECK(false, "input must be float64, float32, bfloat16 or float16");
  }
}

int64_t staying(const LstmShape& shape, int64_t t) {
  return t + 1 < shape.steps ? shape.batch_sizes[t + 1] : 0;
}

// Rows of a packed tensor, or of the initial state, that hold what step t starts from.
Tensor before(const LstmShape& shape, int64_t t, const Tensor& initial, const Tensor& packed) {
  return t == 0 ? initial : rows(packed, shape.offsets[t - 1], shape.batch_sizes[t]);
}

template <typename Scalar>
void forward(const LstmShape& shape, const Tensor& input, const Tensor& hx, const Tensor& cx,
             const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& bias_ih,
             const Tensor& bias_hh, const std::optional<Tensor>& input_rows,
             const LstmOutputs& outputs, cudaStream_t stream) {
  using S = State<Scalar>;
  const auto& [output, hy, cy, workspace] = outputs;
  const int64_t hidden = shape.hidden_size, cells_at = 4 * shape.tokens * hidden;
  const Tensor input_sums = product(input, transposed(weight_ih));  // [U, 4H]
  const Tensor hidden_sums = empty(input, {shape.batch, 4 * hidden});
  const Tensor recurrent = transposed(weight_hh);  // [H, 4H]

  for (int64_t t = 0; t < shape.steps; ++t) {
    const int64_t first = shape.offsets[t];
    Tensor step_sums = rows(hidden_sums, 0, shape.batch_sizes[t]);
    product_into(step_sums, before(shape, t, hx, output), recurrent);

    ForwardStep<Scalar> step{};
    step.sequences = shape.batch_sizes[t];
    step.staying = staying(shape, t);
    step.hidden_size = hidden;
    step.sums_rows = input_rows ? shape.input_rows : step.sequences;
    step.input_sums = read<Scalar>(input_sums, input_rows ? 0 : first * 4 * hidden);
    step.input_rows = input_rows ? read<int64_t>(*input_rows, first) : nullptr;
    step.hidden_sums = read<Scalar>(hidden_sums);
    step.bias_ih = read<Scalar>(bias_ih);
    step.bias_hh = read<Scalar>(bias_hh);
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

struct Recurrent {
  Tensor grad_gates;  // [N, 4H] before sigmoid and tanh
  Tensor h_before;    // [N, H] what each token's gates read
};

// From the last step to the first; fills the gradients of hx and cx.
template <typename Scalar>
Recurrent backward(const LstmShape& shape, const Tensor& grad_output, const Tensor& grad_hy,
                   const Tensor& grad_cy, const Tensor& hx, const Tensor& cx,
                   const Tensor& weight_hh, const Tensor& output, const Tensor& workspace,
                   bool wants_hx, Tensor& grad_hx, const Tensor& grad_cx, cudaStream_t stream) {
  using S = State<Scalar>;
  const int64_t hidden = shape.hidden_size, cells_at = 4 * shape.tokens * hidden;
  const Recurrent found{empty(output, {shape.tokens, 4 * hidden}),
                        empty(output, {shape.tokens, hidden})};
  const Tensor grad_cell = empty(cx, {shape.batch, hidden});

  for (int64_t t = shape.steps - 1; t >= 0; --t) {
    const int64_t first = shape.offsets[t];
    BackwardStep<Scalar> step{};
    step.sequences = shape.batch_sizes[t];
    step.staying = staying(shape, t);
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
    step.grad_cx = t == 0 ? write<Scalar>(grad_cx) : nullptr;
    step.grad_gates = write<Scalar>(found.grad_gates, first * 4 * hidden);
    step.h_before = write<Scalar>(found.h_before, first * hidden);
    STD_CUDA_CHECK(launch_backward(step, stream));

    if (t == 0 && !wants_hx) {
      torch::stable::zero_(grad_hx);
      break;
    }
    // The gradient of every earlier hidden state lies where that of hx ends up.
    Tensor grad_hidden = rows(grad_hx, 0, step.sequences);
    product_into(grad_hidden, rows(found.grad_gates, first, step.sequences), weight_hh);
  }
  return found;
}

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

void refuse(bool capacity) {
  STD_TORCH_CHECK(!capacity, "a kernel a step needs batch_sizes on the host: no capacity form");
}

LstmOutputs lstm_packed(Tensor input, Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih,
                        Tensor weight_hh, Tensor bias_ih, Tensor bias_hh,
                        std::optional<Tensor> input_rows, bool capacity) {
  refuse(capacity);
  const LstmShape shape = lstm_shape(input, batch_sizes, hx, cx, weight_ih, weight_hh, input_rows);
  check_biases(shape, input, bias_ih, bias_hh);
  const OnDevice device(input);
  const ScalarType type = input.scalar_type();
  const LstmOutputs outputs{empty(input, {shape.tokens, shape.hidden_size}),
                            empty(input, {shape.batch, shape.hidden_size}),
                            empty(input, {shape.batch, shape.hidden_size}),
                            empty(input, {5 * shape.tokens * shape.hidden_size}, state_type(type))};
  with_scalar(type, [&](auto scalar) {
    forward<decltype(scalar)>(shape, dense(input), dense(hx), dense(cx, state_type(type)),
                              dense(weight_ih), dense(weight_hh), dense(bias_ih), dense(bias_hh),
                              dense(input_rows), outputs, device.stream());
  });
  return outputs;
}

LstmGradients lstm_packed_backward(Tensor grad_output, Tensor grad_hy, Tensor grad_cy, Tensor input,
                                   Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih,
                                   Tensor weight_hh, Tensor output, Tensor workspace,
                                   std::optional<Tensor> input_rows, bool wants_hx, bool capacity) {
  refuse(capacity);
  const LstmShape shape = lstm_shape(input, batch_sizes, hx, cx, weight_ih, weight_hh, input_rows);
  check_saved(shape, input, grad_output, grad_hy, grad_cy, output, workspace);
  const OnDevice device(input);
  const ScalarType type = input.scalar_type();
  Tensor grad_hx = empty(input, {shape.batch, shape.hidden_size});
  const Tensor grad_cx = empty(input, {shape.batch, shape.hidden_size});
  LstmGradients gradients;
  with_scalar(type, [&](auto scalar) {
    using Scalar = decltype(scalar);
    const Recurrent found =
        backward<Scalar>(shape, dense(grad_output), dense(grad_hy), dense(grad_cy), dense(hx),
                         dense(cx, state_type(type)), dense(weight_hh), dense(output),
                         dense(workspace), wants_hx, grad_hx, grad_cx, device.stream());
    const Tensor by_input =
        input_rows
            ? sum_by_input_row<Scalar>(shape, found.grad_gates, dense(*input_rows), device.stream())
            : found.grad_gates;
    gradients = {product(by_input, weight_ih),
                 grad_hx,
                 grad_cx,
                 product(transposed(by_input), input),
                 product(transposed(found.grad_gates), found.h_before),
                 sum_of_rows(found.grad_gates)};
  });
  return gradients;
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
}

}  // namespace captioner::cuda
