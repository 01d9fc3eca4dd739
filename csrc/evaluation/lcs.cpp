// ROUGE-L's longest common subsequences.
#include <algorithm>
#include <vector>

#include "parallel.h"
#include "scoring.h"

namespace {

class Subsequence {
 public:
  // The usual table, a row at a time: `row_[j]` is the length for the first words of `mine` and
  // the first j of `theirs`.
  int64_t longest(const int32_t* mine, int64_t m, const int32_t* theirs, int64_t n) {
    if (m == 0 || n == 0) return m == n;
    row_.assign(n + 1, 0);
    for (int64_t i = 0; i < m; ++i) {
      int32_t upper_left = 0;
      for (int64_t j = 0; j < n; ++j) {
        const int32_t upper = row_[j + 1];
        row_[j + 1] =
            std::max({upper, row_[j], upper_left + static_cast<int32_t>(mine[i] == theirs[j])});
        upper_left = upper;
      }
    }
    return row_[n];
  }

 private:
  std::vector<int32_t> row_;
};

}  // namespace

int captioner_lcs(const int32_t* words, const int64_t* starts, const int64_t* first_row,
                  int64_t images, int64_t threads, int64_t* out) {
  using captioner::scoring::guarded;
  using captioner::scoring::parallel_for;
  const auto worker = [=] {
    return [=, subsequence = Subsequence()](int64_t first, int64_t last) mutable {
      for (int64_t image = first; image < last; ++image) {
        const int64_t hypothesis = first_row[image], end = first_row[image + 1];
        const auto length = [&](int64_t row) { return starts[row + 1] - starts[row]; };
        for (int64_t row = hypothesis + 1; row < end; ++row) {
          out[row - image - 1] = subsequence.longest(words + starts[hypothesis], length(hypothesis),
                                                     words + starts[row], length(row));
        }
      }
    };
  };
  return guarded([&] { parallel_for(images, 64, threads, worker); });
}
