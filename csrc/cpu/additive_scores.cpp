// Scores of additive attention on the CPU. Forward: each thread takes some tokens, image by image,
// so that an image's keys stay in its cache. Backward: each takes some units, of all tokens and
// regions, so that no other adds to their gradients. The number of threads changes no bit.
//
// Letters as in ../additive_scores.h.
#include "../additive_scores.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

#include "../tensors.h"
#include "kernels.h"

namespace captioner::cpu {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kLeastValues = 1 << 15;  // of the hidden layer, for a thread that is worth it

void check(const Tensor& queries, const Tensor& keys, const Tensor& images, const Tensor& weight) {
  const ScalarType type = queries.scalar_type();
  STD_TORCH_CHECK(queries.dim() == 2 && keys.dim() == 3 && images.dim() == 1 && weight.dim() == 1,
                  "queries must be [N, A], keys [I, R, A], images [N] and weight [A]");
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "queries must be of float or double");
  STD_TORCH_CHECK(keys.scalar_type() == type && weight.scalar_type() == type,
                  "keys and weight must be of the type of queries");
  STD_TORCH_CHECK(images.scalar_type() == ScalarType::Long, "images must be of int64");
  STD_TORCH_CHECK(keys.size(2) == queries.size(1),
                  "keys must be [I, R, A] with A = ", queries.size(1), ", got A = ", keys.size(2));
  STD_TORCH_CHECK(weight.size(0) == queries.size(1),
                  "weight must be [A] with A = ", queries.size(1), ", got ", weight.size(0));
  STD_TORCH_CHECK(images.size(0) == queries.size(0),
                  "images must be [N] with N = ", queries.size(0), ", got ", images.size(0));
}

// The arguments, dense, and the tokens image by image.
template <typename T>
class Arguments {
 public:
  Arguments(const Tensor& queries, const Tensor& keys, const Tensor& images, const Tensor& weight)
      : queries_(dense(queries)),
        keys_(dense(keys)),
        weight_(dense(weight)),
        tokens_(queries.size(0)),
        starts_(keys.size(0) + 1) {
    const Tensor dense_images = dense(images);
    const auto* numbers = values<const int64_t>(dense_images);
    const int64_t count = keys.size(0);
    for (int64_t n = 0; n < tokens(); ++n) {
      STD_TORCH_CHECK(numbers[n] >= 0 && numbers[n] < count, "images must be from 0 to ", count - 1,
                      ", got ", numbers[n], " for token ", n);
      ++starts_[numbers[n] + 1];
    }
    for (int64_t k = 0; k < count; ++k) {
      most_ = std::max(most_, starts_[k + 1]);
      starts_[k + 1] += starts_[k];
    }
    std::vector<int64_t> next(starts_.begin(), starts_.end() - 1);
    for (int64_t n = 0; n < tokens(); ++n) tokens_[next[numbers[n]]++] = n;
  }

  AdditiveParams<T> params() const {
    return {keys_.size(0),
            regions(),
            units(),
            values<const T>(queries_),
            values<const T>(keys_),
            values<const T>(weight_),
            tokens_.data(),
            starts_.data()};
  }
  int64_t tokens() const { return tokens_.size(); }
  int64_t regions() const { return keys_.size(1); }
  int64_t units() const { return queries_.size(1); }
  int64_t most_tokens() const { return most_; }  // of an image

  // In how many ranges `count` things, which are all work, are worth being computed.
  int64_t ranges(int64_t count) const {
    const int64_t worth = tokens() * regions() * units() / kLeastValues;
    const int64_t threads = torch::stable::get_num_threads();
    return std::max<int64_t>(1, std::min({threads, count, worth}));
  }

 private:
  Tensor queries_, keys_, weight_;
  std::vector<int64_t> tokens_, starts_;
  int64_t most_ = 0;
};

// Calls run(first, last, space) for `ranges` ranges of `count`, each with that much work space.
template <typename T, typename Run>
void for_each_range(const Tensor& like, int64_t count, int64_t ranges, int64_t space,
                    const Run& run) {
  const Tensor whole = empty(like, {ranges, space});
  parallel_for(0, ranges, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      run(k * count / ranges, (k + 1) * count / ranges, values<T>(whole) + k * space);
    }
  });
}

template <typename T>
double sum_of(const T* numbers, int64_t count) {
  double sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += numbers[k];
  return sum;
}

template <typename T>
void forward(const Tensor& queries, const Tensor& keys, const Tensor& images, const Tensor& weight,
             const Tensor& scores) {
  const auto& code = kernels<T>();
  const Arguments<T> all(queries, keys, images, weight);
  const AdditiveParams<T> params = all.params();
  const AdditiveForward<T> task{params, static_cast<T>(sum_of(params.weight, params.units)),
                                values<T>(scores)};
  const int64_t tokens = all.tokens(), space = code.scores_space(params.regions, params.units);
  for_each_range<T>(
      queries, tokens, all.ranges(tokens), space,
      [&](int64_t first, int64_t last, T* own) { code.scores(task, first, last, own); });
}

template <typename T>
void backward(const Tensor& grad_scores, const Tensor& queries, const Tensor& keys,
              const Tensor& images, const Tensor& weight, const AdditiveGradients& found) {
  const auto& code = kernels<T>();
  const Arguments<T> all(queries, keys, images, weight);
  const auto* gradient = values<const T>(grad_scores);
  const AdditiveBackward<T> task{all.params(),
                                 gradient,
                                 static_cast<T>(sum_of(gradient, all.tokens() * all.regions())),
                                 values<T>(std::get<0>(found)),
                                 values<T>(std::get<1>(found)),
                                 values<T>(std::get<2>(found))};
  const int64_t panels = (all.units() + code.score_units - 1) / code.score_units;
  const int64_t space = code.scores_gradient_space(all.most_tokens());
  for_each_range<T>(
      queries, panels, all.ranges(panels), space,
      [&](int64_t first, int64_t last, T* own) { code.scores_gradient(task, first, last, own); });
}

Tensor additive_scores(Tensor queries, Tensor keys, Tensor images, Tensor weight) {
  check(queries, keys, images, weight);
  const bool wide = queries.scalar_type() == ScalarType::Double;
  const Tensor scores = empty(queries, {queries.size(0), keys.size(1)});
  (wide ? forward<double> : forward<float>)(queries, keys, images, weight, scores);
  return scores;
}

AdditiveGradients additive_scores_backward(Tensor grad_scores, Tensor queries, Tensor keys,
                                           Tensor images, Tensor weight) {
  check(queries, keys, images, weight);
  STD_TORCH_CHECK(grad_scores.dim() == 2 && grad_scores.size(0) == queries.size(0) &&
                      grad_scores.size(1) == keys.size(1) &&
                      grad_scores.scalar_type() == queries.scalar_type(),
                  "grad_scores must be [N, R] of the type of queries");
  const bool wide = queries.scalar_type() == ScalarType::Double;
  const AdditiveGradients found{empty(queries, {queries.size(0), queries.size(1)}),
                                empty(keys, {keys.size(0), keys.size(1), keys.size(2)}),
                                empty(weight, {weight.size(0)})};
  (wide ? backward<double> : backward<float>)(dense(grad_scores), queries, keys, images, weight,
                                              found);
  return found;
}

STABLE_TORCH_LIBRARY_IMPL(captioner, CPU, library) {
  library.impl("additive_scores", TORCH_BOX(&additive_scores));
  library.impl("additive_scores_backward", TORCH_BOX(&additive_scores_backward));
}

}  // namespace
}  // namespace captioner::cpu
