// Threads over ranges, and errors that do not leave the library.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace captioner::scoring {

// Runs `make_worker()` on each of up to `threads` threads, which calls what that returns with
// ranges [first, last) of at most `grain` of `count` items. Rethrows what a worker throws.
template <typename MakeWorker>
void parallel_for(int64_t count, int64_t grain, int64_t threads, MakeWorker make_worker) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  const auto run = [&] {
    try {
      auto worker = make_worker();
      while (!failed.load(std::memory_order_relaxed)) {
        const int64_t first = next.fetch_add(grain);
        if (first >= count) return;
        worker(first, std::min(count, first + grain));
      }
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  try {
    for (int64_t t = 1; t < std::min(threads, (count + grain - 1) / grain); ++t) {
      others.emplace_back(run);
    }
  } catch (const std::system_error&) {  // no more threads are to be had: those there are do it
  }
  run();
  for (std::thread& other : others) other.join();
  if (error) std::rethrow_exception(error);
}

// 0, or 1 where `body` ran out of memory.
template <typename Body>
int guarded(Body body) {
  try {
    body();
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}

}  // namespace captioner::scoring
