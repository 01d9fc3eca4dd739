// Products of matrices on torch's threads.
//
// The recurrence packs weight_hh once and multiplies a few rows by it at every step, which a BLAS
// would pack again each time. The same kernel also takes the products of all tokens with weight_ih:
// there it was measured 5 to 12 % faster than the BLAS (two AVX-512 cores); for the gradients of
// the weights it was not, so these are torch's. Where vectors are short (kernels_portable.cpp),
// or the type is a half, torch's BLAS takes all of them.
#pragma once

#include "../tensors.h"
#include "kernels.h"

namespace captioner::cpu {

template <typename T>
Matrix<T> matrix(const Tensor& tensor) {
  return {values<const T>(tensor), tensor.size(0), tensor.size(1), tensor.stride(0),
          tensor.stride(1)};
}

// b [k, n] of any strides.
template <typename T>
Tensor packed(const Tensor& b) {
  const auto& code = kernels<T>();
  Tensor to = empty(b, {code.packed_size(b.size(0), b.size(1))});
  torch::stable::parallel_for(
      0, code.panels(b.size(0), b.size(1)), 1,
      [&](int64_t first, int64_t last) { code.pack(matrix<T>(b), values<T>(to), first, last); });
  return to;
}

// out [m, n] = a [m, k] b [k, n], a and b of any strides, out dense.
template <typename T>
void multiply_into(Tensor& out, const Tensor& a, const Tensor& b) {
  const Tensor right = packed<T>(b);
  const Product<T> product{matrix<T>(a), values<const T>(right), values<T>(out), b.size(1)};
  constexpr int64_t rows = 12;  // dealt out together: a multiple of what the registers hold
  torch::stable::parallel_for(
      0, (a.size(0) + rows - 1) / rows, 1, [&](int64_t first, int64_t last) {
        kernels<T>().multiply(product, first * rows, std::min(last * rows, a.size(0)));
      });
}

// a [m, k] b [k, n] by whichever is the faster.
template <typename T>
void product_of(Tensor& out, const Tensor& a, const Tensor& b) {
  const bool half = a.scalar_type() != state_type(a.scalar_type());
  const bool ours = kernels<T>().fast_products && !half && a.size(0) > 1;
  ours ? multiply_into<T>(out, a, b) : product_into(out, a, b);
}

template <typename T>
Tensor product_of(const Tensor& a, const Tensor& b) {
  Tensor out = empty(a, {a.size(0), b.size(1)});
  product_of<T>(out, a, b);
  return out;
}

}  // namespace captioner::cpu
