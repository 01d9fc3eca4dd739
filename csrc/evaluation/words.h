// The words that METEOR-py knows of, by number: stems, synonyms, paraphrases.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "scoring.h"
#include "table.h"

struct WordMatches {
  // A paraphrase of some phrase: its first word, all of them, and the next paraphrase of the same
  // phrase, or -1.
  struct Paraphrase {
    int32_t first_word, words, length, next;
  };

  WordMatches(std::string_view words, const int32_t* stems, const uint8_t* function_words,
              const int32_t* synset_starts, const int32_t* synsets);

  // Takes from a packed table (paraphrases.h) what is made of known words alone.
  void read_paraphrases(const int32_t* packed);

  bool have_a_common_synset(int32_t word, int32_t other) const;

  // The phrase that is `phrase` (-1: no words) and a word more, or -1 where none begins so.
  int32_t longer_phrase(int32_t phrase, int32_t word) const {
    if (phrase < 0) return phrase_of_word_[word];
    return begins_longer_[phrase] ? phrases_.find(key(phrase, word)) : -1;
  }

  std::vector<int32_t> stems;
  std::vector<uint8_t> is_function_word;
  std::vector<int32_t> first_paraphrase;  // of each phrase, or -1
  std::vector<Paraphrase> paraphrases;
  std::vector<int32_t> paraphrase_words;

 private:
  static uint64_t key(int32_t phrase, int32_t word) {
    return static_cast<uint64_t>(phrase + 1) << 32 | static_cast<uint32_t>(word);
  }
  bool find_words(const std::vector<int32_t>& numbers, const int32_t*& at);
  int32_t insert_phrase();
  void insert_paraphrase(int32_t phrase);

  std::string text_;
  captioner::scoring::TextNumbers numbers_;
  std::vector<int32_t> synset_starts_, synsets_;
  using Signature = std::array<uint64_t, 8>;  // a bit for each synset, by its hash
  std::vector<Signature> signatures_;
  captioner::scoring::NumberNumbers phrases_;
  std::vector<int32_t> phrase_of_word_;  // by word: the phrase that is this word alone, or -1
  std::vector<uint8_t> begins_longer_;
  std::vector<int32_t> last_paraphrase_;
  std::vector<int32_t> found_;  // the words that were found last
};
