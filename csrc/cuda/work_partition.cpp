#include "work_partition.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

namespace captioner::cuda {
namespace {

// The largest cluster of an H100; sizes above 8 blocks need
// cudaFuncAttributeNonPortableClusterSize.
constexpr int64_t kMaxCluster = 16;

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  const bool found = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  return found ? value : 0;
}

// What one direction needs.
struct Requirements {
  int64_t batch, hidden;
  GemmSize gemm;
  int64_t bytes;  // of a number
  int64_t warp_group_units;
  int64_t max_chunks;  // of a warp
};

// As many groups as are co-resident, and no more than have a tile of sequences each. Registers
// limit a multiprocessor to one block.
WorkPartition partition_work(const Requirements& needs, Algorithm algorithm) {
  constexpr WorkPartition kNone{};
  if (needs.hidden * needs.bytes % 16 != 0) return kNone;
  const int64_t units = needs.warp_group_units;
  const int64_t chunks = (needs.gemm.length * needs.bytes + kChunkBytes - 1) / kChunkBytes;
  const int64_t by_cells = (kRows * units + kElements * kWarp - 1) / (kElements * kWarp);
  const int64_t k_slices = std::max((chunks + needs.max_chunks - 1) / needs.max_chunks, by_cells);
  if (k_slices > kMaxWarps) return kNone;
  const int64_t all_warp_groups = (needs.hidden + units - 1) / units;
  const int64_t warp_groups = std::min<int64_t>(kMaxWarps / k_slices, all_warp_groups);
  const int64_t blocks = (all_warp_groups + warp_groups - 1) / warp_groups;
  if (algorithm == Algorithm::cluster &&
      (blocks > kMaxCluster || device_attribute(cudaDevAttrComputeCapabilityMajor) < 9)) {
    return kNone;
  }
  const int64_t resident = device_attribute(cudaDevAttrMultiProcessorCount) / blocks;
  const int64_t groups = std::min<int64_t>(resident, (needs.batch + kTile - 1) / kTile);
  if (groups == 0) return kNone;
  const WorkPartition partition{algorithm,
                                false,
                                static_cast<int>(groups),
                                static_cast<int>(blocks),
                                static_cast<int>(k_slices),
                                static_cast<int>(warp_groups),
                                static_cast<int>(units),
                                static_cast<int>(warp_groups * units)};
  const size_t most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return shared_bytes(partition, needs.gemm, needs.batch, needs.bytes) <= most ? partition : kNone;
}

// Likewise for the kernels of tiled.h, without groups where they do not fit.
template <typename Bytes>
WorkPartition partition_tiles(int64_t batch, int64_t hidden, const TileShape& shape,
                              int warp_group_units, const Bytes& bytes) {
  const int warp_groups = kMaxWarps / shape.slices, units = warp_groups * warp_group_units;
  const int64_t blocks = (hidden + units - 1) / units;
  const int64_t resident = device_attribute(cudaDevAttrMultiProcessorCount) / blocks;
  const int64_t groups = std::min<int64_t>(resident, (batch + kTile - 1) / kTile);
  if (groups == 0 || hidden % 8 != 0 || hidden > kTiledMaxHidden) return {};
  const WorkPartition partition{Algorithm::persistent,    true,         static_cast<int>(groups),
                                static_cast<int>(blocks), shape.slices, warp_groups,
                                warp_group_units,         units};
  const size_t most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return bytes(partition, hidden, batch, kSizesInShared) <= most ? partition : WorkPartition{};
}

template <typename Scalar>
bool may_tile(Algorithm algorithm) {
  return sizeof(Scalar) == 2 && algorithm == Algorithm::persistent;
}

}  // namespace

template <typename Scalar>
WorkPartition partition_forward(int64_t batch, int64_t hidden_size, Algorithm algorithm) {
  if (may_tile<Scalar>(algorithm)) {
    const WorkPartition partition =
        partition_tiles(batch, hidden_size, forward_tile_shape(hidden_size), kTiledForwardUnits,
                        tiled_forward_bytes);
    if (partition.groups > 0) return partition;
  }
  return partition_work({batch, hidden_size, forward_gemm(hidden_size), sizeof(Scalar),
                         kForwardUnits, kHeldWords / 4},
                        algorithm);
}

template <typename Scalar>
WorkPartition partition_backward(int64_t batch, int64_t hidden_size, Algorithm algorithm) {
  if (may_tile<Scalar>(algorithm)) {
    const WorkPartition partition =
        partition_tiles(batch, hidden_size, backward_tile_shape(hidden_size), kTiledBackwardUnits,
                        tiled_backward_bytes);
    if (partition.groups > 0) return partition;
  }
  // A warp that has 8 units holds twice as much of each as one that has 16.
  WorkPartition partition{};
  for (const int64_t units : {16, 8}) {
    partition = partition_work({batch, hidden_size, backward_gemm(hidden_size), sizeof(Scalar),
                                units, kHeldWords * 8 / units},
                               algorithm);
    if (partition.groups > 0) break;
  }
  return partition;
}

#define CAPTIONER_PARTITIONS(Scalar)                                             \
  template WorkPartition partition_forward<Scalar>(int64_t, int64_t, Algorithm); \
  template WorkPartition partition_backward<Scalar>(int64_t, int64_t, Algorithm)
CAPTIONER_PARTITIONS(float);
CAPTIONER_PARTITIONS(c10::BFloat16);
CAPTIONER_PARTITIONS(c10::Half);
#undef CAPTIONER_PARTITIONS

}  // namespace captioner::cuda
