// How the images of a batch meet the threads. Many small images: each slot works through whole images by itself, with
// no barrier inside. Few or large ones: image after image, all slots together.
#pragma once

#include <algorithm>

#include "common/arena.h"
#include "common/round_up.h"
#include "cpu/runtime_cpu.h"

namespace cosegflow {

// Work(params, arena, slots) lays out the memory for one image at a time; run(image, runtime) does the work.
template <class Work, class Params>
class ImageLoop {
 public:
  ImageLoop(const Params& params, const CpuRuntime& runtime)
      : params_(params), runtime_(runtime), slots_(thread_count(runtime)) {
    Arena together, alone;
    Work(params, together, slots_);
    Work(params, alone, 1);
    together_bytes_ = together.bytes();
    alone_bytes_ = round_up(static_cast<int64_t>(alone.bytes()), Arena::kAlignment);
    const bool small = alone_bytes_ <= kSmallImageBytes;
    whole_ = slots_ > 1 && small ? params.batch - params.batch % slots_ : 0;
  }

  size_t workspace_bytes() const {
    if (params_.batch == 0) return 0;
    return std::max<size_t>(whole_ > 0 ? slots_ * alone_bytes_ : 0, whole_ < params_.batch ? together_bytes_ : 0);
  }

  void run(void* workspace) const {
    if (params_.batch == 0) return;
    if (whole_ > 0) {
      parallel_slots(runtime_, slots_, [&](int64_t slot) {
        CpuRuntime serial = runtime_;
        serial.parallel_for = nullptr;
        serial.num_threads = 1;
        Arena arena(static_cast<char*>(workspace) + slot * alone_bytes_);
        Work work(params_, arena, 1);
        for (int64_t image = slot; image < whole_; image += slots_) work.run(image, serial);
      });
    }
    if (whole_ == params_.batch) return;
    Arena arena(workspace);
    Work work(params_, arena, slots_);
    for (int64_t image = whole_; image < params_.batch; ++image) work.run(image, runtime_);
  }

 private:
  static constexpr int64_t kSmallImageBytes = 4 << 20;  // about what a core's share of the caches holds
  const Params& params_;
  const CpuRuntime& runtime_;
  int64_t slots_, alone_bytes_ = 0, whole_ = 0;
  size_t together_bytes_ = 0;
};

}  // namespace cosegflow
