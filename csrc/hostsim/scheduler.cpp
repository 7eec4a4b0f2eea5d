// hostsim: the threads of one block as fibers.
//
// A fiber runs threads one after the other, as a plain loop; only when a thread has to wait does its fiber stay behind
// with it and another one take over. A kernel without collectives thus costs one switch per block.
#include "hostsim/scheduler.h"

#include <cstdio>
#include <utility>

#include "hostsim/shared_memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cosegflow {
namespace hostsim {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 * 1024;
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif
constexpr uint64_t kMaxIdleYields = 100000;

Scheduler* active = nullptr;

const char* barrier_name(Barrier kind) {
  switch (kind) {
    case Barrier::kSync: return "__syncthreads";
    case Barrier::kOr: return "__syncthreads_or";
    case Barrier::kAnd: return "__syncthreads_and";
    case Barrier::kCount: return "__syncthreads_count";
  }
  return "";
}

std::string at(const char* name, const char* file, int line) {
  return std::string(name) + "() at " + file + ":" + std::to_string(line);
}

std::string hex(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof(text), "0x%08x", mask);
  return text;
}

}  // namespace

void Scheduler::prepare(dim3 block, void (*body)(void*), void* context, Order order) {
  body_ = body;
  context_ = context;
  order_ = order;
  count_ = static_cast<int>(block.x * block.y * block.z);
  index_.clear();
  for (unsigned z = 0; z < block.z; ++z) {
    for (unsigned y = 0; y < block.y; ++y) {
      for (unsigned x = 0; x < block.x; ++x) index_.push_back({x, y, z});
    }
  }
  threads_.resize(static_cast<size_t>(count_));
}

std::string Scheduler::run_block(uint64_t seed) {
  active = this;
  random_.state = seed;
  runnable_warps_ = 0;
  for (int first = 0; first < count_; first += 32) {
    const unsigned exists = count_ - first >= 32 ? 0xffffffffu : (1u << (count_ - first)) - 1;
    warps_[first / 32] = {exists, exists, 0, 0, 0, 0};
    runnable_warps_ |= 1u << (first / 32);
  }
  for (Thread& t : threads_) t.fiber = nullptr;
  phase_next_ = phase_end_ = 0;
  exited_ = barrier_waiting_ = barrier_true_ = 0;
  idle_yields_ = 0;
  error_.clear();

  fiber_ = &main_;
  running_ = true;
  enter(pick());
  leave_to(current_);
  running_ = false;
  if (!error_.empty()) {  // fibers stand in the middle of the kernel: drop them all
    free_.clear();
    fibers_.clear();
  }
  return std::move(error_);
}

// ---- who runs ---------------------------------------------------------------------------------------------------

int Scheduler::pick() {
  if (phase_next_ < phase_end_) return phase_[phase_next_++];
  if (runnable_warps_ == 0 && !finish_late_copies()) return -1;
  int warp = 0;
  if (order_ == Order::kForward) warp = __builtin_ctz(runnable_warps_);
  if (order_ == Order::kReverse) warp = 31 - __builtin_clz(runnable_warps_);
  if (order_ == Order::kRandom) {
    unsigned rest = runnable_warps_;
    for (unsigned skip = random_.below(static_cast<unsigned>(__builtin_popcount(rest))); skip > 0; --skip) {
      rest &= rest - 1;
    }
    warp = __builtin_ctz(rest);
  }
  Warp& w = warps_[warp];
  phase_next_ = phase_end_ = 0;
  for (unsigned lanes = w.runnable; lanes != 0; lanes &= lanes - 1) {
    phase_[phase_end_++] = 32 * warp + __builtin_ctz(lanes);
  }
  if (order_ == Order::kReverse) {
    for (int i = 0, j = phase_end_ - 1; i < j; ++i, --j) std::swap(phase_[i], phase_[j]);
  }
  if (order_ == Order::kRandom) {
    for (int i = phase_end_ - 1; i > 0; --i) std::swap(phase_[i], phase_[random_.below(static_cast<unsigned>(i) + 1)]);
  }
  w.runnable = 0;
  runnable_warps_ &= ~(1u << warp);
  return phase_[phase_next_++];
}

void Scheduler::enter(int thread) {
  current_ = thread;
  threadIdx = index_[static_cast<size_t>(thread)];
}

void Scheduler::leave_to(int thread) {
  Fiber* to = threads_[static_cast<size_t>(thread)].fiber;
  if (to == nullptr) {
    if (free_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>(kStackBytes, &Scheduler::fiber_main));
      free_.push_back(fibers_.back().get());
    }
    to = free_.back();
    free_.pop_back();
  }
  Fiber* from = fiber_;
  fiber_ = to;
  ++switches;
  Fiber::switch_to(*from, *to);
}

void Scheduler::switch_away() {
  const int self = current_;
  threads_[static_cast<size_t>(self)].fiber = fiber_;
  const int next = pick();
  if (next < 0) deadlock();
  enter(next);
  if (next != self) leave_to(next);
}

void Scheduler::fiber_main() {
  Scheduler& s = *active;
  for (;;) {
    s.body_(s.context_);
    s.on_exit();
    const int next = s.pick();
    if (next >= 0) {
      s.enter(next);
      if (s.threads_[static_cast<size_t>(next)].fiber == nullptr) continue;  // it starts on this very stack
      s.free_.push_back(s.fiber_);
      s.leave_to(next);
    } else {
      if (s.exited_ != s.count_) s.deadlock();
      Fiber* self = s.fiber_;
      s.free_.push_back(self);
      s.fiber_ = &s.main_;
      Fiber::switch_to(*self, s.main_);
    }
    // Taken from the free list: `current_` is the thread to start.
  }
}

void Scheduler::on_exit() {
  Warp& w = warps_[current_ / 32];
  const unsigned bit = 1u << lane();
  w.exited |= bit;
  ++exited_;
  idle_yields_ = 0;
  if (barrier_waiting_ != 0) {
    abandon("divergent barrier: " + describe(current_) + " has returned while " + std::to_string(barrier_waiting_) +
            " of " + std::to_string(count_) + " threads wait at " +
            at(barrier_name(barrier_kind_), barrier_file_, barrier_line_));
  }
  for (unsigned waiting = w.at_collective; waiting != 0; waiting &= waiting - 1) {
    const int other = current_ / 32 * 32 + __builtin_ctz(waiting);
    const Thread& t = threads_[static_cast<size_t>(other)];
    if (t.mask & bit) {
      abandon("divergent warp: " + describe(current_) + " has returned while " + describe(other) + " waits for it at " +
              t.name + " with mask " + hex(t.mask));
    }
  }
}

// ---- waiting ----------------------------------------------------------------------------------------------------

int Scheduler::barrier(Barrier kind, int predicate, const char* file, int line) {
  if (exited_ != 0) {
    std::string gone;
    for (int i = 0; i < count_ && gone.empty(); ++i) {
      if (warps_[i / 32].exited >> (i % 32) & 1u) gone = describe(i);
    }
    abandon("divergent barrier: " + describe(current_) + " waits at " + at(barrier_name(kind), file, line) + " but " +
            std::to_string(exited_) + " of " + std::to_string(count_) + " threads have returned, " + gone +
            " among them");
  }
  if (barrier_waiting_ == 0) {
    barrier_kind_ = kind;
    barrier_file_ = file;
    barrier_line_ = line;
    barrier_first_ = current_;
  } else if (kind != barrier_kind_ || line != barrier_line_) {
    abandon("divergent barrier: " + describe(current_) + " waits at " + at(barrier_name(kind), file, line) + " while " +
            describe(barrier_first_) + " waits at " + at(barrier_name(barrier_kind_), barrier_file_, barrier_line_));
  }
  barrier_true_ += predicate != 0;
  warps_[current_ / 32].at_barrier |= 1u << lane();
  idle_yields_ = 0;
  if (++barrier_waiting_ == count_) {
    barrier_result_ = barrier_true_;
    if (kind == Barrier::kOr) barrier_result_ = barrier_true_ != 0;
    if (kind == Barrier::kAnd) barrier_result_ = barrier_true_ == count_;
    barrier_waiting_ = barrier_true_ = 0;
    for (int w = 0; w * 32 < count_; ++w) {
      warps_[w].runnable |= warps_[w].at_barrier;
      warps_[w].at_barrier = 0;
      runnable_warps_ |= 1u << w;
    }
  }
  switch_away();
  return barrier_result_;
}

void Scheduler::collective(const char* name, unsigned mask, void* mine, Combine combine, bool whole_warp) {
  Warp& w = warps_[current_ / 32];
  const unsigned bit = 1u << lane();
  Thread* const lanes = &threads_[static_cast<size_t>(current_ / 32 * 32)];
  if (whole_warp && w.exists != 0xffffffffu) {
    abandon(std::string(name) + " needs 32 threads, the warp of " + describe(current_) + " has fewer");
  }
  if ((mask & bit) == 0) {
    abandon(std::string(name) + " with mask " + hex(mask) + ", which does not name the caller, " + describe(current_));
  }
  mask &= w.exists;
  if (mask & w.exited) {
    abandon("divergent warp: " + describe(current_) + " waits at " + name + " with mask " + hex(mask) + " for lanes " +
            hex(mask & w.exited) + ", which have returned");
  }
  Thread& me = lanes[lane()];
  me.name = name;
  me.mask = mask;
  me.mine = mine;
  me.combine = combine;
  w.at_collective |= bit;
  idle_yields_ = 0;
  if ((w.at_collective & mask) == mask) {
    void* arguments[32] = {};
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
      const int i = __builtin_ctz(rest);
      if (lanes[i].mask != mask || lanes[i].combine != combine) {
        abandon("divergent warp: " + describe(current_) + " is at " + name + " with mask " + hex(mask) + " while " +
                describe(current_ / 32 * 32 + i) + " is at " + lanes[i].name + " with mask " + hex(lanes[i].mask));
      }
      arguments[i] = lanes[i].mine;
    }
    combine(arguments, mask);
    w.at_collective &= ~mask;
    w.runnable |= mask;
    runnable_warps_ |= 1u << (current_ / 32);
  }
  switch_away();
}

void Scheduler::yield() {
  if (++idle_yields_ > kMaxIdleYields) {
    abandon("livelock: " + describe(current_) +
            " polls for something that no thread of the block will do (blocks run "
            "one after the other)");
  }
  warps_[current_ / 32].runnable |= 1u << lane();
  runnable_warps_ |= 1u << (current_ / 32);
  switch_away();
}

void Scheduler::pass() {
  warps_[current_ / 32].runnable |= 1u << lane();
  runnable_warps_ |= 1u << (current_ / 32);
  switch_away();
}

void Scheduler::sleep(Describe describe, const void* context) {
  Thread& me = threads_[static_cast<size_t>(current_)];
  me.describe = describe;
  me.context = context;
  warps_[current_ / 32].asleep |= 1u << lane();
  idle_yields_ = 0;
  switch_away();
}

void Scheduler::wake(int thread) {
  Warp& w = warps_[thread / 32];
  w.asleep &= ~(1u << (thread % 32));
  w.runnable |= 1u << (thread % 32);
  runnable_warps_ |= 1u << (thread / 32);
  idle_yields_ = 0;
}

// ---- errors -----------------------------------------------------------------------------------------------------

void Scheduler::abandon(std::string reason) {
  error_ = std::move(reason);
  Fiber* self = fiber_;
  fiber_ = &main_;
  Fiber::switch_to(*self, main_);
  __builtin_trap();
}

void Scheduler::deadlock() {
  std::string reason = "deadlock: no thread can run.";
  if (barrier_waiting_ != 0) {
    reason += " " + std::to_string(barrier_waiting_) + " of " + std::to_string(count_) + " threads wait at " +
              at(barrier_name(barrier_kind_), barrier_file_, barrier_line_) + ", " + describe(barrier_first_) +
              " was the first.";
  }
  for (int w = 0; w * 32 < count_; ++w) {
    if (warps_[w].at_collective == 0) continue;
    const int first = 32 * w + __builtin_ctz(warps_[w].at_collective);
    const Thread& t = threads_[static_cast<size_t>(first)];
    reason += " Lanes " + hex(warps_[w].at_collective) + " of warp " + std::to_string(w) +
              " wait at a warp collective: " + describe(first) + " at " + t.name + " with mask " + hex(t.mask) + ".";
  }
  for (int w = 0; w * 32 < count_; ++w) {
    if (warps_[w].asleep == 0) continue;
    const int first = 32 * w + __builtin_ctz(warps_[w].asleep);
    const Thread& t = threads_[static_cast<size_t>(first)];
    reason += " Lanes " + hex(warps_[w].asleep) + " of warp " + std::to_string(w) + ": " + describe(first) + " waits " +
              t.describe(t.context) + ".";
  }
  abandon(reason);
}

std::string Scheduler::describe(int thread) const {
  const uint3& i = index_[static_cast<size_t>(thread)];
  return "thread (" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

}  // namespace hostsim
}  // namespace cosegflow
