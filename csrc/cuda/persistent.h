// All time steps of an LSTM in one launch: weight_hh stays in registers from the first step to the
// last.
//
// Work partition: the sequences are split into P groups of G thread blocks, sequence b into group
// b % P, so that sorted lengths balance. Groups are independent. The block of rank m owns the units
// [m U, (m + 1) U) of all of its group's sequences: it holds the rows (forward) or columns
// (backward) of weight_hh that belong to them, keeps their cells and writes their results. Each
// block needs the whole h (forward) or all gate gradients (backward) of the previous step, which
// the blocks of a group exchange in one of two ways (exchange.h):
//   - persistent: through L2. A block that has stored its part publishes the number of its finished
//     steps in a flag (release) and waits for the flags of its group (acquire). Every step has
//     memory of its own, so that no write can race with a read. A cooperative launch makes all
//     blocks co-resident.
//   - cluster (sm_90 on): a group is a thread-block cluster, and a block writes its part into a
//     double buffer in the distributed shared memory of the others; a cluster barrier ends the
//     step.
//
// Of K models, which read the same packed batch, each has P groups of its own, whose blocks hold
// its weights. Where the groups of all are not co-resident, several launches take the models one
// after another, as many at a time as the device holds.
//
// batch_sizes is read on the device: a CUDA graph that holds the launch serves any lengths. All
// tensors have the static shapes of ../lstm.h's capacity form, of which the ordinary form is a
// case; a launch whose sizes exceed the capacity ends with an error.
//
// Letters as in ../lstm.h. Pointers are dense, row-major and on the device; those of Scalar and
// float are aligned to 16 bytes. All but batch_sizes and input_rows have a leading K; a model's
// gates and cells are parts of its workspace, [5 * N * H] numbers behind that of the model before.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "algorithm.h"

namespace captioner::cuda {

// Which warps compute what. Within a block, `k_slices` warps form a warp group: they compute the
// same units, each over a slice of K (split-K).
struct WorkPartition {
  Algorithm algorithm;
  bool tiled;            // whether the kernels of tiled.h run
  int models;            // of a launch
  int groups;            // P, of a model
  int blocks;            // G, of a group
  int k_slices;          // warps of a warp group
  int warp_groups;       // of a block
  int warp_group_units;  // 8, or 16 in backward; 4 in the forward of tiled.h
  int units;             // U, of a block
};

// What forward and backward have in common.
template <typename Scalar>
struct PersistentParams {
  WorkPartition partition;
  int models;                  // K
  int first_model;             // of the launch
  int64_t steps;               // T
  int64_t batch;               // B, the capacity
  int64_t tokens;              // N, the capacity
  int64_t hidden_size;         // H
  const int64_t* batch_sizes;  // [T] never increasing; 0 after the last step
  const Scalar* weight_hh;     // [4H, H]
  const Scalar* hx;            // [B, H]
  const float* cx;             // [B, H]
  uint32_t* flags;             // [K P G] zeros
};

template <typename Scalar>
struct PersistentForward : PersistentParams<Scalar> {
  int64_t projection_rows;         // U; N without input_rows
  const Scalar* input_projection;  // [U, 4H] input times weight_ih
  const int64_t* input_rows;       // [N] the row of input_projection that a token reads; nullptr: n
  const Scalar* bias_ih;           // [4H]
  const Scalar* bias_hh;           // [4H]
  float* gates;                    // [N, 4H] written, padding rows are not
  float* cells;                    // [N, H] likewise
  Scalar* output;                  // [N, H] written, padding rows with 0
  Scalar* hy;                      // [B, H] written
  Scalar* cy;                      // [B, H] written
};

template <typename Scalar>
struct PersistentBackward : PersistentParams<Scalar> {
  const Scalar* grad_output;  // [N, H]
  const Scalar* grad_hy;      // [B, H]
  const Scalar* grad_cy;      // [B, H]
  const float* gates;         // [N, 4H]
  const float* cells;         // [N, H]
  const Scalar* output;       // [N, H]
  Scalar* grad_gates;         // [N, 4H] written: gradients of the pre-activations
  Scalar* h_before;           // [N, H] written: the hidden state that each token's gates read
  Scalar* grad_hx;            // [B, H] written; nullptr: not wanted
  Scalar* grad_cx;            // [B, H] written
};

// The work partition of K models for the current device; without groups where the device cannot
// hold weight_hh and the exchange buffers, or where a row of H numbers is not a multiple of 16
// bytes.
template <typename Scalar>
WorkPartition partition_forward(int64_t batch, int64_t hidden_size, Algorithm algorithm,
                                int64_t models = 1);
template <typename Scalar>
WorkPartition partition_backward(int64_t batch, int64_t hidden_size, Algorithm algorithm,
                                 int64_t models = 1);

template <typename Scalar>
cudaError_t launch_persistent_forward(const PersistentForward<Scalar>& params, cudaStream_t stream);
template <typename Scalar>
cudaError_t launch_persistent_backward(const PersistentBackward<Scalar>& params,
                                       cudaStream_t stream);

}  // namespace captioner::cuda
