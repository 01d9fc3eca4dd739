// The part of an LSTM that must run step by step, on the CPU: the products with weight_hh and the
// cells. Plain pointers, no tensors, no threads: lstm.cpp allocates, checks and deals out rows.
//
// Letters as in ../lstm.h. All pointers are dense and row-major. A range of sequences
// [first, last) needs nothing of another range, so each thread walks through all steps of its own.
#pragma once

#include <cstdint>

namespace captioner::cpu {

template <typename T>
struct Matrix {
  const T* values;
  int64_t rows, columns;
  int64_t row_stride, column_stride;
};

template <typename T>
struct Product {
  Matrix<T> a;      // [m, k]
  const T* packed;  // [k, n], packed by Recurrence::pack
  T* result;        // [m, n] written
  int64_t columns;  // n
};

struct Steps {
  int64_t count;               // T
  int64_t hidden_size;         // H
  const int64_t* batch_sizes;  // [T]
  const int64_t* offsets;      // [T + 1]
};

template <typename T>
struct ForwardPass {
  Steps steps;
  const T* sums;              // [U, 4H] input times weight_ih; may be `gates`
  const int64_t* input_rows;  // [N] the row of `sums` that a token takes; nullptr: its own
  const T* bias;              // [4H] both biases, added; nullptr: `sums` has them
  const T* weight;            // weight_hh, packed by pack_gates; nullptr for a single step, with
  const T* recurrent_sums;    // [B, 4H] the product of hx and weight_hh, or nullptr if it is 0
  const T* hx;                // [B, H], nullptr: 0
  const T* cx;                // [B, H]
  T* output;                  // [N, H] written
  T* hy;                      // [B, H] written
  T* cy;                      // [B, H] written
  T* gates;                   // [N, 4H] written
  T* cells;                   // [N, H] written
};

template <typename T>
struct BackwardPass {
  Steps steps;
  const T* grad_output;  // [N, H]
  const T* gates;        // [N, 4H]
  const T* cells;        // [N, H]
  const T* output;       // [N, H]
  const T* hx;           // [B, H], nullptr: 0
  const T* cx;           // [B, H]
  const T* weight;       // weight_hh [4H, H], packed by pack; nullptr: grad_h is left as it is
  bool wants_hx;         // false: the product of the first step is left out
  T* grad_h;             // [B, H] in: the gradient of hy, out: of hx where it is wanted
  T* grad_c;             // [B, H] in: the gradient of cy, out: of cx
  T* grad_gates;         // [N, 4H] written: gradients before sigmoid and tanh
  T* h_before;           // [N, H] written: what each token's gates read (not where hx is 0)
};

// The functions compiled for one instruction set. A packed matrix consists of panels, which may be
// packed in any order; the sizes are numbers of values.
template <typename T>
struct Recurrence {
  bool fast_products;  // whether `multiply` is a match for a BLAS

  int64_t (*panels)(int64_t rows, int64_t columns);
  int64_t (*packed_size)(int64_t rows, int64_t columns);
  void (*pack)(const Matrix<T>& matrix, T* packed, int64_t first_panel, int64_t last_panel);
  void (*multiply)(const Product<T>& product, int64_t first_row, int64_t last_row);

  int64_t (*gate_panels)(int64_t hidden_size);
  int64_t (*gates_size)(int64_t hidden_size);
  void (*pack_gates)(const T* weight_hh, int64_t hidden_size, T* packed, int64_t first_panel,
                     int64_t last_panel);
  void (*forward)(const ForwardPass<T>& pass, int64_t first, int64_t last);
  // Adds this range's share of the gradient of a bias to grad_bias [4H].
  void (*backward)(const BackwardPass<T>& pass, int64_t first, int64_t last, T* grad_bias);
};

// The best one that this processor runs; CAPTIONER_CPU=avx512|avx2|portable asks for another.
template <typename T>
const Recurrence<T>& recurrence();

}  // namespace captioner::cpu
