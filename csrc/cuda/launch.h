// Launching a kernel as a function call, and declaring shared memory: both so that a C++ compiler
// takes the same source with the headers of tests/emulation instead of CUDA's.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#ifndef CAPTIONER_SHARED
#define CAPTIONER_SHARED(T, name, count) __shared__ T name[count]
#endif
#ifndef CAPTIONER_DYNAMIC_SHARED
#define CAPTIONER_DYNAMIC_SHARED(T, name) extern __shared__ __align__(16) T name[]
#endif

namespace captioner::cuda {

inline unsigned blocks_for(int64_t items, int64_t items_per_block) {
  return static_cast<unsigned>((items + items_per_block - 1) / items_per_block);
}

template <typename... Expected, typename... Actual>
cudaError_t launch(void (*kernel)(Expected...), dim3 grid, dim3 block, cudaStream_t stream,
                   Actual&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Actual>(arguments)...);
}

// A cooperative launch, whose blocks are all co-resident or which is refused; with `cluster`, a
// launch of clusters of so many blocks.
template <typename... Expected, typename... Actual>
cudaError_t launch_together(void (*kernel)(Expected...), unsigned cluster, dim3 grid, dim3 block,
                            size_t shared, cudaStream_t stream, Actual&&... arguments) {
  const void* const address = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(shared));
  cudaLaunchAttribute together{};
  if (cluster == 0) {
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
  } else {
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim = {cluster, 1, 1};
    if (error == cudaSuccess && cluster > 8) {
      error = cudaFuncSetAttribute(address, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    }
  }
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &together;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Actual>(arguments)...);
}

}  // namespace captioner::cuda
