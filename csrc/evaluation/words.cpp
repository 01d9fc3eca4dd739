#include "words.h"

#include <algorithm>

#include "parallel.h"

WordMatches::WordMatches(std::string_view words, const int32_t* stems_of,
                         const uint8_t* function_words, const int32_t* synset_starts,
                         const int32_t* synsets)
    : text_(words) {
  for (std::string_view rest = text_; !rest.empty();) {
    const size_t length = rest.find('\n');
    numbers_.insert(rest.substr(0, length));
    rest.remove_prefix(length + 1);
  }
  const size_t count = numbers_.size();
  stems.assign(stems_of, stems_of + count);
  is_function_word.assign(function_words, function_words + count);
  synset_starts_.assign(synset_starts, synset_starts + count + 1);
  synsets_.assign(synsets, synsets + synset_starts[count]);
  for (size_t word = 0; word < count; ++word) {
    Signature signature{};
    for (int32_t k = synset_starts[word]; k < synset_starts[word + 1]; ++k) {
      const uint64_t bit = captioner::scoring::mix(synsets[k]) % 512;
      signature[bit / 64] |= uint64_t{1} << (bit % 64);
    }
    signatures_.push_back(signature);
  }
  phrase_of_word_.assign(count, -1);
}

bool WordMatches::have_a_common_synset(int32_t word, int32_t other) const {
  uint64_t common = 0;  // most words have no bit in common
  for (size_t k = 0; k < std::tuple_size_v<Signature>; ++k) {
    common |= signatures_[word][k] & signatures_[other][k];
  }
  if (common == 0) return false;
  int32_t a = synset_starts_[word], b = synset_starts_[other];
  while (a < synset_starts_[word + 1] && b < synset_starts_[other + 1]) {
    if (synsets_[a] == synsets_[b]) return true;
    (synsets_[a] < synsets_[b] ? a : b) += 1;
  }
  return false;
}

void WordMatches::read_paraphrases(std::string_view part) {
  if (unread_.empty()) {
    unread_ = part.substr(read_entries(part));
    return;
  }
  unread_ += part;
  unread_.erase(0, read_entries(unread_));
}

// Reads the whole entries at the beginning of a text; their size.
size_t WordMatches::read_entries(std::string_view table) {
  size_t done = 0;
  while (true) {
    size_t ends[3], at = done;
    for (size_t& end : ends) {
      end = table.find('\n', at);
      if (end == std::string_view::npos) return done;
      at = end + 1;
    }
    const auto phrase = table.substr(ends[0] + 1, ends[1] - ends[0] - 1);
    const auto other = table.substr(ends[1] + 1, ends[2] - ends[1] - 1);
    done = at;
    if (phrase != phrase_) {  // a phrase's entries follow each other
      phrase_ = phrase;
      phrase_is_known_ = find_words(phrase);
      if (phrase_is_known_) number_of_phrase_ = insert_phrase();
    }
    if (!phrase_is_known_ || !find_words(other)) continue;
    const auto number = static_cast<int32_t>(paraphrases.size());
    paraphrases.push_back({found_[0], static_cast<int32_t>(paraphrase_words.size()),
                           static_cast<int32_t>(found_.size()), -1});
    paraphrase_words.insert(paraphrase_words.end(), found_.begin(), found_.end());
    int32_t& last = last_paraphrase_[number_of_phrase_];
    (last < 0 ? first_paraphrase[number_of_phrase_] : paraphrases[last].next) = number;
    last = number;
  }
}

// Whether there are words and all are known, which are then in `found_`.
bool WordMatches::find_words(std::string_view phrase) {
  constexpr std::string_view kSpaces = " \t\r\v\f";
  found_.clear();
  while (true) {
    phrase.remove_prefix(std::min(phrase.find_first_not_of(kSpaces), phrase.size()));
    if (phrase.empty()) return !found_.empty();
    const size_t length = std::min(phrase.find_first_of(kSpaces), phrase.size());
    found_.push_back(numbers_.find(phrase.substr(0, length)));
    if (found_.back() < 0) return false;
    phrase.remove_prefix(length);
  }
}

int32_t WordMatches::insert_phrase() {
  int32_t phrase = -1;
  for (int32_t word : found_) {
    const int32_t before = phrase;
    phrase = phrases_.insert(key(before, word));
    first_paraphrase.resize(phrases_.size(), -1);
    last_paraphrase_.resize(phrases_.size(), -1);
    begins_longer_.resize(phrases_.size(), false);
    if (before < 0) {
      phrase_of_word_[word] = phrase;
    } else {
      begins_longer_[before] = true;
    }
  }
  return phrase;
}

WordMatches* captioner_words_new(const char* words, int64_t size, const int32_t* stems,
                                 const uint8_t* is_function_word, const int32_t* synset_starts,
                                 const int32_t* synsets) {
  WordMatches* known = nullptr;
  captioner::scoring::guarded([&] {
    known = new WordMatches({words, static_cast<size_t>(size)}, stems, is_function_word,
                            synset_starts, synsets);
  });
  return known;
}

void captioner_words_free(WordMatches* known) { delete known; }

int captioner_words_paraphrases(WordMatches* known, const char* table, int64_t size) {
  return captioner::scoring::guarded(
      [&] { known->read_paraphrases({table, static_cast<size_t>(size)}); });
}
