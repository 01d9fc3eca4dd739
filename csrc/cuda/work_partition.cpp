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
  int64_t models, batch, hidden;
  GemmSize gemm;
  int64_t bytes;  // of a number
  int64_t warp_group_units;
  int64_t max_chunks;  // of a warp
};

// Divides the co-resident groups among the models: a model gets no more than have a tile of its
// sequences each, and one at least. All models at once take least time, or else equal shares in as
// few launches as can be; groups of fewer sequences need less shared memory. Without groups where
// nothing fits. Registers limit a multiprocessor to one block.
template <typename Bytes>
WorkPartition share_groups(WorkPartition partition, int64_t models, int64_t batch,
                           const Bytes& bytes) {
  const int64_t resident =
      device_attribute(cudaDevAttrMultiProcessorCount) / int64_t{partition.blocks};
  if (resident == 0) return {};
  const size_t most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int64_t tiles = (batch + kTile - 1) / kTile;
  for (int64_t launches = (models + resident - 1) / resident; launches <= models; ++launches) {
    partition.models = static_cast<int>((models + launches - 1) / launches);
    partition.groups = static_cast<int>(std::min(resident / partition.models, tiles));
    if (partition.groups > 0 && bytes(partition) <= most) return partition;
  }
  return {};
}

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
  const WorkPartition partition{algorithm,
                                false,
                                0,
                                0,
                                static_cast<int>(blocks),
                                static_cast<int>(k_slices),
                                static_cast<int>(warp_groups),
                                static_cast<int>(units),
                                static_cast<int>(warp_groups * units)};
  return share_groups(partition, needs.models, needs.batch, [&](const WorkPartition& shared) {
    return shared_bytes(shared, needs.gemm, needs.batch, needs.bytes);
  });
}

// Likewise for the kernels of tiled.h, without groups where they do not fit.
template <typename Bytes>
WorkPartition partition_tiles(int64_t models, int64_t batch, int64_t hidden, const TileShape& shape,
                              int warp_group_units, const Bytes& bytes) {
  if (hidden % 8 != 0 || hidden > kTiledMaxHidden) return {};
  const int warp_groups = kMaxWarps / shape.slices, units = warp_groups * warp_group_units;
  const int64_t blocks = (hidden + units - 1) / units;
  const WorkPartition partition{
      Algorithm::persistent, true, 0, 0, static_cast<int>(blocks), shape.slices, warp_groups,
      warp_group_units,      units};
  return share_groups(partition, models, batch, [&](const WorkPartition& shared) {
    return bytes(shared, hidden, batch, kSizesInShared);
  });
}

template <typename Scalar>
bool may_tile(Algorithm algorithm) {
  return sizeof(Scalar) == 2 && algorithm == Algorithm::persistent;
}

}  // namespace

template <typename Scalar>
WorkPartition partition_forward(int64_t batch, int64_t hidden_size, Algorithm algorithm,
                                int64_t models) {
  if (may_tile<Scalar>(algorithm)) {
    const WorkPartition partition =
        partition_tiles(models, batch, hidden_size, forward_tile_shape(hidden_size),
                        kTiledForwardUnits, tiled_forward_bytes);
    if (partition.groups > 0) return partition;
  }
  return partition_work({models, batch, hidden_size, forward_gemm(hidden_size), sizeof(Scalar),
                         kForwardUnits, kHeldWords / 4},
                        algorithm);
}

template <typename Scalar>
WorkPartition partition_backward(int64_t batch, int64_t hidden_size, Algorithm algorithm,
                                 int64_t models) {
  if (may_tile<Scalar>(algorithm)) {
    const WorkPartition partition =
        partition_tiles(models, batch, hidden_size, backward_tile_shape(hidden_size),
                        kTiledBackwardUnits, tiled_backward_bytes);
    if (partition.groups > 0) return partition;
  }
  // A warp that has 8 units holds twice as much of each as one that has 16.
  WorkPartition partition{};
  for (const int64_t units : {16, 8}) {
    partition = partition_work({models, batch, hidden_size, backward_gemm(hidden_size),
                                sizeof(Scalar), units, kHeldWords * 8 / units},
                               algorithm);
    if (partition.groups > 0) break;
  }
  return partition;
}

#define CAPTIONER_PARTITIONS(Scalar)                                                      \
  template WorkPartition partition_forward<Scalar>(int64_t, int64_t, Algorithm, int64_t); \
  template WorkPartition partition_backward<Scalar>(int64_t, int64_t, Algorithm, int64_t)
CAPTIONER_PARTITIONS(float);
CAPTIONER_PARTITIONS(c10::BFloat16);
CAPTIONER_PARTITIONS(c10::Half);
#undef CAPTIONER_PARTITIONS

}  // namespace captioner::cuda
