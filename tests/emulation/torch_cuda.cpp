// The functions of torch's CUDA library that csrc/cuda/lstm.cpp calls, for tensors on the CPU:
// there is one device and one stream, and an error is an error.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdlib>
#include <cstring>
#include <string>

extern "C" {

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char* file, const char*, uint32_t line,
                                        bool, char** message) {
  *message = nullptr;
  if (error != 0) {
    const std::string text = "CUDA error " + std::to_string(error) + " at " + file + ":" +
                             std::to_string(line) + " (emulated)";
    *message = strdup(text.c_str());
  }
  return AOTI_TORCH_SUCCESS;
}

void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }
}
