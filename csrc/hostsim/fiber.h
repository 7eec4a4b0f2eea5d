// hostsim: a fiber is a stack and the point where it was left. Switching is a function call that returns elsewhere.
#pragma once

#include <cstddef>

#if !defined(COSEGFLOW_HOSTSIM_UCONTEXT) && !defined(__x86_64__)
#define COSEGFLOW_HOSTSIM_UCONTEXT 1
#endif

#if defined(COSEGFLOW_HOSTSIM_UCONTEXT)
#include <ucontext.h>
#endif

namespace cosegflow {
namespace hostsim {

class Fiber {
 public:
  using Entry = void (*)();  // must not return: it switches away for good

  Fiber() = default;  // the stack of the OS thread itself
  Fiber(size_t stack_bytes, Entry entry);
  ~Fiber();  // also of a fiber that was left in the middle: its locals are not destroyed
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves `from` (the caller) and goes on where `to` was left; returns when someone switches back.
  static void switch_to(Fiber& from, Fiber& to);

 private:
  static void start();

  void* mapping_ = nullptr;  // a guard page, then the stack
  size_t mapping_bytes_ = 0;
  const void* bottom_ = nullptr;  // what AddressSanitizer has to know: the bounds of the stack ...
  size_t bytes_ = 0;
  void* fake_stack_ = nullptr;  // ... and its own stack beside it
  Entry entry_ = nullptr;
#if defined(COSEGFLOW_HOSTSIM_UCONTEXT)
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace hostsim
}  // namespace cosegflow
