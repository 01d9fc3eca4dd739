// Several neighbouring numbers of one thread, moved by one instruction where they are aligned.
#pragma once

#include <cstdint>

namespace captioner::cuda {

// The alignment is what lets the compiler take one load or store of up to 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
  T at[N];
};

template <typename Acc, int N>
struct Values {
  Acc at[N];
};

template <typename Acc, int N, typename T>
__device__ __forceinline__ Values<Acc, N> load(const T* from) {  // [N]
  const auto vector = *reinterpret_cast<const Vector<T, N>*>(from);
  Values<Acc, N> values;
#pragma unroll
  for (int k = 0; k < N; ++k) values.at[k] = static_cast<Acc>(vector.at[k]);
  return values;
}

template <typename Acc, int N, typename T>
__device__ __forceinline__ void store(T* to, const Values<Acc, N>& values) {  // [N]
  Vector<T, N> vector;
#pragma unroll
  for (int k = 0; k < N; ++k) vector.at[k] = static_cast<T>(values.at[k]);
  *reinterpret_cast<Vector<T, N>*>(to) = vector;
}

template <typename Acc, int N>
__device__ __forceinline__ void add(Values<Acc, N>& sum, const Values<Acc, N>& values) {
#pragma unroll
  for (int k = 0; k < N; ++k) sum.at[k] += values.at[k];
}

// Whether all of these may be read as vectors of N. A tensor can be dense and yet start anywhere.
template <int N, typename... T>
bool aligned(const T*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % (sizeof(T) * N) == 0) && ...);
}

}  // namespace captioner::cuda
