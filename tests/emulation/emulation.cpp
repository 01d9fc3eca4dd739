#include "emulation.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibre.h"
#include "messages.h"
#include "schedule.h"

namespace emulation {

thread_local Extent threadIdx, blockIdx, blockDim, gridDim;

namespace {

struct Block;
struct Barrier;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Thread {
  Block* block;
  Extent index;
  int warp, lane;
  Fibre fibre;
  bool done = false;
  Barrier* waits_at = nullptr;
  Location location{};
  uint64_t given = 0;        // to the lanes of its warp
  size_t rounds = 0;         // arrivals at the cluster's barrier
  std::vector<Copy> copies;  // started and not waited for
  bool arrived = false;
};

// A barrier: no participant continues before all have arrived.
struct Barrier {
  const char* what;
  std::vector<Thread*> participants;
  size_t arrived = 0;
  uint64_t seen[kWarp] = {};  // what each lane had given when the barrier opened last
};

struct Memory {
  explicit Memory(size_t bytes) : bytes(bytes), start(::operator new(bytes, std::align_val_t(16))) {
    std::memset(start, 0xff, bytes);  // NaN in every floating type
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { ::operator delete(start, std::align_val_t(16)); }
  size_t bytes;
  void* start;
};

struct Block {
  Extent index;
  std::deque<Thread> threads;
  Barrier all{"__syncthreads()", {}};
  std::map<std::pair<int, uint32_t>, Barrier> warps;  // by warp and mask
  std::map<const void*, std::unique_ptr<Memory>> shared;
  std::unique_ptr<Memory> dynamic;
};

Extent position(size_t number, const Extent& extent) {
  return {static_cast<unsigned>(number % extent.x),
          static_cast<unsigned>(number / extent.x % extent.y),
          static_cast<unsigned>(number / extent.x / extent.y)};
}

// Blocks that are alive together, and the scheduler of their threads.
class Group {
 public:
  Group(const Launch& launch, const std::vector<size_t>& numbers, const std::function<void()>& body,
        Schedule& schedule)
      : launch_(launch), body_(body), schedule_(schedule) {
    for (const size_t number : numbers) add_block(number);
  }

  void run();
  void arrive(Barrier& barrier, Location location);
  void yield();

  const Launch& launch() const { return launch_; }
  Barrier& grid() { return grid_; }
  std::deque<Block>& blocks() { return blocks_; }
  void count_arrival();
  size_t rounds() const { return rounds_; }
  Thread* current() const { return current_; }
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("CUDA emulation: " + name_of(launch_.kernel) + ": " + what);
  }

 private:
  void add_block(size_t number);
  void release(Barrier& barrier);
  [[noreturn]] void report_stuck() const;
  static void entry();

  const Launch& launch_;
  const std::function<void()>& body_;
  Schedule& schedule_;
  std::deque<Block> blocks_;
  Barrier grid_{"the grid's barrier", {}};
  std::deque<Thread*> ready_;
  Thread* current_ = nullptr;
  std::exception_ptr thrown_;
  size_t yields_ = 0;                 // calls of yield() since anything else has happened
  size_t arrivals_ = 0, rounds_ = 0;  // of the cluster's barrier
};

thread_local Group* group = nullptr;

// Stacks are kept for the next launch: mapping them costs more than a small kernel.
Stack& stack_of(size_t number) {
  thread_local std::deque<Stack> stacks;
  while (stacks.size() <= number) stacks.emplace_back();
  return stacks[number];
}

void Group::add_block(size_t number) {
  Block& block = blocks_.emplace_back();
  block.index = position(number, launch_.grid);
  if (launch_.dynamic_bytes) block.dynamic = std::make_unique<Memory>(launch_.dynamic_bytes);
  for (size_t k = 0; k < launch_.block.volume(); ++k) {
    Thread& thread = block.threads.emplace_back();
    thread.block = &block;
    thread.index = position(k, launch_.block);
    thread.warp = static_cast<int>(k / kWarp);
    thread.lane = static_cast<int>(k % kWarp);
    block.all.participants.push_back(&thread);
    grid_.participants.push_back(&thread);
  }
}

void Group::entry() {
  Thread& own = *group->current_;
  own.fibre.entered();
  try {
    group->body_();
  } catch (...) {
    group->thrown_ = std::current_exception();
  }
  own.done = true;
  own.fibre.leave(true);
}

void Group::run() {
  std::vector<Thread*> order = grid_.participants;
  for (size_t k = 0; k < order.size(); ++k) order[k]->fibre.prepare(stack_of(k), entry);
  blockDim = launch_.block;
  gridDim = launch_.grid;
  schedule_.arrange(order);
  ready_.assign(order.begin(), order.end());
  size_t done = 0;
  while (done < order.size()) {
    if (ready_.empty()) report_stuck();
    current_ = schedule_.take(ready_);
    threadIdx = current_->index;
    blockIdx = current_->block->index;
    current_->fibre.enter();
    if (thrown_) std::rethrow_exception(thrown_);
    if (current_->done) {
      ++done;
      yields_ = 0;
    } else if (!current_->waits_at) {
      ready_.push_back(current_);
    } else if (current_->waits_at->arrived == current_->waits_at->participants.size()) {
      release(*current_->waits_at);
    }
  }
}

void Group::arrive(Barrier& barrier, Location location) {
  current_->waits_at = &barrier;
  current_->location = location;
  ++barrier.arrived;
  yields_ = 0;
  current_->fibre.leave(false);
}

void Group::yield() {
  constexpr size_t kRounds = 200;  // in random order, too, each thread has run by then
  if (++yields_ > kRounds * grid_.participants.size())
    fail("all threads that are left wait in a loop");
  current_->fibre.leave(false);
}

void Group::count_arrival() {
  yields_ = 0;
  if (++arrivals_ < grid_.participants.size()) return;
  arrivals_ = 0;
  ++rounds_;
}

void Group::release(Barrier& barrier) {
  std::vector<Thread*> participants = barrier.participants;
  for (Thread* thread : participants) {
    const Location &own = thread->location, &first = participants.front()->location;
    if (own.line != first.line || (own.file != first.file && std::strcmp(own.file, first.file))) {
      fail(std::string(barrier.what) + " of block " + text(thread->block->index) + " at " +
           text(first) + " for thread " + text(participants.front()->index) + ", at " + text(own) +
           " for thread " + text(thread->index));
    }
    thread->waits_at = nullptr;
    barrier.seen[thread->lane] = thread->given;
  }
  barrier.arrived = 0;
  schedule_.arrange(participants);
  schedule_.put_back(ready_, participants);
}

void Group::report_stuck() const {
  for (const Block& block : blocks_) {
    for (const Thread& thread : block.threads) {
      if (!thread.waits_at) continue;
      const Barrier& barrier = *thread.waits_at;
      const auto missing =
          std::find_if(barrier.participants.begin(), barrier.participants.end(),
                       [&](const Thread* other) { return other->waits_at != &barrier; });
      std::ostringstream out;
      out << barrier.what << " at " << text(thread.location) << " in block " << text(block.index)
          << ": " << barrier.arrived << " of " << barrier.participants.size()
          << " threads came, thread " << text((*missing)->index) << " of block "
          << text((*missing)->block->index);
      if ((*missing)->done) {
        out << " has returned";
      } else {
        out << " waits in " << (*missing)->waits_at->what << " at " << text((*missing)->location);
      }
      fail(out.str());
    }
  }
  fail("no thread can continue");
}

std::map<std::string, long>& counts() {
  static std::map<std::string, long> counts;
  return counts;
}

}  // namespace

bool run(const Launch& launch, const std::function<void()>& body) {
  const bool fits = launch.grid.volume() > 0 && launch.grid.x <= 2147483647u &&
                    launch.grid.y <= 65535u && launch.grid.z <= 65535u &&
                    launch.block.volume() > 0 && launch.block.volume() <= 1024 &&
                    launch.cluster <= kLargestCluster &&
                    (launch.cluster == 0 || launch.grid.volume() % launch.cluster == 0) &&
                    launch.dynamic_bytes <= size_t{1024} * shared_kilobytes();
  if (!fits) return false;
  ++counts()[name_of(launch.kernel)];
  Schedule schedule;
  // What is alive together: all blocks, those of a cluster, or one alone.
  const size_t blocks = launch.grid.volume();
  const size_t size = launch.cooperative ? blocks : std::max(1u, launch.cluster);
  std::vector<std::vector<size_t>> together(blocks / size, std::vector<size_t>(size));
  for (size_t k = 0; k < blocks; ++k) together[k / size][k % size] = k;
  schedule.arrange(together);
  for (const std::vector<size_t>& numbers : together) {
    Group alive(launch, numbers, body, schedule);
    struct Current {
      explicit Current(Group& alive) { group = &alive; }
      ~Current() { group = nullptr; }
    } current(alive);
    alive.run();
  }
  return true;
}

namespace {

int setting(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

}  // namespace

int multiprocessors() { return setting("CUDA_EMULATION_MULTIPROCESSORS", 8); }
int shared_kilobytes() { return setting("CUDA_EMULATION_SHARED", 227); }
int compute_capability() { return setting("CUDA_EMULATION_CAPABILITY", 9); }
int planted_fault() {
  static const int fault = setting("CUDA_EMULATION_FAULT", 0);
  return fault;
}

int lane() { return group->current()->lane; }

void* shared_memory(const void* key, size_t bytes) {
  auto& memory = group->current()->block->shared[key];
  if (!memory) memory = std::make_unique<Memory>(bytes);
  return memory->start;
}

void* dynamic_shared_memory() {
  const auto& memory = group->current()->block->dynamic;
  return memory ? memory->start : nullptr;
}

void sync_block(Location location) { group->arrive(group->current()->block->all, location); }

void sync_grid(Location location) {
  if (!group->launch().cooperative) group->fail("a grid's barrier needs a cooperative launch");
  group->arrive(group->grid(), location);
}

const uint64_t* exchange(Location location, uint32_t mask, uint64_t given) {
  Thread& own = *group->current();
  if (!(mask >> own.lane & 1u)) {
    group->fail("lane " + std::to_string(own.lane) + " is not in its own mask at " +
                text(location));
  }
  Barrier& barrier = own.block->warps[{own.warp, mask}];
  if (barrier.participants.empty()) {
    barrier.what = "a warp's barrier";
    for (Thread& thread : own.block->threads) {
      if (thread.warp == own.warp && (mask >> thread.lane & 1u))
        barrier.participants.push_back(&thread);
    }
  }
  own.given = given;
  group->arrive(barrier, location);
  return barrier.seen;  // not changed before this thread arrives again
}

void copy_async(void* to, const void* from, size_t bytes) {
  group->current()->copies.push_back({to, from, bytes});
}

void copy_async_wait() {
  std::vector<Copy>& copies = group->current()->copies;
  for (const Copy& copy : copies) std::memcpy(copy.to, copy.from, copy.bytes);
  copies.clear();
}

void arrive_at_cluster(Location location) {
  Thread& own = *group->current();
  if (!group->launch().cluster) group->fail("a cluster's barrier needs a launch of clusters");
  if (own.arrived)
    group->fail("a thread arrives twice at a cluster's barrier at " + text(location));
  own.arrived = true;
  ++own.rounds;
  group->count_arrival();
}

void wait_for_cluster(Location location) {
  Thread& own = *group->current();
  if (!own.arrived) {
    group->fail("a thread waits at a cluster's barrier without having arrived at " +
                text(location));
  }
  while (group->rounds() < own.rounds) group->yield();
  own.arrived = false;
}

void* in_block(void* own, unsigned rank, Location location) {
  if (rank >= group->launch().cluster) {
    group->fail("the cluster has no block " + std::to_string(rank) + " at " + text(location));
  }
  Block& other = group->blocks()[rank];
  if (std::all_of(other.threads.begin(), other.threads.end(), [](auto& one) { return one.done; })) {
    group->fail("the shared memory of block " + text(other.index) + ", which has returned, at " +
                text(location));
  }
  const auto& memory = group->current()->block->dynamic;
  const ptrdiff_t offset = static_cast<char*>(own) - static_cast<char*>(memory->start);
  if (offset < 0 || static_cast<size_t>(offset) >= memory->bytes) {
    group->fail("not in dynamic shared memory at " + text(location));
  }
  return static_cast<char*>(other.dynamic->start) + offset;
}

void yield() { group->yield(); }
void trap(Location location) {
  group->fail("thread " + text(threadIdx) + " of block " + text(blockIdx) + " trapped at " +
              text(location));
}

}  // namespace emulation

extern "C" {

// One line a kernel that was launched: how often, its name.
const char* emulation_launches() {
  static std::string lines;
  lines.clear();
  for (const auto& [name, count] : emulation::counts()) {
    lines += std::to_string(count) + " " + name + "\n";
  }
  return lines.c_str();
}

void emulation_reset() { emulation::counts().clear(); }
}
