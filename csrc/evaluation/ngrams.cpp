// N-grams of one to four words: in how many images each is, and of each image what BLEU and CIDEr-D
// add up. Sums are taken in the order of the words' numbers, as evaluation/ngrams.py takes them.
#include <algorithm>
#include <array>
#include <vector>

#include "parallel.h"
#include "scoring.h"

namespace {

constexpr int kOrders = 4;

// The words from some position on, as far as the sentence goes; compares as the words' numbers do.
struct Key {
  uint64_t high = 0, low = 0;  // two words each, plus one: 0 is the sentence's end

  static Key at(const int32_t* words, int64_t position, int64_t end) {
    const auto word = [&](int64_t k) {
      return position + k < end ? static_cast<uint64_t>(words[position + k]) + 1 : 0;
    };
    return {word(0) << 32 | word(1), word(2) << 32 | word(3)};
  }

  // The first `order` words.
  Key first(int order) const {
    constexpr uint64_t kFirst = ~uint64_t{0} << 32;
    return {order == 1 ? high & kFirst : high, order <= 2 ? 0 : order == 3 ? low & kFirst : low};
  }

  bool has(int order) const {  // as many words
    const uint64_t two = order <= 2 ? high : low;
    return (order % 2 ? two >> 32 : two & 0xffffffff) != 0;
  }

  bool operator==(const Key& other) const { return high == other.high && low == other.low; }
  bool operator<(const Key& other) const {
    return high != other.high ? high < other.high : low < other.low;
  }
};

struct Sentences {
  const int32_t* words;
  const int64_t *starts, *first_row;
  int64_t images, vocabulary;

  int64_t rows() const { return first_row[images]; }
  int64_t size() const { return starts[rows()]; }
};

// The number of images with a reference that has the n-gram at each position, [N, 4].
class DocumentFrequencies {
 public:
  DocumentFrequencies(const Sentences& text, int64_t threads)
      : images_(text.images), counts_(text.size()) {
    gather(text);
    captioner::scoring::parallel_for(text.vocabulary, 16, threads, [this] {
      return [this, runs = Runs(), seen = Seen(images_)](int64_t first, int64_t last) mutable {
        for (int64_t word = first; word < last; ++word) count(word, runs, seen);
      };
    });
    positions_ = {};
  }

  const std::array<int32_t, kOrders>& operator[](int64_t position) const {
    return counts_[position];
  }

 private:
  struct Position {
    Key key;
    int32_t at, image;  // image -1: in a hypothesis

    bool operator<(const Position& other) const {
      return key == other.key ? at < other.at : key < other.key;
    }
  };
  using Orders = std::array<int32_t, kOrders>;
  using Seen = std::vector<std::array<int64_t, kOrders>>;  // by image and order: its last run

  // N-grams that begin with one word, in order: equal ones are a run.
  struct Runs {
    std::vector<Orders> of_position;
    std::vector<int32_t> images;  // of each run
  };

  // Puts positions of the same word together.
  void gather(const Sentences& text) {
    first_.assign(text.vocabulary + 1, 0);
    for (int64_t at = 0; at < text.size(); ++at) ++first_[text.words[at] + 1];
    for (int64_t word = 0; word < text.vocabulary; ++word) first_[word + 1] += first_[word];
    positions_.resize(text.size());
    std::vector<int64_t> next(first_.begin(), first_.end() - 1);
    for (int64_t image = 0; image < images_; ++image) {
      for (int64_t row = text.first_row[image]; row < text.first_row[image + 1]; ++row) {
        const int64_t end = text.starts[row + 1];
        for (int64_t at = text.starts[row]; at < end; ++at) {
          positions_[next[text.words[at]]++] = {
              Key::at(text.words, at, end), static_cast<int32_t>(at),
              static_cast<int32_t>(row == text.first_row[image] ? -1 : image)};
        }
      }
    }
  }

  void count(int64_t word, Runs& runs, Seen& seen) {
    const auto begin = positions_.begin() + first_[word],
               end = positions_.begin() + first_[word + 1];
    std::sort(begin, end);
    runs.of_position.clear();
    runs.images.clear();
    const int64_t first_run = kOrders * first_[word] + 1;  // no other word's have these numbers
    for (auto position = begin; position != end; ++position) {
      Orders of_position;
      for (int order = 1; order <= kOrders; ++order) {
        int32_t& run = of_position[order - 1];
        if (position != begin && position->key.first(order) == (position - 1)->key.first(order)) {
          run = runs.of_position.back()[order - 1];
        } else {
          run = static_cast<int32_t>(runs.images.size());
          runs.images.push_back(0);
        }
        if (position->image < 0) continue;
        int64_t& last = seen[position->image][order - 1];
        runs.images[run] += last != first_run + run;
        last = first_run + run;
      }
      runs.of_position.push_back(of_position);
    }
    for (auto position = begin; position != end; ++position) {
      for (int order = 0; order < kOrders; ++order) {
        counts_[position->at][order] = runs.images[runs.of_position[position - begin][order]];
      }
    }
  }

  const int64_t images_;
  std::vector<int64_t> first_;  // of each word among the positions
  std::vector<Position> positions_;
  std::vector<Orders> counts_;
};

struct Entry {  // an n-gram of a sentence
  Key ngram;
  int64_t count;
  double weight;
};

struct Sums {
  const Sentences text;
  const DocumentFrequencies& frequencies;
  const double* rarity;
  double *matches, *norms, *clipped, *plain;
};

// The sums of one image after another.
class ImageSums {
 public:
  explicit ImageSums(const Sums& sums) : sums_(sums) {}

  void add(int64_t image) {
    const int64_t hypothesis = sums_.text.first_row[image], end = sums_.text.first_row[image + 1];
    for (int64_t row = hypothesis; row < end; ++row) {
      sort(row);
      for (int order = 1; order <= kOrders; ++order) {
        auto& entries = row == hypothesis ? mine_[order - 1] : theirs_;
        find(order, entries);
        const int64_t cell = (order - 1) * sums_.text.rows() + row;
        for (const Entry& entry : entries) sums_.norms[cell] += entry.weight * entry.weight;
        if (row == hypothesis) {
          most_[order - 1].assign(entries.size(), 0);
        } else {
          compare(order, cell);
        }
      }
    }
    for (int order = 0; order < kOrders; ++order) {
      int64_t matched = 0;
      for (size_t k = 0; k < mine_[order].size(); ++k) {
        matched += std::min(mine_[order][k].count, most_[order][k]);
      }
      sums_.matches[image * kOrders + order] = static_cast<double>(matched);
    }
  }

 private:
  void sort(int64_t row) {
    sorted_.clear();
    const int64_t end = sums_.text.starts[row + 1];
    for (int64_t at = sums_.text.starts[row]; at < end; ++at) {
      sorted_.emplace_back(Key::at(sums_.text.words, at, end), at);
    }
    std::sort(sorted_.begin(), sorted_.end());
  }

  // The different n-grams of the sentence that was sorted.
  void find(int order, std::vector<Entry>& entries) const {
    entries.clear();
    for (const auto& [key, at] : sorted_) {
      if (!key.has(order)) continue;
      const Key ngram = key.first(order);
      if (!entries.empty() && entries.back().ngram == ngram) {
        ++entries.back().count;
      } else {
        entries.push_back({ngram, 1, sums_.rarity[sums_.frequencies[at][order - 1]]});
      }
    }
    for (Entry& entry : entries) entry.weight *= static_cast<double>(entry.count);
  }

  // What the hypothesis and the reference in `theirs_` share.
  void compare(int order, int64_t cell) {
    const auto& mine = mine_[order - 1];
    for (size_t m = 0, t = 0; m < mine.size() && t < theirs_.size();) {
      if (mine[m].ngram == theirs_[t].ngram) {
        const double ours = mine[m].weight, other = theirs_[t].weight;
        sums_.clipped[cell] += std::min(ours, other) * other;
        sums_.plain[cell] += ours * other;
        int64_t& most = most_[order - 1][m];
        most = std::max(most, theirs_[t].count);
        ++m, ++t;
      } else {
        (mine[m].ngram < theirs_[t].ngram ? m : t) += 1;
      }
    }
  }

  const Sums sums_;
  std::vector<std::pair<Key, int64_t>> sorted_;
  std::array<std::vector<Entry>, kOrders> mine_;
  std::array<std::vector<int64_t>, kOrders> most_;  // times that a reference has it
  std::vector<Entry> theirs_;
};

}  // namespace

int captioner_ngrams(const int32_t* words, const int64_t* starts, const int64_t* first_row,
                     int64_t images, int64_t vocabulary, const double* rarity, int64_t threads,
                     double* matches_out, double* norms_out, double* clipped_out,
                     double* plain_out) {
  return captioner::scoring::guarded([&] {
    const Sentences text{words, starts, first_row, images, vocabulary};
    const int64_t cells = kOrders * text.rows();
    for (double* sums : {norms_out, clipped_out, plain_out}) std::fill(sums, sums + cells, 0.0);
    const DocumentFrequencies frequencies(text, threads);
    const Sums sums{text, frequencies, rarity, matches_out, norms_out, clipped_out, plain_out};
    captioner::scoring::parallel_for(images, 64, threads, [&] {
      return [image_sums = ImageSums(sums)](int64_t first, int64_t last) mutable {
        for (int64_t image = first; image < last; ++image) image_sums.add(image);
      };
    });
  });
}
