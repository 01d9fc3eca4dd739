// Small kernels, right and wrong, that show what the emulation finds: `self_test NAME` runs one and
// prints what came of it.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <numeric>
#include <string>
#include <vector>

// Names of kernels are read from the program's symbols, so that they need external ones.
namespace kernels {

// to[k] = from[n - 1 - k] within a block, through shared memory.
__global__ void reverse(const int* from, int* to, bool barrier) {
  CAPTIONER_SHARED(int, values, 64);
  values[threadIdx.x] = from[threadIdx.x];
  if (barrier) __syncthreads();
  to[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void half_of_the_block() {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void two_locations() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void beyond_shared() {
  CAPTIONER_SHARED(float, values, 64);
  values[threadIdx.x + 1] = 1.0f;
}

__global__ void beyond_dynamic() {
  CAPTIONER_DYNAMIC_SHARED(float, values);
  values[threadIdx.x + 1] = 1.0f;
}

__global__ void warp_sum(int* sums) {
  int sum = static_cast<int>(threadIdx.x);
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  sums[threadIdx.x] = sum;
}

// Lanes 4 to 7 only: one's neighbour above, the votes of odd lanes, and the others do nothing.
__global__ void part_of_a_warp(int* results) {
  if (threadIdx.x < 4 || threadIdx.x >= 8) return;
  const int lane = static_cast<int>(threadIdx.x);
  const int above = __shfl_down_sync(0xf0u, lane, 1);
  const unsigned odd = __ballot_sync(0xf0u, lane % 2 == 1);
  results[lane - 4] = above * 1000 + static_cast<int>(odd);
}

__global__ void lane_left_behind() {
  if (threadIdx.x != 5) __syncwarp();
}

__global__ void not_in_its_mask() { __shfl_sync(0xfu, 1, 0); }

__global__ void count_up(int* total) { atomicAdd(total, 1); }

// Blocks that need one another: each adds, waits for all, and reads what the others added.
__global__ void meet(int* total, int* seen) {
  atomicAdd(total, 1);
  emulation::sync_grid(EMULATION_HERE);
  seen[blockIdx.x * blockDim.x + threadIdx.x] = *total;
}

__global__ void meet_by_flag(volatile int* flag, int* seen) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    while (*flag == 0) __nanosleep(100);
    *seen = *flag;
  } else if (blockIdx.x == 1 && threadIdx.x == 0) {
    *flag = 7;
  }
}

__global__ void spin(volatile int* flag) {
  while (*flag == 0) __nanosleep(100);
}

__global__ void trapped() {
  if (threadIdx.x == 3) __trap();
}

using captioner::cuda::cluster_arrive;
using captioner::cuda::cluster_wait;
using captioner::cuda::in_block;

// Every block writes its number into the shared memory of the next one of its cluster.
void send_to_next(int* seen, bool barrier) {
  CAPTIONER_DYNAMIC_SHARED(int, received);
  cluster_arrive();
  cluster_wait();
  const unsigned size = 2, rank = blockIdx.x % size;
  in_block(received, (rank + 1) % size)[threadIdx.x] = static_cast<int>(blockIdx.x);
  if (barrier) {
    cluster_arrive();
    cluster_wait();
  }
  seen[blockIdx.x * blockDim.x + threadIdx.x] = received[threadIdx.x];
}

// The second block returns before it is written to.
void leave_early() {
  CAPTIONER_DYNAMIC_SHARED(int, received);
  if (blockIdx.x == 1) return;
  for (int k = 0; k < 100; ++k) __nanosleep(32);
  *in_block(received, 1) = 1;
}

void beyond_the_cluster() {
  CAPTIONER_DYNAMIC_SHARED(int, received);
  *in_block(received, 2) = 1;
}

void some_do_not_arrive() {
  if (threadIdx.x > 0) {
    cluster_arrive();
    cluster_wait();
  }
}

void arrive_twice() {
  cluster_arrive();
  cluster_arrive();
}

}  // namespace kernels

namespace {

template <typename... Expected, typename... Actual>
void launch(unsigned blocks, unsigned threads, bool cooperative, void (*kernel)(Expected...),
            Actual... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = cooperative;
  cudaLaunchConfig_t config{dim3(blocks), dim3(threads), threads * sizeof(float),
                            nullptr,      &attribute,    1};
  if (cudaLaunchKernelEx(&config, kernel, arguments...) != cudaSuccess) std::puts("refused");
}

template <typename... Arguments>
void launch_clusters(unsigned blocks, void (*kernel)(Arguments...), Arguments... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t config{dim3(blocks), dim3(4), 4 * sizeof(int), nullptr, &attribute, 1};
  if (cudaLaunchKernelEx(&config, kernel, arguments...) != cudaSuccess) std::puts("refused");
}

void send_to_next(bool barrier) {
  std::vector<int> seen(16);
  launch_clusters(4, kernels::send_to_next, seen.data(), barrier);
  for (const int value : seen) std::printf("%d ", value);
  std::puts("");
}

void print(const std::vector<int>& values) {
  for (const int value : values) std::printf("%d ", value);
  std::puts("");
}

void reverse(bool barrier) {
  std::vector<int> from(64), to(64);
  std::iota(from.begin(), from.end(), 0);
  launch(1, 64, false, kernels::reverse, from.data(), to.data(), barrier);
  print(to);
}

const std::map<std::string, void (*)()> kCases{
    {"reverse", [] { reverse(true); }},
    {"reverse_without_barrier", [] { reverse(false); }},
    {"half_of_the_block", [] { launch(1, 64, false, kernels::half_of_the_block); }},
    {"two_locations", [] { launch(1, 64, false, kernels::two_locations); }},
    {"beyond_shared", [] { launch(1, 64, false, kernels::beyond_shared); }},
    {"beyond_dynamic", [] { launch(1, 64, false, kernels::beyond_dynamic); }},
    {"warp_sum",
     [] {
       std::vector<int> sums(64);
       launch(1, 64, false, kernels::warp_sum, sums.data());
       print(sums);
     }},
    {"part_of_a_warp",
     [] {
       std::vector<int> results(4);
       launch(1, 32, false, kernels::part_of_a_warp, results.data());
       print(results);
     }},
    {"lane_left_behind", [] { launch(1, 32, false, kernels::lane_left_behind); }},
    {"not_in_its_mask", [] { launch(1, 32, false, kernels::not_in_its_mask); }},
    {"count_up",
     [] {
       std::vector<int> total(1);
       launch(3, 64, false, kernels::count_up, total.data());
       print(total);
     }},
    {"meet",
     [] {
       std::vector<int> total(1), seen(6);
       launch(3, 2, true, kernels::meet, total.data(), seen.data());
       print(seen);
     }},
    {"meet_alone",
     [] {
       std::vector<int> total(1), seen(6);
       launch(3, 2, false, kernels::meet, total.data(), seen.data());
     }},
    {"meet_by_flag",
     [] {
       std::vector<int> flag(1), seen(1);
       launch(2, 32, true, kernels::meet_by_flag, flag.data(), seen.data());
       print(seen);
     }},
    {"spin",
     [] {
       std::vector<int> flag(1);
       launch(1, 2, false, kernels::spin, flag.data());
     }},
    {"send_to_next", [] { send_to_next(true); }},
    {"send_to_next_without_barrier", [] { send_to_next(false); }},
    {"leave_early", [] { launch_clusters(2, kernels::leave_early); }},
    {"beyond_the_cluster", [] { launch_clusters(2, kernels::beyond_the_cluster); }},
    {"some_do_not_arrive", [] { launch_clusters(2, kernels::some_do_not_arrive); }},
    {"arrive_twice", [] { launch_clusters(2, kernels::arrive_twice); }},
    {"no_cluster", [] { launch(1, 2, false, kernels::arrive_twice); }},
    {"part_of_a_cluster", [] { launch_clusters(3, kernels::beyond_the_cluster); }},
    {"trapped", [] { launch(2, 32, false, kernels::trapped); }},
    {"too_many_threads", [] { launch(1, 1025, false, kernels::trapped); }},
};

}  // namespace

int main(int count, char** arguments) {
  try {
    kCases.at(count > 1 ? arguments[1] : "")();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
