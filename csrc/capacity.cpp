#include "capacity.h"

#include <torch/headeronly/util/Exception.h>

#include "tensors.h"

namespace captioner {
namespace {

// How much of the capacity a batch fills.
struct Filled {
  int64_t steps, sequences, tokens;
};

Filled filled_part(const Tensor& batch_sizes, const Tensor& hx, int64_t capacity) {
  STD_TORCH_CHECK(batch_sizes.is_cpu() && batch_sizes.dim() == 1 &&
                      batch_sizes.scalar_type() == ScalarType::Long,
                  "batch_sizes must be [T] of int64 on the CPU");
  const Tensor sizes = dense(batch_sizes);
  const auto* size = values<const int64_t>(sizes);
  Filled part{};
  for (int64_t t = 0; t < sizes.numel(); ++t) {
    STD_TORCH_CHECK(size[t] >= 0 && (t == 0 || size[t] <= size[t - 1]),
                    "batch_sizes must not be negative and never increase, got ", size[t],
                    " at step ", t);
    part.steps += size[t] > 0;
    part.tokens += size[t];
  }
  if (part.steps > 0) part.sequences = size[0];
  STD_TORCH_CHECK(part.tokens <= capacity, "batch_sizes must sum to at most N = ", capacity,
                  ", got ", part.tokens);
  STD_TORCH_CHECK(hx.dim() == 2 && part.sequences <= hx.size(0),
                  "batch_sizes must begin with at most B = ", hx.size(0), ", got ", part.sequences);
  return part;
}

Tensor zeros(const Tensor& like, int64_t first, int64_t second) {
  return torch::stable::new_zeros(like, {first, second});
}

// Copies `part` over the first rows of `whole`.
void copy_rows(const Tensor& whole, const Tensor& part) {
  Tensor target = rows(whole, 0, part.size(0));
  torch::stable::copy_(target, part);
}

std::optional<Tensor> first_of(const std::optional<Tensor>& tensor, int64_t count) {
  return tensor ? std::optional<Tensor>(rows(*tensor, 0, count)) : std::nullopt;
}

}  // namespace

LstmOutputs forward_with_capacity(LstmForward& kernel, const Tensor& input,
                                  const Tensor& batch_sizes, const Tensor& hx, const Tensor& cx,
                                  const Tensor& weight_ih, const Tensor& weight_hh,
                                  const Tensor& bias_ih, const Tensor& bias_hh,
                                  const std::optional<Tensor>& input_rows) {
  const int64_t capacity = input_rows ? input_rows->numel() : input.size(0);
  const Filled part = filled_part(batch_sizes, hx, capacity);
  const int64_t hidden = weight_hh.size(1);
  const Tensor output = zeros(input, capacity, hidden);
  const Tensor hy = copied(hx, input.scalar_type()), cy = copied(cx, input.scalar_type());
  const Tensor workspace =
      torch::stable::new_zeros(input, {5 * capacity * hidden}, acc_type(input.scalar_type()));
  if (part.tokens > 0) {
    const auto [out, h, c, saved] =
        kernel(input_rows ? input : rows(input, 0, part.tokens), rows(batch_sizes, 0, part.steps),
               rows(hx, 0, part.sequences), rows(cx, 0, part.sequences), weight_ih, weight_hh,
               bias_ih, bias_hh, first_of(input_rows, part.tokens));
    copy_rows(output, out);
    copy_rows(hy, h);
    copy_rows(cy, c);
    copy_rows(workspace, saved);
  }
  return {output, hy, cy, workspace};
}

LstmGradients backward_with_capacity(LstmBackward& kernel, const Tensor& grad_output,
                                     const Tensor& grad_hy, const Tensor& grad_cy,
                                     const Tensor& input, const Tensor& batch_sizes,
                                     const Tensor& hx, const Tensor& cx, const Tensor& weight_ih,
                                     const Tensor& weight_hh, const Tensor& output,
                                     const Tensor& workspace,
                                     const std::optional<Tensor>& input_rows, bool wants_hx) {
  const Filled part = filled_part(batch_sizes, hx, output.size(0));
  const int64_t hidden = weight_hh.size(1);
  const Tensor grad_input = zeros(input, input.size(0), input.size(1));
  Tensor grad_hx = copied(grad_hy, input.scalar_type());
  const Tensor grad_cx = copied(grad_cy, input.scalar_type());
  if (!wants_hx) torch::stable::zero_(grad_hx);
  if (part.tokens == 0) {
    return {grad_input,
            grad_hx,
            grad_cx,
            zeros(weight_ih, 4 * hidden, weight_ih.size(1)),
            zeros(weight_hh, 4 * hidden, hidden),
            torch::stable::new_zeros(weight_hh, {4 * hidden})};
  }
  const auto [d_input, d_hx, d_cx, d_weight_ih, d_weight_hh, d_bias] = kernel(
      rows(grad_output, 0, part.tokens), rows(grad_hy, 0, part.sequences),
      rows(grad_cy, 0, part.sequences), input_rows ? input : rows(input, 0, part.tokens),
      rows(batch_sizes, 0, part.steps), rows(hx, 0, part.sequences), rows(cx, 0, part.sequences),
      weight_ih, weight_hh, rows(output, 0, part.tokens),
      rows(workspace, 0, 5 * part.tokens * hidden), first_of(input_rows, part.tokens), wants_hx);
  copy_rows(grad_input, d_input);
  copy_rows(grad_hx, d_hx);
  copy_rows(grad_cx, d_cx);
  return {grad_input, grad_hx, grad_cx, d_weight_ih, d_weight_hh, d_bias};
}

}  // namespace captioner
