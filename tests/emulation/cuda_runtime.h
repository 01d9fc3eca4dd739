// Replaces CUDA's header where tests/emulation comes first in the include path: the part
// of CUDA that csrc/cuda uses, on top of emulation.h. Nothing here is CUDA's own text.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "emulation.h"

// ---- language -----------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

// Each block gets its own, as large as it says and full of NaN.
#define CAPTIONER_SHARED(T, name, count)                      \
  T* const name = static_cast<T*>(::emulation::shared_memory( \
      []() -> const void* {                                   \
        static const char key = 0;                            \
        return &key;                                          \
      }(),                                                    \
      sizeof(T) * (count)))
#define CAPTIONER_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::emulation::dynamic_shared_memory())

using dim3 = ::emulation::Extent;

using ::emulation::blockDim;
using ::emulation::blockIdx;
using ::emulation::gridDim;
using ::emulation::threadIdx;
constexpr int warpSize = ::emulation::kWarp;

#define EMULATION_HERE (::emulation::Location{__FILE__, __LINE__})
#define __syncthreads() ::emulation::sync_block(EMULATION_HERE)
#define __syncwarp(...) (::emulation::WarpBarrier{EMULATION_HERE}(__VA_ARGS__))
#define __trap() ::emulation::trap(EMULATION_HERE)
#define __nanosleep(ns) ::emulation::yield()

inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- warps --------------------------------------------------------------------------------------

#define __shfl_sync(mask, value, ...) \
  ::emulation::shuffle(EMULATION_HERE, mask, value, ::emulation::Source::lane, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, ...) \
  ::emulation::shuffle(EMULATION_HERE, mask, value, ::emulation::Source::bits, __VA_ARGS__)
#define __shfl_up_sync(mask, value, ...) \
  ::emulation::shuffle(EMULATION_HERE, mask, value, ::emulation::Source::below, __VA_ARGS__)
#define __shfl_down_sync(mask, value, ...) \
  ::emulation::shuffle(EMULATION_HERE, mask, value, ::emulation::Source::above, __VA_ARGS__)
#define __ballot_sync(mask, holds) ::emulation::ballot(EMULATION_HERE, mask, holds)
#define __any_sync(mask, holds) (::emulation::ballot(EMULATION_HERE, mask, holds) != 0u)
#define __all_sync(mask, holds) (::emulation::ballot(EMULATION_HERE, mask, !(holds)) == 0u)

// ---- atomics: all threads of a launch are fibres of one host thread
// ------------------------------

template <typename T, typename Change>
T emulated_atomic(T* address, Change change) {
  const T before = *address;
  *address = change(before);
  return before;
}
template <typename T>
T atomicAdd(T* address, T value) {
  return emulated_atomic(address, [=](T before) { return before + value; });
}
template <typename T>
T atomicMax(T* address, T value) {
  return emulated_atomic(address, [=](T before) { return before < value ? value : before; });
}
template <typename T>
T atomicExch(T* address, T value) {
  return emulated_atomic(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, T expected, T value) {
  return emulated_atomic(address, [=](T before) { return before == expected ? value : before; });
}

// ---- instructions: what csrc/cuda/instructions.h has for a device -------------------------------

#define CAPTIONER_EMULATION
#include "host_instructions.h"

// ---- launching ----------------------------------------------------------------------------------

using cudaStream_t = struct CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4,
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 13,
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// An H100's, but for its 132 multiprocessors; all can be set (emulation.h).
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = ::emulation::multiprocessors(), cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = ::emulation::compute_capability(), cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = ::emulation::shared_kilobytes() * 1024, cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

template <typename... Expected, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Actual&&... arguments) {
  ::emulation::Launch launch{reinterpret_cast<const void*>(kernel),
                             config->gridDim,
                             config->blockDim,
                             config->dynamicSmemBytes,
                             false,
                             0};
  for (unsigned k = 0; k < config->numAttrs; ++k) {
    launch.cooperative |= config->attrs[k].id == cudaLaunchAttributeCooperative &&
                          config->attrs[k].val.cooperative != 0;
    if (config->attrs[k].id == cudaLaunchAttributeClusterDimension) {
      launch.cluster = config->attrs[k].val.clusterDim.x;
    }
  }
  // Converted once, here, as the values that CUDA copies to the device.
  return [&](Expected... values) {
    const bool ran = ::emulation::run(launch, [&] { kernel(values...); });
    return ran ? cudaSuccess : cudaErrorInvalidConfiguration;
  }(std::forward<Actual>(arguments)...);
}
