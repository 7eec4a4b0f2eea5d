// hostsim: cp.async. A copy is queued at issue, its destination filled with NaN, and it is carried out by the wait that
// covers its group: the latest moment at which the hardware may do it.
#include <cstring>
#include <vector>

#include "hostsim/runtime.h"
#include "hostsim/shared_memory.h"

namespace cosegflow {
namespace hostsim {
namespace {

struct Copy {
  void* destination;
  const void* source;
  bool valid;
  int group;
};

struct Queue {  // of one thread
  std::vector<Copy> copies;
  int committed = 0;  // groups so far; copies not committed yet carry this number
};

std::vector<Queue> queues;
bool used = false;

Queue& mine() {
  const size_t thread = static_cast<size_t>(linear_thread());
  if (thread >= queues.size()) queues.resize(1024);
  used = true;
  return queues[thread];
}

}  // namespace

void begin_block_async() {
  if (!used) return;
  used = false;
  for (Queue& q : queues) {
    q.copies.clear();
    q.committed = 0;
  }
}

void async_copy_issue(void* shared_dst, const void* global_src, bool valid) {
  check_shared(shared_dst, 16, 16, "cp.async");
  if (reinterpret_cast<uintptr_t>(global_src) % 16 != 0) {
    fail("cp.async: the source address %p is not aligned to 16 bytes", global_src);
  }
  if (valid && global_src == nullptr) fail("cp.async: the source is null");
  std::memset(shared_dst, 0xff, 16);
  Queue& q = mine();
  q.copies.push_back({shared_dst, global_src, valid, q.committed});
}

void async_copy_commit() { ++mine().committed; }

void async_copy_wait(int pending) {
  Queue& q = mine();
  size_t done = 0;
  for (; done < q.copies.size() && q.copies[done].group < q.committed - pending; ++done) {
    const Copy& c = q.copies[done];
    if (c.valid) {
      std::memcpy(c.destination, c.source, 16);
    } else {
      std::memset(c.destination, 0, 16);
    }
  }
  q.copies.erase(q.copies.begin(), q.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace hostsim
}  // namespace cosegflow
