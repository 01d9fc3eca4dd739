// What the host code of this folder shares: the current device and stream, typed pointers.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include "../tensors.h"

#ifndef USE_CUDA
#error "compile with -DUSE_CUDA: without it torch's headers hide the functions for streams"
#endif

namespace captioner::cuda {

// Makes the arguments' device the current one while it lives.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& argument) : guard_(argument.get_device_index()) {
    void* stream = nullptr;
    CAPTIONER_TORCH_CALL(aoti_torch_get_current_cuda_stream(argument.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

template <typename T>
const T* read(const Tensor& tensor, int64_t first = 0) {
  return static_cast<const T*>(tensor.const_data_ptr()) + first;
}

template <typename T>
T* write(const Tensor& tensor, int64_t first = 0) {
  return static_cast<T*>(tensor.mutable_data_ptr()) + first;
}

// Calls `function` with a value of the type that the tensors hold.
template <typename Function>
void with_scalar(ScalarType type, Function function) {
  switch (type) {
    case ScalarType::Double:
      return function(double{});
    case ScalarType::Float:
      return function(float{});
    case ScalarType::BFloat16:
      return function(c10::BFloat16{});
    case ScalarType::Half:
      return function(c10::Half{});
    default:
      STD_TORCH_CHECK(false, "input must be float64, float32, bfloat16 or float16");
  }
}

}  // namespace captioner::cuda
