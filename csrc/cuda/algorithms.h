// The algorithms for the time steps of a packed batch and the tensors that they read and write.
// lstm.cpp allocates and computes what does not depend on the previous step.
//
// All algorithms fill tensors of the same layout, so that the backward of any of them may follow
// the forward of any other. Letters as in ../lstm.h. All tensors are dense and on one device; of K
// models all but batch_sizes and input_rows have a leading K.
#pragma once

#include <cuda_runtime.h>

#include "../lstm.h"
#include "../tensors.h"
#include "algorithm.h"

namespace captioner::cuda {

struct Sequences {
  LstmShape shape;
  Tensor batch_sizes;                // [T] int64; on the device unless the algorithm is plain
  Tensor hx;                         // [B, H]
  Tensor cx;                         // [B, H] acc_t
  Tensor weight_hh;                  // [4H, H]
  std::optional<Tensor> input_rows;  // [N] int64
  cudaStream_t stream;
};

struct InputProjection {
  Tensor projection;        // [U, 4H] input times weight_ih
  Tensor bias_ih, bias_hh;  // [4H]
};

struct Saved {
  Tensor grad_output;       // [N, H]
  Tensor grad_hy, grad_cy;  // [B, H]
  Tensor output;            // [N, H]
  Tensor workspace;         // [5 * N * H] acc_t
};

struct RecurrentGradients {
  Tensor grad_gates;        // [N, 4H] of the pre-activations
  Tensor h_before;          // [N, H] the hidden state that each token's gates read
  Tensor grad_hx, grad_cx;  // [B, H]
};

// A new dense tensor that has this shape for each model.
inline Tensor empty_of_models(const Tensor& like, const LstmShape& shape,
                              std::vector<int64_t> sizes, ScalarType type) {
  sizes.insert(sizes.begin(), shape.leading.begin(), shape.leading.end());
  return torch::stable::new_empty(like, sizes, type);
}

inline Tensor empty_of_models(const Tensor& like, const LstmShape& shape,
                              std::vector<int64_t> sizes) {
  return empty_of_models(like, shape, std::move(sizes), like.scalar_type());
}

void plain_forward(const Sequences& sequences, const InputProjection& input,
                   const LstmOutputs& outputs);
RecurrentGradients plain_backward(const Sequences& sequences, const Saved& saved, bool wants_hx);

// `algorithm` is persistent or cluster. Refuses, with the reason, what does not fit the device.
void persistent_forward(const Sequences& sequences, const InputProjection& input,
                        const LstmOutputs& outputs, Algorithm algorithm);
RecurrentGradients persistent_backward(const Sequences& sequences, const Saved& saved,
                                       bool wants_hx, Algorithm algorithm);

// Whether forward and backward fit the current device.
bool persistent_fits(ScalarType type, int64_t batch, int64_t hidden_size, Algorithm algorithm);

}  // namespace captioner::cuda
