// From tensors to the views and checks that the launch functions want.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cosegflow/types.h"

namespace cosegflow::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error("cosegflow: " + message); }

inline void require(bool condition, const char* message) {
  if (!condition) fail(message);
}

inline void check(const Status& status) {
  if (status.ok()) return;
  fail(status.cuda_error == 0
           ? status.message
           : std::string(status.message) + " (CUDA error " + std::to_string(status.cuda_error) + ")");
}

// "(2, 3, 4)"
inline std::string text_of(const std::vector<int64_t>& sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "(" + text + ")";
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < tensor.dim(); ++d) sizes.push_back(tensor.size(d));
  return sizes;
}

// Messages call the tensor `name`; what we allocated ourselves needs none.
inline DType dtype_of(const Tensor& tensor, const char* name = "a result") {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::Bool: return DType::kBool;
    default:
      fail(std::string(name) + " needs to be float16, bfloat16, float32, float64 or bool, got " +
           toString(tensor.scalar_type()));
  }
}

inline ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat16: return ScalarType::Half;
    case DType::kBFloat16: return ScalarType::BFloat16;
    case DType::kFloat32: return ScalarType::Float;
    case DType::kFloat64: return ScalarType::Double;
    case DType::kBool: return ScalarType::Bool;
  }
  return ScalarType::Undefined;
}

template <int Rank>
View<Rank> view(const Tensor& tensor, const char* name = "a result") {
  if (tensor.dim() != Rank) {
    fail(std::string(name) + " needs " + std::to_string(Rank) + " dimensions, got shape " + text_of(sizes_of(tensor)));
  }
  View<Rank> result;
  result.data = tensor.data_ptr();
  result.dtype = dtype_of(tensor, name);
  for (int i = 0; i < Rank; ++i) result.stride[i] = tensor.stride(i);
  return result;
}

template <int Rank>
View<Rank> view(const std::optional<Tensor>& tensor, const char* name) {
  return tensor.has_value() ? view<Rank>(*tensor, name) : View<Rank>{};
}

// One value of beta per image; a tensor of one value is broadcast by a stride of 0.
inline View1 beta_view(const Tensor& beta, int64_t batch, DType accumulate) {
  require(beta.dim() <= 1 && (beta.numel() == 1 || beta.numel() == batch), "beta needs one value, or one per image");
  require(dtype_of(beta, "beta") == accumulate,
          "beta needs the accumulate dtype: float64 for float64 features, else float32");
  View1 result;
  result.data = beta.data_ptr();
  result.dtype = accumulate;
  result.stride[0] = beta.numel() == 1 ? 0 : beta.stride(0);
  return result;
}

inline void require_same_device(const Tensor& tensor, const Tensor& reference) {
  require(tensor.is_cuda() == reference.is_cuda() && tensor.get_device() == reference.get_device(),
          "all tensors need to be on one device");
}

inline void require_same_device(const std::optional<Tensor>& tensor, const Tensor& reference) {
  if (tensor.has_value()) require_same_device(*tensor, reference);
}

// Uninitialised, on the device of `like`; an error names the shape and what torch says (allocation.cpp).
Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype);

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes, DType dtype) {
  return empty(like, sizes, scalar_type(dtype));
}

inline void require_pair(const Tensor& fa, const Tensor& fb) {
  require(fa.dim() == 4 && fb.dim() == 4, "fa and fb need to be (B, C, H, W)");
  require(fa.scalar_type() == fb.scalar_type() && dtype_of(fa, "fa") != DType::kBool,
          "fa and fb need one floating dtype");
  require(fa.size(0) == fb.size(0) && fa.size(1) == fb.size(1), "fa and fb differ in batch size or channels");
  for (int64_t d = 1; d < 4; ++d) require(fa.size(d) > 0 && fb.size(d) > 0, "fa and fb need at least one element");
  require_same_device(fb, fa);
}

// How float32 products are formed on CUDA: the numbers of cosegflow::Precision.
inline Precision precision_of(int64_t precision) {
  if (precision < 0 || precision > 2) {
    fail("precision needs to be 0 (highest), 1 (high) or 2 (medium), got " + std::to_string(precision));
  }
  return static_cast<Precision>(precision);
}

inline View3 mask_view(const std::optional<Tensor>& mask, const char* name, const Tensor& like, int64_t height,
                       int64_t width) {
  if (!mask.has_value()) return {};
  require_same_device(*mask, like);
  const std::vector<int64_t> needed = {like.size(0), height, width};
  if (sizes_of(*mask) != needed) {
    fail(std::string(name) + " needs shape " + text_of(needed) + ", got " + text_of(sizes_of(*mask)));
  }
  return view<3>(*mask, name);
}

inline void require_flow_and_lse(const Tensor& flow, const Tensor& lse, const Tensor& like, int64_t batch,
                                 int64_t height, int64_t width, DType accumulate) {
  require_same_device(flow, like);
  require_same_device(lse, like);
  require(dtype_of(flow, "flow") == accumulate && sizes_of(flow) == std::vector<int64_t>({batch, 2, height, width}),
          "flow needs to be the output of the forward");
  require(dtype_of(lse, "lse") == accumulate && sizes_of(lse) == std::vector<int64_t>({batch, height, width}),
          "lse needs to be the output of the forward");
}

template <int Rank>
View<Rank> grad_view(const std::optional<Tensor>& grad, const char* name, const Tensor& like,
                     const std::vector<int64_t>& sizes, DType dtype) {
  if (!grad.has_value()) return {};
  require_same_device(*grad, like);
  if (grad->scalar_type() != scalar_type(dtype) || sizes_of(*grad) != sizes) {
    fail(std::string(name) + " needs shape " + text_of(sizes) + " and dtype " + toString(scalar_type(dtype)) +
         ", got " + text_of(sizes_of(*grad)) + " and " + toString(grad->scalar_type()));
  }
  return view<Rank>(*grad, name);
}

// The most probable targets, (B, H, W): allocated where they are wanted, and params `p` pointed at them.
struct PeakTensors {
  Tensor index, score;
};

template <class Params>
PeakTensors peak_tensors(const Tensor& like, Params& p, DType accumulate, double kernel_sigma, bool wanted) {
  require(kernel_sigma >= 0, "kernel_sigma needs to be positive, or 0 for no window");
  p.kernel_sigma = kernel_sigma;
  wanted = wanted || kernel_sigma > 0;
  const std::vector<int64_t> sizes = wanted ? std::vector<int64_t>{p.batch, p.height_a, p.width_a}  //
                                            : std::vector<int64_t>{0};
  PeakTensors result{empty(like, sizes, ScalarType::Long), empty(like, sizes, accumulate)};
  if (!wanted) return result;
  p.index = static_cast<int64_t*>(result.index.data_ptr());
  p.score = view<3>(result.score);
  return result;
}

// The index that the backward of a windowed softmax reads; `index` must outlive the launch.
template <class Params>
void take_index(const Tensor& like, Params& p, std::optional<Tensor>& index, double kernel_sigma) {
  require(kernel_sigma >= 0, "kernel_sigma needs to be positive, or 0 for no window");
  p.kernel_sigma = kernel_sigma;
  if (!(kernel_sigma > 0)) return;
  require(index.has_value() && index->scalar_type() == ScalarType::Long &&
              sizes_of(*index) == std::vector<int64_t>({p.batch, p.height_a, p.width_a}),
          "kernel_sigma needs the index that the forward gave");
  require_same_device(index, like);
  index = torch::stable::contiguous(*index);
  p.index = static_cast<int64_t*>(index->data_ptr());
}

// What an output that nobody needs is returned as.
inline Tensor nothing(const Tensor& like, DType dtype) { return empty(like, {0}, dtype); }

inline Tensor converted(const Tensor& tensor, DType dtype) {
  return dtype_of(tensor) == dtype ? tensor : torch::stable::to(tensor, scalar_type(dtype));
}

}  // namespace cosegflow::binding
