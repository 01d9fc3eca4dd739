// Scores of additive attention as one of the kernels of kernels.h.
//
// Letters as in ../additive_scores.h. A tanh of every value would be slow, but
//
//   tanh(q + k) = 1 - 2 r,   r = 1 / (1 + exp(2 q) exp(2 k)),   d tanh = 4 r (1 - r)
//
// needs exponentials of queries and keys alone, and for every value a multiply-add and a division.
// It is exact to rounding while |q| and |k| are at most kScoreLimit; beyond, they count as these.
#pragma once

#include <cstdint>

namespace captioner::cpu {

template <typename T>
constexpr T kScoreLimit = sizeof(T) == 4 ? 40 : 300;  // exp(2 x) and exp(-2 x) are normal numbers

template <typename T>
struct AdditiveParams {
  int64_t images, regions, units;
  const T* queries;       // [N, A]
  const T* keys;          // [I, R, A]
  const T* weight;        // [A]
  const int64_t* tokens;  // [N] image by image
  const int64_t* starts;  // [I + 1] where each image's begin among them
};

// The forward takes a range of places in `tokens`; its work space belongs to one thread.
template <typename T>
struct AdditiveForward {
  AdditiveParams<T> params;
  T weight_sum;
  T* scores;  // [N, R] written
};

// The backward takes a range of panels of Kernels::score_units units; what it writes of a unit is
// the same whatever the range.
template <typename T>
struct AdditiveBackward {
  AdditiveParams<T> params;
  const T* grad_scores;  // [N, R]
  T grad_sum;            // of all grad_scores
  T* grad_queries;       // [N, A] written
  T* grad_keys;          // [I, R, A] written
  T* grad_weight;        // [A] written
};

}  // namespace captioner::cpu
