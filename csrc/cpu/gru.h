// The time steps of a GRU on the CPU, as one of the kernels of kernels.h.
//
// Letters as in ../lstm.h, gates as in ../gru.h. All pointers are dense and row-major. Ranges of
// sequences [first, last) are independent, so each thread computes all steps of its own range.
#pragma once

#include "recurrence.h"

namespace captioner::cpu {

template <typename T>
struct GruForwardParams {
  Steps steps;
  const T* input_projection;      // [U, 3H] input times weight_ih
  const int64_t* input_rows;      // [N] the row of input_projection that a token reads; nullptr: n
  const T* bias;                  // [4H] of r and z both added, n's of the input, n's of the state
  const T* weight;                // weight_hh, packed; nullptr for a single step, with
  const T* recurrent_projection;  // [B, 3H] hx times weight_hh, or nullptr if it is 0
  const T* hx;                    // [B, H], nullptr: 0
  T* output;                      // [N, H] written
  T* hy;                          // [B, H] written
  T* gates;                       // [N, 4H] written: r, z, n and the state's part of n
};

template <typename T>
struct GruBackwardParams {
  Steps steps;
  const T* grad_output;  // [N, H]
  const T* gates;        // [N, 4H]
  const T* output;       // [N, H]
  const T* hx;           // [B, H], nullptr: 0
  const T* weight;       // weight_hh [3H, H], packed by pack; nullptr: grad_h is left as it is
  bool wants_hx;         // false: the GEMM of the first step is skipped
  T* grad_h;             // [B, H] in: the gradient of hy, out: what weight_hh passes on to hx
  T* grad_passed;        // [B, H] in: 0, out: what else is passed on to hx
  T* grad_of_input;      // [N, 3H] written: gradients of what the input gives to the gates
  T* grad_of_state;      // [N, 3H] written: gradients of what the state gives to them
  T* h_before;  // [N, H] written: the hidden state that each token's gates read (not where hx is 0)
};

}  // namespace captioner::cpu
