// A linear layer and cross-entropy on the CPU. Each thread takes some tokens: their logits, softmax
// and its gradient follow one another within its cache; the gradients of weight and hidden states
// are GEMMs with the packed logits (cross_entropy.h).
//
// Letters as in ../linear_cross_entropy.h.
#include "../linear_cross_entropy.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "../tensors.h"
#include "gemm.h"
#include "kernels.h"

namespace captioner::cpu {
namespace {

using torch::stable::parallel_for;

void check(const Tensor& hidden, const Tensor& weight, const Tensor& bias, const Tensor& targets) {
  const ScalarType type = hidden.scalar_type();
  STD_TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && bias.dim() == 1 && targets.dim() == 1,
                  "hidden must be [N, H], weight [V, H], bias [V] and targets [N]");
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "hidden must be of float or double");
  STD_TORCH_CHECK(weight.scalar_type() == type && bias.scalar_type() == type,
                  "weight and bias must be of the type of hidden");
  STD_TORCH_CHECK(targets.scalar_type() == ScalarType::Long, "targets must be of int64");
  STD_TORCH_CHECK(weight.size(1) == hidden.size(1),
                  "weight must be [V, H] with H = ", hidden.size(1), ", got H = ", weight.size(1));
  STD_TORCH_CHECK(bias.size(0) == weight.size(0), "bias must be [V] with V = ", weight.size(0),
                  ", got ", bias.size(0));
  STD_TORCH_CHECK(targets.size(0) == hidden.size(0),
                  "targets must be [N] with N = ", hidden.size(0), ", got ", targets.size(0));
  STD_TORCH_CHECK(weight.size(0) > 0, "weight must have a word, got V = 0");
  const Tensor dense_targets = dense(targets);
  const auto* words = values<const int64_t>(dense_targets);
  for (int64_t n = 0; n < targets.size(0); ++n) {
    STD_TORCH_CHECK(words[n] == kIgnored || (words[n] >= 0 && words[n] < weight.size(0)),
                    "targets must be from 0 to ", weight.size(0) - 1, " or ", kIgnored, ", got ",
                    words[n], " for token ", n);
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls run(k, first, last) for at most as many ranges of tokens as there are threads; in each but
// the last a multiple of `unit` tokens.
template <typename Run>
void for_each_range(int64_t tokens, int64_t ranges, const Run& run) {
  constexpr int64_t unit = 12;  // a multiple of the rows that registers hold
  const int64_t units = ceil_div(tokens, unit);
  parallel_for(0, ranges, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k * units / ranges * unit, last = (k + 1) * units / ranges * unit;
      run(k, first, std::min(last, tokens));
    }
  });
}

template <typename T>
LossOutputs forward(const Tensor& hidden, const Tensor& weight, const Tensor& bias,
                    const Tensor& targets, double label_smoothing, bool wants_gradient) {
  const auto& code = kernels<T>();
  const int64_t tokens = hidden.size(0), vocabulary = weight.size(0);
  const int64_t padded = ceil_div(vocabulary, code.panel_width) * code.panel_width;
  const int64_t ranges = torch::stable::get_num_threads();
  const int64_t logits_rows = wants_gradient ? tokens : code.loss_rows;
  const int64_t copies = wants_gradient ? 1 : ranges;

  const Tensor words = packed<T>(transposed(weight));
  const Tensor padded_bias = torch::stable::new_zeros(hidden, {padded});
  Tensor shown = rows(padded_bias, 0, vocabulary);
  torch::stable::copy_(shown, bias);
  const Tensor logits = empty(hidden, {copies * padded * logits_rows});
  const Tensor losses = empty(hidden, {tokens});
  const Tensor grad_biases =
      torch::stable::new_zeros(hidden, {ranges, wants_gradient ? vocabulary : 0});
  const LossParams<T> params{hidden.size(1),
                             vocabulary,
                             values<const T>(hidden),
                             values<const T>(words),
                             values<const T>(padded_bias),
                             values<const int64_t>(targets),
                             static_cast<T>(label_smoothing),
                             wants_gradient,
                             logits_rows,
                             values<T>(logits),
                             values<T>(losses)};
  for_each_range(tokens, ranges, [&](int64_t k, int64_t first, int64_t last) {
    LossParams<T> own = params;
    if (!wants_gradient) own.logits += k * padded * logits_rows;
    code.loss(own, first, last, values<T>(grad_biases) + k * grad_biases.size(1));
  });

  double sum = 0;  // in the tokens' order, whatever the number of threads
  for (int64_t n = 0; n < tokens; ++n) sum += values<const T>(losses)[n];
  Tensor total = empty(hidden, {});
  *values<T>(total) = static_cast<T>(sum);
  return {total, wants_gradient ? logits : empty(hidden, {0}), sum_of_rows(grad_biases)};
}

template <typename T>
LossGradients backward(const Tensor& grad_loss, const Tensor& hidden, const Tensor& weight,
                       const Tensor& grad_logits, const Tensor& grad_bias) {
  const auto& code = kernels<T>();
  const int64_t tokens = hidden.size(0), vocabulary = weight.size(0);
  const int64_t panels = ceil_div(vocabulary, code.panel_width);
  STD_TORCH_CHECK(
      grad_logits.numel() == panels * code.panel_width * tokens && grad_bias.numel() == vocabulary,
      "grad_logits and grad_bias must be what linear_cross_entropy returned");
  const Tensor words = packed<T>(weight), states = packed<T>(hidden);
  const Tensor grad_hidden = empty(hidden, {tokens, hidden.size(1)});
  const Tensor grad_weight = tokens > 0
                                 ? empty(hidden, {vocabulary, hidden.size(1)})
                                 : torch::stable::new_zeros(hidden, {vocabulary, hidden.size(1)});
  const T factor = *values<const T>(grad_loss);
  const LossGradient<T> params{tokens,
                               hidden.size(1),
                               vocabulary,
                               values<const T>(grad_logits),
                               values<const T>(words),
                               values<const T>(states),
                               factor,
                               values<T>(grad_hidden),
                               values<T>(grad_weight)};
  for_each_range(
      tokens, torch::stable::get_num_threads(),
      [&](int64_t, int64_t first, int64_t last) { code.loss_grad_hidden(params, first, last); });
  parallel_for(0, panels, 1,
               [&](int64_t first, int64_t last) { code.loss_grad_weight(params, first, last); });
  Tensor scaled = empty(hidden, {vocabulary});
  for (int64_t k = 0; k < vocabulary; ++k) {
    values<T>(scaled)[k] = factor * values<const T>(grad_bias)[k];
  }
  return {grad_hidden, grad_weight, scaled};
}

LossOutputs linear_cross_entropy(Tensor hidden, Tensor weight, Tensor bias, Tensor targets,
                                 double label_smoothing, bool wants_gradient) {
  check(hidden, weight, bias, targets);
  const auto run = hidden.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
  return run(dense(hidden), weight, bias, dense(targets), label_smoothing, wants_gradient);
}

LossGradients linear_cross_entropy_backward(Tensor grad_loss, Tensor hidden, Tensor weight,
                                            Tensor grad_logits, Tensor grad_bias) {
  STD_TORCH_CHECK(grad_loss.numel() == 1 && grad_loss.scalar_type() == hidden.scalar_type(),
                  "grad_loss must be one number of the type of hidden");
  const auto run = hidden.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  return run(grad_loss, dense(hidden), weight, dense(grad_logits), dense(grad_bias));
}

// The size of the vectors that the kernels compute with: a panel of logits is four of them wide.
int64_t cpu_vector_bytes() { return kernels<float>().panel_width / 4 * sizeof(float); }

STABLE_TORCH_LIBRARY_IMPL(captioner, CPU, library) {
  library.impl("linear_cross_entropy", TORCH_BOX(&linear_cross_entropy));
  library.impl("linear_cross_entropy_backward", TORCH_BOX(&linear_cross_entropy_backward));
}

STABLE_TORCH_LIBRARY_IMPL(captioner, CompositeExplicitAutograd, library) {
  library.impl("cpu_vector_bytes", TORCH_BOX(&cpu_vector_bytes));
}

}  // namespace
}  // namespace captioner::cpu
