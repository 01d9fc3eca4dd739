// The two ways through the steps of a packed batch: `plain`, a product and a kernel a step, steered
// by the host, for any H and type; `persistent`, all steps in one launch, for what a device can
// hold (persistent.h). Both fill tensors of the same form, so that either way back may follow
// either way there. lstm.cpp allocates and does what does not depend on the step before.
//
// Letters as in ../lstm.h. All tensors are dense and on one device.
#pragma once

#include <cuda_runtime.h>

#include "../lstm.h"
#include "persistent.h"

namespace captioner::cuda {

// What the operator's `path` is.
enum class Path : int64_t { plain = 0, persistent = 1, clusters = 2 };

struct Sequences {
  LstmShape shape;
  Tensor batch_sizes;                // [T] int64; where `persistent` goes, on the device
  Tensor hx;                         // [B, H]
  Tensor cx;                         // [B, H] State
  Tensor weight_hh;                  // [4H, H]
  std::optional<Tensor> input_rows;  // [N] int64
  cudaStream_t stream;
};

struct InputSums {
  Tensor sums;              // [U, 4H] input times weight_ih
  Tensor bias_ih, bias_hh;  // [4H]
};

struct Saved {
  Tensor grad_output;       // [N, H]
  Tensor grad_hy, grad_cy;  // [B, H]
  Tensor output;            // [N, H]
  Tensor workspace;         // [5 * N * H] State
};

struct Recurrent {
  Tensor grad_gates;        // [N, 4H] before sigmoid and tanh
  Tensor h_before;          // [N, H] what each token's gates read
  Tensor grad_hx, grad_cx;  // [B, H]
};

void plain_forward(const Sequences& sequences, const InputSums& input, const LstmOutputs& outputs);
Recurrent plain_backward(const Sequences& sequences, const Saved& saved, bool wants_hx);

// Refuses, with the reason, what does not fit the device.
void persistent_forward(const Sequences& sequences, const InputSums& input,
                        const LstmOutputs& outputs, Exchange exchange);
Recurrent persistent_backward(const Sequences& sequences, const Saved& saved, bool wants_hx,
                              Exchange exchange);

// Whether both directions fit the current device.
bool persistent_fits(ScalarType type, int64_t batch, int64_t hidden_size, Exchange exchange);

}  // namespace captioner::cuda
