// The contract of additive attention's scores: what a device's kernel behind
// `captioner::additive_scores` is given and what it returns. cpu/additive_scores.cpp implements it;
// ops.cpp has the schemas; src/captioner/ops/additive_scores.py has the formulas in PyTorch.
//
// Letters: I images, R regions, N tokens, A units of the hidden layer. Scalar, the type of all
// arguments but images, is double or float.
//
// The hidden layer [N, R, A] is never in memory: the backward computes it anew. As in lstm.h,
// arguments of any strides are taken and not changed, and results are new and dense.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <tuple>

namespace captioner {

using torch::stable::Tensor;

using AdditiveGradients = std::tuple<Tensor,   // grad_queries [N, A]
                                     Tensor,   // grad_keys [I, R, A]
                                     Tensor>;  // grad_weight [A]

// queries [N, A], keys [I, R, A], images [N] int64 from 0 to I - 1, weight [A]
// -> weight' tanh(queries[n] + keys[images[n], i]), [N, R]. Throws where a shape, a type or an
// image's number is another.
Tensor additive_scores(Tensor queries, Tensor keys, Tensor images, Tensor weight);

// grad_scores [N, R]; the rest is what the forward took.
AdditiveGradients additive_scores_backward(Tensor grad_scores, Tensor queries, Tensor keys,
                                           Tensor images, Tensor weight);

}  // namespace captioner
