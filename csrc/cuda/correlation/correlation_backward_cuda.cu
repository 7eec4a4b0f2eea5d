// correlation backward on CUDA: which kernels a call takes, and the workspace and launches of those that are portable:
// per side, a product of the (gated) gradient of the volume with the other side's
// normalized features (gradient_product_mma.cuh, product_cuda.cuh) and the backward of the normalization
// (normalize_backward.cuh). Tensor cores multiply features that have been rounded to their type after normalization, as
// in a product of half matrices; the factor 1 / norm can be put nowhere else, since the gradient of the volume is
// given.
#include <algorithm>

#include "common/arena.h"
#include "common/dispatch.h"
#include "common/log.h"
#include "correlation/correlation_dispatch.cuh"
#include "correlation/correlation_simple_kernels.cuh"
#include "cosegflow/correlation.h"
#include "gradient_product_mma.cuh"
#include "hopper/eligibility.cuh"
#include "normalize_backward.cuh"
#include "normalize_rows.cuh"
#include "pack.cuh"
#include "product_cuda.cuh"

namespace cosegflow {
namespace {

using namespace correlation_cuda;

// The kernels that a backward takes.
enum class Path { kHopper, kTiled, kSimple };
Path path_of(const CorrelationParams& p) {
  if (hopper::why_not_backward(p, compute_capability()) == nullptr) return Path::kHopper;
  return why_not_fast(p) == nullptr ? Path::kTiled : Path::kSimple;
}

void log_backward(const CorrelationParams& p, Path path) {
  if (!log_wanted()) return;
  constexpr const char* kName = "correlation backward";
  switch (path) {
    case Path::kHopper: return log_path(kName, "Hopper kernels (wgmma, TMA)", nullptr);
    case Path::kTiled:
      return log_path(kName, half_type(p.fa.dtype) ? "portable kernels (mma.sync)" : "portable kernels (FMA)",
                      hopper::why_not_backward(p, compute_capability()));
    case Path::kSimple: return log_path(kName, "simple kernels", why_not_fast(p));
  }
}

// The gradient of the volume before relu: 0 where the saved volume was clipped.
template <class T>
struct GatedLhs {
  const T* grad;
  const T* corr;  // null without relu
  int64_t pitch, batch_stride;
  __device__ __forceinline__ accumulate_t<T> operator()(int64_t b, int64_t r, int64_t c) const {
    using Acc = accumulate_t<T>;
    const int64_t at = b * batch_stride + r * pitch + c;
    if (corr != nullptr && to_float(corr[at]) <= Acc(0)) return Acc(0);
    return to_float(grad[at]);
  }
};

template <class T>
struct Workspace {
  using Acc = accumulate_t<T>;
  PackedSide<T> a, b;    // fast
  Acc *norm_a, *norm_b;  // simple
  T* unit = nullptr;     // (B, positions, padded channels) of one side after the other: normalized halves
  int splits_a = 1, splits_b = 1;
  Acc* grad_f_hat;  // (splits, B, positions, C) of one side after the other
  size_t bytes;
  Workspace(const CorrelationParams& p, void* base) {
    Arena arena(base);
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    if (why_not_fast(p) != nullptr) {
      norm_a = arena.take<Acc>(p.batch * na), norm_b = arena.take<Acc>(p.batch * nb);
    } else {
      a = take_packed_side<T>(arena, p.batch, na, p.channels), b = take_packed_side<T>(arena, p.batch, nb, p.channels);
      if constexpr (sizeof(T) == 2) {
        if (p.normalize) unit = arena.take<T>(p.batch * std::max(na, nb) * a.padded_channels);
        splits_a = choose_product_splits<T>(p.batch, na, p.channels, nb);
        splits_b = choose_product_splits<T>(p.batch, nb, p.channels, na);
      }
    }
    grad_f_hat = arena.take<Acc>(p.batch * std::max(splits_a * na, splits_b * nb) * p.channels);
    bytes = arena.bytes();
  }
};

// grad_f_hat of one side: on tensor cores for half types, else by FMAs.
template <class T, bool kSelfIsA>
Status gradient_product(const CorrelationParams& p, const Workspace<T>& w, Stream stream) {
  const PackedSide<T>&self = kSelfIsA ? w.a : w.b, &other = kSelfIsA ? w.b : w.a;
  const T* const grad = static_cast<const T*>(p.grad_corr);
  const T* const corr = p.relu ? static_cast<const T*>(p.corr) : nullptr;
  const int64_t pitch = w.b.positions, image = w.a.positions * w.b.positions;
  ProductArgs<T> product;
  product.batch = p.batch, product.rows = self.positions, product.depth = other.positions;
  product.channels = p.channels, product.padded_channels = other.padded_channels;
  product.rhs = other.features, product.rhs_rows = other.positions;
  product.out = w.grad_f_hat, product.out_rows = self.positions;
  if constexpr (sizeof(T) == 2) {
    if (p.normalize) {
      if (Status s = normalize_rows(other, w.unit, stream); !s.ok()) return s;
      product.rhs = w.unit;
    }
    const ProductSplits splits{kSelfIsA ? w.splits_a : w.splits_b, p.batch * self.positions * p.channels};
    return launch_gradient_product<!kSelfIsA>(product, HalfLhs<T>{grad, pitch, image, corr}, stream, splits);
  } else {
    if (p.normalize) product.scale = other.inv_norm;
    return launch_gradient_product<!kSelfIsA>(product, GatedLhs<T>{grad, corr, pitch, image}, stream);
  }
}

template <class T, bool kSelfIsA>
Status backward_fast(const CorrelationParams& p, const Workspace<T>& w, T* grad, Stream stream) {
  if (Status s = gradient_product<T, kSelfIsA>(p, w, stream); !s.ok()) return s;
  const PackedSide<T>& self = kSelfIsA ? w.a : w.b;
  NormalizeBackwardArgs<T> normalize;
  normalize.batch = p.batch, normalize.positions = self.positions;
  normalize.channels = p.channels, normalize.padded_channels = self.padded_channels;
  normalize.normalize = p.normalize;
  normalize.grad_f_hat = w.grad_f_hat, normalize.features = self.features, normalize.inv_norm = self.inv_norm;
  normalize.partials = kSelfIsA ? w.splits_a : w.splits_b;
  normalize.partial_stride = p.batch * self.positions * p.channels;
  normalize.grad = grad;
  return launch_normalize_backward(normalize, stream);
}

template <class T>
Status backward_simple(const CorrelationParams& p, const Workspace<T>& w, bool self_is_a, T* grad, Stream stream) {
  using Acc = accumulate_t<T>;
  const Side a{p.fa, p.height_a, p.width_a}, b{p.fb, p.height_b, p.width_b};
  const Side &self = self_is_a ? a : b, &other = self_is_a ? b : a;
  Acc* const norm_self = self_is_a ? w.norm_a : w.norm_b;
  Acc* const norm_other = self_is_a ? w.norm_b : w.norm_a;
  const auto grid_of = [](int64_t threads) { return dim3(static_cast<unsigned>((threads + 255) / 256)); };
  const int64_t values = p.batch * self.positions() * p.channels;
  if (values / 256 >= INT32_MAX) return Status{"correlation: the features are too large for one launch"};
  const dim3 self_grid = grid_of(p.batch * self.positions()), other_grid = grid_of(p.batch * other.positions());
  Status s = launch(&correlation_simple_norm_kernel<T>, self_grid, dim3(256), 0, stream, p, self, norm_self);
  if (!s.ok()) return s;
  s = launch(&correlation_simple_norm_kernel<T>, other_grid, dim3(256), 0, stream, p, other, norm_other);
  if (!s.ok()) return s;
  s = launch(&correlation_simple_product_kernel<T>, grid_of(values), dim3(256), 0, stream, p, self, other, self_is_a,
             norm_other, w.grad_f_hat);
  if (!s.ok()) return s;
  return launch(&correlation_simple_normalize_kernel<T>, self_grid, dim3(256), 0, stream, p, self, norm_self,
                w.grad_f_hat, grad);
}

template <class T>
Status backward(const CorrelationParams& p, bool simple, void* workspace, Stream stream) {
  const Workspace<T> w(p, workspace);
  T* const grad_a = static_cast<T*>(p.grad_fa.data);
  T* const grad_b = static_cast<T*>(p.grad_fb.data);
  if (simple) {
    if (grad_a != nullptr) {
      if (Status s = backward_simple<T>(p, w, true, grad_a, stream); !s.ok()) return s;
    }
    return grad_b == nullptr ? Status{} : backward_simple<T>(p, w, false, grad_b, stream);
  }
  // The gradient of a side needs the other side's features, and with normalization its own.
  if (grad_b != nullptr || p.normalize) {
    if (Status s = pack(w.a, p.fa, View3{}, p.width_a, p.normalize, stream); !s.ok()) return s;
  }
  if (grad_a != nullptr || p.normalize) {
    if (Status s = pack(w.b, p.fb, View3{}, p.width_b, p.normalize, stream); !s.ok()) return s;
  }
  if (grad_a != nullptr) {
    if (Status s = backward_fast<T, true>(p, w, grad_a, stream); !s.ok()) return s;
  }
  return grad_b == nullptr ? Status{} : backward_fast<T, false>(p, w, grad_b, stream);
}

}  // namespace

size_t correlation_backward_workspace_bytes_cuda(const CorrelationParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0) return 0;
  if (path_of(p) == Path::kHopper) return hopper_backward_bytes(p);
  switch (p.fa.dtype) {
    case DType::kFloat64: return Workspace<double>(p, nullptr).bytes;
    case DType::kFloat32: return Workspace<float>(p, nullptr).bytes;
    default: return Workspace<Half>(p, nullptr).bytes;
  }
}

Status correlation_backward_cuda(const CorrelationParams& p, void* workspace, Stream stream) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, correlation_backward_workspace_bytes_cuda(p)); !s.ok()) return s;
  if (p.grad_fa.data == nullptr && p.grad_fb.data == nullptr) return {};
  const Path path = path_of(p);
  log_backward(p, path);
  if (path == Path::kHopper) return hopper_backward(p, workspace, stream);
  return dispatch_floating(p.fa.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return backward<T>(p, path == Path::kSimple, workspace, stream);
  });
}

}  // namespace cosegflow
