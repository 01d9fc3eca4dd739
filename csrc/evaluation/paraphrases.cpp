#include "paraphrases.h"

#include <algorithm>

#include "parallel.h"
#include "scoring.h"

void ParaphraseTable::read(std::string_view part) {
  if (unread_.empty()) {
    unread_ = part.substr(read_entries(part));
    return;
  }
  unread_ += part;
  unread_.erase(0, read_entries(unread_));
}

// Reads the whole entries at the beginning of a text; their size.
size_t ParaphraseTable::read_entries(std::string_view table) {
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
    if (phrase != phrase_ || paraphrases_ == 0) {  // a phrase's entries follow each other
      end_paraphrases();
      phrase_ = phrase;
      paraphrases_ = append(phrase) ? numbers_.size() + 1 : 0;
      if (paraphrases_ > 0) numbers_.push_back(0);
    }
    if (paraphrases_ > 0) append(other);
  }
}

// Appends the numbers of a phrase; whether it has words.
bool ParaphraseTable::append(std::string_view phrase) {
  constexpr std::string_view kSpaces = " \t\r\v\f";
  const size_t before = numbers_.size();
  while (true) {
    phrase.remove_prefix(std::min(phrase.find_first_not_of(kSpaces), phrase.size()));
    if (phrase.empty()) break;
    const auto word = phrase.substr(0, std::min(phrase.find_first_of(kSpaces), phrase.size()));
    int32_t number = numbers_of_words_.find(word);
    if (number < 0) number = numbers_of_words_.insert(words_.emplace_back(word));
    numbers_.push_back(number);
    phrase.remove_prefix(word.size());
  }
  if (numbers_.size() == before) return false;
  numbers_.back() = ~numbers_.back();
  return true;
}

void ParaphraseTable::end_paraphrases() {
  if (paraphrases_ == 0) return;
  numbers_[paraphrases_ - 1] = static_cast<int32_t>(numbers_.size() - paraphrases_);
}

const std::vector<int32_t>& ParaphraseTable::packed() {
  end_paraphrases();
  std::string text;
  for (const std::string& word : words_) (text += word) += '\n';
  packed_ = {static_cast<int32_t>(text.size()), static_cast<int32_t>(numbers_.size())};
  const size_t at = packed_.size();
  packed_.resize(at + (text.size() + sizeof(int32_t) - 1) / sizeof(int32_t));
  std::copy(text.begin(), text.end(), reinterpret_cast<char*>(packed_.data() + at));
  packed_.insert(packed_.end(), numbers_.begin(), numbers_.end());
  return packed_;
}

ParaphraseTable* captioner_table_new() {
  ParaphraseTable* table = nullptr;
  captioner::scoring::guarded([&] { table = new ParaphraseTable; });
  return table;
}

void captioner_table_free(ParaphraseTable* table) { delete table; }

int captioner_table_read(ParaphraseTable* table, const char* text, int64_t size) {
  return captioner::scoring::guarded([&] { table->read({text, static_cast<size_t>(size)}); });
}

int captioner_table_pack(ParaphraseTable* table, const int32_t** packed_out, int64_t* size_out) {
  return captioner::scoring::guarded([&] {
    const std::vector<int32_t>& packed = table->packed();
    *packed_out = packed.data();
    *size_out = static_cast<int64_t>(packed.size());
  });
}
