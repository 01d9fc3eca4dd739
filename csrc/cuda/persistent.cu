#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "../lstm_cell.h"
#include "instructions.h"
#include "launch.h"
#include "persistent.h"

namespace captioner::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 8;
constexpr int kThreads = kWarp * kMaxWarps;
constexpr int kTile = 8;          // sequences of one product of a warp
constexpr int kRows = 2 * kTile;  // sequences between two barriers of a block
constexpr int kElements = 4;      // cells of a thread among them, at most
// A chunk is 64 bytes of each operand's row: 16 bytes a lane, the operands of two instructions.
constexpr int kChunkBytes = 64;
constexpr int kForwardChunks = 8;    // of a warp, in registers: of 32 rows of weight_hh
constexpr int kBackwardChunks = 16;  // of 16 columns
constexpr int kForwardUnits = 8;     // of a team: 4 gates of each make 32 rows
constexpr int kBackwardUnits = 16;

// Sixteen bytes of a row as the tensor cores take them.
struct alignas(16) Words {
  uint32_t at[4];
};

template <typename Scalar>
struct Numbers {
  static constexpr int kPerLane = 16 / sizeof(Scalar);
  static constexpr int kPerChunk = kChunkBytes / sizeof(Scalar);
};

template <typename Scalar>
__device__ __forceinline__ Words ready(Words words) {
  if constexpr (sizeof(Scalar) == 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) words.at[k] = rounded_to_tf32(words.at[k]);
  }
  return words;
}

// The lane's numbers of a chunk of `row` [length], zero beyond the end or where `row` is nullptr.
template <typename Scalar>
__device__ __forceinline__ Words load_words(const Scalar* row, int64_t length, int chunk) {
  const int64_t first =
      chunk * Numbers<Scalar>::kPerChunk + threadIdx.x % 4 * Numbers<Scalar>::kPerLane;
  if (row == nullptr || first >= length) return {};
  return ready<Scalar>(*reinterpret_cast<const Words*>(row + first));
}

// The same numbers of column `column` of weight [length, hidden].
template <typename Scalar>
__device__ __forceinline__ Words load_column(const Scalar* weight, int64_t length, int64_t hidden,
                                             int64_t column, int chunk) {
  const int64_t first =
      chunk * Numbers<Scalar>::kPerChunk + threadIdx.x % 4 * Numbers<Scalar>::kPerLane;
  if (column >= hidden || first >= length) return {};
  union {
    Words words;
    Scalar numbers[Numbers<Scalar>::kPerLane];
  } gathered{};
#pragma unroll
  for (int k = 0; k < Numbers<Scalar>::kPerLane; ++k) {
    gathered.numbers[k] = weight[(first + k) * hidden + column];
  }
  return ready<Scalar>(gathered.words);
}

// d += the two products of a chunk: 16 rows of weights, `low` the first eight, with 8 sequences.
template <typename Scalar>
__device__ __forceinline__ void multiply_chunk(float (&d)[4], const Words& low, const Words& high,
                                               const Words& sequences) {
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    multiply_add(Scalar{}, d, low.at[k], high.at[k], low.at[k + 1], high.at[k + 1], sequences.at[k],
                 sequences.at[k + 1]);
  }
}

// One unit of one of the group's sequences; `held` unless there is none.
struct Cell {
  int row, column;  // among the group's sequences, among the block's units
  int64_t unit;
  bool held;
};

// A thread's place in the group's work.
struct Place {
  int group, member;
  int split, team;  // of the warp
  int g, q;         // of the lane: see instructions.h
  uint32_t* flags;  // [G] of the group

  __device__ __forceinline__ Place(const Deal& deal, uint32_t* all_flags)
      : group(blockIdx.x / deal.blocks),
        member(blockIdx.x % deal.blocks),
        split(threadIdx.x / kWarp % deal.splits),
        team(threadIdx.x / kWarp / deal.splits),
        g(threadIdx.x % kWarp / 4),
        q(threadIdx.x % 4),
        flags(all_flags + group * deal.blocks) {}

  // How many of the first `sequences` are the group's, and which is the group's j-th.
  __device__ __forceinline__ int rows(const Deal& deal, int64_t sequences) const {
    const int64_t beyond = sequences - group + deal.groups - 1;
    return beyond > 0 ? static_cast<int>(beyond / deal.groups) : 0;
  }
  __device__ __forceinline__ int64_t sequence(const Deal& deal, int row) const {
    return group + static_cast<int64_t>(row) * deal.groups;
  }
  // The k-th cell that is the thread's among kRows sequences from row0 on.
  __device__ __forceinline__ Cell cell(const Deal& deal, int k, int row0, int rows,
                                       int64_t hidden) const {
    const int element = threadIdx.x + k * blockDim.x;
    const int row = row0 + element / deal.units, column = element % deal.units;
    const int64_t unit = int64_t{member} * deal.units + column;
    return {row, column, unit, element < kRows * deal.units && row < rows && unit < hidden};
  }
};

// Tells the group that this block has stored its results of `steps` steps.
__device__ __forceinline__ void announce(const Place& place, uint32_t steps) {
  __syncthreads();
  if (threadIdx.x == 0) store_release(place.flags + place.member, steps);
}

// Waits until all of the group have. A flag that never comes ends the launch with an error: seconds
// are a thousand times what a step takes, and all blocks run at the same time.
__device__ __forceinline__ void await(const Place& place, int blocks, uint32_t steps) {
  constexpr int kEager = 1 << 10, kForEver = 1 << 26;
  if (threadIdx.x < kWarp) {
    for (int k = threadIdx.x; k < blocks; k += kWarp) {
      for (int tries = 0; load_acquire(place.flags + k) < steps; ++tries) {
        if (tries > kEager) __nanosleep(32);
        if (tries > kForEver) __trap();
      }
    }
  }
  __syncthreads();
}

// Where the teams leave their parts of the sums: [splits, kRows, columns], rows padded so that the
// lanes of a warp meet in no bank.
struct Partial {
  float* sums;
  int columns;
  __device__ __forceinline__ float* at(int split, int row) const {
    return sums + (split * kRows + row) * (columns + 4);
  }
  __device__ __forceinline__ float sum(int splits, int row, int column) const {
    float total = 0;
    for (int k = 0; k < splits; ++k) total += at(k, row)[column];
    return total;
  }
};

// The sum of batch_sizes, known to all threads of a warp.
__device__ __forceinline__ int64_t count_tokens(const int64_t* batch_sizes, int64_t steps) {
  int64_t tokens = 0;
  for (int64_t t = threadIdx.x % kWarp; t < steps; t += kWarp) tokens += batch_sizes[t];
#pragma unroll
  for (int k = kWarp / 2; k > 0; k /= 2) tokens += __shfl_xor_sync(0xffffffffu, tokens, k);
  return tokens;
}

// Calls run(k) for every k from `first` to `last`, each in one thread of the launch.
template <typename Run>
__device__ __forceinline__ void for_each(int64_t first, int64_t last, const Run& run) {
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t k = first + int64_t{blockIdx.x} * blockDim.x + threadIdx.x; k < last; k += threads) {
    run(k);
  }
}

}  // namespace

template <typename Scalar>
__global__ void __launch_bounds__(kThreads) forward_steps(const PersistentForward<Scalar> pass) {
  CAPTIONER_DYNAMIC_SHARED(float, shared);
  const Deal& deal = pass.deal;
  const Place place(deal, pass.flags);
  const int64_t hidden = pass.hidden_size, first_unit = int64_t{place.member} * deal.units;
  const Partial partial{shared, 4 * deal.units};
  float* const cells = shared + deal.splits * kRows * (4 * deal.units + 4);  // [rows, U]

  // Rows of a product: eight units' i above f, then g above o.
  const int chunks = (hidden + Numbers<Scalar>::kPerChunk - 1) / Numbers<Scalar>::kPerChunk;
  const int per_split = (chunks + deal.splits - 1) / deal.splits;
  const int first_chunk = place.split * per_split;
  const int64_t own_unit = first_unit + place.team * kForwardUnits + place.g;
  Words weights[kForwardChunks][4];
#pragma unroll
  for (int c = 0; c < kForwardChunks; ++c) {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const bool held = c < per_split && own_unit < hidden;
      const Scalar* row = pass.weight_hh + (gate * hidden + own_unit) * hidden;
      weights[c][gate] = load_words<Scalar>(held ? row : nullptr, hidden, first_chunk + c);
    }
  }

  const int64_t filled = count_tokens(pass.batch_sizes, pass.steps);
  if (filled > pass.tokens || pass.batch_sizes[0] > pass.batch) __trap();
  for_each(filled * hidden, pass.tokens * hidden,
           [&](int64_t k) { pass.output[k] = Scalar(0.0f); });
  for_each(pass.batch_sizes[0] * hidden, pass.batch * hidden, [&](int64_t k) {
    pass.hy[k] = pass.hx[k];
    pass.cy[k] = static_cast<Scalar>(pass.cx[k]);
  });

  int64_t before = 0, first = 0;  // first packed rows of the step before and of this one
  for (int64_t t = 0; t < pass.steps; ++t) {
    const int64_t sequences = pass.batch_sizes[t];
    const int64_t staying = t + 1 < pass.steps ? pass.batch_sizes[t + 1] : 0;
    const int rows = place.rows(deal, sequences);
    if (rows == 0) break;
    for (int row0 = 0; row0 < rows; row0 += kRows) {
      // The part of the sums that does not wait for the step before.
      Gates<float> sums[kElements];
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const Cell own = place.cell(deal, k, row0, rows, hidden);
        if (!own.held) continue;
        const int64_t unit = own.unit, token = first + place.sequence(deal, own.row);
        const int64_t source = pass.input_rows ? pass.input_rows[token] : token;
        if (source < 0 || source >= pass.sums_rows) __trap();
        const Scalar* input = pass.input_sums + source * 4 * hidden + unit;
        const auto sum = [&](int gate) {
          const int64_t at = gate * hidden;
          return static_cast<float>(input[at]) + static_cast<float>(pass.bias_ih[at + unit]) +
                 static_cast<float>(pass.bias_hh[at + unit]);
        };
        sums[k] = {sum(0), sum(1), sum(2), sum(3)};
      }
      if (row0 == 0 && t > 0) await(place, deal.blocks, static_cast<uint32_t>(t));

      for (int tile = 0; tile < kRows && row0 + tile < rows; tile += kTile) {
        const int row = row0 + tile + place.g;
        const int64_t sequence = place.sequence(deal, row);
        const Scalar* h = nullptr;
        if (row < rows) {
          h = t == 0 ? pass.hx + sequence * hidden : pass.output + (before + sequence) * hidden;
        }
        float upper[4] = {}, lower[4] = {};
#pragma unroll
        for (int c = 0; c < kForwardChunks; ++c) {
          if (c >= per_split) continue;
          const Words words = load_words<Scalar>(h, hidden, first_chunk + c);
          multiply_chunk<Scalar>(upper, weights[c][0], weights[c][1], words);
          multiply_chunk<Scalar>(lower, weights[c][2], weights[c][3], words);
        }
        const int column = place.team * kForwardUnits + place.g;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          float* const at = partial.at(place.split, tile + 2 * place.q + k) + column;
          at[0] = upper[k];
          at[deal.units] = upper[2 + k];
          at[2 * deal.units] = lower[k];
          at[3 * deal.units] = lower[2 + k];
        }
      }
      __syncthreads();

#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const Cell own = place.cell(deal, k, row0, rows, hidden);
        if (!own.held) continue;
        const int row = own.row, column = own.column;
        const int64_t unit = own.unit;
        const int64_t sequence = place.sequence(deal, row), token = first + sequence;
        const auto product = [&](int gate) {
          return partial.sum(deal.splits, row - row0, gate * deal.units + column);
        };
        const Gates<float> gates =
            activate(Gates<float>{sums[k].i + product(0), sums[k].f + product(1),
                                  sums[k].g + product(2), sums[k].o + product(3)});
        float& cell = cells[row * deal.units + column];
        const CellState<float> state =
            cell_forward(gates, t == 0 ? pass.cx[sequence * hidden + unit] : cell);
        cell = state.c;
        float* const saved = pass.gates + token * 4 * hidden + unit;
        saved[0] = gates.i;
        saved[hidden] = gates.f;
        saved[2 * hidden] = gates.g;
        saved[3 * hidden] = gates.o;
        pass.cells[token * hidden + unit] = state.c;
        pass.output[token * hidden + unit] = static_cast<Scalar>(state.h);
        if (sequence >= staying) {
          pass.hy[sequence * hidden + unit] = static_cast<Scalar>(state.h);
          pass.cy[sequence * hidden + unit] = static_cast<Scalar>(state.c);
        }
      }
      if (row0 + kRows < rows) __syncthreads();  // the sums are read before they are overwritten
    }
    announce(place, static_cast<uint32_t>(t + 1));
    before = first;
    first += sequences;
  }
}

namespace {

// The product of the gate gradients [rows, 4H] of 8 sequences with the block's columns of
// weight_hh.
template <typename Scalar>
__device__ __forceinline__ void multiply_gradients(const Words (&weights)[kBackwardChunks][2],
                                                   const Scalar* gradients, int64_t length,
                                                   int first_chunk, int per_split,
                                                   const Partial& partial, const Place& place,
                                                   int tile) {
  float sums[4] = {};
#pragma unroll
  for (int c = 0; c < kBackwardChunks; ++c) {
    if (c >= per_split) continue;
    const Words words = load_words<Scalar>(gradients, length, first_chunk + c);
    multiply_chunk<Scalar>(sums, weights[c][0], weights[c][1], words);
  }
  const int column = place.team * kBackwardUnits + place.g;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    float* const at = partial.at(place.split, tile + 2 * place.q + k) + column;
    at[0] = sums[k];
    at[8] = sums[2 + k];
  }
}

}  // namespace

template <typename Scalar>
__global__ void __launch_bounds__(kThreads) backward_steps(const PersistentBackward<Scalar> pass) {
  CAPTIONER_DYNAMIC_SHARED(float, shared);
  const Deal& deal = pass.deal;
  const Place place(deal, pass.flags);
  const int64_t hidden = pass.hidden_size, first_unit = int64_t{place.member} * deal.units;
  const Partial partial{shared, deal.units};
  float* const grad_cells = shared + deal.splits * kRows * (deal.units + 4);  // [rows, U]

  const int64_t length = 4 * hidden;
  const int chunks = (length + Numbers<Scalar>::kPerChunk - 1) / Numbers<Scalar>::kPerChunk;
  const int per_split = (chunks + deal.splits - 1) / deal.splits;
  const int first_chunk = place.split * per_split;
  const int64_t own_unit = first_unit + place.team * kBackwardUnits + place.g;
  Words weights[kBackwardChunks][2];
#pragma unroll
  for (int c = 0; c < kBackwardChunks; ++c) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t column = c < per_split ? own_unit + 8 * half : hidden;
      weights[c][half] =
          load_column<Scalar>(pass.weight_hh, length, hidden, column, first_chunk + c);
    }
  }

  const int64_t filled = count_tokens(pass.batch_sizes, pass.steps);
  if (filled > pass.tokens || pass.batch_sizes[0] > pass.batch) __trap();
  for_each(filled * length, pass.tokens * length,
           [&](int64_t k) { pass.grad_gates[k] = Scalar(0.0f); });
  for_each(filled * hidden, pass.tokens * hidden,
           [&](int64_t k) { pass.h_before[k] = Scalar(0.0f); });
  for_each(pass.batch_sizes[0] * hidden, pass.batch * hidden, [&](int64_t k) {
    if (pass.grad_hx != nullptr) pass.grad_hx[k] = pass.grad_hy[k];
    pass.grad_cx[k] = pass.grad_cy[k];
  });

  uint32_t done = 0;  // steps of this group
  int64_t first = filled, after = first, staying = 0;
  for (int64_t t = pass.steps - 1; t >= 0; --t) {
    const int64_t sequences = pass.batch_sizes[t];
    after = first;
    first -= sequences;
    const int64_t before = t > 0 ? first - pass.batch_sizes[t - 1] : 0;
    const int rows = place.rows(deal, sequences), rows_after = place.rows(deal, staying);
    for (int row0 = 0; row0 < rows; row0 += kRows) {
      if (row0 == 0 && rows_after > 0) await(place, deal.blocks, done);
      for (int tile = 0; tile < kRows && row0 + tile < rows_after; tile += kTile) {
        const int row = row0 + tile + place.g;
        const Scalar* gradients =
            row < rows_after ? pass.grad_gates + (after + place.sequence(deal, row)) * length
                             : nullptr;
        multiply_gradients<Scalar>(weights, gradients, length, first_chunk, per_split, partial,
                                   place, tile);
      }
      __syncthreads();

#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const Cell own = place.cell(deal, k, row0, rows, hidden);
        if (!own.held) continue;
        const int row = own.row, column = own.column;
        const int64_t unit = own.unit;
        const int64_t sequence = place.sequence(deal, row), token = first + sequence;
        const int64_t at = token * hidden + unit, at_first = sequence * hidden + unit;
        const int64_t at_before = (before + sequence) * hidden + unit;
        const float* const saved = pass.gates + token * length + unit;
        const Gates<float> gates{saved[0], saved[hidden], saved[2 * hidden], saved[3 * hidden]};
        const bool stays = row < rows_after;
        float& grad_cell = grad_cells[row * deal.units + column];
        const float dh = static_cast<float>(pass.grad_output[at]) +
                         (stays ? static_cast<float>(static_cast<Scalar>(
                                      partial.sum(deal.splits, row - row0, column)))
                                : static_cast<float>(pass.grad_hy[at_first]));
        const float dc = stays ? grad_cell : static_cast<float>(pass.grad_cy[at_first]);
        const CellGradient<float> found = cell_backward(
            gates, t == 0 ? pass.cx[at_first] : pass.cells[at_before], pass.cells[at], dh, dc);
        grad_cell = found.c_before;
        Scalar* const gradients = pass.grad_gates + token * length + unit;
        gradients[0] = static_cast<Scalar>(found.sums.i);
        gradients[hidden] = static_cast<Scalar>(found.sums.f);
        gradients[2 * hidden] = static_cast<Scalar>(found.sums.g);
        gradients[3 * hidden] = static_cast<Scalar>(found.sums.o);
        pass.h_before[at] = t == 0 ? pass.hx[at_first] : pass.output[at_before];
        if (t == 0) pass.grad_cx[at_first] = static_cast<Scalar>(found.c_before);
      }
      if (row0 + kRows < rows) __syncthreads();
    }
    if (rows > 0) announce(place, ++done);
    staying = sequences;
  }

  if (pass.grad_hx == nullptr || done == 0) return;
  await(place, deal.blocks, done);
  const int rows = place.rows(deal, staying);
  for (int row0 = 0; row0 < rows; row0 += kRows) {
    for (int tile = 0; tile < kRows && row0 + tile < rows; tile += kTile) {
      const int row = row0 + tile + place.g;
      const Scalar* gradients =
          row < rows ? pass.grad_gates + place.sequence(deal, row) * length : nullptr;
      multiply_gradients<Scalar>(weights, gradients, length, first_chunk, per_split, partial, place,
                                 tile);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      const Cell own = place.cell(deal, k, row0, rows, hidden);
      if (!own.held) continue;
      pass.grad_hx[place.sequence(deal, own.row) * hidden + own.unit] =
          static_cast<Scalar>(partial.sum(deal.splits, own.row - row0, own.column));
    }
    __syncthreads();
  }
}

namespace {

size_t shared_bytes(const Deal& deal, int columns, int64_t batch) {
  const int64_t rows = (batch + deal.groups - 1) / deal.groups;
  return sizeof(float) * (int64_t{deal.splits} * kRows * (columns + 4) + rows * deal.units);
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  const bool found = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  return found ? value : 0;
}

// As many groups as the device can hold at once, and no more than have a tile of sequences each.
// One block runs on a multiprocessor: its registers allow no second.
Deal deal_out(int64_t batch, int64_t hidden, int64_t length, int number_bytes, int max_chunks,
              int team_units, int columns_a_unit) {
  constexpr Deal kNone{};
  const int64_t chunks = (length * number_bytes + kChunkBytes - 1) / kChunkBytes;
  const int64_t splits =
      std::max<int64_t>((chunks + max_chunks - 1) / max_chunks,
                        (kRows * team_units + kElements * kWarp - 1) / (kElements * kWarp));
  if (hidden * number_bytes % 16 != 0 || splits > kMaxWarps) return kNone;
  const int64_t teams = (hidden + team_units - 1) / team_units;
  const int64_t unit_warps = std::min<int64_t>(kMaxWarps / splits, teams);
  const int64_t blocks = (teams + unit_warps - 1) / unit_warps;
  const int64_t held = device_attribute(cudaDevAttrMultiProcessorCount) / blocks;
  const int64_t groups = std::min<int64_t>(held, (batch + kTile - 1) / kTile);
  if (groups == 0) return kNone;
  const Deal deal{static_cast<int>(groups), static_cast<int>(blocks), static_cast<int>(splits),
                  static_cast<int>(unit_warps), static_cast<int>(unit_warps * team_units)};
  const size_t most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return shared_bytes(deal, columns_a_unit * deal.units, batch) <= most ? deal : kNone;
}

template <typename Pass>
cudaError_t launch_together(void (*kernel)(Pass), const Pass& pass, int columns,
                            cudaStream_t stream) {
  const Deal& deal = pass.deal;
  const size_t bytes = shared_bytes(deal, columns, pass.batch);
  const cudaError_t allowed =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (allowed != cudaSuccess) return allowed;
  return launch_cooperative(kernel, dim3(deal.groups * deal.blocks),
                            dim3(kWarp * deal.splits * deal.unit_warps), bytes, stream, pass);
}

}  // namespace

template <typename Scalar>
Deal deal_forward(int64_t batch, int64_t hidden_size) {
  return deal_out(batch, hidden_size, hidden_size, sizeof(Scalar), kForwardChunks, kForwardUnits,
                  4);
}

template <typename Scalar>
Deal deal_backward(int64_t batch, int64_t hidden_size) {
  return deal_out(batch, hidden_size, 4 * hidden_size, sizeof(Scalar), kBackwardChunks,
                  kBackwardUnits, 1);
}

template <typename Scalar>
cudaError_t launch_persistent_forward(const PersistentForward<Scalar>& pass, cudaStream_t stream) {
  return launch_together(forward_steps<Scalar>, pass, 4 * pass.deal.units, stream);
}

template <typename Scalar>
cudaError_t launch_persistent_backward(const PersistentBackward<Scalar>& pass,
                                       cudaStream_t stream) {
  return launch_together(backward_steps<Scalar>, pass, pass.deal.units, stream);
}

#define CAPTIONER_PERSISTENT(Scalar)                                                         \
  template Deal deal_forward<Scalar>(int64_t, int64_t);                                      \
  template Deal deal_backward<Scalar>(int64_t, int64_t);                                     \
  template cudaError_t launch_persistent_forward<Scalar>(const PersistentForward<Scalar>&,   \
                                                         cudaStream_t);                      \
  template cudaError_t launch_persistent_backward<Scalar>(const PersistentBackward<Scalar>&, \
                                                          cudaStream_t)
CAPTIONER_PERSISTENT(float);
CAPTIONER_PERSISTENT(c10::BFloat16);
CAPTIONER_PERSISTENT(c10::Half);
#undef CAPTIONER_PERSISTENT

}  // namespace captioner::cuda
