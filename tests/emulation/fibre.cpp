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

// What jumps is not instrumented: AddressSanitizer would clear the stack before each jump, but no
// frame is left by one.
#define NOT_INSTRUMENTED __attribute__((noinline, no_sanitize("address", "undefined")))

NOT_INSTRUMENTED void Fibre::continue_at(Jump& jump) { __builtin_longjmp(jump, 1); }

void Fibre::prepare(Stack& stack, void (*entry)()) {
  stack_ = &stack;
  begun_ = false;
  getcontext(&first_);
  first_.uc_stack.ss_sp = stack.bottom();
  first_.uc_stack.ss_size = Stack::kSize;
  first_.uc_link = nullptr;
  makecontext(&first_, entry, 0);
}

NOT_INSTRUMENTED void Fibre::enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_, stack_->bottom(), Stack::kSize);
#endif
  if (__builtin_setjmp(scheduler_) == 0) {
    if (begun_) continue_at(own_);
    begun_ = true;
    swapcontext(&unused_, &first_);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_, nullptr, nullptr);
#endif
}

void Fibre::entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom_, &scheduler_size_);
#endif
}

NOT_INSTRUMENTED void Fibre::leave(bool for_ever) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &own_fake_, scheduler_bottom_,
                                 scheduler_size_);
#endif
  if (for_ever || __builtin_setjmp(own_) == 0) continue_at(scheduler_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(own_fake_, &scheduler_bottom_, &scheduler_size_);
#endif
}

}  // namespace emulation
