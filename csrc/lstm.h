// The contract of the LSTM over packed sequences: what every device's kernel behind
// `captioner::lstm_packed` is given and what it returns. cpu/lstm.cpp and cuda/lstm.cpp implement
// it, each registering itself; ops.cpp has the schemas; src/captioner/ops/reference.py has the
// formulas in PyTorch.
//
// Letters: B sequences, T longest length, N packed tokens (the sum of all lengths), U rows of
// input, E input size, H hidden size.
//
// Packed rows are time-major: row b of step t lies at offsets[t] + b, where
// offsets[t] = batch_sizes[0] + ... + batch_sizes[t-1], and only the first batch_sizes[t] sequences
// (sorted by length, longest first) have a step t. The 4H gate columns are four blocks of H in the
// order i, f, g, o, as in torch.nn.LSTM.
//
// The capacity form, for CUDA graphs, has static shapes: B and N are capacities that a batch fills
// in part. batch_sizes is on the device of the other arguments, may begin with fewer than B, end in
// zeros and sum to less than N. Padding rows of output are 0, and a sequence without a step keeps
// its state (hy = hx, cy = cx); gradients accordingly.
//
// Types: Scalar, the type of all arguments, is double, float, bfloat16 or float16. acc_t, the
// accumulation type and that of gates and cells, is float for the two half types, otherwise Scalar.
// GEMMs of half types take Scalar operands and accumulate in float.
//
// Of K models, which read the same packed batch, every tensor but batch_sizes and input_rows has a
// leading K.
//
// Every kernel
//   - takes arguments of any strides and changes none of them;
//   - returns new, dense tensors that share no memory;
//   - runs on the current stream of the arguments' device and never synchronises with the host;
//   - gives the same bits for the same arguments on the same device with the same thread count.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace captioner {

using torch::stable::Tensor;

struct LstmShape {
  std::vector<int64_t> leading;      // {K}, or {} where tensors are those of a single model
  int64_t tokens;                    // N
  int64_t batch;                     // B = batch_sizes[0]
  int64_t steps;                     // T
  int64_t input_rows;                // U
  int64_t input_size;                // E
  int64_t hidden_size;               // H
  std::vector<int64_t> batch_sizes;  // [T] positive, never increasing, their sum is N
  std::vector<int64_t> offsets;      // [T + 1]

  int64_t models() const { return leading.empty() ? 1 : leading[0]; }
};

// Reads the shape and refuses, with what was found and what was expected, arguments whose shapes,
// types or devices do not fit one another: kernels rely on it.
LstmShape lstm_shape(const Tensor& input,                       // [U, E]
                     const Tensor& batch_sizes,                 // [T] int64 on the CPU
                     const Tensor& hx,                          // [B, H]
                     const Tensor& cx,                          // [B, H]
                     const Tensor& weight_ih,                   // [4H, E]
                     const Tensor& weight_hh,                   // [4H, H]
                     const std::optional<Tensor>& input_rows);  // [N] int64, or none: N = U

// Likewise for the capacity form: B and N are those of the tensors, and batch_sizes, which may be
// on a device, is not read.
LstmShape capacity_shape(const Tensor& input, const Tensor& batch_sizes, const Tensor& hx,
                         const Tensor& cx, const Tensor& weight_ih, const Tensor& weight_hh,
                         const std::optional<Tensor>& input_rows);

// Refuses biases that do not fit, likewise.
void check_biases(const LstmShape& shape, const Tensor& input,
                  const Tensor& bias_ih,   // [4H]
                  const Tensor& bias_hh);  // [4H]

// Refuses gradients and saved tensors that do not fit the shape of the forward pass's arguments.
void check_saved(const LstmShape& shape, const Tensor& input,
                 const Tensor& grad_output,  // [N, H]
                 const Tensor& grad_hy,      // [B, H]
                 const Tensor& grad_cy,      // [B, H]
                 const Tensor& output,       // [N, H]
                 const Tensor& workspace);   // [5 * N * H] acc_t

// What the forward pass returns:
//   output    [N, H] Scalar, the hidden states
//   hy, cy    [B, H] Scalar, each sequence's last hidden state and cell, in packed order
//   workspace [5 * N * H] acc_t, for the backward pass: first the gates [N, 4H] after their sigmoid
//             or tanh, then the cells [N, H]
using LstmOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Gradients of input [U, E], hx [B, H], cx [B, H], weight_ih [4H, E], weight_hh [4H, H] and of
// either bias [4H] (both have the same), all Scalar.
using LstmGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Each device's kernel has these two signatures. The operator has two switches more: `capacity`,
// and `algorithm` (cuda/algorithm.h), which is 0 except on a CUDA device.
//
// Packed token n reads row input_rows[n] of input, or row n where input_rows is not given: tokens
// that read the same row (of an embedding) share its projection by weight_ih.
using LstmForward = LstmOutputs(Tensor input,        // [U, E]
                                Tensor batch_sizes,  // [T] int64 on the CPU
                                Tensor hx,           // [B, H] in packed order, longest first
                                Tensor cx,           // [B, H]
                                Tensor weight_ih,    // [4H, E]
                                Tensor weight_hh,    // [4H, H]
                                Tensor bias_ih,      // [4H]
                                Tensor bias_hh,      // [4H]
                                std::optional<Tensor> input_rows);  // [N] int64

// `output` and `workspace` are those of the forward pass over the same arguments.
using LstmBackward = LstmGradients(Tensor grad_output,                // [N, H]
                                   Tensor grad_hy,                    // [B, H]
                                   Tensor grad_cy,                    // [B, H]
                                   Tensor input,                      // [U, E]
                                   Tensor batch_sizes,                // [T] int64 on the CPU
                                   Tensor hx,                         // [B, H]
                                   Tensor cx,                         // [B, H]
                                   Tensor weight_ih,                  // [4H, E]
                                   Tensor weight_hh,                  // [4H, H]
                                   Tensor output,                     // [N, H]
                                   Tensor workspace,                  // [5 * N * H] acc_t
                                   std::optional<Tensor> input_rows,  // [N] int64
                                   bool wants_hx);  // false: grad_hx is 0 and costs no GEMM

// Refuses the arguments of a step that do not fit, likewise; its shape has T = 1.
LstmShape step_shape(const Tensor& projection, const Tensor& rows, const Tensor& hx,
                     const Tensor& cx, const Tensor& weight_hh);

// A single step of generation, without a gradient: hy and cy, each [B, H]. Sequence b reads row
// rows[b] of `projection`: its input times weight_ih with both biases added.
using LstmStep = std::tuple<Tensor, Tensor>(Tensor projection,  // [U, 4H]
                                            Tensor rows,        // [B] int64
                                            Tensor hx,          // [B, H]
                                            Tensor cx,          // [B, H]
                                            Tensor weight_hh);  // [4H, H]

}  // namespace captioner
