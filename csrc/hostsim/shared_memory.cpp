// hostsim: shared memory. Each variable is a heap allocation of exactly its size, so that AddressSanitizer sees an
// access beyond it; at the start of a block it is filled with 0xff bytes, which is NaN in every floating type.
// Without AddressSanitizer a guard after each variable is compared at the end of the block: it sees stray writes.
#include "hostsim/shared_memory.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <new>

#include "hostsim/runtime.h"

namespace cosegflow {
namespace hostsim {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kGuard = 0;
#else
constexpr size_t kGuard = 128;
#endif

struct Variable {
  const SharedSite* site = nullptr;  // null: the dynamic shared memory
  unsigned char* data = nullptr;
  size_t bytes = 0;
  bool allocated = false;
  uint64_t block = 0;  // the block that has poisoned it

  void resize(size_t n, size_t alignment) {
    if (allocated && bytes == n) return;
    std::free(data);
    void* p = nullptr;
    if (posix_memalign(&p, alignment < 16 ? 16 : alignment, n + kGuard) != 0) throw std::bad_alloc();
    data = static_cast<unsigned char*>(p);
    bytes = n;
    allocated = true;
  }

  void poison(uint64_t current) {
    if (block == current) return;
    block = current;
    std::memset(data, 0xff, bytes + kGuard);
  }

  bool overrun() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (data[bytes + i] != 0xff) return true;
    }
    return false;
  }
};

// Never shrinks: a site keeps its allocation for the launches to come. A deque keeps addresses.
std::deque<Variable>& statics() {
  static std::deque<Variable> all;
  return all;
}
Variable dynamic;
uint64_t block = 0;
size_t dynamic_bytes = 0;
size_t static_bytes = 0;  // of this block

}  // namespace

void begin_block_shared(size_t bytes) {
  ++block;
  dynamic_bytes = bytes;
  static_bytes = 0;
}

std::string end_block_shared() {
  if (kGuard == 0) return {};
  if (dynamic.block == block && dynamic.overrun()) return "a thread wrote beyond the end of the dynamic shared memory";
  for (const Variable& v : statics()) {
    if (v.block == block && v.overrun()) {
      return std::string("a thread wrote beyond the end of the shared variable '") + v.site->name + "'";
    }
  }
  return {};
}

void* static_shared(const SharedSite& site) {
  for (Variable& v : statics()) {
    if (v.site != &site) continue;
    if (v.block != block) static_bytes += v.bytes;
    v.poison(block);
    return v.data;
  }
  static_bytes += site.bytes;
  if (static_bytes > kMaxStaticShared) fail("%zu bytes of static shared memory: 48 KB is the limit", static_bytes);
  if (static_bytes + dynamic_bytes > kMaxShared) {
    fail("%zu bytes of static and %zu of dynamic shared memory: a block has at most 99 KB", static_bytes,
         dynamic_bytes);
  }
  Variable v;
  v.site = &site;
  v.resize(site.bytes, site.alignment);
  v.poison(block);
  statics().push_back(v);
  return v.data;
}

void* dynamic_shared() {
  dynamic.resize(dynamic_bytes, 128);
  dynamic.poison(block);
  return dynamic.data;
}

void check_shared(const void* p, size_t bytes, size_t alignment, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) {
    fail("%s: the shared memory address is not aligned to %zu bytes", what, alignment);
  }
  const auto* first = static_cast<const unsigned char*>(p);
  const auto within = [&](const Variable& v) {
    return v.block == block && first >= v.data && first + bytes <= v.data + v.bytes;
  };
  if (within(dynamic)) return;
  for (const Variable& v : statics()) {
    if (within(v)) return;
  }
  fail("%s: %zu bytes at %p are not within the shared memory of the block", what, bytes, p);
}

}  // namespace hostsim
}  // namespace cosegflow
