// Ranges of sequences for threads, so that all of them finish at about the same time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../lstm.h"

namespace captioner::cpu {

// A step of a range reads all of weight_hh, however few sequences are left: about what this many
// more sequences would cost (measured at H = 512, where it hardly matters between 2 and 8).
constexpr int64_t kStepCost = 4;

// Bounds b_0 = 0 <= ... <= b_n = B of at most `threads` ranges of packed sequences. The longest
// sequences come first, so a range that starts at b has as many steps as sequence b.
inline std::vector<int64_t> sequence_ranges(const LstmShape& shape, int64_t threads) {
  std::vector<int64_t> lengths(shape.batch, 0);
  for (int64_t t = 0; t < shape.steps; ++t) lengths[shape.batch_sizes[t] - 1] = t + 1;
  for (int64_t b = shape.batch - 2; b >= 0; --b) lengths[b] = std::max(lengths[b], lengths[b + 1]);

  const auto within = [&](int64_t most) {
    std::vector<int64_t> bounds{0};
    int64_t cost = 0;
    for (int64_t b = 0; b < shape.batch; ++b) {
      if (cost > 0 && cost + lengths[b] > most) {
        bounds.push_back(b);
        cost = 0;
      }
      cost += cost == 0 ? (1 + kStepCost) * lengths[b] : lengths[b];
    }
    bounds.push_back(shape.batch);
    return bounds;
  };
  int64_t too_little = 0, enough = shape.tokens + kStepCost * shape.steps;
  while (enough - too_little > 1) {
    const int64_t middle = (too_little + enough) / 2;
    const bool fits = static_cast<int64_t>(within(middle).size()) - 1 <= threads;
    (fits ? enough : too_little) = middle;
  }
  return within(enough);
}

}  // namespace captioner::cpu
