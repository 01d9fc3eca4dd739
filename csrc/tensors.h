// The few ATen operations that the kernels' host code uses, through the stable ABI: GEMMs are those
// of torch's own BLAS or cuBLAS, with its switches (threads, TF32) as the user set them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

// Torch 2.11 has no STABLE_TORCH_ERROR_CODE_CHECK, which also says what failed within torch.
#ifdef STABLE_TORCH_ERROR_CODE_CHECK
#define CAPTIONER_TORCH_CALL STABLE_TORCH_ERROR_CODE_CHECK
#else
#define CAPTIONER_TORCH_CALL TORCH_ERROR_CODE_CHECK
#endif

namespace captioner {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// acc_t: the accumulation type, that of gates and cells too.
inline ScalarType acc_type(ScalarType scalar) {
  const bool half = scalar == ScalarType::BFloat16 || scalar == ScalarType::Half;
  return half ? ScalarType::Float : scalar;
}

// A new dense tensor on the device of `like`, its values undefined.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, std::vector<int64_t>(shape), type);
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape) {
  return empty(like, shape, like.scalar_type());
}

inline Tensor dense(const Tensor& tensor) { return torch::stable::contiguous(tensor); }

template <typename T>
T* values(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Rows of a matrix, or of each of several [K, rows, columns]; of a vector, numbers.
inline Tensor rows(Tensor tensor, int64_t first, int64_t count) {
  const int64_t dim = tensor.dim() > 2 ? tensor.dim() - 2 : 0;
  return torch::stable::narrow(tensor, dim, first, count);
}

// Of a matrix, or each of several.
inline Tensor transposed(const Tensor& matrix) {
  const int64_t last = matrix.dim() - 1;
  return torch::stable::transpose(matrix, last - 1, last);
}

// Dense and of this type: `tensor` itself where it is both.
inline Tensor dense(const Tensor& tensor, ScalarType type) {
  return dense(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}

// The sum over the rows of a matrix, or of each of several; half types sum in float.
inline Tensor sum_of_rows(const Tensor& matrix) {
  const int64_t rows = matrix.dim() - 2;
  return torch::stable::sum(matrix, torch::headeronly::IntHeaderOnlyArrayRef(&rows, 1));
}

// The values [N] in ascending order, and [N] the index of each before; equal ones keep their order.
inline std::pair<Tensor, Tensor> stable_sort(const Tensor& values) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const int64_t dim = 0;
  std::array<StableIValue, 4> stack{from(values), from(std::optional<bool>(true)), from(dim),
                                    from(false)};
  CAPTIONER_TORCH_CALL(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// out [m, n] = a [m, k] b [k, n], or K of each, [K, m, n]
inline void gemm_into(Tensor& out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  const char* const name = a.dim() == 3 ? "aten::bmm" : "aten::mm";
  CAPTIONER_TORCH_CALL(torch_call_dispatcher(name, "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

// a [m, k] b [k, n], a new tensor; or K of each
inline Tensor gemm(const Tensor& a, const Tensor& b) {
  Tensor out =
      a.dim() == 3 ? empty(a, {a.size(0), a.size(1), b.size(2)}) : empty(a, {a.size(0), b.size(1)});
  gemm_into(out, a, b);
  return out;
}

// A new dense tensor with the values of `tensor` in another type.
inline Tensor copied(const Tensor& tensor, ScalarType type) {
  const auto sizes = tensor.sizes();
  const std::vector<int64_t> shape(sizes.begin(), sizes.end());
  Tensor copy = torch::stable::new_empty(tensor, shape, type);
  torch::stable::copy_(copy, tensor);
  return copy;
}

}  // namespace captioner
