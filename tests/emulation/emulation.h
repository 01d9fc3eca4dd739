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
struct Location {
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
// that names kernel, block and threads where they deadlock or trap.
bool run(const Launch& launch, const std::function<void()>& body);

int multiprocessors();     // CUDA_EMULATION_MULTIPROCESSORS, else 8
int shared_kilobytes();    // of a block: CUDA_EMULATION_SHARED, else 227
int compute_capability();  // its major number: CUDA_EMULATION_CAPABILITY, else 9
int planted_fault();  // which of a test's planted faults is chosen: CUDA_EMULATION_FAULT, else 0
constexpr unsigned kLargestCluster = 16;

// ---- what a thread may call
// -----------------------------------------------------------------------

extern thread_local Extent threadIdx, blockIdx, blockDim, gridDim;

void* shared_memory(const void* key, size_t bytes);  // one for each key and block
void* dynamic_shared_memory();

void sync_block(Location location);
void sync_grid(Location location);  // of a cooperative launch
void yield();                       // lets other threads run, in a loop that waits for them

// An asynchronous copy of the thread: its bytes arrive when it waits, not before.
void copy_async(void* to, const void* from, size_t bytes);
void copy_async_wait();

// Of a cluster: every thread arrives, and waits before it arrives again.
void arrive_at_cluster(Location location);
void wait_for_cluster(Location location);
// The address in the shared memory of the cluster's block `rank` that corresponds to `own`.
void* in_block(void* own, unsigned rank, Location location);
[[noreturn]] void trap(Location location);

// A barrier of the lanes of `mask`: each gives a value and sees those of all.
const uint64_t* exchange(Location location, uint32_t mask, uint64_t given);
int lane();

struct WarpBarrier {
  Location location;
  void operator()(uint32_t mask = 0xffffffffu) const { exchange(location, mask, 0); }
};

enum class Source { lane, bits, below, above };  // what the operand of a shuffle says

template <typename T>
T shuffle(Location location, uint32_t mask, T value, Source source, int operand,
          int width = kWarp) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "CUDA shuffles up to 8 bytes");
  uint64_t given = 0;
  std::memcpy(&given, &value, sizeof(T));
  const uint64_t* seen = exchange(location, mask, given);
  const int segment = lane() / width * width, own = lane() - segment;
  int from = operand % width;
  if (source == Source::bits) from = own ^ operand;
  if (source == Source::below) from = own - operand;
  if (source == Source::above) from = own + operand;
  // A source beyond the segment, or not in the mask, which CUDA leaves undefined, gives one's own.
  if (from < 0 || from >= width || !(mask >> (segment + from) & 1u)) return value;
  std::memcpy(&value, &seen[segment + from], sizeof(T));
  return value;
}

inline uint32_t ballot(Location location, uint32_t mask, bool holds) {
  const uint64_t* seen = exchange(location, mask, holds);
  uint32_t votes = 0;
  for (int k = 0; k < kWarp; ++k) votes |= (mask >> k & 1u) && seen[k] ? 1u << k : 0u;
  return votes;
}

}  // namespace emulation
