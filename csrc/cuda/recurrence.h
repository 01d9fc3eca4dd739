// The part of an LSTM that must run step by step, on a CUDA device: what remains of a step beside
// its product with weight_hh. Plain pointers and a stream, no tensors: lstm.cpp allocates, checks
// and multiplies.
//
// Letters as in ../lstm.h; S sequences have this step, S = batch_sizes[t]. All pointers are dense,
// row-major and on the device, and each that belongs to a packed tensor points to this step's first
// row. Launching returns CUDA's verdict on the launch, not on the run.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace captioner::cuda {

template <typename Scalar>
struct StateOf {
  using type = float;
};
template <>
struct StateOf<double> {
  using type = double;
};

// The type of gates, cells and running sums.
template <typename Scalar>
using State = typename StateOf<Scalar>::type;

template <typename Scalar>
struct ForwardStep {
  int64_t sequences;              // S
  int64_t staying;                // sequences that have a next step; the others end here
  int64_t hidden_size;            // H
  int64_t sums_rows;              // U, or S without input_rows
  const Scalar* input_sums;       // [U, 4H] input times weight_ih
  const int64_t* input_rows;      // [S] the row of input_sums that a token takes; nullptr: its own
  const Scalar* hidden_sums;      // [S, 4H] the hidden states before this step times weight_hh
  const Scalar* bias_ih;          // [4H] nullptr, both of them: input_sums has the biases
  const Scalar* bias_hh;          // [4H]
  const State<Scalar>* c_before;  // [S, H]
  State<Scalar>* gates;           // [S, 4H] written
  State<Scalar>* cells;           // [S, H] written
  Scalar* output;                 // [S, H] written
  Scalar* hy;                     // [B, H] written where a sequence ends: rows staying to S
  Scalar* cy;                     // [B, H] likewise
};

template <typename Scalar>
struct BackwardStep {
  int64_t sequences;              // S
  int64_t staying;                // sequences that have a next step; the others end here
  int64_t hidden_size;            // H
  const Scalar* grad_output;      // [S, H]
  const Scalar* grad_hidden;      // [staying, H] what reaches h from the next step
  const Scalar* grad_hy;          // [B, H] read where a sequence ends
  const Scalar* grad_cy;          // [B, H] likewise
  const State<Scalar>* gates;     // [S, 4H]
  const State<Scalar>* cells;     // [S, H]
  const State<Scalar>* c_before;  // [S, H]
  const Scalar* hidden_before;    // [S, H]
  State<Scalar>* grad_cell;  // [S, H] in: of this step's cell, where it stays; out: of c_before
  Scalar* grad_cx;           // [B, H] written instead of grad_cell's end; nullptr if t > 0
  Scalar* grad_gates;        // [S, 4H] written: gradients before sigmoid and tanh
  Scalar* h_before;          // [S, H] written: hidden_before, one tensor in the end
};

template <typename Scalar>
cudaError_t launch_forward(const ForwardStep<Scalar>& step, cudaStream_t stream);

template <typename Scalar>
cudaError_t launch_backward(const BackwardStep<Scalar>& step, cudaStream_t stream);

}  // namespace captioner::cuda
