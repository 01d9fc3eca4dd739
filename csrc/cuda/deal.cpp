#include "deal.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

namespace captioner::cuda {
namespace {

// The largest cluster of an H100; more than 8 blocks have to be asked for by name.
constexpr int64_t kMaxCluster = 16;

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  const bool found = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  return found ? value : 0;
}

// What one direction asks for.
struct Demand {
  int64_t batch, hidden;
  int64_t length;   // numbers of a row that the products sum over, and that are handed on
  int64_t bytes;    // of a number
  int64_t columns;  // of the sums, for a unit
  int64_t team_units;
  int64_t max_chunks;  // of a warp
};

// As many groups as the device can hold at once, and no more than have a tile of sequences each.
// One block runs on a multiprocessor: its registers allow no second.
Deal deal_out(const Demand& demand, Exchange exchange) {
  constexpr Deal kNone{};
  if (demand.hidden * demand.bytes % 16 != 0) return kNone;
  const int64_t chunks = (demand.length * demand.bytes + kChunkBytes - 1) / kChunkBytes;
  const int64_t by_cells =
      (kRows * demand.team_units + kElements * kWarp - 1) / (kElements * kWarp);
  const int64_t splits = std::max((chunks + demand.max_chunks - 1) / demand.max_chunks, by_cells);
  if (splits > kMaxWarps) return kNone;
  const int64_t all_teams = (demand.hidden + demand.team_units - 1) / demand.team_units;
  const int64_t teams = std::min<int64_t>(kMaxWarps / splits, all_teams);
  const int64_t blocks = (all_teams + teams - 1) / teams;
  if (exchange == Exchange::cluster &&
      (blocks > kMaxCluster || device_attribute(cudaDevAttrComputeCapabilityMajor) < 9)) {
    return kNone;
  }
  const int64_t held = device_attribute(cudaDevAttrMultiProcessorCount) / blocks;
  const int64_t groups = std::min<int64_t>(held, (demand.batch + kTile - 1) / kTile);
  if (groups == 0) return kNone;
  const Deal deal{exchange,
                  static_cast<int>(groups),
                  static_cast<int>(blocks),
                  static_cast<int>(splits),
                  static_cast<int>(teams),
                  static_cast<int>(demand.team_units),
                  static_cast<int>(teams * demand.team_units)};
  const size_t shared = sums_bytes(deal, demand.columns * deal.units) +
                        cells_bytes(deal, demand.batch) +
                        inbox_bytes(deal, demand.batch, demand.length, demand.bytes);
  const size_t most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return shared <= most ? deal : kNone;
}

}  // namespace

template <typename Scalar>
Deal deal_forward(int64_t batch, int64_t hidden_size, Exchange exchange) {
  return deal_out(
      {batch, hidden_size, hidden_size, sizeof(Scalar), 4, kForwardUnits, kHeldWords / 4},
      exchange);
}

template <typename Scalar>
Deal deal_backward(int64_t batch, int64_t hidden_size, Exchange exchange) {
  // A warp that has 8 units holds twice as much of each as one that has 16.
  Deal deal{};
  for (const int64_t units : {16, 8}) {
    deal = deal_out(
        {batch, hidden_size, 4 * hidden_size, sizeof(Scalar), 1, units, kHeldWords * 8 / units},
        exchange);
    if (deal.groups > 0) break;
  }
  return deal;
}

#define CAPTIONER_DEALS(Scalar)                                   \
  template Deal deal_forward<Scalar>(int64_t, int64_t, Exchange); \
  template Deal deal_backward<Scalar>(int64_t, int64_t, Exchange)
CAPTIONER_DEALS(float);
CAPTIONER_DEALS(c10::BFloat16);
CAPTIONER_DEALS(c10::Half);
#undef CAPTIONER_DEALS

}  // namespace captioner::cuda
