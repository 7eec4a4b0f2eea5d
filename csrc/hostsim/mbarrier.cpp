// hostsim: mbarriers and the bulk copies that report to them. The state of an mbarrier is kept here, under its address;
// in shared memory lies only a mark that shows when somebody overwrites it.
//
// A bulk copy fills its destination with NaN at issue. It is carried out when its phase lacks nothing else and a thread
// waits for that phase, or later still, when no other thread can run: the latest moments at which the hardware may
// finish it.
#include <cstring>
#include <deque>
#include <vector>

#include "hostsim/hopper.h"
#include "hostsim/shared_memory.h"

namespace cosegflow {
namespace hostsim {
namespace {

constexpr uint64_t kMark = 0x6d62617272696572u;
constexpr unsigned kMostArrivals = (1u << 20) - 1, kMostBytes = (1u << 20) - 1;
constexpr int64_t kRowHalves = 64;  // of a tile
constexpr size_t kRowBytes = 128;

struct Copy {
  unsigned char* destination;
  size_t bytes;
  const void* source;  // of a plain copy; null: a tile of `map`
  TensorMap map;
  int channel, row, image;
  Place place;
};

struct State {
  uint64_t* bar;
  unsigned arrivals, pending;  // of a phase; still missing in this one
  uint64_t phase;              // the number of phases that have ended
  unsigned expected, issued;   // bytes in this phase
  int initialiser;             // the thread
  bool fenced;                 // it has called fence_proxy_async() since
  std::vector<Copy> copies;
  std::vector<int> waiting;
};

std::deque<State> barriers;  // of this block

std::string text(const Place& p) { return std::string(p.file) + ":" + std::to_string(p.line); }

State& state_of(uint64_t* bar, const char* what, const Place& place) {
  for (State& s : barriers) {
    if (s.bar != bar) continue;
    if (*bar != kMark) {
      fail("%s() at %s: the mbarrier at %s has been overwritten", what, text(place).c_str(),
           describe_shared(bar).c_str());
    }
    return s;
  }
  fail("%s() at %s: there is no mbarrier at %s (mbarrier_init comes first)", what, text(place).c_str(),
       describe_shared(bar).c_str());
}

// ---- copies -----------------------------------------------------------------------------------------------------

// Bits 4 to 6 of an address are XORed with bits 7 to 9: the 128-byte swizzle; with that of 64 bytes bits 4 and 5 with 7
// and 8, of 32 bytes bit 4 with 7.
unsigned char* swizzled(unsigned char* p, int bytes) {
  const auto address = reinterpret_cast<uintptr_t>(p), mask = static_cast<uintptr_t>(bytes < 32 ? 0 : bytes / 16 - 1);
  return p + static_cast<std::ptrdiff_t>(address ^ (address >> 7 & mask) << 4) - static_cast<std::ptrdiff_t>(address);
}

void check_untouched(const Copy& c) {
  const unsigned char* const p = c.destination;
  if (p[0] == 0xff && std::memcmp(p, p + 1, c.bytes - 1) == 0) return;
  size_t i = 0;
  while (p[i] == 0xff) ++i;
  fail("%s was written while the bulk copy issued at %s to it was in flight", describe_shared(p + i).c_str(),
       text(c.place).c_str());
}

void carry_out(const Copy& c) {
  check_untouched(c);
  unsigned char* const view = async_view(c.destination);
  if (c.source != nullptr) {
    std::memcpy(c.destination, c.source, c.bytes);
    std::memcpy(view, c.source, c.bytes);
    return;
  }
  const TensorMap& m = c.map;
  // Of a row the halves [first, end) are within the tensor.
  const int64_t first = c.channel < 0 ? -static_cast<int64_t>(c.channel) : 0;
  const int64_t end = m.depth - c.channel < kRowHalves ? m.depth - c.channel : kRowHalves;
  for (int r = 0; r < m.box_rows; ++r) {
    uint16_t halves[kRowHalves] = {};
    const int64_t row = static_cast<int64_t>(c.row) + r;
    if (c.image >= 0 && c.image < m.images && row >= 0 && row < m.rows && first < end) {
      const int64_t from = (c.image * m.rows + row) * m.depth + c.channel + first;
      std::memcpy(halves + first, static_cast<const uint16_t*>(m.data) + from, static_cast<size_t>(end - first) * 2);
    }
    for (size_t chunk = 0; chunk < kRowBytes; chunk += 16) {
      unsigned char* const to = swizzled(c.destination + static_cast<size_t>(r) * kRowBytes + chunk, m.swizzle);
      std::memcpy(to, halves + chunk / 2, 16);
      std::memcpy(view + (to - c.destination), halves + chunk / 2, 16);
    }
  }
}

// ---- phases -----------------------------------------------------------------------------------------------------

bool lacks_nothing(const State& s) { return s.pending == 0 && s.issued == s.expected; }

void end_phase(State& s) {
  for (const Copy& c : s.copies) carry_out(c);
  s.copies.clear();
  ++s.phase;
  s.pending = s.arrivals;
  s.expected = s.issued = 0;
  for (const int thread : s.waiting) wake(thread);
  s.waiting.clear();
}

struct Wait {
  const State* state;
  unsigned parity;
  Place place;
};

std::string describe_wait(const void* context) {
  const Wait& w = *static_cast<const Wait*>(context);
  const State& s = *w.state;
  return "at mbarrier_wait() at " + text(w.place) + " for parity " + std::to_string(w.parity) + " of the mbarrier at " +
         describe_shared(s.bar) + ", whose phase " + std::to_string(s.phase) + " lacks " + std::to_string(s.pending) +
         " of " + std::to_string(s.arrivals) + " arrivals and " +
         std::to_string(static_cast<int64_t>(s.expected) - static_cast<int64_t>(s.issued)) + " of " +
         std::to_string(s.expected) + " expected bytes";
}

void issue(Copy copy, uint64_t* bar, const char* what) {
  State& s = state_of(bar, what, copy.place);
  const std::string place = text(copy.place);
  if (!s.fenced) {
    fail("%s() at %s: the thread that initialised the mbarrier has not called fence_proxy_async() since", what,
         place.c_str());
  }
  for (const State& other : barriers) {
    for (const Copy& c : other.copies) {
      if (copy.destination + copy.bytes > c.destination && c.destination + c.bytes > copy.destination) {
        fail("%s() at %s: its destination overlaps that of the copy issued at %s, which is in flight", what,
             place.c_str(), text(c.place).c_str());
      }
    }
  }
  unsigned char* view = async_view(copy.destination);
  if (std::memcmp(copy.destination, view, copy.bytes) != 0) {
    fail("%s() at %s: its destination was written by plain stores and no fence_proxy_async() followed", what,
         place.c_str());
  }
  std::memset(copy.destination, 0xff, copy.bytes);
  std::memset(view, 0xff, copy.bytes);
  s.issued += static_cast<unsigned>(copy.bytes);
  if (s.issued > kMostBytes || (s.pending == 0 && s.issued > s.expected)) {
    fail("%s() at %s: the mbarrier at %s expects %u bytes in this phase, with this copy %u are issued", what,
         place.c_str(), describe_shared(bar).c_str(), s.expected, s.issued);
  }
  s.copies.push_back(copy);
  if (lacks_nothing(s) && !s.waiting.empty() && !late()) end_phase(s);
}

}  // namespace

void begin_block_mbarriers() { barriers.clear(); }

std::string end_block_mbarriers() {
  for (const State& s : barriers) {
    if (!s.copies.empty()) {
      return "the block ended without waiting for the bulk copy issued at " + text(s.copies[0].place);
    }
  }
  return {};
}

bool finish_late_copies() {
  for (State& s : barriers) {
    if (!lacks_nothing(s) || s.waiting.empty()) continue;
    end_phase(s);
    return true;
  }
  return false;
}

void mbarrier_init(uint64_t* bar, unsigned arrivals) {
  check_shared(bar, 8, 8, "mbarrier_init");
  if (arrivals < 1 || arrivals > kMostArrivals) fail("mbarrier_init: %u arrivals", arrivals);
  for (const State& s : barriers) {
    if (s.bar == bar) fail("mbarrier_init: the mbarrier at %s exists already", describe_shared(bar).c_str());
  }
  *bar = kMark;
  barriers.push_back({bar, arrivals, arrivals, 0, 0, 0, linear_thread(), false, {}, {}});
}

void fence_proxy_async() {
  for (State& s : barriers) s.fenced |= s.initialiser == linear_thread();
  publish_stores();
}

void mbarrier_arrive(uint64_t* bar, unsigned expect_bytes, Place place) {
  State& s = state_of(bar, "mbarrier_arrive", place);
  if (s.pending == 0) {
    fail(
        "mbarrier_arrive() at %s: too many arrivals: all %u of this phase have come to the mbarrier at %s, which waits "
        "for bulk copies",
        text(place).c_str(), s.arrivals, describe_shared(bar).c_str());
  }
  s.expected += expect_bytes;
  --s.pending;
  if (s.expected > kMostBytes || (s.pending == 0 && s.issued > s.expected)) {
    fail("mbarrier_arrive() at %s: the mbarrier at %s expects %u bytes in this phase, %u were issued",
         text(place).c_str(), describe_shared(bar).c_str(), s.expected, s.issued);
  }
  if (!lacks_nothing(s)) return;
  const bool others = !s.waiting.empty();
  if (s.copies.empty() || (others && !late())) end_phase(s);
  if (others) pass();  // who waited may go on before this thread's next line
}

void mbarrier_wait(uint64_t* bar, unsigned parity, Place place) {
  State& s = state_of(bar, "mbarrier_wait", place);
  if (parity > 1) fail("mbarrier_wait() at %s: parity %u", text(place).c_str(), parity);
  // A thread that comes back after two phases waits for a third, as on the hardware.
  while (s.phase % 2 == parity) {
    if (lacks_nothing(s) && (s.copies.empty() || !late())) {
      end_phase(s);
    } else {
      const Wait wait{&s, parity, place};
      s.waiting.push_back(linear_thread());
      sleep(&describe_wait, &wait);
    }
  }
}

void check_tensor_map(const TensorMap* map) {
  if (map == nullptr || map->data == nullptr || map->box_rows <= 0)
    fail("a tensor map that make_tensor_map() did not make");
}

void bulk_load_tile(void* shared, const TensorMap* map, uint64_t* bar, int channel, int row, int image, Place place) {
  check_tensor_map(map);
  const size_t bytes = static_cast<size_t>(map->box_rows) * kRowBytes;
  check_shared(shared, bytes, 1024, "bulk_load_tile");
  issue({static_cast<unsigned char*>(shared), bytes, nullptr, *map, channel, row, image, place}, bar, "bulk_load_tile");
}

void bulk_load(void* shared, const void* global, unsigned bytes, uint64_t* bar, Place place) {
  check_shared(shared, bytes, 16, "bulk_load");
  if (global == nullptr || reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    fail("bulk_load: the source address %p is not aligned to 16 bytes", global);
  }
  if (bytes == 0 || bytes % 16 != 0) fail("bulk_load: %u bytes are not a positive multiple of 16", bytes);
  issue({static_cast<unsigned char*>(shared), bytes, global, {}, 0, 0, 0, place}, bar, "bulk_load");
}

}  // namespace hostsim
}  // namespace cosegflow
