// K models in one call: every tensor of theirs has a leading K, and each model is computed as it
// is alone on one thread, so that its results do not depend on who is computed beside it. In one
// parallel region for all, each thread takes whole models, from the first GEMM to the last.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <utility>
#include <vector>

#include "../tensors.h"

namespace captioner::cpu {

// The part of model k.
inline Tensor part(const Tensor& tensor, int64_t k) { return torch::stable::select(tensor, 0, k); }

// While it lives, this thread records nothing for autograd. A kernel's caller sees to that on its
// own thread; those of the pool do not know of it.
class WithoutAutograd {
 public:
  WithoutAutograd() : before_(aoti_torch_grad_mode_is_enabled()) {
    aoti_torch_grad_mode_set_enabled(false);
  }
  ~WithoutAutograd() { aoti_torch_grad_mode_set_enabled(before_); }
  WithoutAutograd(const WithoutAutograd&) = delete;
  WithoutAutograd& operator=(const WithoutAutograd&) = delete;

 private:
  bool before_;
};

class Models {
 public:
  // `weight` has `dims` dimensions for a single model, one more for K.
  Models(const Tensor& weight, int64_t dims)
      : stacked_(weight.dim() == dims + 1), count_(stacked_ ? weight.size(0) : 1) {
    STD_TORCH_CHECK(count_ > 0, "K must be at least 1, got tensors of no model");
  }

  // Refuses tensors without the leading K.
  void check(std::initializer_list<std::pair<const char*, Tensor>> tensors) const {
    if (!stacked_) return;
    for (const auto& [name, tensor] : tensors) {
      STD_TORCH_CHECK(tensor.dim() > 0 && tensor.size(0) == count_, name,
                      " must begin with K = ", count_, " models as the weights do, got ",
                      tensor.dim() > 0 ? tensor.size(0) : 0);
    }
  }

  // The part of the first model: all have the same shapes.
  Tensor first(const Tensor& tensor) const { return stacked_ ? part(tensor, 0) : tensor; }

  // A new dense tensor of a result that has this shape for each model.
  Tensor empty(const Tensor& like, std::vector<int64_t> shape, ScalarType type) const {
    if (stacked_) shape.insert(shape.begin(), count_);
    return torch::stable::new_empty(like, shape, type);
  }
  Tensor empty(const Tensor& like, std::vector<int64_t> shape) const {
    return empty(like, std::move(shape), like.scalar_type());
  }

  // The tensors of every model. `Tensors` has `Tensors of_model(int64_t k) const`.
  template <typename Tensors>
  std::vector<Tensors> each(const Tensors& all) const {
    std::vector<Tensors> found;
    for (int64_t k = 0; k < count_; ++k) found.push_back(stacked_ ? all.of_model(k) : all);
    return found;
  }

  // Calls run(tensors, threads) for every model, on so many threads.
  template <typename Tensors, typename Run>
  void for_each(const Tensors& all, const Run& run) const {
    std::vector<Tensors> own = each(all);
    if (!stacked_) return run(own[0], torch::stable::get_num_threads());
    // Within a parallel region, those of the models and of torch's BLAS are plain loops: two items
    // at least make it one.
    torch::stable::parallel_for(0, std::max<int64_t>(count_, 2), 1, [&](int64_t k, int64_t last) {
      const WithoutAutograd guard;
      for (; k < std::min(last, count_); ++k) run(own[k], 1);
    });
  }

 private:
  bool stacked_;
  int64_t count_;  // K
};

}  // namespace captioner::cpu
