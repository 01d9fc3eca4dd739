#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../lstm_cell.h"
#include "launch.h"
#include "recurrence.h"
#include "vector.h"

namespace captioner::cuda {

constexpr int kThreads = 256;

// One block's share: N units a thread, one sequence a block in x, so that no thread divides.
template <int N>
__device__ __forceinline__ int64_t first_unit() {
  return (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N;
}

template <typename T>
__device__ __forceinline__ void advance(T*& pointer, int64_t numbers) {
  if (pointer != nullptr) pointer += numbers;
}

// The step of the block's model.
template <typename Scalar>
__device__ __forceinline__ ForwardStep<Scalar> of_model(ForwardStep<Scalar> step) {
  const int64_t model = blockIdx.z, row = model * step.hidden_size;
  const ModelStrides& stride = step.stride;
  step.input_projection += 4 * row * stride.sources;
  step.hidden_projection += 4 * row * stride.batch;
  advance(step.bias_ih, 4 * row);
  advance(step.bias_hh, 4 * row);
  step.c_before += row * stride.c_before;
  step.gates += 5 * row * stride.tokens;
  step.cells += 5 * row * stride.tokens;
  step.output += row * stride.tokens;
  step.hy += row * stride.batch;
  step.cy += row * stride.batch;
  return step;
}

template <typename Scalar>
__device__ __forceinline__ BackwardStep<Scalar> of_model(BackwardStep<Scalar> step) {
  const int64_t model = blockIdx.z, row = model * step.hidden_size;
  const ModelStrides& stride = step.stride;
  step.grad_output += row * stride.tokens;
  step.grad_hidden += row * stride.batch;
  step.grad_hy += row * stride.batch;
  step.grad_cy += row * stride.batch;
  step.gates += 5 * row * stride.tokens;
  step.cells += 5 * row * stride.tokens;
  step.c_before += row * stride.c_before;
  step.hidden_before += row * stride.h_before;
  step.grad_cell += row * stride.batch;
  advance(step.grad_cx, row * stride.batch);
  step.grad_gates += 4 * row * stride.tokens;
  step.h_before += row * stride.tokens;
  return step;
}

template <typename Scalar, int N>
__global__ void __launch_bounds__(kThreads) forward_step(const ForwardStep<Scalar> of_all) {
  using S = acc_t<Scalar>;
  const ForwardStep<Scalar> step = of_model(of_all);
  const int64_t hidden = step.hidden_size, row = blockIdx.x, unit = first_unit<N>();
  if (unit >= hidden) return;

  const int64_t source = step.input_rows ? step.input_rows[row] : row;
  // An index out of range must not read other memory: CUDA reports the trap as an error.
  if (source < 0 || source >= step.projection_rows) __trap();

  Values<S, N> gates[4];  // first their pre-activations
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    const int64_t column = gate * hidden + unit;
    gates[gate] = load<S, N>(step.input_projection + source * 4 * hidden + column);
    add(gates[gate], load<S, N>(step.hidden_projection + row * 4 * hidden + column));
    if (step.bias_ih != nullptr) {
      add(gates[gate], load<S, N>(step.bias_ih + column));
      add(gates[gate], load<S, N>(step.bias_hh + column));
    }
  }
  const auto c_before = load<S, N>(step.c_before + row * hidden + unit);
  Values<S, N> c, h;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const Gates<S> activated =
        activate<S>({gates[0].at[k], gates[1].at[k], gates[2].at[k], gates[3].at[k]});
    const CellState<S> cell = cell_forward(activated, c_before.at[k]);
    gates[0].at[k] = activated.i;
    gates[1].at[k] = activated.f;
    gates[2].at[k] = activated.g;
    gates[3].at[k] = activated.o;
    c.at[k] = cell.c;
    h.at[k] = cell.h;
  }
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    store(step.gates + row * 4 * hidden + gate * hidden + unit, gates[gate]);
  }
  store(step.cells + row * hidden + unit, c);
  store(step.output + row * hidden + unit, h);
  if (row >= step.continuing) {
    store(step.hy + row * hidden + unit, h);
    store(step.cy + row * hidden + unit, c);
  }
}

template <typename Scalar, int N>
__global__ void __launch_bounds__(kThreads) backward_step(const BackwardStep<Scalar> of_all) {
  using S = acc_t<Scalar>;
  const BackwardStep<Scalar> step = of_model(of_all);
  const int64_t hidden = step.hidden_size, row = blockIdx.x, unit = first_unit<N>();
  if (unit >= hidden) return;

  const int64_t at = row * hidden + unit;
  const bool continues = row < step.continuing;
  auto dh = load<S, N>(step.grad_output + at);
  add(dh, load<S, N>((continues ? step.grad_hidden : step.grad_hy) + at));
  auto dc = continues ? load<S, N>(step.grad_cell + at) : load<S, N>(step.grad_cy + at);

  Values<S, N> gates[4];
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    gates[gate] = load<S, N>(step.gates + row * 4 * hidden + gate * hidden + unit);
  }
  const auto c_before = load<S, N>(step.c_before + at), c = load<S, N>(step.cells + at);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const CellGradient<S> gradient =
        cell_backward<S>({gates[0].at[k], gates[1].at[k], gates[2].at[k], gates[3].at[k]},
                         c_before.at[k], c.at[k], dh.at[k], dc.at[k]);
    gates[0].at[k] = gradient.pre_activations.i;
    gates[1].at[k] = gradient.pre_activations.f;
    gates[2].at[k] = gradient.pre_activations.g;
    gates[3].at[k] = gradient.pre_activations.o;
    dc.at[k] = gradient.c_before;
  }
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    store(step.grad_gates + row * 4 * hidden + gate * hidden + unit, gates[gate]);
  }
  if (step.grad_cx) {
    store(step.grad_cx + at, dc);
  } else {
    store(step.grad_cell + at, dc);
  }
  // Copied here, where it costs no launch of its own and needs no index of rows on the device.
  store(step.h_before + at, load<S, N>(step.hidden_before + at));
}

// The launch of one step; `aligned` says whether vectors may be taken.
template <typename Scalar, typename Step>
cudaError_t launch_step(void (*wide)(Step), void (*narrow)(Step), bool aligned, const Step& step,
                        cudaStream_t stream) {
  if (step.hidden_size == 0) return cudaSuccess;  // a launch of no blocks is an error to CUDA
  constexpr int64_t kWide = 16 / sizeof(acc_t<Scalar>);
  const bool vectors = aligned && step.hidden_size % kWide == 0;
  const int64_t columns = vectors ? step.hidden_size / kWide : step.hidden_size;
  const unsigned threads = columns < kThreads ? 32 * blocks_for(columns, 32) : kThreads;
  const dim3 grid(static_cast<unsigned>(step.sequences), blocks_for(columns, threads),
                  static_cast<unsigned>(step.models));
  return launch(vectors ? wide : narrow, grid, dim3(threads), stream, step);
}

template <typename Scalar>
cudaError_t launch_forward(const ForwardStep<Scalar>& step, cudaStream_t stream) {
  constexpr int N = 16 / sizeof(acc_t<Scalar>);
  const bool vectors =
      aligned<N>(step.input_projection, step.hidden_projection, step.bias_ih, step.bias_hh,
                 step.c_before, step.gates, step.cells, step.output, step.hy, step.cy);
  return launch_step<Scalar>(forward_step<Scalar, N>, forward_step<Scalar, 1>, vectors, step,
                             stream);
}

template <typename Scalar>
cudaError_t launch_backward(const BackwardStep<Scalar>& step, cudaStream_t stream) {
  constexpr int N = 16 / sizeof(acc_t<Scalar>);
  const bool vectors = aligned<N>(step.grad_output, step.grad_hidden, step.grad_hy, step.grad_cy,
                                  step.gates, step.cells, step.c_before, step.hidden_before,
                                  step.grad_cell, step.grad_cx, step.grad_gates, step.h_before);
  return launch_step<Scalar>(backward_step<Scalar, N>, backward_step<Scalar, 1>, vectors, step,
                             stream);
}

#define CAPTIONER_LAUNCHERS(Scalar)                                                      \
  template cudaError_t launch_forward<Scalar>(const ForwardStep<Scalar>&, cudaStream_t); \
  template cudaError_t launch_backward<Scalar>(const BackwardStep<Scalar>&, cudaStream_t)
CAPTIONER_LAUNCHERS(double);
CAPTIONER_LAUNCHERS(float);
CAPTIONER_LAUNCHERS(c10::BFloat16);
CAPTIONER_LAUNCHERS(c10::Half);
#undef CAPTIONER_LAUNCHERS

}  // namespace captioner::cuda
