// The time steps of an LSTM on the CPU: the GEMMs with weight_hh and the cells, as one of the
// kernels of kernels.h.
//
// Letters as in ../lstm.h. All pointers are dense and row-major. Ranges of
// sequences [first, last) are independent, so each thread computes all steps of its own range.
#pragma once

#include <cstdint>

namespace captioner::cpu {

struct Steps {
  int64_t count;               // T
  int64_t hidden_size;         // H
  const int64_t* batch_sizes;  // [T]
  const int64_t* offsets;      // [T + 1]
};

template <typename T>
struct ForwardParams {
  Steps steps;
  const T* input_projection;  // [U, 4H] input times weight_ih; may be `gates`
  const int64_t* input_rows;  // [N] the row of input_projection that a token reads; nullptr: n
  const T* bias;              // [4H] both biases, added; nullptr: input_projection includes them
  const T* weight;            // weight_hh, packed; nullptr for a single step, with
  const T* recurrent_projection;  // [B, 4H] hx times weight_hh, or nullptr if it is 0
  const T* hx;                    // [B, H], nullptr: 0
  const T* cx;                    // [B, H]
  T* output;                      // [N, H] written
  T* hy;                          // [B, H] written
  T* cy;                          // [B, H] written
  T* gates;                       // [N, 4H] written
  T* cells;                       // [N, H] written
};

template <typename T>
struct BackwardParams {
  Steps steps;
  const T* grad_output;  // [N, H]
  const T* gates;        // [N, 4H]
  const T* cells;        // [N, H]
  const T* output;       // [N, H]
  const T* hx;           // [B, H], nullptr: 0
  const T* cx;           // [B, H]
  const T* weight;       // weight_hh [4H, H], packed by pack; nullptr: grad_h is left as it is
  bool wants_hx;         // false: the GEMM of the first step is skipped
  T* grad_h;             // [B, H] in: the gradient of hy, out: of hx where it is wanted
  T* grad_c;             // [B, H] in: the gradient of cy, out: of cx
  T* grad_gates;         // [N, 4H] written: gradients of the pre-activations
  T* h_before;  // [N, H] written: the hidden state that each token's gates read (not where hx is 0)
};

}  // namespace captioner::cpu
