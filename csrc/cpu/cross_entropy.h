// The loss at a language model's end, as one of the kernels of kernels.h: logits, softmax and
// gradients while they are in cache.
//
// Letters as in ../linear_cross_entropy.h. Logits lie in panels of W = Kernels::panel_width words,
// [panels, N, W]: each of the three GEMMs then reads them from front to back. What lies beyond
// the last word is neither read nor defined.
#pragma once

#include <cstdint>

namespace captioner::cpu {

constexpr int64_t kIgnored = -100;  // the target of a token that counts for nothing

template <typename T>
struct LossParams {
  int64_t hidden_size, vocab_size;
  const T* hidden;         // [N, H]
  const T* words;          // the transposed weight [H, V], packed by pack
  const T* bias;           // [panels * W]
  const int64_t* targets;  // [N]
  T smoothing;             // the share of a target's probability that goes to all words
  bool wants_gradient;     // else `logits` are the same few rows again and again
  int64_t logits_rows;     // N; Kernels::loss_rows where no gradient is wanted
  T* logits;               // [panels, logits_rows, W] left as the gradient of the logits
  T* losses;               // [N] written
};

template <typename T>
struct LossGradient {
  int64_t tokens, hidden_size, vocab_size;
  const T* grad_logits;  // [panels, N, W]
  const T* words;        // weight [V, H], packed by pack
  const T* hidden;       // [N, H], packed by pack
  T factor;              // of all results
  T* grad_hidden;        // [N, H] written
  T* grad_weight;        // [V, H] written
};

}  // namespace captioner::cpu
