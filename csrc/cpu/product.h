// Products of matrices on torch's threads.
//
// These are ours and not the BLAS's because the recurrence needs its weights packed anyway, and its
// kernel, measured on the shapes of an LSTM (two AVX-512 cores), is the faster one there. Where
// vectors are short (recurrence_portable.cpp), or the type is a half, torch's BLAS takes them.
#pragma once

#include "../tensors.h"
#include "recurrence.h"

namespace captioner::cpu {

template <typename T>
Matrix<T> matrix(const Tensor& tensor) {
  return {values<const T>(tensor), tensor.size(0), tensor.size(1), tensor.stride(0),
          tensor.stride(1)};
}

// b [k, n] of any strides.
template <typename T>
Tensor packed(const Tensor& b) {
  const auto& code = recurrence<T>();
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
        recurrence<T>().multiply(product, first * rows, std::min(last * rows, a.size(0)));
      });
}

// a [m, k] b [k, n] by whichever is the faster here.
template <typename T>
void product_of(Tensor& out, const Tensor& a, const Tensor& b) {
  const bool ours = a.scalar_type() == state_type(a.scalar_type()) && a.size(1) > 0 &&
                    a.size(0) > 1 && recurrence<T>().fast_products;
  ours ? multiply_into<T>(out, a, b) : product_into(out, a, b);
}

template <typename T>
Tensor product_of(const Tensor& a, const Tensor& b) {
  Tensor out = empty(a, {a.size(0), b.size(1)});
  product_of<T>(out, a, b);
  return out;
}

}  // namespace captioner::cpu
