#include "fibre.h"

#include <sys/mman.h>

#include <new>

namespace emulation {

Stack::Stack() {
  void* memory = mmap(nullptr, kGuard + kSize, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  mprotect(memory_, kGuard, PROT_NONE);
}

Stack::~Stack() { munmap(memory_, kGuard + kSize); }

void Fibre::prepare(Stack& stack, void (*entry)()) {
  stack_ = &stack;
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack.bottom();
  own_.uc_stack.ss_size = Stack::kSize;
  own_.uc_link = nullptr;
  makecontext(&own_, entry, 0);
}

#if defined(__SANITIZE_ADDRESS__)

void Fibre::enter() {
  __sanitizer_start_switch_fiber(&scheduler_fake_, stack_->bottom(), Stack::kSize);
  swapcontext(&scheduler_, &own_);
  __sanitizer_finish_switch_fiber(scheduler_fake_, nullptr, nullptr);
}

void Fibre::entered() const {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom_, &scheduler_size_);
}

void Fibre::leave(bool for_ever) {
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &own_fake_, scheduler_bottom_,
                                 scheduler_size_);
  swapcontext(&own_, &scheduler_);
  __sanitizer_finish_switch_fiber(own_fake_, &scheduler_bottom_, &scheduler_size_);
}

#else

void Fibre::enter() { swapcontext(&scheduler_, &own_); }
void Fibre::entered() const {}
void Fibre::leave(bool) { swapcontext(&own_, &scheduler_); }

#endif

}  // namespace emulation
