// The contract of the LSTM over packed sequences: what any kernel behind `captioner::lstm_packed`
// is given, what it writes, and where it may not look.
//
// This version has no kernel that implements it: the operator runs in PyTorch
// (src/captioner/ops/reference.py, which has the formulas), and the backend named "fused" is
// refused. A kernel that keeps to this header can take its place.
//
// Letters: B sequences, T longest length, N packed rows (the sum of all lengths), E input size,
// H hidden size. Packed rows are time-major: row b of step t lies at offsets[t] + b, where
// offsets[t] = batch_sizes[0] + ... + batch_sizes[t-1], and only the first batch_sizes[t] sequences
// (sorted by length, longest first) have a step t. The 4H gate columns are four blocks of H in the
// order i, f, g, o, as in torch.nn.LSTM.
//
// Rules for every pointer:
//   - dense and row-major, on the device of the function; batch_sizes alone lies in host memory;
//   - allocated by the caller; inputs are read only, outputs are handed over uninitialised and are
//     written in full, nothing is accumulated into them;
//   - inputs may alias one another (hx and cx are often one block of zeros); an output or scratch
//     block overlaps nothing else;
//   - the functions allocate nothing, keep no pointer, and queue all GPU work on `stream`. Shapes,
//     types and devices were checked by the operator; N, T, B, E, H > 0.
//
// Types: Scalar is double, float, bfloat16 or float16. State holds gates, cells and running sums:
// float for the two half types, otherwise Scalar. Products of half types take Scalar operands and
// sum in float. The same call on the same device gives the same bits.
#pragma once

#include <cstdint>

namespace captioner {

enum class Device { kCpu, kCuda };

struct LstmShape {
  int64_t rows;                // N
  int64_t batch;               // B = batch_sizes[0]
  int64_t steps;               // T
  int64_t input_size;          // E
  int64_t hidden_size;         // H
  const int64_t* batch_sizes;  // [T] in host memory, positive, never increasing, their sum is N
};

template <typename Scalar>
struct LstmInputs {
  const Scalar* input;      // [N, E]
  const Scalar* hx;         // [B, H] in packed order, longest sequence first
  const Scalar* cx;         // [B, H]
  const Scalar* weight_ih;  // [4H, E]
  const Scalar* weight_hh;  // [4H, H]
  const Scalar* bias_ih;    // [4H] not read by the backward pass, which may give nullptr
  const Scalar* bias_hh;    // [4H] likewise
};

// Written by the forward pass, read and left unchanged by the backward pass: one allocation of
// 5 * N * H values, first the gates after their sigmoid or tanh, then the cells.
template <typename State>
struct LstmWorkspace {
  State* gates;  // [N, 4H]
  State* cells;  // [N, H] = gates + 4 * N * H
};

template <typename Scalar>
struct LstmOutputs {
  Scalar* output;  // [N, H] hidden states
  Scalar* hy;      // [B, H] each sequence's last hidden state, in packed order
  Scalar* cy;      // [B, H] each sequence's last cell, rounded to Scalar
};

template <typename Scalar>
struct LstmOutputGradients {
  const Scalar* output;  // [N, H]
  const Scalar* hy;      // [B, H]
  const Scalar* cy;      // [B, H]
};

template <typename Scalar>
struct LstmInputGradients {
  Scalar* input;      // [N, E]
  Scalar* hx;         // [B, H]
  Scalar* cx;         // [B, H]
  Scalar* weight_ih;  // [4H, E]
  Scalar* weight_hh;  // [4H, H]
  Scalar* bias;       // [4H] of either bias: both have the same gradient
};

// Scratch of the backward pass, uninitialised and worthless afterwards.
template <typename State>
struct LstmScratch {
  State* grad_gates;  // [N, 4H] before sigmoid and tanh
  State* grad_h;      // [B, H] carried from step to step
  State* grad_c;      // [B, H]
};

// `stream` is a cudaStream_t on kCuda and unused on kCpu.
template <Device device, typename Scalar, typename State>
void lstm_packed_forward(const LstmShape& shape, const LstmInputs<Scalar>& inputs,
                         const LstmOutputs<Scalar>& outputs, const LstmWorkspace<State>& workspace,
                         void* stream);

// `output` [N, H] and `workspace` are those of the forward pass over the same inputs.
template <Device device, typename Scalar, typename State>
void lstm_packed_backward(const LstmShape& shape, const LstmInputs<Scalar>& inputs,
                          const Scalar* output, const LstmWorkspace<const State>& workspace,
                          const LstmOutputGradients<Scalar>& grad_outputs,
                          const LstmInputGradients<Scalar>& grad_inputs,
                          const LstmScratch<State>& scratch, void* stream);

}  // namespace captioner
