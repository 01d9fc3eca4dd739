// The latency of a group's barrier alone and of a step's exchange of eight rows, by flags and by
// clusters (csrc/cuda/exchange.h). Prints a JSON object a line:
//     nvcc -std=c++17 -O3 -arch=sm_90 -isystem TORCH/include -I csrc/cuda benchmarks/latency.cu
// Times are differences of two launches of different length, which removes the cost of a launch;
// medians of several.
#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "exchange.h"

namespace {

using namespace captioner::cuda;
using Scalar = c10::BFloat16;

constexpr int kHidden = 512, kUnits = 32, kShort = 1000, kLong = 3000, kRepeats = 9;

struct Rounds {
  WorkPartition partition;
  int count, rows;  // rows of kHidden numbers that every round exchanges
  uint32_t* flags;
  Scalar* memory;  // [2, groups, rows, kHidden]
  float* sums;
};

template <template <typename> class Exchange>
__global__ void __launch_bounds__(kThreads) rounds(const Rounds work) {
  CAPTIONER_DYNAMIC_SHARED(float, shared);
  const ThreadRole role(work.partition);
  Exchange<Scalar> exchange(work.partition, role, work.flags, shared, 8, kHidden);
  const int64_t first = int64_t{role.block_rank} * kUnits;
  float sum = 0;
  for (int round = 0; round < work.count; ++round) {
    const int64_t turn = (int64_t{round} % 2 * work.partition.groups + role.group) * work.rows;
    for (int k = threadIdx.x; k < work.rows * kUnits; k += blockDim.x) {
      const int row = k / kUnits;
      const int64_t column = first + k % kUnits;
      const Scalar value = static_cast<Scalar>(sum + static_cast<float>(k));
      work.memory[(turn + row) * kHidden + column] = value;
      exchange.stage(row, column, value);
    }
    exchange.publish(work.rows, first, kUnits, kHidden, 1);
    exchange.wait();
    for (int k = threadIdx.x; k < work.rows * kHidden / 8; k += blockDim.x) {
      const int row = k * 8 / kHidden;
      const Scalar* from = exchange.row(work.memory + (turn + row) * kHidden, row);
      sum += static_cast<float>(from[k * 8 % kHidden]);
    }
  }
  work.sums[int64_t{blockIdx.x} * blockDim.x + threadIdx.x] = sum;
}

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <template <typename> class Exchange>
float milliseconds(Rounds work) {
  const unsigned blocks = work.partition.groups * work.partition.blocks;
  const size_t shared = 2 * 8 * staged_row_bytes(kHidden, sizeof(Scalar));
  check(cudaMemset(work.flags, 0, sizeof(uint32_t) * blocks));
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  check(cudaEventRecord(begin));
  check(launch_together(
      rounds<Exchange>,
      Exchange<Scalar>::kAlgorithm == Algorithm::cluster ? work.partition.blocks : 0, dim3(blocks),
      dim3(kThreads), shared, nullptr, work));
  check(cudaEventRecord(end));
  check(cudaEventSynchronize(end));
  float taken = 0;
  check(cudaEventElapsedTime(&taken, begin, end));
  return taken;
}

template <template <typename> class Exchange>
double microseconds_of_a_round(Rounds work) {
  std::vector<double> found;
  for (int k = 0; k < kRepeats; ++k) {
    work.count = kShort;
    const double fewer = milliseconds<Exchange>(work);
    work.count = kLong;
    found.push_back((milliseconds<Exchange>(work) - fewer) * 1e3 / (kLong - kShort));
  }
  std::sort(found.begin(), found.end());
  return found[kRepeats / 2];
}

template <template <typename> class Exchange>
void measure(const char* name, int blocks, int multiprocessors) {
  Rounds work{};
  work.partition.algorithm = Exchange<Scalar>::kAlgorithm;
  work.partition.blocks = blocks;
  // As many groups as are co-resident; clusters of 16 do not fill every GPC of the chip.
  work.partition.groups = std::min(8, multiprocessors / blocks);
  work.partition.k_slices = kMaxWarps;
  work.partition.warp_groups = 1;
  work.partition.units = kUnits;
  const size_t numbers = size_t{2} * work.partition.groups * 8 * kHidden;
  check(cudaMalloc(&work.flags, sizeof(uint32_t) * work.partition.groups * blocks));
  check(cudaMalloc(&work.memory, sizeof(Scalar) * numbers));
  check(cudaMalloc(&work.sums, sizeof(float) * work.partition.groups * blocks * kThreads));
  work.rows = 0;
  const double barrier = microseconds_of_a_round<Exchange>(work);
  work.rows = 8;
  const double exchange = microseconds_of_a_round<Exchange>(work);
  std::printf(
      "{\"algorithm\": \"%s\", \"blocks\": %d, \"groups\": %d, \"barrier_us\": %.4f, "
      "\"exchange_us\": %.4f}\n",
      name, blocks, work.partition.groups, barrier, exchange);
  check(cudaFree(work.flags));
  check(cudaFree(work.memory));
  check(cudaFree(work.sums));
}

}  // namespace

int main() {
  int multiprocessors = 0, capability = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  check(cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, 0));
  for (const int blocks : {2, 4, 8, 16}) {
    measure<FlagExchange>("persistent", blocks, multiprocessors);
    if (capability >= 9) measure<ClusterExchange>("cluster", blocks, multiprocessors);
  }
}
