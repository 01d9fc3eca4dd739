// The arithmetic of one LSTM cell, shared by host and device code.
//
// V is a number (float, double: one unit of one sequence) or a vector of them (cpu/vector.h:
// several units at once); Math<V> says how V takes its exponentials. Formulas and names as in
// src/captioner/ops/reference.py:
//     i, f, o = sigmoid(.), g = tanh(.),    c = f c_before + i g,    h = o tanh(c)
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define CAPTIONER_HOST_DEVICE __host__ __device__
#else
#define CAPTIONER_HOST_DEVICE __attribute__((always_inline))
#endif

namespace captioner {

template <typename V>
struct Math;

template <>
struct Math<float> {
  CAPTIONER_HOST_DEVICE static float one() { return 1.0f; }
  CAPTIONER_HOST_DEVICE static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
  CAPTIONER_HOST_DEVICE static float tanh(float x) { return ::tanhf(x); }
};

template <>
struct Math<double> {
  CAPTIONER_HOST_DEVICE static double one() { return 1.0; }
  CAPTIONER_HOST_DEVICE static double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
  CAPTIONER_HOST_DEVICE static double tanh(double x) { return ::tanh(x); }
};

// The four gates, in torch.nn.LSTM's order; before or after sigmoid and tanh, or their gradients.
template <typename V>
struct Gates {
  V i, f, g, o;
};

template <typename V>
CAPTIONER_HOST_DEVICE inline Gates<V> activate(const Gates<V>& pre_activations) {
  return {Math<V>::sigmoid(pre_activations.i), Math<V>::sigmoid(pre_activations.f),
          Math<V>::tanh(pre_activations.g), Math<V>::sigmoid(pre_activations.o)};
}

template <typename V>
struct CellState {
  V c, h;
};

template <typename V>
CAPTIONER_HOST_DEVICE inline CellState<V> cell_forward(const Gates<V>& gates, V c_before) {
  const V c = gates.f * c_before + gates.i * gates.g;
  return {c, gates.o * Math<V>::tanh(c)};
}

template <typename V>
struct CellGradient {
  Gates<V> pre_activations;
  V c_before;
};

// `dh` and `dc` are the gradients of h and c from outside this cell: dc does not yet hold the part
// that flows through h.
template <typename V>
CAPTIONER_HOST_DEVICE inline CellGradient<V> cell_backward(const Gates<V>& gates, V c_before, V c,
                                                           V dh, V dc) {
  const V one = Math<V>::one();
  const V tanh_c = Math<V>::tanh(c);
  const V dc_all = dc + dh * gates.o * (one - tanh_c * tanh_c);
  return {
      {dc_all * gates.g * gates.i * (one - gates.i), dc_all * c_before * gates.f * (one - gates.f),
       dc_all * gates.i * (one - gates.g * gates.g), dh * tanh_c * gates.o * (one - gates.o)},
      dc_all * gates.f};
}

}  // namespace captioner
