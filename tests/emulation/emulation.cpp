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
struct Meeting;

struct Thread {
  Block* block;
  Extent index;
  int warp, lane;
  Fibre fibre;
  bool done = false;
  Meeting* waits_at = nullptr;
  Place place{};
  uint64_t given = 0, seen[kWarp] = {};
  size_t rounds = 0;  // arrivals at the cluster's barrier
  bool arrived = false;
};

// A barrier: nobody goes on before all members have come.
struct Meeting {
  const char* what;
  std::vector<Thread*> members;
  size_t arrived = 0;
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
  Meeting all{"__syncthreads()", {}};
  std::map<std::pair<int, uint32_t>, Meeting> warps;  // by warp and mask
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
  void arrive(Meeting& meeting, Place place);
  void pass_on();

  const Launch& launch() const { return launch_; }
  Meeting& grid() { return grid_; }
  std::deque<Block>& blocks() { return blocks_; }
  void count_arrival();
  size_t rounds() const { return rounds_; }
  Thread* current() const { return current_; }
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("CUDA emulation: " + name_of(launch_.kernel) + ": " + what);
  }

 private:
  void add_block(size_t number);
  void release(Meeting& meeting);
  [[noreturn]] void report_stuck() const;
  static void entry();

  const Launch& launch_;
  const std::function<void()>& body_;
  Schedule& schedule_;
  std::deque<Block> blocks_;
  Meeting grid_{"the grid's barrier", {}};
  std::deque<Thread*> ready_;
  Thread* current_ = nullptr;
  std::exception_ptr thrown_;
  size_t passes_ = 0;                 // calls of pass_on() since anything else has happened
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
    block.all.members.push_back(&thread);
    grid_.members.push_back(&thread);
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
  std::vector<Thread*> order = grid_.members;
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
      passes_ = 0;
    } else if (!current_->waits_at) {
      ready_.push_back(current_);
    } else if (current_->waits_at->arrived == current_->waits_at->members.size()) {
      release(*current_->waits_at);
    }
  }
}

void Group::arrive(Meeting& meeting, Place place) {
  current_->waits_at = &meeting;
  current_->place = place;
  ++meeting.arrived;
  passes_ = 0;
  current_->fibre.leave(false);
}

void Group::pass_on() {
  constexpr size_t kForEver = 1'000'000;
  if (++passes_ > kForEver) fail("all threads that are left wait in a loop");
  current_->fibre.leave(false);
}

void Group::count_arrival() {
  passes_ = 0;
  if (++arrivals_ < grid_.members.size()) return;
  arrivals_ = 0;
  ++rounds_;
}

void Group::release(Meeting& meeting) {
  std::vector<Thread*> members = meeting.members;
  for (Thread* thread : members) {
    const Place &own = thread->place, &first = members.front()->place;
    if (own.line != first.line || std::strcmp(own.file, first.file) != 0) {
      fail(std::string(meeting.what) + " of block " + text(thread->block->index) + " at " +
           text(first) + " for thread " + text(members.front()->index) + ", at " + text(own) +
           " for thread " + text(thread->index));
    }
    thread->waits_at = nullptr;
    for (const Thread* other : members) thread->seen[other->lane] = other->given;
  }
  meeting.arrived = 0;
  schedule_.arrange(members);
  schedule_.put_back(ready_, members);
}

void Group::report_stuck() const {
  for (const Block& block : blocks_) {
    for (const Thread& thread : block.threads) {
      if (!thread.waits_at) continue;
      const Meeting& meeting = *thread.waits_at;
      const auto missing =
          std::find_if(meeting.members.begin(), meeting.members.end(),
                       [&](const Thread* other) { return other->waits_at != &meeting; });
      std::ostringstream out;
      out << meeting.what << " at " << text(thread.place) << " in block " << text(block.index)
          << ": " << meeting.arrived << " of " << meeting.members.size() << " threads came, thread "
          << text((*missing)->index) << " of block " << text((*missing)->block->index);
      if ((*missing)->done) {
        out << " has returned";
      } else {
        out << " waits in " << (*missing)->waits_at->what << " at " << text((*missing)->place);
      }
      fail(out.str());
    }
  }
  fail("no thread can go on");
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

void sync_block(Place place) { group->arrive(group->current()->block->all, place); }

void sync_grid(Place place) {
  if (!group->launch().cooperative) group->fail("a grid's barrier needs a cooperative launch");
  group->arrive(group->grid(), place);
}

const uint64_t* exchange(Place place, uint32_t mask, uint64_t given) {
  Thread& own = *group->current();
  if (!(mask >> own.lane & 1u)) {
    group->fail("lane " + std::to_string(own.lane) + " is not in its own mask at " + text(place));
  }
  Meeting& meeting = own.block->warps[{own.warp, mask}];
  if (meeting.members.empty()) {
    meeting.what = "a warp's meeting";
    for (Thread& thread : own.block->threads) {
      if (thread.warp == own.warp && (mask >> thread.lane & 1u)) meeting.members.push_back(&thread);
    }
  }
  own.given = given;
  group->arrive(meeting, place);
  return own.seen;
}

void arrive_at_cluster(Place place) {
  Thread& own = *group->current();
  if (!group->launch().cluster) group->fail("a cluster's barrier needs a launch of clusters");
  if (own.arrived) group->fail("a thread arrives twice at a cluster's barrier at " + text(place));
  own.arrived = true;
  ++own.rounds;
  group->count_arrival();
}

void wait_for_cluster(Place place) {
  Thread& own = *group->current();
  if (!own.arrived) {
    group->fail("a thread waits at a cluster's barrier without having arrived at " + text(place));
  }
  while (group->rounds() < own.rounds) group->pass_on();
  own.arrived = false;
}

void* in_block(void* own, unsigned rank, Place place) {
  if (rank >= group->launch().cluster) {
    group->fail("the cluster has no block " + std::to_string(rank) + " at " + text(place));
  }
  Block& other = group->blocks()[rank];
  if (std::all_of(other.threads.begin(), other.threads.end(), [](auto& one) { return one.done; })) {
    group->fail("the shared memory of block " + text(other.index) + ", which has returned, at " +
                text(place));
  }
  const auto& memory = group->current()->block->dynamic;
  const ptrdiff_t offset = static_cast<char*>(own) - static_cast<char*>(memory->start);
  if (offset < 0 || static_cast<size_t>(offset) >= memory->bytes) {
    group->fail("not in dynamic shared memory at " + text(place));
  }
  return static_cast<char*>(other.dynamic->start) + offset;
}

void pass_on() { group->pass_on(); }
void trap(Place place) {
  group->fail("thread " + text(threadIdx) + " of block " + text(blockIdx) + " trapped at " +
              text(place));
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
