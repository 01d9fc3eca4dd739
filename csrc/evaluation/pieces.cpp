// What stands between spaces in captions, numbered.
#include "parallel.h"
#include "scoring.h"
#include "table.h"

int64_t captioner_scoring_version() { return kScoringVersion; }

namespace {

// What Python takes for a space within ASCII.
bool is_space(char c) {
  const auto u = static_cast<unsigned char>(c);
  return u == ' ' || (u >= 0x09 && u <= 0x0d) || (u >= 0x1c && u <= 0x1f);
}

}  // namespace

int captioner_pieces(const char* text, int64_t size, int32_t* pieces_out, int64_t* counts_out,
                     int64_t* first_out, int64_t* last_out, int64_t* distinct_out) {
  return captioner::scoring::guarded([&] {
    captioner::scoring::TextNumbers numbers;
    int64_t count = 0;
    for (int64_t at = 0; at < size; ++at) {
      if (text[at] == '\n') {
        *counts_out++ = count;
        count = 0;
      }
      if (is_space(text[at])) continue;
      const int64_t first = at;
      while (!is_space(text[at + 1])) ++at;  // the text ends with a line feed
      const size_t known = numbers.size();
      const int32_t number = numbers.insert({text + first, static_cast<size_t>(at + 1 - first)});
      if (numbers.size() > known) {
        first_out[number] = first;
        last_out[number] = at + 1;
      }
      *pieces_out++ = number;
      ++count;
    }
    *distinct_out = static_cast<int64_t>(numbers.size());
  });
}
