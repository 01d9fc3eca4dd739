// Stacks of their own and switching between them; told to AddressSanitizer where it is on.
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
  void entered() const;       // the first call of `entry`

 private:
  ucontext_t own_, scheduler_;
  Stack* stack_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  mutable const void* scheduler_bottom_ = nullptr;
  mutable size_t scheduler_size_ = 0;
  void* own_fake_ = nullptr;
  void* scheduler_fake_ = nullptr;
#endif
};

}  // namespace emulation
