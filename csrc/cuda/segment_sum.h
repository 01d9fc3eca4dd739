// Sums of rows that share an index, like index_add, but in a fixed order: its atomics would make
// the rounding change from run to run.
//
// Letters: N rows of values, U segments, C columns: 4H, so that four always fit; K models, which
// share the index. Pointers as in recurrence.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace captioner::cuda {

// Where each segment starts in a sorted index: segment u is [starts[u], starts[u + 1]).
cudaError_t launch_segment_starts(const int64_t* sorted,  // [N] ascending, each 0 to U - 1
                                  int64_t rows, int64_t segments,
                                  int64_t* starts,  // [U + 1] written
                                  cudaStream_t stream);

template <typename Scalar>
struct SegmentSums {
  int64_t models;         // K
  int64_t rows;           // N
  int64_t segments;       // U
  int64_t columns;        // C
  const Scalar* values;   // [K, N, C]
  const int64_t* order;   // [N]
  const int64_t* starts;  // [U + 1]
  Scalar* sums;           // [K, U, C] written
};

// sums[u] = the sum of values[order[n]] over n in segment u, 0 if there is none; accumulated in
// acc_t. Refuses what it cannot read as vectors of up to 16 bytes: new tensors always can be.
template <typename Scalar>
cudaError_t launch_segment_sums(const SegmentSums<Scalar>& params, cudaStream_t stream);

}  // namespace captioner::cuda
