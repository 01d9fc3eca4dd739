#include "words.h"

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

void WordMatches::read_paraphrases(const int32_t* packed) {
  const auto* text = reinterpret_cast<const char*>(packed + 2);
  std::string_view words(text, packed[0]);
  const int32_t* at = packed + 2 + (words.size() + sizeof(int32_t) - 1) / sizeof(int32_t);
  const int32_t* const end = at + packed[1];
  std::vector<int32_t> numbers;  // here, of the table's words; -1 for those that are not known
  while (!words.empty()) {
    const size_t length = words.find('\n');
    numbers.push_back(numbers_.find(words.substr(0, length)));
    words.remove_prefix(length + 1);
  }
  while (at < end) {
    const bool is_known = find_words(numbers, at);
    const int32_t* const others_end = at + 1 + *at;
    if (is_known) {
      const int32_t phrase = insert_phrase();
      for (++at; at < others_end;) {
        if (find_words(numbers, at)) insert_paraphrase(phrase);
      }
    }
    at = others_end;
  }
}

// Moves `at` beyond a packed phrase; whether all its words are known, which are then in `found_`.
bool WordMatches::find_words(const std::vector<int32_t>& numbers, const int32_t*& at) {
  found_.clear();
  bool is_known = true, is_last = false;
  while (!is_last) {
    is_last = *at < 0;
    found_.push_back(numbers[is_last ? ~*at : *at]);
    is_known &= found_.back() >= 0;
    ++at;
  }
  return is_known;
}

void WordMatches::insert_paraphrase(int32_t phrase) {
  const auto number = static_cast<int32_t>(paraphrases.size());
  paraphrases.push_back({found_[0], static_cast<int32_t>(paraphrase_words.size()),
                         static_cast<int32_t>(found_.size()), -1});
  paraphrase_words.insert(paraphrase_words.end(), found_.begin(), found_.end());
  int32_t& last = last_paraphrase_[phrase];
  (last < 0 ? first_paraphrase[phrase] : paraphrases[last].next) = number;
  last = number;
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

int captioner_words_paraphrases(WordMatches* known, const int32_t* packed) {
  return captioner::scoring::guarded([&] { known->read_paraphrases(packed); });
}
