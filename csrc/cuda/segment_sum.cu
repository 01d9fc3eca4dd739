#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "launch.h"
#include "recurrence.h"
#include "segment_sum.h"
#include "vector.h"

namespace captioner::cuda {

constexpr int kThreads = 256;
constexpr int kLanes = 32;  // side by side: columns
constexpr int kParts = 8;   // of one segment, which may be long: a frequent word's

__global__ void __launch_bounds__(kThreads) segment_starts(const int64_t* sorted,  // [N]
                                                           int64_t rows, int64_t segments,
                                                           int64_t* starts) {  // [U + 1]
  const int64_t segment = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (segment > segments) return;
  int64_t first = 0, last = rows;  // the first row of at least `segment` lies in [first, last]
  while (first < last) {
    const int64_t middle = (first + last) / 2;
    if (sorted[middle] < segment) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  starts[segment] = first;
}

template <typename Scalar, int N>
__global__ void __launch_bounds__(kLanes* kParts) segment_sums(const SegmentSums<Scalar> params) {
  using S = acc_t<Scalar>;
  using Part = Vector<S, N>;
  CAPTIONER_SHARED(Part, parts, kParts * kLanes);
  const int64_t segment = blockIdx.x, model = blockIdx.z, columns = params.columns;
  const Scalar* const values = params.values + model * params.rows * columns;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kLanes + threadIdx.x) * N;
  const int own = threadIdx.y * kLanes + threadIdx.x;

  Values<S, N> sum{};
  if (column < columns) {
    const int64_t last = params.starts[segment + 1];
    for (int64_t n = params.starts[segment] + threadIdx.y; n < last; n += kParts) {
      add(sum, load<S, N>(values + params.order[n] * columns + column));
    }
  }
#pragma unroll
  for (int k = 0; k < N; ++k) parts[own].at[k] = sum.at[k];
  __syncthreads();

  if (threadIdx.y != 0 || column >= columns) return;
  for (int part = 1; part < kParts; ++part) {
#pragma unroll
    for (int k = 0; k < N; ++k) sum.at[k] += parts[part * kLanes + threadIdx.x].at[k];
  }
  store(params.sums + (model * params.segments + segment) * columns + column, sum);
}

cudaError_t launch_segment_starts(const int64_t* sorted, int64_t rows, int64_t segments,
                                  int64_t* starts, cudaStream_t stream) {
  return launch(segment_starts, dim3(blocks_for(segments + 1, kThreads)), dim3(kThreads), stream,
                sorted, rows, segments, starts);
}

template <typename Scalar>
cudaError_t launch_segment_sums(const SegmentSums<Scalar>& params, cudaStream_t stream) {
  constexpr int N = 16 / sizeof(acc_t<Scalar>);
  const int64_t segments = params.segments, columns = params.columns;
  if (columns % N != 0 || !aligned<N>(params.values, params.sums)) return cudaErrorInvalidValue;
  if (segments == 0 || columns == 0) return cudaSuccess;  // no blocks: an error to CUDA
  const dim3 grid(static_cast<unsigned>(segments), blocks_for(columns, kLanes * N),
                  static_cast<unsigned>(params.models));
  return launch(segment_sums<Scalar, N>, grid, dim3(kLanes, kParts), stream, params);
}

#define CAPTIONER_LAUNCHER(Scalar) \
  template cudaError_t launch_segment_sums<Scalar>(const SegmentSums<Scalar>&, cudaStream_t)
CAPTIONER_LAUNCHER(double);
CAPTIONER_LAUNCHER(float);
CAPTIONER_LAUNCHER(c10::BFloat16);
CAPTIONER_LAUNCHER(c10::Half);
#undef CAPTIONER_LAUNCHER

}  // namespace captioner::cuda
