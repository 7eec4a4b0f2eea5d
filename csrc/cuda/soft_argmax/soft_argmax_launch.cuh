// What the launches of soft_argmax's forward share: its workspace, and how rows are dealt out.
#pragma once

#include "soft_argmax/soft_argmax_row.cuh"

namespace cosegflow::soft_argmax_cuda {

constexpr int64_t kEnoughWarps = 4096;  // 32 on each of 128 multiprocessors

// The log weights of targets, or of the words that the mask leaves.
template <class Acc>
struct ForwardWorkspace {
  Acc* log_weight = nullptr;  // (B, N); null without a mask
  Targets<Acc> targets{};
  size_t bytes;
  ForwardWorkspace(const SoftArgmaxParams& p, void* base) {
    Arena arena(base);
    const int64_t n = soft_argmax_cuda::targets(p), items = 16 / element_size(p.dtype);
    if (p.mask_b.data != nullptr) {
      targets.log_weight = log_weight = arena.take<Acc>(p.batch * n);
      if (n % items == 0) {  // whether or not corr is aligned: the size must not depend on a pointer
        targets.slots = arena.take<Slot<Acc>>(p.batch * (n / items));
        targets.count = arena.take<int>(p.batch);
      }
    }
    bytes = arena.bytes();
  }
};

// log2 of the warps per row: more than one where rows are few, or so long that the last ones would keep a few warps
// busy for long. `each`: words that a thread should be left with.
inline int team_shift(int64_t rows, int64_t words, int64_t each) {
  int shift = 0;
  while (shift < kMostTeamShift && words >= 2 * each * (32 << shift) &&
         ((rows << shift) < kEnoughWarps || words > 32 * (32 << shift))) {
    ++shift;
  }
  return shift;
}

template <class T>
RowPlan plan_of(const SoftArgmaxParams& p, int shift) {
  constexpr int kItems = Pack<T>::kItems;
  RowPlan plan{};
  plan.rows = static_cast<int>(p.batch * sources(p));
  plan.of_image = Divisor(static_cast<int>(sources(p)));
  plan.team_shift = shift;
  plan.words = static_cast<int>(targets(p) / kItems);
  plan.width_a = Divisor(static_cast<int>(p.width_a)), plan.width_b = Divisor(static_cast<int>(p.width_b));
  const int step = (32 << shift) * kItems;
  if (p.kernel_sigma > 0) plan.window_exponent = window_exponent<accumulate_t<T>>(p.kernel_sigma);
  plan.step_x = static_cast<int>(step % p.width_b), plan.step_y = static_cast<int>(step / p.width_b);
  return plan;
}

inline Status grid_of_teams(int64_t rows, int shift, dim3& grid) {
  return grid_of(ceil_div(rows, kRowWarps >> shift), grid);
}

// Calls run(kMasked, kPlaces) with compile-time values. float64 always takes the general one.
template <class T, class Run>
Status with_places(bool masked, const RowPlan& plan, const Run& run) {
  using std::integral_constant;
  const integral_constant<Places, Places::kSplit> split{};
  if constexpr (sizeof(T) < 8) {
    if (plan.width_b.divisor % Pack<T>::kItems == 0) {
      const integral_constant<Places, Places::kLine> line{};
      if (masked) return run(std::true_type(), line);
      if (plan.step_x != 0) return run(std::false_type(), line);
      return run(std::false_type(), integral_constant<Places, Places::kColumn>());
    }
  }
  return masked ? run(std::true_type(), split) : run(std::false_type(), split);
}

// The kernels with a window (soft_argmax_window_cuda.cu).
template <class T>
Status launch_windowed(const SoftArgmaxParams& p, const Targets<accumulate_t<T>>& targets, Stream stream);

}  // namespace cosegflow::soft_argmax_cuda
