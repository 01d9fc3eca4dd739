// Runs CUDA kernels on the host, one fibre a thread: what cuda_runtime.h of this folder is built
// on. See README.md for what it finds, what it cannot find, and where to add to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

namespace emulation {

constexpr int kWarp = 32;

struct Extent {
  unsigned x, y, z;
  constexpr Extent(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr size_t volume() const { return size_t{x} * y * z; }
};

// Where in the source a thread waits.
struct Place {
  const char* file;
  int line;
};

struct Launch {
  const void* kernel;  // its address, for its name
  Extent grid, block;
  size_t dynamic_bytes;
  bool cooperative;  // all blocks are alive at once
  unsigned cluster;  // blocks of a cluster, which are alive at once; 0: there are none
};

// Runs `body` once a thread; false where CUDA would refuse the launch. Throws std::runtime_error
// that names kernel, block and threads where they cannot go on together or trap.
bool run(const Launch& launch, const std::function<void()>& body);

int multiprocessors();     // CUDA_EMULATION_MULTIPROCESSORS, else 8
int shared_kilobytes();    // of a block: CUDA_EMULATION_SHARED, else 227
int compute_capability();  // its major number: CUDA_EMULATION_CAPABILITY, else 9
constexpr unsigned kLargestCluster = 16;

// ---- what a thread may call
// -----------------------------------------------------------------------

extern thread_local Extent threadIdx, blockIdx, blockDim, gridDim;

void* shared_memory(const void* key, size_t bytes);  // one for each key and block
void* dynamic_shared_memory();

void sync_block(Place place);
void sync_grid(Place place);  // of a cooperative launch
void pass_on();               // lets the others run, in a loop that waits for them

// Of a cluster: every thread arrives, and waits before it arrives again.
void arrive_at_cluster(Place place);
void wait_for_cluster(Place place);
// Where what lies at `own` in this block's shared memory lies in that of another of the cluster.
void* in_block(void* own, unsigned rank, Place place);
[[noreturn]] void trap(Place place);

// All lanes of `mask` meet here, each gives a value and sees everybody's.
const uint64_t* exchange(Place place, uint32_t mask, uint64_t given);
int lane();

struct WarpBarrier {
  Place place;
  void operator()(uint32_t mask = 0xffffffffu) const { exchange(place, mask, 0); }
};

enum class Source { lane, bits, below, above };  // what the operand of a shuffle says

template <typename T>
T shuffle(Place place, uint32_t mask, T value, Source source, int operand, int width = kWarp) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "CUDA shuffles up to 8 bytes");
  uint64_t given = 0;
  std::memcpy(&given, &value, sizeof(T));
  const uint64_t* seen = exchange(place, mask, given);
  const int segment = lane() / width * width, own = lane() - segment;
  int from = operand % width;
  if (source == Source::bits) from = own ^ operand;
  if (source == Source::below) from = own - operand;
  if (source == Source::above) from = own + operand;
  // Beyond the segment there is nothing to take but one's own; the same for a lane that CUDA leaves
  // undefined because it is not in the mask.
  if (from < 0 || from >= width || !(mask >> (segment + from) & 1u)) return value;
  std::memcpy(&value, &seen[segment + from], sizeof(T));
  return value;
}

inline uint32_t ballot(Place place, uint32_t mask, bool holds) {
  const uint64_t* seen = exchange(place, mask, holds);
  uint32_t votes = 0;
  for (int k = 0; k < kWarp; ++k) votes |= (mask >> k & 1u) && seen[k] ? 1u << k : 0u;
  return votes;
}

}  // namespace emulation
