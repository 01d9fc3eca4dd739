// All code that is compiled once for each instruction set, and the choice among them. Plain
// pointers, no tensors, no threads: lstm.cpp, linear_cross_entropy.cpp and additive_scores.cpp
// allocate, check and partition the work over threads.
#pragma once

#include <cstdint>

#include "additive_scores.h"
#include "cross_entropy.h"
#include "gru.h"
#include "recurrence.h"

namespace captioner::cpu {

template <typename T>
struct Matrix {
  const T* values;
  int64_t rows, columns;
  int64_t row_stride, column_stride;
};

template <typename T>
struct Gemm {
  Matrix<T> a;      // [m, k]
  const T* packed;  // [k, n], packed by Kernels::pack
  T* result;        // [m, n] written
  int64_t columns;  // n
};

// How weight_hh is packed for a forward pass.
template <typename T>
struct GatePacking {
  int64_t (*size)(int64_t hidden_size);
  void (*pack)(const T* weight_hh, int64_t hidden_size, T* packed, int64_t first_panel,
               int64_t last_panel);
};

// The functions compiled for one instruction set. A packed matrix consists of panels, which may be
// packed in any order; the sizes are numbers of values.
template <typename T>
struct Kernels {
  bool has_fast_gemm;  // whether `gemm` is as fast as a BLAS

  int64_t (*panels)(int64_t rows, int64_t columns);
  int64_t (*packed_size)(int64_t rows, int64_t columns);
  void (*pack)(const Matrix<T>& matrix, T* packed, int64_t first_panel, int64_t last_panel);
  void (*gemm)(const Gemm<T>& gemm, int64_t first_row, int64_t last_row);

  int64_t (*gate_panels)(int64_t hidden_size);
  GatePacking<T> lstm_gates;
  void (*forward)(const ForwardParams<T>& params, int64_t first, int64_t last);
  // Adds this range's share of the gradient of a bias to grad_bias [4H].
  void (*backward)(const BackwardParams<T>& params, int64_t first, int64_t last, T* grad_bias);

  GatePacking<T> gru_gates;
  void (*gru_forward)(const GruForwardParams<T>& params, int64_t first, int64_t last);
  void (*gru_backward)(const GruBackwardParams<T>& params, int64_t first, int64_t last);

  int64_t panel_width;  // columns of the vocabulary that lie together in a LossParams
  int64_t loss_rows;    // tokens whose logits are computed before any of them is looked at
  // Adds these tokens' share of the gradient of the bias to grad_bias, unless it is nullptr.
  void (*loss)(const LossParams<T>& params, int64_t first, int64_t last, T* grad_bias);
  void (*loss_grad_hidden)(const LossGradient<T>& params, int64_t first, int64_t last);
  void (*loss_grad_weight)(const LossGradient<T>& params, int64_t first_panel, int64_t last_panel);

  int64_t (*scores_space)(int64_t regions, int64_t units);
  void (*scores)(const AdditiveForward<T>& task, int64_t first, int64_t last, T* space);
  int64_t score_units;                                    // units of a panel
  int64_t (*scores_gradient_space)(int64_t most_tokens);  // of an image
  void (*scores_gradient)(const AdditiveBackward<T>& task, int64_t first_panel, int64_t last_panel,
                          T* space);
};

// The best one that this processor runs; CAPTIONER_CPU=avx512|avx2|portable asks for another.
template <typename T>
const Kernels<T>& kernels();

}  // namespace captioner::cpu
