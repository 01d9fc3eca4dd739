// In which order the threads and blocks of a launch run.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace emulation {

// As CUDA_EMULATION_SCHEDULE says: what is right gives the same in any order. "eager" runs
// the threads of a completed barrier at once, so that a warp or a block runs far ahead of the
// others.
class Schedule {
 public:
  Schedule() {
    const char* text = std::getenv("CUDA_EMULATION_SCHEDULE");
    const std::string wish = text ? text : "forward";
    reversed_ = wish == "reversed";
    random_ = wish.rfind("random:", 0) == 0;
    if (random_) generator_.seed(std::stoul(wish.substr(7)));
    eager_ = wish == "eager";
    if (!reversed_ && !random_ && !eager_ && wish != "forward") {
      throw std::runtime_error(
          "CUDA_EMULATION_SCHEDULE must be forward, reversed, eager or random:SEED");
    }
  }
  template <typename Item>
  void arrange(std::vector<Item>& items) {
    if (reversed_) std::reverse(items.begin(), items.end());
    if (random_) std::shuffle(items.begin(), items.end(), generator_);
  }
  // The threads of a completed barrier are ready again.
  template <typename Item>
  void put_back(std::deque<Item>& ready, const std::vector<Item>& items) {
    ready.insert(eager_ ? ready.begin() : ready.end(), items.begin(), items.end());
  }
  template <typename Item>
  Item take(std::deque<Item>& ready) {
    if (random_) std::swap(ready.front(), ready[generator_() % ready.size()]);
    const Item next = ready.front();
    ready.pop_front();
    return next;
  }

 private:
  bool reversed_, random_, eager_;
  std::mt19937 generator_;
};

}  // namespace emulation
