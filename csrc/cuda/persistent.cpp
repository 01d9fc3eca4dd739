// All steps in one launch: the host's part of persistent.h.
#include "persistent.h"

#include "algorithms.h"
#include "host.h"

namespace captioner::cuda {
namespace {

// Calls `function` with a value of the type that the tensors hold, if the tensor cores take it.
template <typename Function>
void with_tensor_core_scalar(ScalarType type, Function function) {
  STD_TORCH_CHECK(type != ScalarType::Double,
                  "the persistent LSTM takes float32 (as TF32), bfloat16 and float16");
  with_scalar(type, [&](auto scalar) {
    if constexpr (sizeof(scalar) < sizeof(double)) function(scalar);
  });
}

// What the kernels read by 16 bytes.
template <typename Scalar>
const Scalar* read_words(const Tensor& tensor) {
  const Scalar* const first = read<Scalar>(tensor);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(first) % 16 == 0,
                  "a tensor of the persistent LSTM is not aligned to 16 bytes");
  return first;
}

// Fills what both directions have in common; returns the flags, which must outlive the launch.
template <typename Scalar>
Tensor fill_common(PersistentParams<Scalar>& params, const WorkPartition& partition,
                   const Sequences& sequences, const char* direction) {
  const LstmShape& shape = sequences.shape;
  STD_TORCH_CHECK(partition.groups > 0, "the persistent LSTM does not fit this device in the ",
                  direction, " pass: H = ", shape.hidden_size, " must be a multiple of ",
                  16 / sizeof(Scalar), ", and weight_hh [", 4 * shape.hidden_size, ", ",
                  shape.hidden_size, "] fit the registers, with what B = ", shape.batch,
                  " sequences keep and exchange in shared memory; algorithm cluster also needs "
                  "sm_90 and at most 16 blocks a group");
  const Tensor flags = torch::stable::new_zeros(
      sequences.hx, {shape.models() * partition.groups * partition.blocks}, ScalarType::Int);
  params.partition = partition;
  params.models = static_cast<int>(shape.models());
  params.steps = shape.steps;
  params.batch = shape.batch;
  params.tokens = shape.tokens;
  params.hidden_size = shape.hidden_size;
  params.batch_sizes = read<int64_t>(sequences.batch_sizes);
  params.weight_hh = read_words<Scalar>(sequences.weight_hh);
  params.hx = read_words<Scalar>(sequences.hx);
  params.cx = read<float>(sequences.cx);
  params.flags = write<uint32_t>(flags);
  return flags;
}

template <typename Scalar>
void forward(const Sequences& sequences, const InputProjection& input, const LstmOutputs& outputs,
             Algorithm algorithm) {
  const LstmShape& shape = sequences.shape;
  const auto& [output, hy, cy, workspace] = outputs;
  const auto& input_rows = sequences.input_rows;
  PersistentForward<Scalar> params{};
  const Tensor flags = fill_common(
      params, partition_forward<Scalar>(shape.batch, shape.hidden_size, algorithm, shape.models()),
      sequences, "forward");
  params.projection_rows = shape.input_rows;
  params.input_projection = read<Scalar>(input.projection);
  params.input_rows = input_rows ? read<int64_t>(*input_rows) : nullptr;
  params.bias_ih = read<Scalar>(input.bias_ih);
  params.bias_hh = read<Scalar>(input.bias_hh);
  params.gates = write<float>(workspace);
  params.cells = write<float>(workspace, 4 * shape.tokens * shape.hidden_size);
  params.output = write<Scalar>(output);
  params.hy = write<Scalar>(hy);
  params.cy = write<Scalar>(cy);
  STD_CUDA_CHECK(launch_persistent_forward(params, sequences.stream));
}

template <typename Scalar>
RecurrentGradients backward(const Sequences& sequences, const Saved& saved, bool wants_hx,
                            Algorithm algorithm) {
  const Tensor& hx = sequences.hx;
  const LstmShape& shape = sequences.shape;
  const int64_t tokens = shape.tokens, batch = shape.batch, hidden = shape.hidden_size;
  PersistentBackward<Scalar> params{};
  const Tensor flags =
      fill_common(params, partition_backward<Scalar>(batch, hidden, algorithm, shape.models()),
                  sequences, "backward");
  RecurrentGradients gradients{empty_of_models(hx, shape, {tokens, 4 * hidden}),
                               empty_of_models(hx, shape, {tokens, hidden}),
                               empty_of_models(hx, shape, {batch, hidden}),
                               empty_of_models(hx, shape, {batch, hidden})};
  params.grad_output = read<Scalar>(saved.grad_output);
  params.grad_hy = read<Scalar>(saved.grad_hy);
  params.grad_cy = read<Scalar>(saved.grad_cy);
  params.gates = read<float>(saved.workspace);
  params.cells = read<float>(saved.workspace, 4 * tokens * hidden);
  params.output = read<Scalar>(saved.output);
  params.grad_gates = write<Scalar>(gradients.grad_gates);
  params.h_before = write<Scalar>(gradients.h_before);
  params.grad_hx = wants_hx ? write<Scalar>(gradients.grad_hx) : nullptr;
  params.grad_cx = write<Scalar>(gradients.grad_cx);
  STD_CUDA_CHECK(launch_persistent_backward(params, sequences.stream));
  if (!wants_hx) torch::stable::zero_(gradients.grad_hx);
  return gradients;
}

}  // namespace

void persistent_forward(const Sequences& sequences, const InputProjection& input,
                        const LstmOutputs& outputs, Algorithm algorithm) {
  with_tensor_core_scalar(sequences.hx.scalar_type(), [&](auto scalar) {
    forward<decltype(scalar)>(sequences, input, outputs, algorithm);
  });
}

RecurrentGradients persistent_backward(const Sequences& sequences, const Saved& saved,
                                       bool wants_hx, Algorithm algorithm) {
  RecurrentGradients gradients;
  with_tensor_core_scalar(sequences.hx.scalar_type(), [&](auto scalar) {
    gradients = backward<decltype(scalar)>(sequences, saved, wants_hx, algorithm);
  });
  return gradients;
}

bool persistent_fits(ScalarType type, int64_t batch, int64_t hidden_size, Algorithm algorithm) {
  if (type == ScalarType::Double) return false;
  bool fits = false;
  with_tensor_core_scalar(type, [&](auto scalar) {
    using Scalar = decltype(scalar);
    fits = partition_forward<Scalar>(batch, hidden_size, algorithm).groups > 0 &&
           partition_backward<Scalar>(batch, hidden_size, algorithm).groups > 0;
  });
  return fits;
}

}  // namespace captioner::cuda
