// The English Snowball stemmer (Porter2:
// http://snowball.tartarus.org/algorithms/english/stemmer.html) as nltk's has it, whose deviations
// are marked: METEOR-py without this library uses nltk's.
#include <algorithm>
#include <array>
#include <initializer_list>
#include <string>
#include <string_view>
#include <unordered_map>

#include "parallel.h"
#include "scoring.h"

namespace {

using std::u32string;
using View = std::u32string_view;

bool among(char32_t letter, View letters) { return letters.find(letter) != View::npos; }
bool vowel(char32_t letter) { return among(letter, U"aeiouy"); }
bool ends(View word, View suffix) {
  return word.size() >= suffix.size() && word.substr(word.size() - suffix.size()) == suffix;
}

// The first of the suffixes that a word ends with, or none.
View ending(View word, std::initializer_list<View> suffixes) {
  for (View suffix : suffixes) {
    if (ends(word, suffix)) return suffix;
  }
  return {};
}

// What stands after the first non-vowel after a vowel.
View region(View word) {
  for (size_t i = 1; i < word.size(); ++i) {
    if (!vowel(word[i]) && vowel(word[i - 1])) return word.substr(i + 1);
  }
  return {};
}

const std::unordered_map<View, View>& special_words() {
  static const std::unordered_map<View, View> words{
      {U"skis", U"ski"},           {U"skies", U"sky"},          {U"dying", U"die"},
      {U"lying", U"lie"},          {U"tying", U"tie"},          {U"idly", U"idl"},
      {U"gently", U"gentl"},       {U"ugly", U"ugli"},          {U"early", U"earli"},
      {U"only", U"onli"},          {U"singly", U"singl"},       {U"sky", U"sky"},
      {U"news", U"news"},          {U"howe", U"howe"},          {U"atlas", U"atlas"},
      {U"cosmos", U"cosmos"},      {U"bias", U"bias"},          {U"andes", U"andes"},
      {U"inning", U"inning"},      {U"innings", U"inning"},     {U"outing", U"outing"},
      {U"outings", U"outing"},     {U"canning", U"canning"},    {U"cannings", U"canning"},
      {U"herring", U"herring"},    {U"herrings", U"herring"},   {U"earring", U"earring"},
      {U"earrings", U"earring"},   {U"proceed", U"proceed"},    {U"proceeds", U"proceed"},
      {U"proceeded", U"proceed"},  {U"proceeding", U"proceed"}, {U"exceed", U"exceed"},
      {U"exceeds", U"exceed"},     {U"exceeded", U"exceed"},    {U"exceeding", U"exceed"},
      {U"succeed", U"succeed"},    {U"succeeds", U"succeed"},   {U"succeeded", U"succeed"},
      {U"succeeding", U"succeed"},
  };
  return words;
}

// A word that becomes its stem, and its regions R1 and R2. These are texts of their own, as in
// nltk, because there they do not always remain what the word ends with.
class Stemmer {
 public:
  explicit Stemmer(View word) : word_(word) {}

  u32string stem() {
    if (word_.size() <= 2) return word_;
    const auto special = special_words().find(word_);
    if (special != special_words().end()) return u32string(special->second);
    prepare();
    step_0_and_1a();
    step_1b();
    step_1c();
    step_2();
    step_3();
    step_4();
    step_5();
    std::replace(word_.begin(), word_.end(), U'Y', U'y');
    return word_;
  }

 private:
  void prepare() {
    for (char32_t& letter : word_) {
      if (among(letter, U"\u2019\u2018\u201b")) letter = U'\'';
    }
    if (word_[0] == U'\'') word_.erase(0, 1);
    if (word_[0] == U'y') word_[0] = U'Y';
    for (size_t i = 1; i < word_.size(); ++i) {
      if (vowel(word_[i - 1]) && word_[i] == U'y') word_[i] = U'Y';
    }
    const auto begins = [&](View prefix) { return word_.compare(0, prefix.size(), prefix) == 0; };
    if (begins(U"gener") || begins(U"arsen")) {
      r1_ = word_.substr(5);
    } else if (begins(U"commun")) {
      r1_ = word_.substr(6);
    } else {
      r1_ = region(word_);
    }
    r2_ = region(r1_);
  }

  bool any_vowel_before(size_t from_end) const {
    return word_.size() > from_end && std::any_of(word_.begin(), word_.end() - from_end, vowel);
  }

  static void cut(u32string& text, size_t count) {
    text.resize(text.size() - std::min(count, text.size()));
  }

  void cut_all(size_t count) {
    for (u32string* text : {&word_, &r1_, &r2_}) cut(*text, count);
  }

  // Another ending, in the regions too where they hold the old one; else R2 becomes `otherwise`.
  void replace_all(size_t old, View by, View otherwise = {}) {
    cut(word_, old);
    word_ += by;
    if (r1_.size() >= old) {
      cut(r1_, old);
      r1_ += by;
    } else {
      r1_.clear();
    }
    if (r2_.size() >= old) {
      cut(r2_, old);
      r2_ += by;
    } else {
      r2_ = otherwise;
    }
  }

  void step_0_and_1a() {
    cut_all(ending(word_, {U"'s'", U"'s", U"'"}).size());
    const View suffix = ending(word_, {U"sses", U"ied", U"ies", U"us", U"ss", U"s"});
    if (suffix == U"sses") {
      cut_all(2);
    } else if (suffix == U"ied" || suffix == U"ies") {
      cut_all(word_.size() - 3 > 1 ? 2 : 1);
    } else if (suffix == U"s" && any_vowel_before(2)) {
      cut_all(1);
    }
  }

  void step_1b() {
    const View suffix = ending(word_, {U"eedly", U"ingly", U"edly", U"eed", U"ing", U"ed"});
    if (suffix.empty()) return;
    if (suffix == U"eed" || suffix == U"eedly") {
      if (ends(r1_, suffix)) replace_all(suffix.size(), U"ee");
      return;
    }
    if (!any_vowel_before(suffix.size())) return;
    cut_all(suffix.size());
    const View last = View(word_).substr(word_.size() - std::min<size_t>(2, word_.size()));
    const bool twice = last.size() == 2 && last[0] == last[1] && among(last[0], U"bdfgmnprt");
    if (last == U"at" || last == U"bl" || last == U"iz") {
      word_ += U'e';
      r1_ += U'e';
      if (word_.size() > 5 || r1_.size() >= 3) r2_ += U'e';
    } else if (twice) {
      cut_all(1);
    } else if (r1_.empty() && short_syllable()) {
      word_ += U'e';
      if (!r2_.empty()) r2_ += U'e';
    }
  }

  bool short_syllable() const {
    const size_t n = word_.size();
    if (n == 2) return vowel(word_[0]) && !vowel(word_[1]);
    return n >= 3 && !vowel(word_[n - 1]) && !among(word_[n - 1], U"wxY") && vowel(word_[n - 2]) &&
           !vowel(word_[n - 3]);
  }

  void step_1c() {
    const size_t n = word_.size();
    if (n > 2 && among(word_[n - 1], U"yY") && !vowel(word_[n - 2])) last_letter(U'i');
  }

  void last_letter(char32_t letter) {
    for (u32string* text : {&word_, &r1_, &r2_}) {
      if (!text->empty()) text->back() = letter;
    }
  }

  // The letter `k` from the end, as Python counts; 0 where there is none.
  char32_t from_end(size_t k) const { return word_.size() >= k ? word_[word_.size() - k] : 0; }

  void step_2() {
    const View suffix =
        ending(word_, {U"ization", U"ational", U"fulness", U"ousness", U"iveness", U"tional",
                       U"biliti",  U"lessli",  U"entli",   U"ation",   U"alism",   U"aliti",
                       U"ousli",   U"iviti",   U"fulli",   U"enci",    U"anci",    U"abli",
                       U"izer",    U"ator",    U"alli",    U"bli",     U"ogi",     U"li"});
    if (suffix.empty() || !ends(r1_, suffix)) return;
    const auto is = [&](std::initializer_list<View> some) {
      return std::find(some.begin(), some.end(), suffix) != some.end();
    };
    const size_t size = suffix.size();
    if (is({U"tional", U"entli", U"fulli", U"lessli"})) {
      cut_all(2);
    } else if (is({U"enci", U"anci", U"abli"})) {
      last_letter(U'e');
    } else if (is({U"izer", U"ization"})) {
      replace_all(size, U"ize");
    } else if (is({U"ational", U"ation", U"ator"})) {
      replace_all(size, U"ate", U"e");
    } else if (is({U"alism", U"aliti", U"alli"})) {
      replace_all(size, U"al");
    } else if (is({U"fulness"})) {
      cut_all(4);
    } else if (is({U"ousli", U"ousness"})) {
      replace_all(size, U"ous");
    } else if (is({U"iveness", U"iviti"})) {
      replace_all(size, U"ive", U"e");
    } else if (is({U"biliti", U"bli"})) {
      replace_all(size, U"ble");
    } else if (is({U"ogi"})) {
      if (from_end(4) == U'l') cut_all(1);
    } else if (is({U"li"}) && among(from_end(3), U"cdeghkmnrt")) {
      cut_all(2);
    }
  }

  void step_3() {
    const View suffix = ending(word_, {U"ational", U"tional", U"alize", U"icate", U"iciti",
                                       U"ative", U"ical", U"ness", U"ful"});
    if (suffix.empty() || !ends(r1_, suffix)) return;
    if (suffix == U"tional") {
      cut_all(2);
    } else if (suffix == U"ational") {
      replace_all(suffix.size(), U"ate");
    } else if (suffix == U"alize") {
      cut_all(3);
    } else if (suffix == U"icate" || suffix == U"iciti" || suffix == U"ical") {
      replace_all(suffix.size(), U"ic");
    } else if (suffix == U"ful" || suffix == U"ness") {
      cut_all(suffix.size());
    } else if (ends(r2_, suffix)) {  // ative
      cut_all(5);
    }
  }

  void step_4() {
    const View suffix = ending(
        word_, {U"ement", U"ance", U"ence", U"able", U"ible", U"ment", U"ant", U"ent", U"ism",
                U"ate", U"iti", U"ous", U"ive", U"ize", U"ion", U"al", U"er", U"ic"});
    if (suffix.empty() || !ends(r2_, suffix)) return;
    if (suffix != U"ion" || among(from_end(4), U"st")) cut_all(suffix.size());
  }

  void step_5() {
    const size_t n = word_.size();
    if ((ends(r2_, U"l") && from_end(2) == U'l') || ends(r2_, U"e")) {
      word_.pop_back();
    } else if (ends(r1_, U"e") && n >= 4 &&
               (vowel(word_[n - 2]) || among(word_[n - 2], U"wxY") || !vowel(word_[n - 3]) ||
                vowel(word_[n - 4]))) {
      word_.pop_back();
    }
  }

  u32string word_, r1_, r2_;
};

u32string decoded(std::string_view utf8) {
  u32string text;
  for (size_t at = 0; at < utf8.size();) {
    const auto byte = static_cast<unsigned char>(utf8[at++]);
    const int more = byte < 0xc0 ? 0 : byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
    char32_t letter = more ? byte & (0x3f >> more) : byte;
    for (int k = 0; k < more && at < utf8.size(); ++k) letter = letter << 6 | (utf8[at++] & 0x3f);
    text += letter;
  }
  return text;
}

char* encode(const u32string& text, char* out) {
  for (char32_t letter : text) {
    if (letter < 0x80) {
      *out++ = static_cast<char>(letter);
      continue;
    }
    const int more = letter < 0x800 ? 1 : letter < 0x10000 ? 2 : 3;
    *out++ = static_cast<char>((0xf00 >> (more + 1)) | letter >> (6 * more));
    for (int k = more - 1; k >= 0; --k) *out++ = static_cast<char>(0x80 | (letter >> 6 * k & 0x3f));
  }
  return out;
}

}  // namespace

int captioner_stems(const char* words, int64_t size, char* out, int64_t* size_out) {
  return captioner::scoring::guarded([&] {
    char* const begin = out;
    std::string_view rest(words, size);
    while (!rest.empty()) {
      const size_t length = rest.find('\n');
      out = encode(Stemmer(decoded(rest.substr(0, length))).stem(), out);
      *out++ = '\n';
      rest.remove_prefix(length + 1);
    }
    *size_out = out - begin;
  });
}
