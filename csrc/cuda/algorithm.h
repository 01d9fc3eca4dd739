// How a CUDA device computes the time steps of an LSTM. The numbers are those of the operator's
// argument `algorithm` and of captioner.ops.algorithms.Algorithm.
#pragma once

#include <cstdint>

namespace captioner::cuda {

enum class Algorithm : int64_t {
  plain = 0,       // a GEMM and a kernel a step, launched by the host; any H and type (plain.cpp)
  persistent = 1,  // all steps in one launch, synchronised by flags in global memory (persistent.h)
  cluster = 2,     // likewise by thread-block clusters and distributed shared memory (sm_90 on)
};

}  // namespace captioner::cuda
