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

// As CUDA_EMULATION_SCHEDULE says: what is right gives the same in any order.
class Schedule {
 public:
  Schedule() {
    const char* text = std::getenv("CUDA_EMULATION_SCHEDULE");
    const std::string wish = text ? text : "forward";
    reversed_ = wish == "reversed";
    random_ = wish.rfind("random:", 0) == 0;
    if (random_) generator_.seed(std::stoul(wish.substr(7)));
    if (!reversed_ && !random_ && wish != "forward") {
      throw std::runtime_error("CUDA_EMULATION_SCHEDULE must be forward, reversed or random:SEED");
    }
  }
  template <typename Item>
  void arrange(std::vector<Item>& items) {
    if (reversed_) std::reverse(items.begin(), items.end());
    if (random_) std::shuffle(items.begin(), items.end(), generator_);
  }
  template <typename Item>
  Item take(std::deque<Item>& ready) {
    if (random_) std::swap(ready.front(), ready[generator_() % ready.size()]);
    const Item next = ready.front();
    ready.pop_front();
    return next;
  }

 private:
  bool reversed_, random_;
  std::mt19937 generator_;
};

}  // namespace emulation
