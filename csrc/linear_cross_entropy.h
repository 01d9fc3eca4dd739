// The contract of the loss at a language model's end, a linear layer and cross-entropy in one:
// what a device's kernel behind `captioner::linear_cross_entropy` is given and what it returns.
// cpu/linear_cross_entropy.cpp implements it; ops.cpp has the schemas;
// src/captioner/ops/linear_cross_entropy.py has the formulas in PyTorch.
//
// Letters: N tokens, H hidden size, V vocabulary. Scalar, the type of all arguments but targets, is
// double or float.
//
// The logits exist once: their gradient overwrites them. As in lstm.h, arguments of any strides
// are taken and not changed, and results are new and dense.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <tuple>

namespace captioner {

using torch::stable::Tensor;

using LossOutputs = std::tuple<Tensor,   // loss []: the sum over all tokens, in nats
                               Tensor,   // grad_logits: for the backward alone, in the device's own
                                         // layout; empty unless wants_gradient
                               Tensor>;  // grad_bias [V]; empty unless wants_gradient

using LossGradients = std::tuple<Tensor,   // grad_hidden [N, H]
                                 Tensor,   // grad_weight [V, H]
                                 Tensor>;  // grad_bias [V]

// hidden [N, H], weight [V, H], bias [V], targets [N] int64 from 0 to V - 1; a token whose target
// is -100 counts for nothing. label_smoothing moves that share of a target's probability evenly
// over the vocabulary. Throws where a shape, a type or a target is another.
LossOutputs linear_cross_entropy(Tensor hidden, Tensor weight, Tensor bias, Tensor targets,
                                 double label_smoothing, bool wants_gradient);

// grad_loss [] multiplies all gradients; the rest is what the forward took and returned.
LossGradients linear_cross_entropy_backward(Tensor grad_loss, Tensor hidden, Tensor weight,
                                            Tensor grad_logits, Tensor grad_bias);

}  // namespace captioner
