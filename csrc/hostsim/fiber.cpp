// hostsim: fibers by hand for x86-64 (a switch takes a few nanoseconds), by ucontext elsewhere (two system calls).
// Both tell AddressSanitizer which stack is in use, so that the sanitizer build may take either.
#include "hostsim/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cosegflow {
namespace hostsim {
namespace {

Fiber* left = nullptr;     // the fiber that the last switch left
Fiber* entered = nullptr;  // and the one that it went to

#if defined(__SANITIZE_ADDRESS__)
void announce(void** fake_stack, const void* bottom, size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
}
void arrived(void* fake_stack, const void** old_bottom, size_t* old_bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, old_bottom, old_bytes);
}
#else
void announce(void**, const void*, size_t) {}
void arrived(void*, const void**, size_t*) {}
#endif

}  // namespace

#if !defined(COSEGFLOW_HOSTSIM_UCONTEXT)

// Saves what the System V ABI lets a function rely on across a call, swaps stacks, restores the same from the other.
extern "C" void cosegflow_switch_stack(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
.text
.type cosegflow_switch_stack, @function
.hidden cosegflow_switch_stack
.globl cosegflow_switch_stack
cosegflow_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cosegflow_switch_stack, .-cosegflow_switch_stack
)");

#endif

Fiber::Fiber(size_t stack_bytes, Entry entry) : entry_(entry) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  bytes_ = (stack_bytes + page - 1) / page * page;
  mapping_bytes_ = bytes_ + page;
  mapping_ = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, page, PROT_NONE);  // running off the stack faults at once
  auto* bottom = static_cast<unsigned char*>(mapping_) + page;
  bottom_ = bottom;
#if defined(COSEGFLOW_HOSTSIM_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = bottom;
  context_.uc_stack.ss_size = bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, &Fiber::start, 0);
#else
  // As if `start` had been called and had switched away: six registers, its address, and a null return address.
  auto* top = reinterpret_cast<uintptr_t*>(bottom + bytes_) - 1;  // 8 below a multiple of 16, as after a call
  top[0] = 0;
  top[-1] = reinterpret_cast<uintptr_t>(&Fiber::start);
  for (int i = 2; i <= 7; ++i) top[-i] = 0;
  stack_pointer_ = top - 7;
#endif
}

Fiber::~Fiber() {
  if (mapping_ == nullptr) return;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom_, bytes_);  // the address range may be mapped again
#endif
  munmap(mapping_, mapping_bytes_);
}

void Fiber::start() {
  arrived(nullptr, &left->bottom_, &left->bytes_);
  entered->entry_();
  __builtin_trap();
}

void Fiber::switch_to(Fiber& from, Fiber& to) {
  left = &from;
  entered = &to;
  announce(&from.fake_stack_, to.bottom_, to.bytes_);
#if defined(COSEGFLOW_HOSTSIM_UCONTEXT)
  swapcontext(&from.context_, &to.context_);
#else
  cosegflow_switch_stack(&from.stack_pointer_, to.stack_pointer_);
#endif
  arrived(from.fake_stack_, &left->bottom_, &left->bytes_);
}

}  // namespace hostsim
}  // namespace cosegflow
