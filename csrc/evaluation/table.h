// Hash tables with open addressing: short strings, and numbers of 64 bits, to numbers from 0.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace captioner::scoring {

inline uint64_t mix(uint64_t key) {  // MurmurHash3's finaliser
  key = (key ^ (key >> 33)) * 0xff51afd7ed558ccdULL;
  key = (key ^ (key >> 33)) * 0xc4ceb9fe1a85ec53ULL;
  return key ^ (key >> 33);
}

inline uint64_t hash_of(std::string_view text) {
  uint64_t hash = text.size();
  while (text.size() >= 8) {
    uint64_t eight;
    std::memcpy(&eight, text.data(), 8);
    hash = mix(hash ^ eight);
    text.remove_prefix(8);
  }
  uint64_t rest = 0;
  std::memcpy(&rest, text.data(), text.size());
  return mix(hash ^ rest);
}

// Numbers keys in the order in which they are inserted. `Hash` makes 64 bits of a key.
template <typename Key, typename Hash>
class Numbering {
 public:
  // The number of a key, which is a new one, size(), where it has not been there.
  int32_t insert(const Key& key) {
    if (2 * (keys_.size() + 1) > slots_.size()) grow();
    int32_t& slot = slots_[find_slot(key)];
    if (slot < 0) {
      slot = static_cast<int32_t>(keys_.size());
      keys_.push_back(key);
    }
    return slot;
  }

  // The number of a key, or -1.
  int32_t find(const Key& key) const { return slots_.empty() ? -1 : slots_[find_slot(key)]; }

  size_t size() const { return keys_.size(); }
  const Key& operator[](size_t number) const { return keys_[number]; }

 private:
  size_t find_slot(const Key& key) const {
    const size_t mask = slots_.size() - 1;
    size_t at = Hash()(key) & mask;
    while (slots_[at] >= 0 && !(keys_[slots_[at]] == key)) at = (at + 1) & mask;
    return at;
  }

  void grow() {
    slots_.assign(slots_.empty() ? 64 : 2 * slots_.size(), -1);
    for (size_t number = 0; number < keys_.size(); ++number) {
      slots_[find_slot(keys_[number])] = static_cast<int32_t>(number);
    }
  }

  std::vector<Key> keys_;
  std::vector<int32_t> slots_;
};

struct HashOfText {
  uint64_t operator()(std::string_view text) const { return hash_of(text); }
};
struct HashOfNumber {
  uint64_t operator()(uint64_t number) const { return mix(number); }
};

using TextNumbers = Numbering<std::string_view, HashOfText>;
using NumberNumbers = Numbering<uint64_t, HashOfNumber>;

}  // namespace captioner::scoring
