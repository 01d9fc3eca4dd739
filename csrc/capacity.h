// The capacity form of lstm.h for devices whose kernel reads batch_sizes on the host: the ordinary
// kernel runs on the filled part, and its results are copied into tensors of the static shapes.
#pragma once

#include "lstm.h"

namespace captioner {

// Runs `kernel` on the filled part of arguments in the capacity form.
LstmOutputs forward_with_capacity(LstmForward& kernel,
                                  const Tensor& input,        // [U, E]
                                  const Tensor& batch_sizes,  // [T] int64 on the CPU
                                  const Tensor& hx,           // [B, H]
                                  const Tensor& cx,           // [B, H]
                                  const Tensor& weight_ih, const Tensor& weight_hh,
                                  const Tensor& bias_ih, const Tensor& bias_hh,
                                  const std::optional<Tensor>& input_rows);  // [N] int64

LstmGradients backward_with_capacity(LstmBackward& kernel,
                                     const Tensor& grad_output,  // [N, H]
                                     const Tensor& grad_hy,      // [B, H]
                                     const Tensor& grad_cy,      // [B, H]
                                     const Tensor& input, const Tensor& batch_sizes,
                                     const Tensor& hx, const Tensor& cx, const Tensor& weight_ih,
                                     const Tensor& weight_hh,
                                     const Tensor& output,     // [N, H]
                                     const Tensor& workspace,  // [5 * N * H]
                                     const std::optional<Tensor>& input_rows, bool wants_hx);

}  // namespace captioner
