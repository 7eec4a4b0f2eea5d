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
  size_t bytes, valid_bytes;
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

void async_copy_issue(void* shared_dst, const void* global_src, int bytes, int valid_bytes) {
  const size_t size = static_cast<size_t>(bytes), valid = static_cast<size_t>(valid_bytes);
  check_shared(shared_dst, size, size, "cp.async");
  if (reinterpret_cast<uintptr_t>(global_src) % size != 0) {
    fail("cp.async: the source address %p is not aligned to %d bytes", global_src, bytes);
  }
  if (valid_bytes < 0 || valid_bytes > bytes) fail("cp.async: %d of %d bytes are asked for", valid_bytes, bytes);
  if (valid != 0 && global_src == nullptr) fail("cp.async: the source is null");
  std::memset(shared_dst, 0xff, size);
  Queue& q = mine();
  q.copies.push_back({shared_dst, global_src, size, valid, q.committed});
}

void async_copy_commit() { ++mine().committed; }

void async_copy_wait(int pending) {
  Queue& q = mine();
  size_t done = 0;
  for (; done < q.copies.size() && q.copies[done].group < q.committed - pending; ++done) {
    const Copy& c = q.copies[done];
    if (c.valid_bytes != 0) std::memcpy(c.destination, c.source, c.valid_bytes);
    std::memset(static_cast<char*>(c.destination) + c.valid_bytes, 0, c.bytes - c.valid_bytes);
  }
  q.copies.erase(q.copies.begin(), q.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace hostsim
}  // namespace cosegflow
