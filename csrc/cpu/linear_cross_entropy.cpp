// A linear layer and cross-entropy on the CPU. Each thread takes some tokens: their logits, softmax
// and its gradient follow one another within its cache; the gradients of weight and hidden states
// are GEMMs with the packed logits (cross_entropy.h). Of K models, each thread computes whole ones
// (models.h).
//
// Letters as in ../linear_cross_entropy.h.
#include "../linear_cross_entropy.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "../tensors.h"
#include "gemm.h"
#include "kernels.h"
#include "models.h"

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

// The arguments and the results of a model, or with a leading K of all, which share their targets.
struct LossTensors {
  Tensor hidden, weight, bias;
  Tensor loss, grad_logits, grad_bias;

  LossTensors of_model(int64_t k) const {
    return {part(hidden, k), part(weight, k),      part(bias, k),
            part(loss, k),   part(grad_logits, k), part(grad_bias, k)};
  }
};

template <typename T>
int64_t padded_words(int64_t vocabulary) {
  const int64_t width = kernels<T>().panel_width;
  return ceil_div(vocabulary, width) * width;
}

template <typename T>
void forward(const LossTensors& x, const int64_t* targets, double label_smoothing,
             bool wants_gradient, int64_t threads) {
  const auto& code = kernels<T>();
  const Tensor hidden = dense(x.hidden);
  const int64_t tokens = hidden.size(0), vocabulary = x.weight.size(0);
  const int64_t padded = padded_words<T>(vocabulary);
  const int64_t logits_rows = wants_gradient ? tokens : code.loss_rows;

  const Tensor words = packed<T>(transposed(x.weight));
  const Tensor padded_bias = torch::stable::new_zeros(hidden, {padded});
  Tensor shown = rows(padded_bias, 0, vocabulary);
  torch::stable::copy_(shown, x.bias);
  const Tensor logits =
      wants_gradient ? x.grad_logits : empty(hidden, {threads * padded * logits_rows});
  const Tensor losses = empty(hidden, {tokens});
  const Tensor grad_biases =
      torch::stable::new_zeros(hidden, {threads, wants_gradient ? vocabulary : 0});
  const LossParams<T> params{hidden.size(1),
                             vocabulary,
                             values<const T>(hidden),
                             values<const T>(words),
                             values<const T>(padded_bias),
                             targets,
                             static_cast<T>(label_smoothing),
                             wants_gradient,
                             logits_rows,
                             values<T>(logits),
                             values<T>(losses)};
  for_each_range(tokens, threads, [&](int64_t k, int64_t first, int64_t last) {
    LossParams<T> own = params;
    if (!wants_gradient) own.logits += k * padded * logits_rows;
    code.loss(own, first, last, values<T>(grad_biases) + k * grad_biases.size(1));
  });

  double sum = 0;  // in the tokens' order, whatever the number of threads
  for (int64_t n = 0; n < tokens; ++n) sum += values<const T>(losses)[n];
  *values<T>(x.loss) = static_cast<T>(sum);
  Tensor grad_bias = x.grad_bias;
  torch::stable::copy_(grad_bias, sum_of_rows(grad_biases));
}

// The arguments and the results of a model, or with a leading K of all.
struct LossGradientTensors {
  Tensor grad_loss, hidden, weight, grad_logits, grad_bias;
  Tensor grad_hidden, grad_weight, scaled_bias;

  LossGradientTensors of_model(int64_t k) const {
    return {part(grad_loss, k), part(hidden, k),      part(weight, k),      part(grad_logits, k),
            part(grad_bias, k), part(grad_hidden, k), part(grad_weight, k), part(scaled_bias, k)};
  }
};

template <typename T>
void backward(LossGradientTensors& x, int64_t threads) {
  const auto& code = kernels<T>();
  const int64_t tokens = x.hidden.size(0), vocabulary = x.weight.size(0);
  const Tensor words = packed<T>(x.weight), states = packed<T>(x.hidden);
  if (tokens == 0) torch::stable::zero_(x.grad_weight);
  const T factor = *values<const T>(x.grad_loss);
  const LossGradient<T> params{tokens,
                               x.hidden.size(1),
                               vocabulary,
                               values<const T>(x.grad_logits),
                               values<const T>(words),
                               values<const T>(states),
                               factor,
                               values<T>(x.grad_hidden),
                               values<T>(x.grad_weight)};
  for_each_range(tokens, threads, [&](int64_t, int64_t first, int64_t last) {
    code.loss_grad_hidden(params, first, last);
  });
  parallel_for(0, padded_words<T>(vocabulary) / code.panel_width, 1,
               [&](int64_t first, int64_t last) { code.loss_grad_weight(params, first, last); });
  for (int64_t k = 0; k < vocabulary; ++k) {
    values<T>(x.scaled_bias)[k] = factor * values<const T>(x.grad_bias)[k];
  }
}

LossOutputs linear_cross_entropy(Tensor hidden, Tensor weight, Tensor bias, Tensor targets,
                                 double label_smoothing, bool wants_gradient) {
  const Models models(weight, 2);
  models.check({{"hidden", hidden}, {"bias", bias}});
  const Tensor first = models.first(hidden);
  check(first, models.first(weight), models.first(bias), targets);
  targets = dense(targets);
  const bool wide = hidden.scalar_type() == ScalarType::Double;
  const int64_t vocabulary = models.first(weight).size(0);
  const int64_t columns = wide ? padded_words<double>(vocabulary) : padded_words<float>(vocabulary);
  const int64_t logits = wants_gradient ? columns * first.size(0) : 0;
  const LossTensors all{hidden,
                        weight,
                        bias,
                        models.empty(hidden, {}),
                        models.empty(hidden, {logits}),
                        models.empty(hidden, {wants_gradient ? vocabulary : 0})};
  const auto run = wide ? forward<double> : forward<float>;
  models.for_each(all, [&](const LossTensors& x, int64_t threads) {
    run(x, values<const int64_t>(targets), label_smoothing, wants_gradient, threads);
  });
  return {all.loss, all.grad_logits, all.grad_bias};
}

LossGradients linear_cross_entropy_backward(Tensor grad_loss, Tensor hidden, Tensor weight,
                                            Tensor grad_logits, Tensor grad_bias) {
  const Models models(weight, 2);
  grad_logits = dense(grad_logits), grad_bias = dense(grad_bias);
  models.check({{"grad_loss", grad_loss},
                {"hidden", hidden},
                {"grad_logits", grad_logits},
                {"grad_bias", grad_bias}});
  const Tensor first = models.first(hidden);
  const bool wide = hidden.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(
      models.first(grad_loss).numel() == 1 && grad_loss.scalar_type() == hidden.scalar_type(),
      "grad_loss must be one number of the type of hidden");
  const int64_t tokens = first.size(0), vocabulary = models.first(weight).size(0);
  const int64_t columns = wide ? padded_words<double>(vocabulary) : padded_words<float>(vocabulary);
  STD_TORCH_CHECK(models.first(grad_logits).numel() == columns * tokens &&
                      models.first(grad_bias).numel() == vocabulary,
                  "grad_logits and grad_bias must be what linear_cross_entropy returned");
  const LossGradientTensors all{grad_loss,
                                hidden,
                                weight,
                                grad_logits,
                                grad_bias,
                                models.empty(hidden, {tokens, first.size(1)}),
                                models.empty(hidden, {vocabulary, first.size(1)}),
                                models.empty(hidden, {vocabulary})};
  const auto run = wide ? backward<double> : backward<float>;
  models.for_each(all, [&](LossGradientTensors& x, int64_t threads) { run(x, threads); });
  return {all.grad_hidden, all.grad_weight, all.scaled_bias};
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
