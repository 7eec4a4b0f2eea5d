// hostsim: named barriers, registers handed between warpgroups, and the choice of one lane.
#include <vector>

#include "hostsim/hopper.h"
#include "hostsim/shared_memory.h"

namespace cosegflow {
namespace hostsim {
namespace {

constexpr int kRegisters = 65536;  // of a multiprocessor; a block hands around what it was launched with, not all

struct NamedBarrier {
  int threads = 0;  // of the present round
  std::vector<int> waiting;
};

struct Warpgroup {
  int registers = 0;                 // 0: as launched
  int changes[4] = {0, 0, 0, 0};     // setmaxnreg that each warp has executed
  std::vector<int> registers_after;  // each of them
};

NamedBarrier named[16];
std::vector<Warpgroup> warpgroups;
int block_threads = 0;

struct NamedWait {
  int id;
  Place place;
};

std::string describe_named(const void* context) {
  const NamedWait& w = *static_cast<const NamedWait*>(context);
  const NamedBarrier& b = named[w.id];
  return "at named_barrier_sync() at " + std::string(w.place.file) + ":" + std::to_string(w.place.line) +
         " of barrier " + std::to_string(w.id) + ", where " + std::to_string(b.waiting.size()) + " of " +
         std::to_string(b.threads) + " threads have come";
}

int launched_registers() { return kRegisters / block_threads / 8 * 8; }

struct RegistersLane {
  int registers;
  bool more;
  Place place;

  static void combine(void* const* lane, unsigned) {
    const auto& me = *static_cast<RegistersLane*>(lane[0]);
    const char* name = me.more ? "take_registers" : "give_registers";
    for (int i = 1; i < 32; ++i) {
      const auto& other = *static_cast<RegistersLane*>(lane[i]);
      if (other.registers != me.registers || other.more != me.more) fail("%s: lanes of a warp disagree", name);
    }
    const int warp = linear_thread() / 32;
    if (warp / 4 >= block_threads / 128) fail("%s: the warp is not part of a whole warpgroup", name);
    Warpgroup& g = warpgroups[static_cast<size_t>(warp / 4)];
    const auto turn = static_cast<size_t>(g.changes[warp % 4]++);
    if (turn < g.registers_after.size()) {
      if (g.registers_after[turn] != me.registers) fail("%s: the warps of a warpgroup disagree", name);
      return;
    }
    const int now = g.registers_after.empty() ? launched_registers() : g.registers_after.back();
    if (me.more ? me.registers < now : me.registers > now) {
      fail("%s<%d>() at %s:%d: the warpgroup has %d registers a thread", name, me.registers, me.place.file,
           me.place.line, now);
    }
    g.registers_after.push_back(me.registers);
  }
};

struct ElectLane {
  bool elected;
  // Always the same lane, as on the hardware; not lane 0, so that nobody counts on it.
  static void combine(void* const* lane, unsigned) {
    for (int i = 0; i < 32; ++i) static_cast<ElectLane*>(lane[i])->elected = i == 31;
  }
};

}  // namespace

void begin_block_warpgroups(int threads) {
  for (NamedBarrier& b : named) {
    b.threads = 0;
    b.waiting.clear();
  }
  block_threads = threads;
  warpgroups.assign(static_cast<size_t>(threads / 128), Warpgroup());
}

std::string end_block_warpgroups() {
  int sum = 0;
  for (const Warpgroup& g : warpgroups) {
    for (const int n : g.changes) {
      if (n != static_cast<int>(g.registers_after.size())) {
        return "take_registers or give_registers was not called by all four warps of warpgroup " +
               std::to_string(&g - warpgroups.data());
      }
    }
    sum += 128 * (g.registers_after.empty() ? launched_registers() : g.registers_after.back());
  }
  const int pool = launched_registers() * block_threads;
  if (sum > pool) {  // on the hardware the last one to take waits for ever
    return "the warpgroups take " + std::to_string(sum) + " registers, the block was launched with " +
           std::to_string(pool);
  }
  return {};
}

void set_registers(int registers, bool more, Place place) {
  RegistersLane lane{registers, more, place};
  warp_collective(more ? "take_registers" : "give_registers", 0xffffffffu, &lane, &RegistersLane::combine, true);
}

void named_barrier(int id, int threads, Place place) {
  if (id < 1 || id > 15)
    fail("named_barrier_sync() at %s:%d: barrier %d is not one of 1 to 15", place.file, place.line, id);
  if (threads < 32 || threads % 32 != 0 || threads > block_threads) {
    fail("named_barrier_sync() at %s:%d: %d threads are not whole warps of the block", place.file, place.line, threads);
  }
  NamedBarrier& b = named[id];
  if (b.waiting.empty()) b.threads = threads;
  if (b.threads != threads) {
    fail("named_barrier_sync() at %s:%d: barrier %d for %d threads, others wait there for %d", place.file, place.line,
         id, threads, b.threads);
  }
  b.waiting.push_back(linear_thread());
  if (static_cast<int>(b.waiting.size()) < threads) {
    const NamedWait wait{id, place};
    sleep(&describe_named, &wait);
    return;
  }
  int lanes[32] = {};
  for (const int t : b.waiting) ++lanes[t / 32];
  for (const int n : lanes) {
    if (n % 32 != 0) fail("named_barrier_sync() at %s:%d: only %d lanes of a warp came", place.file, place.line, n);
  }
  for (const int t : b.waiting) {
    if (t != linear_thread()) wake(t);
  }
  b.waiting.clear();
  pass();
}

bool elect_one() {
  ElectLane lane{false};
  warp_collective("elect_one", 0xffffffffu, &lane, &ElectLane::combine, true);
  return lane.elected;
}

}  // namespace hostsim
}  // namespace cosegflow
