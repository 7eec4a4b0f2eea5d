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

uint64_t current_block = 0;
bool hopper = false;

struct Variable {
  const SharedSite* site = nullptr;  // null: the dynamic shared memory
  unsigned char* data = nullptr;
  unsigned char* view = nullptr;  // as the asynchronous proxy sees it; null unless a launch_hopper has used it
  size_t bytes = 0;
  size_t aligned = 0;  // what `data` is aligned to; 0: not allocated
  uint64_t block = 0;  // the block that has poisoned it

  void resize(size_t n, size_t alignment) {
    if (aligned == alignment && bytes == n) return;
    std::free(data);
    std::free(view);
    void* p = nullptr;
    if (posix_memalign(&p, alignment < 16 ? 16 : alignment, n + kGuard) != 0) throw std::bad_alloc();
    data = static_cast<unsigned char*>(p);
    view = nullptr;
    bytes = n;
    aligned = alignment;
  }

  void poison() {
    if (block == current_block) return;
    block = current_block;
    std::memset(data, 0xff, bytes + kGuard);
    if (!hopper) return;
    if (view == nullptr) view = static_cast<unsigned char*>(std::malloc(bytes + 1));
    if (view == nullptr) throw std::bad_alloc();
    std::memset(view, 0xff, bytes);
  }

  bool holds(const void* p, size_t n) const {
    const auto* first = static_cast<const unsigned char*>(p);
    return block == current_block && first >= data && first + n <= data + bytes;
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
size_t dynamic_bytes = 0;
size_t static_bytes = 0;  // of this block

const Variable* variable_with(const void* p, size_t bytes) {
  if (dynamic.holds(p, bytes)) return &dynamic;
  for (const Variable& v : statics()) {
    if (v.holds(p, bytes)) return &v;
  }
  return nullptr;
}

}  // namespace

void begin_block_shared(size_t bytes, bool is_hopper) {
  ++current_block;
  hopper = is_hopper;
  dynamic_bytes = bytes;
  static_bytes = 0;
}

std::string end_block_shared() {
  if (kGuard == 0) return {};
  if (dynamic.block == current_block && dynamic.overrun())
    return "a thread wrote beyond the end of the dynamic shared memory";
  for (const Variable& v : statics()) {
    if (v.block == current_block && v.overrun()) {
      return std::string("a thread wrote beyond the end of the shared variable '") + v.site->name + "'";
    }
  }
  return {};
}

static void add_static(size_t bytes) {
  static_bytes += bytes;
  if (static_bytes > kMaxStaticShared) fail("%zu bytes of static shared memory: 48 KB is the limit", static_bytes);
  const size_t most = hopper ? kMaxSharedHopper : kMaxShared;
  if (static_bytes + dynamic_bytes > most) {
    fail("%zu bytes of static and %zu of dynamic shared memory: a block has at most %zu KB", static_bytes,
         dynamic_bytes, most / 1024);
  }
}

void* static_shared(const SharedSite& site) {
  for (Variable& v : statics()) {
    if (v.site != &site) continue;
    if (v.block != current_block) add_static(v.bytes);
    v.poison();
    return v.data;
  }
  add_static(site.bytes);
  Variable v;
  v.site = &site;
  v.resize(site.bytes, site.alignment);
  v.poison();
  statics().push_back(v);
  return v.data;
}

void* dynamic_shared() {
  dynamic.resize(dynamic_bytes, hopper ? 1024 : 128);
  dynamic.poison();
  return dynamic.data;
}

void check_shared(const void* p, size_t bytes, size_t alignment, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) {
    fail("%s: the shared memory address is not aligned to %zu bytes", what, alignment);
  }
  if (variable_with(p, bytes) == nullptr) {
    fail("%s: %zu bytes at %p are not within the shared memory of the block", what, bytes, p);
  }
}

std::string describe_shared(const void* p) {
  const Variable* v = variable_with(p, 1);
  if (v == nullptr) return "an address outside of the block's shared memory";
  const std::string name = v->site == nullptr ? "the dynamic shared memory" : "'" + std::string(v->site->name) + "'";
  return "byte " + std::to_string(static_cast<const unsigned char*>(p) - v->data) + " of " + name;
}

unsigned char* async_view(const void* shared) {
  if (!hopper) fail("bulk copies and wgmma are for kernels that launch_hopper() launches");
  const Variable* v = variable_with(shared, 1);
  return v->view + (static_cast<const unsigned char*>(shared) - v->data);
}

void publish_stores() {
  if (!hopper) return;
  if (dynamic.block == current_block) std::memcpy(dynamic.view, dynamic.data, dynamic.bytes);
  for (const Variable& v : statics()) {
    if (v.block == current_block) std::memcpy(v.view, v.data, v.bytes);
  }
}

}  // namespace hostsim
}  // namespace cosegflow
