// hostsim: one block and its threads. scheduler.cpp decides who runs, grid.cpp walks over the blocks of a launch.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "hostsim/fiber.h"
#include "hostsim/runtime.h"

namespace cosegflow {
namespace hostsim {

// Small, fast and the same everywhere (splitmix64).
struct Random {
  uint64_t state = 0;
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  unsigned below(unsigned n) { return static_cast<unsigned>((next() >> 32) * n >> 32); }
};

class Scheduler {
 public:
  // Before the first block of a launch.
  void prepare(dim3 block, void (*body)(void*), void* context, Order order);
  // Runs all threads of one block to their end. Empty, or the reason why it could not.
  std::string run_block(uint64_t seed);

  bool running() const { return running_; }
  int current() const { return current_; }
  int lane() const { return current_ % 32; }
  uint64_t switches = 0;

  int barrier(Barrier kind, int predicate, const char* file, int line);
  void collective(const char* name, unsigned mask, void* mine, Combine combine, bool whole_warp);
  void yield();
  void pass();
  void sleep(Describe describe, const void* context);
  void wake(int thread);
  bool late() { return order_ == Order::kForward || (order_ == Order::kRandom && random_.below(2) == 0); }
  [[noreturn]] void abandon(std::string reason);  // from within a fiber

 private:
  struct Thread {
    Fiber* fiber;      // where it waits; null as long as it has not started
    const char* name;  // what it waits for, if a warp collective
    unsigned mask;
    void* mine;
    Combine combine;
    Describe describe;  // what it waits for, if for another thread to wake it
    const void* context;
  };
  struct Warp {
    unsigned exists, runnable, at_collective, at_barrier, asleep, exited;  // masks of lanes
  };

  static void fiber_main();
  int pick();                 // the next thread to run; negative if none can
  void enter(int thread);     // makes it the current one
  void switch_away();         // lets others run until the current thread is entered again
  void leave_to(int thread);  // switches to the fiber of a thread that has been entered
  void on_exit();
  [[noreturn]] void deadlock();
  std::string describe(int thread) const;

  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  Order order_ = Order::kForward;
  Random random_;

  int count_ = 0;  // threads of the block
  int exited_ = 0;
  int current_ = 0;
  bool running_ = false;
  std::vector<uint3> index_;  // threadIdx of each thread
  std::vector<Thread> threads_;
  Warp warps_[32];
  unsigned runnable_warps_ = 0;

  // A phase: lanes of one warp that run one after the other, each up to the point where it has to wait.
  int phase_[32];
  int phase_next_ = 0, phase_end_ = 0;

  int barrier_waiting_ = 0;
  Barrier barrier_kind_ = Barrier::kSync;
  const char* barrier_file_ = nullptr;
  int barrier_line_ = 0, barrier_first_ = 0;
  int barrier_true_ = 0, barrier_result_ = 0;

  uint64_t idle_yields_ = 0;  // since somebody last made progress
  std::string error_;

  Fiber main_;
  Fiber* fiber_ = nullptr;  // the running one
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_;
};

}  // namespace hostsim
}  // namespace cosegflow
