// All steps in one launch each way: the host's part of persistent.h.
#include "host.h"
#include "passes.h"
#include "persistent.h"

namespace captioner::cuda {
namespace {

// Calls `function` with a value of the type that the tensors hold, if the tensor cores take it.
template <typename Function>
void with_tensor_core_scalar(ScalarType type, Function function) {
  switch (type) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::BFloat16:
      return function(c10::BFloat16{});
    case ScalarType::Half:
      return function(c10::Half{});
    default:
      STD_TORCH_CHECK(false, "the persistent LSTM takes float32 (as TF32), bfloat16 and float16");
  }
}

template <typename Scalar>
Deal fitting(const Deal& deal, const LstmShape& shape, Exchange exchange, const char* direction) {
  STD_TORCH_CHECK(deal.groups > 0, "the persistent LSTM does not fit this device ", direction,
                  ": H = ", shape.hidden_size, " must be a multiple of ", 16 / sizeof(Scalar),
                  ", and weight_hh [", 4 * shape.hidden_size, ", ", shape.hidden_size,
                  "] fit the registers, with what B = ", shape.batch,
                  " sequences keep and exchange in shared memory",
                  exchange == Exchange::cluster ? ", and a group be one cluster" : "");
  return deal;
}

// What the kernels read by 16 bytes.
template <typename Scalar>
const Scalar* read_words(const Tensor& tensor) {
  const Scalar* const first = read<Scalar>(tensor);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(first) % 16 == 0,
                  "a tensor of the persistent LSTM begins where 16 bytes may not be read at once");
  return first;
}

// A flag a block, lowered.
Tensor lowered_flags(const Tensor& like, const Deal& deal) {
  return torch::stable::new_zeros(like, {int64_t{deal.groups} * deal.blocks}, ScalarType::Int);
}

template <typename Scalar>
void forward(const Sequences& sequences, const InputSums& input, const LstmOutputs& outputs,
             Exchange exchange) {
  const auto& [shape, batch_sizes, hx, cx, weight_hh, input_rows, stream] = sequences;
  const auto& [output, hy, cy, workspace] = outputs;
  PersistentForward<Scalar> pass{};
  pass.deal = fitting<Scalar>(deal_forward<Scalar>(shape.batch, shape.hidden_size, exchange), shape,
                              exchange, "there");
  const Tensor flags = lowered_flags(hx, pass.deal);
  pass.steps = shape.steps;
  pass.batch = shape.batch;
  pass.tokens = shape.tokens;
  pass.hidden_size = shape.hidden_size;
  pass.batch_sizes = read<int64_t>(batch_sizes);
  pass.sums_rows = shape.input_rows;
  pass.input_sums = read<Scalar>(input.sums);
  pass.input_rows = input_rows ? read<int64_t>(*input_rows) : nullptr;
  pass.weight_hh = read_words<Scalar>(weight_hh);
  pass.bias_ih = read<Scalar>(input.bias_ih);
  pass.bias_hh = read<Scalar>(input.bias_hh);
  pass.hx = read_words<Scalar>(hx);
  pass.cx = read<float>(cx);
  pass.gates = write<float>(workspace);
  pass.cells = write<float>(workspace, 4 * shape.tokens * shape.hidden_size);
  pass.output = write<Scalar>(output);
  pass.hy = write<Scalar>(hy);
  pass.cy = write<Scalar>(cy);
  pass.flags = write<uint32_t>(flags);
  STD_CUDA_CHECK(launch_persistent_forward(pass, stream));
}

template <typename Scalar>
Recurrent backward(const Sequences& sequences, const Saved& saved, bool wants_hx,
                   Exchange exchange) {
  const auto& [shape, batch_sizes, hx, cx, weight_hh, input_rows, stream] = sequences;
  const int64_t tokens = shape.tokens, batch = shape.batch, hidden = shape.hidden_size;
  PersistentBackward<Scalar> pass{};
  pass.deal =
      fitting<Scalar>(deal_backward<Scalar>(batch, hidden, exchange), shape, exchange, "and back");
  const Tensor flags = lowered_flags(hx, pass.deal);
  Recurrent found{empty(hx, {tokens, 4 * hidden}), empty(hx, {tokens, hidden}),
                  empty(hx, {batch, hidden}), empty(hx, {batch, hidden})};
  pass.steps = shape.steps;
  pass.batch = batch;
  pass.tokens = tokens;
  pass.hidden_size = hidden;
  pass.batch_sizes = read<int64_t>(batch_sizes);
  pass.weight_hh = read_words<Scalar>(weight_hh);
  pass.grad_output = read<Scalar>(saved.grad_output);
  pass.grad_hy = read<Scalar>(saved.grad_hy);
  pass.grad_cy = read<Scalar>(saved.grad_cy);
  pass.hx = read<Scalar>(hx);
  pass.cx = read<float>(cx);
  pass.gates = read<float>(saved.workspace);
  pass.cells = read<float>(saved.workspace, 4 * tokens * hidden);
  pass.output = read<Scalar>(saved.output);
  pass.grad_gates = write<Scalar>(found.grad_gates);
  pass.h_before = write<Scalar>(found.h_before);
  pass.grad_hx = wants_hx ? write<Scalar>(found.grad_hx) : nullptr;
  pass.grad_cx = write<Scalar>(found.grad_cx);
  pass.flags = write<uint32_t>(flags);
  STD_CUDA_CHECK(launch_persistent_backward(pass, stream));
  if (!wants_hx) torch::stable::zero_(found.grad_hx);
  return found;
}

}  // namespace

void persistent_forward(const Sequences& sequences, const InputSums& input,
                        const LstmOutputs& outputs, Exchange exchange) {
  with_tensor_core_scalar(sequences.hx.scalar_type(), [&](auto scalar) {
    forward<decltype(scalar)>(sequences, input, outputs, exchange);
  });
}

Recurrent persistent_backward(const Sequences& sequences, const Saved& saved, bool wants_hx,
                              Exchange exchange) {
  Recurrent found;
  with_tensor_core_scalar(sequences.hx.scalar_type(), [&](auto scalar) {
    found = backward<decltype(scalar)>(sequences, saved, wants_hx, exchange);
  });
  return found;
}

bool persistent_fits(ScalarType type, int64_t batch, int64_t hidden_size, Exchange exchange) {
  if (type == ScalarType::Double) return false;
  bool fits = false;
  with_tensor_core_scalar(type, [&](auto scalar) {
    using Scalar = decltype(scalar);
    fits = deal_forward<Scalar>(batch, hidden_size, exchange).groups > 0 &&
           deal_backward<Scalar>(batch, hidden_size, exchange).groups > 0;
  });
  return fits;
}

}  // namespace captioner::cuda
