// Random bytes to a call of a launch function: which operation, which direction, and every field of its params.
//
// COSEGFLOW_FUZZ_HOSTSIM: the simulated CUDA kernels instead of those of the CPU.
#include <cstdint>

#include "cosegflow/correlation.h"
#include "cosegflow/cycle_error.h"
#include "cosegflow/local_correlation.h"
#include "cosegflow/match.h"
#include "cosegflow/match_both.h"
#include "cosegflow/soft_argmax.h"
#include "cosegflow/transfer.h"
#include "cosegflow/warp.h"
#include "fuzz/fuzz_case.h"

namespace cosegflow::fuzz {
namespace {

#if defined(COSEGFLOW_FUZZ_HOSTSIM)
constexpr Limits kLimits{5, 19};
struct Backend {
  explicit Backend(Case&) {}
};
#define COSEGFLOW_FUZZ_BYTES(operation) [&] { return operation##_workspace_bytes_cuda(p); }
#define COSEGFLOW_FUZZ_RUN(operation) [&](void* workspace) { return operation##_cuda(p, workspace, nullptr); }
#define COSEGFLOW_FUZZ_RUN_WITHOUT(operation) [&](void*) { return operation##_cuda(p, nullptr); }
#else
constexpr Limits kLimits{19, 70};

// Ranges in reverse order, on the calling thread.
void backwards(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  const int64_t step = std::max(grain, (n + 2) / 3);
  for (int64_t begin = (n - 1) / step * step; begin >= 0; begin -= step)
    body(begin, std::min(n, begin + step), context);
}

struct Backend {
  CpuRuntime runtime;
  explicit Backend(Case& c) {
    runtime.num_threads = c.input().choose({1, 2, 3, 5});
    if (c.input().below(8) != 0) runtime.parallel_for = &backwards;  // else std::thread
    if (c.kind() == Kind::kHuge) runtime.num_threads = c.input().choose({1, 0, -1, INT32_MAX, INT32_MIN, 64});
  }
};
#define COSEGFLOW_FUZZ_BYTES(operation) [&] { return operation##_workspace_bytes_cpu(p, backend.runtime); }
#define COSEGFLOW_FUZZ_RUN(operation) [&](void* workspace) { return operation##_cpu(p, workspace, backend.runtime); }
#define COSEGFLOW_FUZZ_RUN_WITHOUT(operation) [&](void*) { return operation##_cpu(p, backend.runtime); }
#endif

#define COSEGFLOW_FUZZ_CALL(operation)                                                                   \
  backward ? c.run(COSEGFLOW_FUZZ_BYTES(operation##_backward), COSEGFLOW_FUZZ_RUN(operation##_backward)) \
           : c.run(COSEGFLOW_FUZZ_BYTES(operation##_forward), COSEGFLOW_FUZZ_RUN(operation##_forward))
// The backward has a workspace on CUDA alone.
#if defined(COSEGFLOW_FUZZ_HOSTSIM)
#define COSEGFLOW_FUZZ_BACKWARD_WITHOUT_WORKSPACE(operation) \
  c.run(COSEGFLOW_FUZZ_BYTES(operation##_backward), COSEGFLOW_FUZZ_RUN(operation##_backward))
#else
#define COSEGFLOW_FUZZ_BACKWARD_WITHOUT_WORKSPACE(operation) \
  c.run([] { return size_t{0}; }, COSEGFLOW_FUZZ_RUN_WITHOUT(operation##_backward))
#endif
#define COSEGFLOW_FUZZ_CALL_WITHOUT_WORKSPACE(operation)          \
  backward ? COSEGFLOW_FUZZ_BACKWARD_WITHOUT_WORKSPACE(operation) \
           : c.run([] { return size_t{0}; }, COSEGFLOW_FUZZ_RUN_WITHOUT(operation##_forward))

template <class Params>
void sizes_of_pair(Case& c, Params& p) {
  c.batch(p.batch);
  c.size(p.height_a, "height_a"), c.size(p.width_a, "width_a");
  c.size(p.height_b, "height_b"), c.size(p.width_b, "width_b");
}

// fa, fb and where they are wanted their gradients.
template <class Params>
void features(Case& c, Params& p, bool backward) {
  const DType t = c.floating();
  c.channels(p.channels, "channels");
  c.input<4>(p.fa, "fa", t, {p.batch, p.channels, p.height_a, p.width_a}, Values::kFeature);
  c.input<4>(p.fb, "fb", t, {p.batch, p.channels, p.height_b, p.width_b}, Values::kFeature);
  if (!backward) return;
  if (c.input().flag()) {
    c.output<4>(p.grad_fa, "grad_fa", t, {p.batch, p.channels, p.height_a, p.width_a}, Layout::kContiguous, false);
  }
  if (c.input().flag()) {
    c.output<4>(p.grad_fb, "grad_fb", t, {p.batch, p.channels, p.height_b, p.width_b}, Layout::kContiguous, false);
  }
}

// Whether a mask was given; its gradient where that is wanted.
bool mask(Case& c, View3& view, const char* name, const std::array<int64_t, 3>& sizes) {
  if (!c.input().flag()) return false;
  c.input<3>(view, name, c.mask_type(), sizes, Values::kMask, false);
  return true;
}
void mask_gradient(Case& c, View3& gradient, View3& of, bool given, const char* name, const char* needed, DType acc,
                   const std::array<int64_t, 3>& sizes) {
  if (!given || !c.input().flag()) return;
  c.output<3>(gradient, name, acc, sizes, Layout::kContiguous, false);
  if (gradient.data != nullptr && c.kind() == Kind::kBroken) c.breaker(needed, [&of] { of.data = nullptr; });
}

template <class Params>
void kernel_sigma(Case& c, Params& p) {
  p.kernel_sigma = c.input().choose({0.0, 0.0, 1.5, 0.3, 1e-200, 1e300});
  for (const double bad : {-1.0, static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    c.breaker("kernel_sigma", [&p, bad] { p.kernel_sigma = bad; });
  }
}

// What match and soft_argmax have in common.
template <class Params>
void softmax(Case& c, Params& p, DType acc, bool masked, bool backward) {
  const std::array<int64_t, 3> a{p.batch, p.height_a, p.width_a}, b{p.batch, p.height_b, p.width_b};
  c.input<1>(p.beta, "beta", acc, {p.batch}, Values::kFeature);
  kernel_sigma(c, p);
  const bool indexed = p.kernel_sigma > 0 || c.input().flag();
  if (!backward) {
    c.output<4>(p.flow, "flow", acc, {p.batch, 2, p.height_a, p.width_a});
    c.output<3>(p.lse, "lse", acc, a);
    c.output<3>(p.confidence, "confidence", acc, a);
    if (!indexed) return;
    c.index(p.index, {p.batch, p.height_a, p.width_a, 1, 1}, true, true);
    c.output<3>(p.score, "score", acc, a);
    return;
  }
  c.saved<4>(p.flow, "flow", acc, {p.batch, 2, p.height_a, p.width_a});
  c.saved<3>(p.lse, "lse", acc, a);
  if (indexed) c.index(p.index, {p.batch, p.height_a, p.width_a, 1, 1}, false, p.kernel_sigma > 0);
  if (c.input().flag()) {
    c.input<4>(p.grad_flow, "grad_flow", acc, {p.batch, 2, p.height_a, p.width_a}, Values::kFeature, false);
  }
  if (c.input().flag()) c.input<3>(p.grad_lse, "grad_lse", acc, a, Values::kFeature, false);
  mask_gradient(c, p.grad_mask_b, p.mask_b, masked, "grad_mask_b", "mask_b", acc, b);
  if (c.input().flag()) c.output<1>(p.grad_beta, "grad_beta", acc, {p.batch}, Layout::kContiguous, false);
}

// Which kernels take a product, and how exact they have to be.
template <class Params>
void kernels(Case& c, Params& p) {
  p.simple = c.input().flag(), p.portable = c.input().flag();
  p.precision = c.input().choose({Precision::kHighest, Precision::kHigh, Precision::kMedium});
  for (const int bad : {-1, 3, 99}) {
    c.breaker("precision", [&p, bad] { p.precision = static_cast<Precision>(bad); });
  }
}

void fuzz_match(Input input, bool backward) {
  Case c("match", input, kLimits);
  Backend backend(c);
  MatchParams p;
  sizes_of_pair(c, p);
  p.normalize = c.input().flag();
  kernels(c, p);
  p.chunk_bytes = c.input().choose<size_t>({0, 1, 5000, SIZE_MAX});
  features(c, p, backward);
  mask(c, p.mask_a, "mask_a", {p.batch, p.height_a, p.width_a});
  const bool masked = mask(c, p.mask_b, "mask_b", {p.batch, p.height_b, p.width_b});
  softmax(c, p, accumulate_type(p.fa.dtype), masked, backward);
  COSEGFLOW_FUZZ_CALL(match);
}

void fuzz_soft_argmax(Input input, bool backward) {
  Case c("soft_argmax", input, kLimits);
  Backend backend(c);
  SoftArgmaxParams p;
  sizes_of_pair(c, p);
  p.simple = c.input().flag();
  p.dtype = c.floating();
  for (const int bad : {-1, 99, static_cast<int>(DType::kBool)}) {
    c.breaker("dtype", [&p, bad] { p.dtype = static_cast<DType>(bad); });
  }
  const std::array<int64_t, 5> volume{p.batch, p.height_a, p.width_a, p.height_b, p.width_b};
  c.array(p.corr, "corr", p.dtype, volume, false);
  if (backward && c.input().flag()) c.array(p.grad_corr, "grad_corr", p.dtype, volume, true, false);
  const bool masked = mask(c, p.mask_b, "mask_b", {p.batch, p.height_b, p.width_b});
  softmax(c, p, accumulate_type(p.dtype), masked, backward);
  COSEGFLOW_FUZZ_CALL(soft_argmax);
}

void fuzz_match_both(Input input, bool backward) {
  Case c("match_both", input, kLimits);
  Backend backend(c);
  MatchBothParams p;
  sizes_of_pair(c, p);
  p.normalize = c.input().flag();
  kernels(c, p);
  p.chunk_bytes = c.input().choose<size_t>({0, 1, 5000, SIZE_MAX});
  features(c, p, backward);
  const DType acc = accumulate_type(p.fa.dtype);
  const std::array<int64_t, 3> a{p.batch, p.height_a, p.width_a}, b{p.batch, p.height_b, p.width_b};
  const bool masked_a = mask(c, p.mask_a, "mask_a", a), masked_b = mask(c, p.mask_b, "mask_b", b);
  c.input<1>(p.beta, "beta", acc, {p.batch}, Values::kFeature);
  const auto direction = [&](MatchDirection& d, const std::array<const char*, 5>& names, int64_t h, int64_t w) {
    if (!backward) {
      c.output<4>(d.flow, names[0], acc, {p.batch, 2, h, w});
      c.output<3>(d.lse, names[1], acc, {p.batch, h, w});
      c.output<3>(d.confidence, names[2], acc, {p.batch, h, w});
      return;
    }
    c.saved<4>(d.flow, names[0], acc, {p.batch, 2, h, w});
    c.saved<3>(d.lse, names[1], acc, {p.batch, h, w});
    if (c.input().flag()) c.input<4>(d.grad_flow, names[3], acc, {p.batch, 2, h, w}, Values::kFeature, false);
    if (c.input().flag()) c.input<3>(d.grad_lse, names[4], acc, {p.batch, h, w}, Values::kFeature, false);
  };
  direction(p.ab, {"ab.flow", "ab.lse", "ab.confidence", "ab.grad_flow", "ab.grad_lse"}, p.height_a, p.width_a);
  direction(p.ba, {"ba.flow", "ba.lse", "ba.confidence", "ba.grad_flow", "ba.grad_lse"}, p.height_b, p.width_b);
  if (backward) {
    mask_gradient(c, p.grad_mask_a, p.mask_a, masked_a, "grad_mask_a", "mask_a", acc, a);
    mask_gradient(c, p.grad_mask_b, p.mask_b, masked_b, "grad_mask_b", "mask_b", acc, b);
    if (c.input().flag()) c.output<1>(p.grad_beta, "grad_beta", acc, {p.batch}, Layout::kContiguous, false);
  }
  COSEGFLOW_FUZZ_CALL(match_both);
}

void fuzz_transfer(Input input, bool backward) {
  Case c("transfer", input, kLimits);
  Backend backend(c);
  TransferParams p;
  sizes_of_pair(c, p);
  c.channels(p.value_channels, "value_channels");
  p.normalize = c.input().flag();
  kernels(c, p);
  p.chunk_bytes = c.input().choose<size_t>({0, 1, 5000, SIZE_MAX});
  features(c, p, backward);
  const DType acc = accumulate_type(p.fa.dtype);
  const DType t = acc == DType::kFloat64 ? acc : c.input().choose({acc, DType::kFloat16, DType::kBFloat16});
  const std::array<int64_t, 4> out{p.batch, p.value_channels, p.height_a, p.width_a};
  const std::array<int64_t, 4> values{p.batch, p.value_channels, p.height_b, p.width_b};
  c.input<4>(p.values, "values", t, values, Values::kFeature);
  mask(c, p.mask_a, "mask_a", {p.batch, p.height_a, p.width_a});
  const bool masked = mask(c, p.mask_b, "mask_b", {p.batch, p.height_b, p.width_b});
  c.input<1>(p.beta, "beta", acc, {p.batch}, Values::kFeature);
  if (backward) {
    c.saved<4>(p.out, "out", acc, out);
    c.saved<3>(p.lse, "lse", acc, {p.batch, p.height_a, p.width_a});
    c.input<4>(p.grad_out, "grad_out", acc, out, Values::kFeature);
    if (c.input().flag()) c.output<4>(p.grad_values, "grad_values", t, values, Layout::kContiguous, false);
    mask_gradient(c, p.grad_mask_b, p.mask_b, masked, "grad_mask_b", "mask_b", acc, {p.batch, p.height_b, p.width_b});
    if (c.input().flag()) c.output<1>(p.grad_beta, "grad_beta", acc, {p.batch}, Layout::kContiguous, false);
  } else {
    c.output<4>(p.out, "out", acc, out);
    c.output<3>(p.lse, "lse", acc, {p.batch, p.height_a, p.width_a});
  }
  COSEGFLOW_FUZZ_CALL(transfer);
}

void fuzz_correlation(Input input, bool backward) {
  Case c("correlation", input, kLimits);
  Backend backend(c);
  CorrelationParams p;
  sizes_of_pair(c, p);
  p.normalize = c.input().flag(), p.relu = c.input().flag();
  kernels(c, p);
  features(c, p, backward);
  const std::array<int64_t, 5> volume{p.batch, p.height_a, p.width_a, p.height_b, p.width_b};
  if (backward) c.array(p.grad_corr, "grad_corr", p.fa.dtype, volume, false);
  if (!backward || p.relu) c.array(p.corr, "corr", p.fa.dtype, volume, !backward);
  COSEGFLOW_FUZZ_CALL(correlation);
}

void fuzz_local_correlation(Input input, bool backward) {
  Case c("local_correlation", input, kLimits);
  Backend backend(c);
  LocalCorrelationParams p;
  sizes_of_pair(c, p);
  p.normalize = c.input().flag(), p.simple = c.input().flag(), p.deterministic = c.input().flag();
  p.radius = c.input().choose<int64_t>({0, 1, 2, 4});
  if (c.kind() == Kind::kHuge) p.radius = c.input().choose<int64_t>({0, 1, 300, LocalCorrelationParams::kMaxRadius});
  for (const int64_t bad : {int64_t{-1}, LocalCorrelationParams::kMaxRadius + 1, INT64_MAX, INT64_MIN}) {
    c.breaker("radius", [&p, bad] { p.radius = bad; });
  }
  features(c, p, backward);
  const DType acc = accumulate_type(p.fa.dtype);
  const int64_t planes = p.side() * p.side();
  const std::array<int64_t, 4> flow{p.batch, 2, p.height_a, p.width_a};
  const bool flows = c.input().flag();
  if (flows) c.input<4>(p.flow, "flow", acc, flow, Values::kFlow, false);
  if (!backward) {
    c.array(p.out, "out", p.fa.dtype, {p.batch, planes, p.height_a, p.width_a, 1}, true);
  } else {
    c.input<4>(p.grad_out, "grad_out", p.fa.dtype, {p.batch, planes, p.height_a, p.width_a}, Values::kFeature);
    if (flows && c.input().flag()) {
      c.output<4>(p.grad_flow, "grad_flow", acc, flow, Layout::kContiguous, false);
      if (p.grad_flow.data != nullptr) c.breaker("flow", [&p] { p.flow.data = nullptr; });
    }
  }
  COSEGFLOW_FUZZ_CALL(local_correlation);
}

#if defined(COSEGFLOW_FUZZ_HOSTSIM)
constexpr Layout kGradXOfWarp = Layout::kAny;  // of images of this size
#else
constexpr Layout kGradXOfWarp = Layout::kContiguous;
#endif

void fuzz_warp(Input input, bool backward) {
  Case c("warp", input, kLimits);
  Backend backend(c);
  WarpParams p;
  c.batch(p.batch);
  c.channels(p.channels, "channels");
  c.size(p.height, "height"), c.size(p.width, "width");
  c.size(p.out_height, "out_height"), c.size(p.out_width, "out_width");
  p.mode = c.input().choose({WarpMode::kBilinear, WarpMode::kNearest});
  p.padding = c.input().choose({WarpPadding::kZeros, WarpPadding::kBorder});
  p.deterministic = c.input().flag();
  c.breaker("mode", [&p] { p.mode = static_cast<WarpMode>(7); });
  c.breaker("padding", [&p] { p.padding = static_cast<WarpPadding>(-1); });
  const DType t = c.floating(), acc = accumulate_type(t);
  const std::array<int64_t, 4> out{p.batch, p.channels, p.out_height, p.out_width};
  const std::array<int64_t, 4> flow{p.batch, 2, p.out_height, p.out_width};
  c.input<4>(p.x, "x", t, {p.batch, p.channels, p.height, p.width}, Values::kFeature);
  c.input<4>(p.flow, "flow", acc, flow, Values::kFlow);
  if (!backward) {
    c.output<4>(p.out, "out", t, out, Layout::kAny);
    if (c.input().flag()) {
      c.output<3>(p.valid, "valid", DType::kBool, {p.batch, p.out_height, p.out_width}, Layout::kAny, false);
    }
  } else {
    c.input<4>(p.grad_out, "grad_out", t, out, Values::kFeature);
    if (c.input().flag()) {
      c.output<4>(p.grad_x, "grad_x", acc, {p.batch, p.channels, p.height, p.width}, kGradXOfWarp, false);
    }
    if (c.input().flag()) c.output<4>(p.grad_flow, "grad_flow", acc, flow, Layout::kAny, false);
  }
  COSEGFLOW_FUZZ_CALL_WITHOUT_WORKSPACE(warp);
}

void fuzz_cycle_error(Input input, bool backward) {
  Case c("cycle_error", input, kLimits);
  Backend backend(c);
  CycleErrorParams p;
  sizes_of_pair(c, p);
  p.deterministic = c.input().flag();
  const DType t = c.floating(), acc = accumulate_type(t);
  const std::array<int64_t, 3> error{p.batch, p.height_a, p.width_a};
  const std::array<int64_t, 4> ab{p.batch, 2, p.height_a, p.width_a}, ba{p.batch, 2, p.height_b, p.width_b};
  c.input<4>(p.flow_ab, "flow_ab", t, ab, Values::kFlow);
  c.input<4>(p.flow_ba, "flow_ba", t, ba, Values::kFlow);
  if (!backward) {
    c.output<3>(p.error, "error", acc, error, Layout::kAny);
    if (c.input().flag()) c.output<3>(p.valid, "valid", DType::kBool, error, Layout::kAny, false);
  } else {
    c.input<3>(p.grad_error, "grad_error", acc, error, Values::kFeature);
    if (c.input().flag()) c.output<4>(p.grad_ab, "grad_ab", acc, ab, Layout::kAny, false);
    if (c.input().flag()) c.output<4>(p.grad_ba, "grad_ba", acc, ba, Layout::kContiguous, false);
  }
  COSEGFLOW_FUZZ_CALL_WITHOUT_WORKSPACE(cycle_error);
}

}  // namespace
}  // namespace cosegflow::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cosegflow::fuzz;
  constexpr void (*kOperations[])(Input, bool) = {&fuzz_match,    &fuzz_soft_argmax, &fuzz_match_both,
                                                  &fuzz_transfer, &fuzz_correlation, &fuzz_local_correlation,
                                                  &fuzz_warp,     &fuzz_cycle_error};
  if (size == 0) return 0;
  const int choice = data[0] % 16;
  kOperations[choice / 2](Input(data + 1, size - 1), choice % 2 == 1);
  return 0;
}
