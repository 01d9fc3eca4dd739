// The steps of an LSTM in one launch each way: weight_hh stays in registers from the first step to
// the last.
//
// The sequences are dealt out to P groups of G thread blocks, sequence b to group b % P, so that
// sorted lengths balance. A group knows nothing of the others. Its block m owns the units
// [m U, (m + 1) U) of all of the group's sequences: it holds the rows of weight_hh (forward) or its
// columns (backward) that belong to them, keeps their cells, and writes their results. Everybody in
// the group needs everybody's h (forward) or gate gradients (backward) of the step before, which
// are handed on in one of two ways (exchange.h):
//   - flags: through the second-level cache. A block that has stored its own raises its flag to the
//     number of steps it has done, and waits for the flags of the others. Every step has memory of
//     its own, so nobody can overwrite what another still reads. All blocks run at once.
//   - cluster (sm_90 on): a group is a cluster, and a block pushes its own into the others' shared
//     memory, where steps alternate between two places; a barrier of the cluster ends the step.
//
// batch_sizes is read on the device: a CUDA graph that holds the launch serves any lengths. All are
// in the capacity form of ../lstm.h, which the ordinary one is a case of; a launch whose sizes do
// not fit the room ends with an error.
//
// Letters as in ../lstm.h. Pointers are dense, row-major and on the device; those of Scalar and
// float are aligned to 16 bytes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace captioner::cuda {

enum class Exchange { flags, cluster };

// How the work is dealt out. Within a block, `splits` warps share the sum over k of the same units,
// and `teams` of them stand side by side.
struct Deal {
  Exchange exchange;
  int groups;      // P
  int blocks;      // G, of a group
  int splits;      // warps that share a sum
  int teams;       // of a block
  int team_units;  // whose sums a team has: 8, or 16 on the way back
  int units;       // U, of a block
};

template <typename Scalar>
struct PersistentForward {
  Deal deal;
  int64_t steps;               // T
  int64_t batch;               // B, the room
  int64_t tokens;              // N, the room
  int64_t hidden_size;         // H
  const int64_t* batch_sizes;  // [T] never increasing; 0 after the last step
  int64_t sums_rows;           // U; N without input_rows
  const Scalar* input_sums;    // [U, 4H] input times weight_ih
  const int64_t* input_rows;   // [N] the row of input_sums that a token takes; nullptr: its own
  const Scalar* weight_hh;     // [4H, H]
  const Scalar* bias_ih;       // [4H]
  const Scalar* bias_hh;       // [4H]
  const Scalar* hx;            // [B, H]
  const float* cx;             // [B, H]
  float* gates;                // [N, 4H] written, rows beyond the last token are not
  float* cells;                // [N, H] likewise
  Scalar* output;              // [N, H] written
  Scalar* hy;                  // [B, H] written
  Scalar* cy;                  // [B, H] written
  uint32_t* flags;             // [P G] zeros
};

template <typename Scalar>
struct PersistentBackward {
  Deal deal;
  int64_t steps;               // T
  int64_t batch;               // B, the room
  int64_t tokens;              // N, the room
  int64_t hidden_size;         // H
  const int64_t* batch_sizes;  // [T] never increasing; 0 after the last step
  const Scalar* weight_hh;     // [4H, H]
  const Scalar* grad_output;   // [N, H]
  const Scalar* grad_hy;       // [B, H]
  const Scalar* grad_cy;       // [B, H]
  const Scalar* hx;            // [B, H]
  const float* cx;             // [B, H]
  const float* gates;          // [N, 4H]
  const float* cells;          // [N, H]
  const Scalar* output;        // [N, H]
  Scalar* grad_gates;          // [N, 4H] written: gradients before sigmoid and tanh
  Scalar* h_before;            // [N, H] written: what each token's gates read
  Scalar* grad_hx;             // [B, H] written; nullptr: not wanted
  Scalar* grad_cx;             // [B, H] written
  uint32_t* flags;             // [P G] zeros
};

// How a device would deal out the work, or no groups where it cannot hold weight_hh and what is
// exchanged, or where H is not a multiple of as many numbers as 16 bytes hold.
template <typename Scalar>
Deal deal_forward(int64_t batch, int64_t hidden_size, Exchange exchange);
template <typename Scalar>
Deal deal_backward(int64_t batch, int64_t hidden_size, Exchange exchange);

template <typename Scalar>
cudaError_t launch_persistent_forward(const PersistentForward<Scalar>& pass, cudaStream_t stream);
template <typename Scalar>
cudaError_t launch_persistent_backward(const PersistentBackward<Scalar>& pass, cudaStream_t stream);

}  // namespace captioner::cuda
