// METEOR-py's alignment of a hypothesis with each of its references: evaluation/meteor.py does the
// same step by step, and is where each is explained.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "parallel.h"
#include "scoring.h"
#include "words.h"

namespace {

constexpr size_t kBeam = 40;
constexpr double kDelta = 0.75;
enum Module { kExact, kStem, kSynonym, kParaphrase };
constexpr double kWeights[] = {1.0, 0.6, 0.8, 0.6};

struct Sentence {
  const int32_t* words;
  int32_t size;
};

struct Match {
  Module module;
  int32_t start, length, at, at_length;
};

struct Range {
  int32_t first, last;
};

struct Phrase {  // words of a sentence that have paraphrases, and those that may be in the other
                 // one
  int32_t start, length;
  Range others;
};

// What a word of the reference can match, and the matches that have no alternative.
struct Options {
  std::vector<std::vector<Match>> of_word;
  std::vector<bool> fixed, taken;  // a fixed match begins there; it covers the word

  void clear(int32_t words) {
    if (of_word.size() < static_cast<size_t>(words)) of_word.resize(words);
    for (int32_t place = 0; place < words; ++place) of_word[place].clear();
  }
};

// Words of the hypothesis: a bit each where 64 are enough.
using Many = std::vector<bool>;
void mark(uint64_t& used, int32_t at) { used |= uint64_t{1} << at; }
void mark(Many& used, int32_t at) { used[at] = true; }
bool has(uint64_t used, int32_t at) { return used >> at & 1; }
bool has(const Many& used, int32_t at) { return used[at]; }

template <typename Used>
void mark(Used& used, const Match& match) {
  for (int32_t k = 0; k < match.at_length; ++k) mark(used, match.at + k);
}

template <typename Used>
bool overlaps(const Used& used, const Match& match) {
  for (int32_t k = 0; k < match.at_length; ++k) {
    if (has(used, match.at + k)) return true;
  }
  return false;
}

// The beam search over the words of a reference.
template <typename Used>
class Beam {
 public:
  // The matches of the best alignment, in the reference's order.
  void search(const Options& options, int32_t words, const Used& nothing,
              std::vector<const Match*>& out) {
    nodes_.clear();
    paths_.assign(1, {kNothing, 0, nullptr, -1, 0, -1, nothing});
    for (int32_t place = 0; place < words; ++place) {
      if (options.fixed[place]) mark(paths_[0].used, options.of_word[place][0]);
    }
    for (int32_t place = 0; place < words; ++place) {
      keep_best();
      if (options.taken[place]) {
        take_fixed(options, words, place);
      } else if (options.of_word[place].empty()) {
        for (Path& path : paths_) {
          if (place >= path.next_word) path.pass();
        }
      } else {
        branch(options.of_word[place], place);
      }
    }
    keep_best();
    for (Path& path : paths_) path.pass();  // closes an open chunk
    const Path& best = *std::min_element(paths_.begin(), paths_.end());
    const size_t first = out.size();
    for (int32_t node = best.parent; node >= 0; node = nodes_[node].parent) {
      out.push_back(nodes_[node].match);
    }
    std::reverse(out.begin() + first, out.end());
  }

 private:
  static constexpr uint64_t kMatchedWord = uint64_t{1} << 32, kNothing = uint64_t{1} << 63;

  // A partial alignment, and the match that it takes last, which is no node yet.
  struct Path {
    uint64_t cost;     // matched words (negative), and chunks: the fewer the better
    int64_t distance;  // decides where costs are equal
    const Match* match;
    int32_t parent;  // node of the match before
    int32_t next_word, end;
    Used used;

    bool operator<(const Path& other) const {
      return cost != other.cost ? cost < other.cost : distance < other.distance;
    }

    void pass() {  // the next word is left unmatched
      cost += end != -1;
      ++next_word;
      end = -1;
    }

    void take(const Match& taken) {
      const double weight = kWeights[taken.module];
      const auto gained = static_cast<uint64_t>(taken.length * weight) +
                          static_cast<uint64_t>(taken.at_length * weight);
      cost -= gained * kMatchedWord;
      cost += end != -1 && end != taken.at;
      match = &taken;
      next_word = taken.start + taken.length;
      end = taken.at + taken.at_length;
      mark(used, taken);
    }
  };

  struct Node {
    const Match* match;
    int32_t parent;
  };

  // Sorts the paths, keeps the best, and makes nodes of their last matches.
  void keep_best() {
    if (paths_.size() > kBeam || !std::is_sorted(paths_.begin(), paths_.end())) sort();
    for (Path& path : paths_) {
      if (path.match == nullptr) continue;
      nodes_.push_back({path.match, path.parent});
      path.parent = static_cast<int32_t>(nodes_.size()) - 1;
      path.match = nullptr;
    }
  }

  void sort() {
    order_.clear();
    for (const Path& path : paths_) order_.push_back(&path);
    const auto better = [](const Path* a, const Path* b) {
      return *a < *b || (!(*b < *a) && a < b);
    };
    const size_t kept = std::min(kBeam, order_.size());
    if (kept < order_.size()) {
      std::nth_element(order_.begin(), order_.begin() + kept, order_.end(), better);
    }
    std::sort(order_.begin(), order_.begin() + kept, better);
    following_.clear();
    for (size_t k = 0; k < kept; ++k) following_.push_back(*order_[k]);
    paths_.swap(following_);
  }

  void take_fixed(const Options& options, int32_t words, int32_t place) {
    size_t kept = 0;
    for (size_t k = 0; k < paths_.size(); ++k) {
      Path& path = paths_[k];
      if (place >= path.next_word) {
        if (path.next_word >= words || !options.fixed[path.next_word]) continue;
        const Match& match = options.of_word[path.next_word][0];
        path.distance += std::abs(match.start - match.at);
        path.take(match);
      }
      if (kept < k) paths_[kept] = path;
      ++kept;
    }
    paths_.resize(std::max<size_t>(kept, 1), paths_[0]);
  }

  void branch(const std::vector<Match>& options, int32_t place) {
    following_.clear();
    for (Path& path : paths_) {
      if (place < path.next_word) {
        following_.push_back(path);
        continue;
      }
      for (const Match& option : options) {
        if (overlaps(path.used, option)) continue;
        following_.push_back(path);
        following_.back().take(option);
        // A match's distance is added to the alternatives after it: to the path itself.
        path.distance += std::abs(option.start - option.at);
      }
      path.pass();
      following_.push_back(path);
    }
    paths_.swap(following_);
  }

  std::vector<Path> paths_, following_;
  std::vector<const Path*> order_;
  std::vector<Node> nodes_;
};

// Words, each with a mark that all others lose at once.
class Marks {
 public:
  explicit Marks(size_t size) : mark_(size, 0) {}
  void clear() { ++now_; }
  void add(int32_t number) { mark_[number] = now_; }
  void add(Sentence sentence) {
    for (int32_t k = 0; k < sentence.size; ++k) add(sentence.words[k]);
  }
  bool has(int32_t number) const { return mark_[number] == now_; }

 private:
  std::vector<int32_t> mark_;
  int32_t now_ = 0;
};

// Aligns one hypothesis with one reference after another. What it finds out of a word or a phrase
// of a reference is kept for the other references.
class Aligner {
 public:
  explicit Aligner(const WordMatches& known)
      : known_(known),
        mine_(known.stems.size()),
        theirs_(known.stems.size()),
        word_is_known_(known.stems.size()),
        phrase_is_known_(known.first_paraphrase.size()),
        of_word_(known.stems.size()),
        of_phrase_(known.first_paraphrase.size()) {}

  // `references` are the sentences that will be aligned with it.
  template <typename Sentences>
  void take_hypothesis(Sentence hypothesis, const Sentences& references) {
    hypothesis_ = hypothesis;
    for (Marks* marks : {&mine_, &theirs_, &word_is_known_, &phrase_is_known_}) marks->clear();
    for (Sentence reference : references) theirs_.add(reference);
    places_.clear();
    others_.clear();
    phrases_.clear();
    find_phrases(hypothesis, phrases_, [this](int32_t phrase) { return others(phrase, theirs_); });
    mine_.add(hypothesis);
  }

  void statistics(Sentence reference, double* out) {
    reference_ = reference;
    matches_.clear();
    if (hypothesis_.size > 0 && reference.size > 0) align();
    int64_t matched = 0, chunks = !matches_.empty();
    double ours = 0, theirs = 0;
    for (size_t k = 0; k < matches_.size(); ++k) {
      const Match& m = *matches_[k];
      matched += m.at_length + m.length;
      ours += kWeights[m.module] * weight(hypothesis_, m.at, m.at + m.at_length);
      theirs += kWeights[m.module] * weight(reference_, m.start, m.start + m.length);
      if (k == 0) continue;
      const Match& before = *matches_[k - 1];
      chunks += before.start + before.length != m.start || before.at + before.at_length != m.at;
    }
    if (chunks == 1 && matched == hypothesis_.size + reference_.size) chunks = 0;
    out[0] = ours;
    out[1] = theirs;
    out[2] = weight(hypothesis_, 0, hypothesis_.size);
    out[3] = weight(reference_, 0, reference_.size);
    out[4] = static_cast<double>(matched);
    out[5] = static_cast<double>(chunks);
  }

 private:
  double weight(Sentence sentence, int32_t first, int32_t last) const {
    double sum = 0;  // of quarters: exact
    for (; first < last; ++first) {
      sum += known_.is_function_word[sentence.words[first]] ? 1 - kDelta : kDelta;
    }
    return sum;
  }

  // Leaves the matches of the best alignment in `matches_`.
  void align() {
    find_matches();
    const size_t count = find_unambiguous();
    if (fixed_count_ == count) {
      for (int32_t place = 0; place < reference_.size; ++place) {
        if (options_.fixed[place]) matches_.push_back(&options_.of_word[place][0]);
      }
      return;
    }
    if (hypothesis_.size <= 64) {
      beam_.search(options_, reference_.size, 0, matches_);
    } else {
      large_beam_.search(options_, reference_.size, Many(hypothesis_.size), matches_);
    }
  }

  // Finds the matches without an alternative; the number of all matches.
  size_t find_unambiguous() {
    covering_mine_.assign(hypothesis_.size, 0);
    covering_theirs_.assign(reference_.size, 0);
    size_t count = 0;
    for (int32_t place = 0; place < reference_.size; ++place) {
      count += options_.of_word[place].size();
      for (const Match& m : options_.of_word[place]) {
        for (int32_t k = 0; k < m.at_length; ++k) ++covering_mine_[m.at + k];
        for (int32_t k = 0; k < m.length; ++k) ++covering_theirs_[m.start + k];
      }
    }
    options_.fixed.assign(reference_.size, false);
    options_.taken.assign(reference_.size, false);
    fixed_count_ = 0;
    for (int32_t place = 0; place < reference_.size; ++place) {
      if (options_.of_word[place].size() != 1 || !alone(options_.of_word[place][0])) continue;
      const Match& match = options_.of_word[place][0];
      options_.fixed[place] = true;
      std::fill_n(options_.taken.begin() + place, match.length, true);
      ++fixed_count_;
    }
    return count;
  }

  bool alone(const Match& match) const {
    const int32_t* mine = &covering_mine_[match.at];
    const int32_t* theirs = &covering_theirs_[match.start];
    const auto once = [](int32_t count) { return count == 1; };
    return std::all_of(mine, mine + match.at_length, once) &&
           std::all_of(theirs, theirs + match.length, once);
  }

  // All matches by the reference's word they start at, module by module.
  void find_matches() {
    options_.clear(reference_.size);
    pair(kExact);
    if (std::equal(hypothesis_.words, hypothesis_.words + hypothesis_.size, reference_.words,
                   reference_.words + reference_.size)) {
      return;
    }
    pair(kStem);
    pair(kSynonym);
    reference_phrases_.clear();
    find_phrases(reference_, reference_phrases_, [this](int32_t phrase) {
      if (!phrase_is_known_.has(phrase)) {
        phrase_is_known_.add(phrase);
        of_phrase_[phrase] = others(phrase, mine_);
      }
      return of_phrase_[phrase];
    });
    find_paraphrases(reference_phrases_, hypothesis_,
                     [this](const Phrase& phrase, int32_t at, int32_t length) {
                       options_.of_word[phrase.start].push_back(
                           {kParaphrase, phrase.start, phrase.length, at, length});
                     });
    find_paraphrases(phrases_, reference_,
                     [this](const Phrase& phrase, int32_t place, int32_t length) {
                       options_.of_word[place].push_back(
                           {kParaphrase, place, length, phrase.start, phrase.length});
                     });
  }

  void pair(Module module) {
    for (int32_t place = 0; place < reference_.size; ++place) {
      const Range range = places_of(reference_.words[place])[module];
      for (int32_t k = range.first; k < range.last; ++k) {
        options_.of_word[place].push_back({module, place, 1, places_[k], 1});
      }
    }
  }

  // Where the hypothesis has the word itself, its stem, a synonym: ranges of `places_`.
  const std::array<Range, kParaphrase>& places_of(int32_t word) {
    auto& found = of_word_[word];
    if (word_is_known_.has(word)) return found;
    word_is_known_.add(word);
    const auto find = [&](Module module, auto matches) {
      found[module].first = static_cast<int32_t>(places_.size());
      for (int32_t at = 0; at < hypothesis_.size; ++at) {
        if (matches(hypothesis_.words[at])) places_.push_back(at);
      }
      found[module].last = static_cast<int32_t>(places_.size());
    };
    find(kExact, [&](int32_t mine) { return mine == word; });
    find(kStem,
         [&](int32_t mine) { return mine != word && known_.stems[mine] == known_.stems[word]; });
    find(kSynonym,
         [&](int32_t mine) { return mine != word && known_.have_a_common_synset(mine, word); });
    return found;
  }

  // The paraphrases of a phrase that begin with a word that is marked: a range of `others_`.
  Range others(int32_t phrase, const Marks& marked) {
    const auto first = static_cast<int32_t>(others_.size());
    for (int32_t number = known_.first_paraphrase[phrase]; number >= 0;) {
      const WordMatches::Paraphrase& other = known_.paraphrases[number];
      if (marked.has(other.first_word)) others_.push_back(number);
      number = other.next;
    }
    return {first, static_cast<int32_t>(others_.size())};
  }

  template <typename Others>
  void find_phrases(Sentence sentence, std::vector<Phrase>& phrases, Others others_of) {
    for (int32_t start = 0; start < sentence.size; ++start) {
      int32_t phrase = -1;
      for (int32_t end = start; end < sentence.size; ++end) {
        phrase = known_.longer_phrase(phrase, sentence.words[end]);
        if (phrase < 0) break;
        const Range others = others_of(phrase);
        if (others.first < others.last) phrases.push_back({start, end + 1 - start, others});
      }
    }
  }

  // Calls `take` with a phrase, and place and length of a paraphrase of it in the other sentence.
  template <typename Take>
  void find_paraphrases(const std::vector<Phrase>& phrases, Sentence into, Take take) const {
    for (const Phrase& phrase : phrases) {
      for (int32_t k = phrase.others.first; k < phrase.others.last; ++k) {
        const WordMatches::Paraphrase& other = known_.paraphrases[others_[k]];
        const int32_t* words = &known_.paraphrase_words[other.words];
        for (int32_t at = 0; at + other.length <= into.size; ++at) {
          if (words[0] == into.words[at] &&
              std::equal(words, words + other.length, into.words + at)) {
            take(phrase, at, other.length);
          }
        }
      }
    }
  }

  const WordMatches& known_;
  Sentence hypothesis_{}, reference_{};
  Marks mine_, theirs_;  // words of the hypothesis and of all references
  Marks word_is_known_, phrase_is_known_;
  std::vector<std::array<Range, kParaphrase>> of_word_;
  std::vector<Range> of_phrase_;
  std::vector<int32_t> places_, others_;
  std::vector<Phrase> phrases_, reference_phrases_;
  Options options_;
  size_t fixed_count_ = 0;
  std::vector<const Match*> matches_;
  std::vector<int32_t> covering_mine_, covering_theirs_;
  Beam<uint64_t> beam_;
  Beam<Many> large_beam_;
};

}  // namespace

int captioner_meteor(const WordMatches* known, const int32_t* words, const int64_t* starts,
                     const int64_t* first_row, int64_t images, int64_t threads, double* out) {
  return captioner::scoring::guarded([&] {
    captioner::scoring::parallel_for(images, 16, threads, [&] {
      return [&, aligner = Aligner(*known), references = std::vector<Sentence>()](
                 int64_t first, int64_t last) mutable {
        const auto sentence = [&](int64_t row) {
          return Sentence{words + starts[row], static_cast<int32_t>(starts[row + 1] - starts[row])};
        };
        for (int64_t image = first; image < last; ++image) {
          references.clear();
          for (int64_t row = first_row[image] + 1; row < first_row[image + 1]; ++row) {
            references.push_back(sentence(row));
          }
          aligner.take_hypothesis(sentence(first_row[image]), references);
          double* statistics = out + 6 * (first_row[image] - image);
          for (Sentence reference : references) {
            aligner.statistics(reference, statistics);
            statistics += 6;
          }
        }
      };
    });
  });
}
