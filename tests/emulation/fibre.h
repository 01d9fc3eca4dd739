// Stacks of their own and switching between them; told to AddressSanitizer where it is on.
//
// A fibre is entered for the first time by swapcontext, and from then on by the compiler's setjmp
// and longjmp, which make no system call; under AddressSanitizer each swapcontext would also clear
// the shadow of a whole stack.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

// Memory for a fibre's stack, below it a page that must not be touched.
class Stack {
 public:
  Stack();
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* bottom() const { return memory_ + kGuard; }
  static constexpr size_t kGuard = 4096;
  static constexpr size_t kSize = 128 * 1024;

 private:
  char* memory_;
};

class Fibre {
 public:
  // Prepares to run entry(argument) on `stack`; entry must leave by leave() and not return.
  void prepare(Stack& stack, void (*entry)());
  void enter();               // from the scheduler, until the fibre calls leave()
  void leave(bool for_ever);  // back to the scheduler
  void entered();             // the first call of `entry`

 private:
  using Jump = void* [5];  // what __builtin_setjmp needs
  static void continue_at(Jump& jump);
  ucontext_t first_, unused_;
  Jump own_, scheduler_;
  Stack* stack_ = nullptr;
  bool begun_ = false;
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_bottom_ = nullptr;
  size_t scheduler_size_ = 0;
  void* own_fake_ = nullptr;
  void* scheduler_fake_ = nullptr;
#endif
};

}  // namespace emulation
