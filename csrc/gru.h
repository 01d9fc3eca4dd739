// The contract of the GRU over packed sequences, `captioner::gru_packed`: as torch.nn.GRU's, whose
// reset gate acts on the state's product (Cho et al. 2014 in cuDNN's form). It has a kernel for the
// CPU (cpu/gru.cpp); src/captioner/ops/gru_packed.py takes torch's own elsewhere.
//
// Letters and packed rows as in lstm.h. The 3H gate columns are three blocks of H in the order
// r, z, n (reset, update, candidate). Types are float and double.
#pragma once

#include "lstm.h"

namespace captioner {

// Reads the shape and refuses arguments that do not fit one another, as `lstm_shape`.
LstmShape gru_shape(const Tensor& input,                       // [U, E]
                    const Tensor& batch_sizes,                 // [T] int64 on the CPU
                    const Tensor& hx,                          // [B, H]
                    const Tensor& weight_ih,                   // [3H, E]
                    const Tensor& weight_hh,                   // [3H, H]
                    const std::optional<Tensor>& input_rows);  // [N] int64, or none: N = U

// Refuses biases that do not fit, likewise.
void check_gru_biases(const LstmShape& shape, const Tensor& input,
                      const Tensor& bias_ih,   // [3H]
                      const Tensor& bias_hh);  // [3H]

// Refuses gradients and saved tensors that do not fit the shape of the forward pass's arguments.
void check_gru_saved(const LstmShape& shape, const Tensor& input,
                     const Tensor& grad_output,  // [N, H]
                     const Tensor& grad_hy,      // [B, H]
                     const Tensor& output,       // [N, H]
                     const Tensor& workspace);   // [N, 4H]

// output [N, H], hy [B, H] and workspace [N, 4H] for the backward pass: r, z and n after their
// sigmoid or tanh, and the state's part of n, its bias added, which r multiplies.
using GruOutputs = std::tuple<Tensor, Tensor, Tensor>;

// Gradients of input [U, E], hx [B, H], weight_ih [3H, E], weight_hh [3H, H], bias_ih [3H] and
// bias_hh [3H].
using GruGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

using GruForward = GruOutputs(Tensor input,        // [U, E]
                              Tensor batch_sizes,  // [T] int64 on the CPU
                              Tensor hx,           // [B, H] in packed order, longest first
                              Tensor weight_ih,    // [3H, E]
                              Tensor weight_hh,    // [3H, H]
                              Tensor bias_ih,      // [3H]
                              Tensor bias_hh,      // [3H]
                              std::optional<Tensor> input_rows);  // [N] int64

// `output` and `workspace` are those of the forward pass over the same arguments.
using GruBackward = GruGradients(Tensor grad_output,                // [N, H]
                                 Tensor grad_hy,                    // [B, H]
                                 Tensor input,                      // [U, E]
                                 Tensor batch_sizes,                // [T] int64 on the CPU
                                 Tensor hx,                         // [B, H]
                                 Tensor weight_ih,                  // [3H, E]
                                 Tensor weight_hh,                  // [3H, H]
                                 Tensor output,                     // [N, H]
                                 Tensor workspace,                  // [N, 4H]
                                 std::optional<Tensor> input_rows,  // [N] int64
                                 bool wants_hx);  // false: grad_hx is 0 and costs no GEMM

}  // namespace captioner
