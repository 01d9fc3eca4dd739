// A time step of algorithm plain without its GEMM with weight_hh: one pointwise kernel each for
// forward and backward, which computes all models. Plain pointers and a stream, no tensors:
// lstm.cpp allocates and checks.
//
// Letters as in ../lstm.h; S sequences have this step, S = batch_sizes[t]. All pointers are dense,
// row-major and on the device, and each that belongs to a packed tensor points to this step's first
// row; they are those of the first model, and `stride` says where the others' are. Launchers return
// the error of the launch, not of the run.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace captioner::cuda {

template <typename Scalar>
struct AccType {
  using type = float;
};
template <>
struct AccType<double> {
  using type = double;
};

// The accumulation type, that of gates and cells too.
template <typename Scalar>
using acc_t = typename AccType<Scalar>::type;

// How many rows of a tensor a model's part lies behind that of the model before.
struct ModelStrides {
  int64_t tokens;    // N, of packed tensors; of gates and cells, in one workspace, five times that
  int64_t batch;     // B, of states and hidden_projection
  int64_t sources;   // U, of input_projection
  int64_t c_before;  // B in the first step, then 5N
  int64_t h_before;  // B in the first step, then N
};

template <typename Scalar>
struct ForwardStep {
  int64_t models;                  // K
  ModelStrides stride;             // h_before is not used
  int64_t sequences;               // S
  int64_t continuing;              // sequences that have a next step; the others end with it
  int64_t hidden_size;             // H
  int64_t projection_rows;         // U, or S without input_rows
  const Scalar* input_projection;  // [U, 4H] input times weight_ih
  const int64_t* input_rows;       // [S] the row of input_projection that a token reads; nullptr: n
  const Scalar* hidden_projection;  // [S, 4H] the hidden states before this step times weight_hh
  const Scalar* bias_ih;            // [4H] nullptr, both: input_projection includes the biases
  const Scalar* bias_hh;            // [4H]
  const acc_t<Scalar>* c_before;    // [S, H]
  acc_t<Scalar>* gates;             // [S, 4H] written
  acc_t<Scalar>* cells;             // [S, H] written
  Scalar* output;                   // [S, H] written
  Scalar* hy;                       // [B, H] written where a sequence ends: rows continuing to S
  Scalar* cy;                       // [B, H] likewise
};

template <typename Scalar>
struct BackwardStep {
  int64_t models;                 // K
  ModelStrides stride;            // sources is not used
  int64_t sequences;              // S
  int64_t continuing;             // sequences that have a next step; the others end with it
  int64_t hidden_size;            // H
  const Scalar* grad_output;      // [S, H]
  const Scalar* grad_hidden;      // [continuing, H] the gradient of h from the next step
  const Scalar* grad_hy;          // [B, H] read where a sequence ends
  const Scalar* grad_cy;          // [B, H] likewise
  const acc_t<Scalar>* gates;     // [S, 4H]
  const acc_t<Scalar>* cells;     // [S, H]
  const acc_t<Scalar>* c_before;  // [S, H]
  const Scalar* hidden_before;    // [S, H]
  acc_t<Scalar>* grad_cell;  // [S, H] in: of this step's cell, where it continues; out: of c_before
  Scalar* grad_cx;           // [B, H] written instead of grad_cell's end; nullptr if t > 0
  Scalar* grad_gates;        // [S, 4H] written: gradients of the pre-activations
  Scalar* h_before;          // [S, H] written: a copy of hidden_before
};

template <typename Scalar>
cudaError_t launch_forward(const ForwardStep<Scalar>& step, cudaStream_t stream);

template <typename Scalar>
cudaError_t launch_backward(const BackwardStep<Scalar>& step, cudaStream_t stream);

}  // namespace captioner::cuda
