// METEOR's table of paraphrases in numbers, which is searched without reading millions of lines.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "table.h"

// A packed table is, as numbers of 32 bits: the size of `text` in bytes, how many `numbers` there
// are, `text`, which are words, each ended by a line feed (and zeros up to a whole number), and
// `numbers`. These are phrases in the table's order, each followed by how many numbers its
// paraphrases are, and by these. A phrase is its words' numbers, its last word's complemented.
class ParaphraseTable {
 public:
  // Reads a part of the text; its last lines wait for the next part where they are no whole entry.
  void read(std::string_view part);

  const std::vector<int32_t>& packed();

 private:
  size_t read_entries(std::string_view table);
  bool append(std::string_view phrase);
  void end_paraphrases();

  std::deque<std::string> words_;
  captioner::scoring::TextNumbers numbers_of_words_;
  std::vector<int32_t> numbers_, packed_;
  std::string phrase_, unread_;
  size_t paraphrases_ = 0;  // where the last phrase's begin
};
