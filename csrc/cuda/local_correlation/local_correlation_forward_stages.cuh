// local_correlation without flow, forward: the ring of stages through which both kernels read their channels.
#pragma once

#include "local_correlation/local_correlation_grid.cuh"

namespace cosegflow::local_correlation_cuda {

// S has kRows, kHaloRows, kWarps, kChannels, kStages and Stage: kChannels planes a (of the tile) and b (of its halo).
// Copies run kStages - 1 stages ahead; beyond the last channel they bring zeros.
template <class T, class S>
class ForwardStages {
  using Stage = typename S::Stage;

 public:
  __device__ __forceinline__ ForwardStages(const Planes<T>& a, const Planes<T>& b, int64_t channels,
                                           const TileOfBlock& tile, int first_y, int first_x, Stage* stages)
      : copy_a_(a, tile.y, tile.x),
        copy_b_(b, tile.y + first_y, tile.x + first_x),
        from_a_(a.plane(tile.b, 0)),
        from_b_(b.plane(tile.b, 0)),
        step_a_(a.channel),
        step_b_(b.channel),
        channels_(channels),
        stages_(stages) {
#pragma unroll
    for (int s = 0; s < S::kStages - 1; ++s) load(s * S::kChannels, stages_[s]);
  }

  // The stage of channels c0 to c0 + kChannels - 1, there for all; starts the copy of a later one.
  __device__ __forceinline__ const Stage& take(int64_t c0) {
    cp_async_wait<S::kStages - 2>();
    __syncthreads();  // all have their part, and all have left the stage that is loaded next
    load(c0 + (S::kStages - 1) * S::kChannels, stages_[next_]);
    const Stage& stage = stages_[now_];
    now_ = now_ + 1 == S::kStages ? 0 : now_ + 1;
    next_ = next_ + 1 == S::kStages ? 0 : next_ + 1;
    return stage;
  }

  // Waits for copies that nobody takes.
  __device__ __forceinline__ void end() const { cp_async_wait<0>(); }

 private:
  __device__ __forceinline__ void load(int64_t c0, Stage& stage) const {
#pragma unroll 1
    for (int c = static_cast<int>(threadIdx.x) / 32; c < S::kChannels; c += S::kWarps) {
      const bool exists = c0 + c < channels_;
      copy_a_.run(stage.a[c], from_a_ + (c0 + c) * step_a_, exists);
      copy_b_.run(stage.b[c], from_b_ + (c0 + c) * step_b_, exists);
    }
    cp_async_commit();
  }

  PlaneCopy<T, S::kRows, kTileUnits> copy_a_;
  PlaneCopy<T, S::kHaloRows, kHaloUnits> copy_b_;
  const T *from_a_, *from_b_;
  int64_t step_a_, step_b_, channels_;
  Stage* stages_;
  int now_ = 0, next_ = S::kStages - 1;
};

}  // namespace cosegflow::local_correlation_cuda
