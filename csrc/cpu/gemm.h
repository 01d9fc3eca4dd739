// GEMMs on torch's threads.
//
// The recurrence packs weight_hh once and multiplies a few rows by it at every step, which a BLAS
// would pack again each time. The same kernel also computes the input projection: there it was
// measured 5 to 12 % faster than the BLAS (two AVX-512 cores); for the gradients of the weights it
// was not, so these are torch's. Where vectors are short (kernels_portable.cpp), or the type is a
// half, torch's BLAS computes all of them.
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
void packed_gemm_into(Tensor& out, const Tensor& a, const Tensor& b) {
  const Tensor right = packed<T>(b);
  const Gemm<T> gemm{matrix<T>(a), values<const T>(right), values<T>(out), b.size(1)};
  constexpr int64_t rows = 12;  // of a work item: a multiple of what the registers hold
  torch::stable::parallel_for(
      0, (a.size(0) + rows - 1) / rows, 1, [&](int64_t first, int64_t last) {
        kernels<T>().gemm(gemm, first * rows, std::min(last * rows, a.size(0)));
      });
}

// out = a [m, k] b [k, n] by whichever GEMM is the faster.
template <typename T>
void fast_gemm(Tensor& out, const Tensor& a, const Tensor& b) {
  const bool half = a.scalar_type() != acc_type(a.scalar_type());
  const bool ours = kernels<T>().has_fast_gemm && !half && a.size(0) > 1;
  ours ? packed_gemm_into<T>(out, a, b) : gemm_into(out, a, b);
}

template <typename T>
Tensor fast_gemm(const Tensor& a, const Tensor& b) {
  Tensor out = empty(a, {a.size(0), b.size(1)});
  fast_gemm<T>(out, a, b);
  return out;
}

}  // namespace captioner::cpu
