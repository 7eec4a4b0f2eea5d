// soft_argmax forward with a window on CUDA: launches of soft_argmax_window_kernel.cuh.
#include "soft_argmax/soft_argmax_launch.cuh"
#include "soft_argmax/soft_argmax_window_kernel.cuh"

namespace cosegflow::soft_argmax_cuda {
namespace {

constexpr int64_t kMostKept = 16;  // words of a thread: 64 KB a block, three blocks on a multiprocessor of Hopper
constexpr int64_t kMostTableBytes = 16384;

}  // namespace

template <class T>
Status launch_windowed(const SoftArgmaxParams& p, const Targets<accumulate_t<T>>& targets, Stream stream) {
  using Acc = accumulate_t<T>;
  constexpr int kItems = Pack<T>::kItems;
  const int64_t rows = p.batch * sources(p), words = soft_argmax_cuda::targets(p) / kItems;
  const auto run = [&](auto kernel, const RowPlan& plan, size_t bytes) {
    dim3 grid;
    if (Status s = grid_of_teams(rows, plan.team_shift, grid); !s.ok()) return s;
    return launch(kernel, grid, dim3(kRowThreads), bytes, stream, p, targets, plan);
  };
  int shift = team_shift(rows, words, kGroup<T>);
  while (shift < kMostTeamShift && words > kMostKept * (32 << shift)) ++shift;
  RowPlan plan = plan_of<T>(p, shift);
  plan.table_x = static_cast<int>(ceil_div(p.width_b, 8) * 8),
  plan.table_y = static_cast<int>(ceil_div(p.height_b, 4) * 4);
  const int64_t kept = ceil_div(words, 32 << shift);
  const int64_t table_bytes =
      (kRowWarps >> shift) * (int64_t{plan.table_x} + plan.table_y) * static_cast<int>(sizeof(Acc));
  if (kept > kMostKept || table_bytes > kMostTableBytes) {
    plan = plan_of<T>(p, team_shift(rows, words, 2 * kGroup<T>));
    return targets.slots != nullptr ? run(&soft_argmax_window_kernel<T, true, Places::kSplit, false>, plan, 0)
                                    : run(&soft_argmax_window_kernel<T, false, Places::kSplit, false>, plan, 0);
  }
  plan.kept_words = static_cast<int>(kept);
  const size_t bytes = static_cast<size_t>(kept * kRowThreads * 16 + table_bytes);
  return with_places<T>(targets.slots != nullptr, plan, [&](auto masked, auto places) {
    return run(&soft_argmax_window_kernel<T, masked.value, places.value, true>, plan, bytes);
  });
}

template Status launch_windowed<Half>(const SoftArgmaxParams&, const Targets<float>&, Stream);
template Status launch_windowed<BFloat16>(const SoftArgmaxParams&, const Targets<float>&, Stream);
template Status launch_windowed<float>(const SoftArgmaxParams&, const Targets<float>&, Stream);
template Status launch_windowed<double>(const SoftArgmaxParams&, const Targets<double>&, Stream);

}  // namespace cosegflow::soft_argmax_cuda
