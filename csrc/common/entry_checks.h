// What a launch function asks of its params before it does any work, on the CPU and on CUDA alike. A call with bad
// params returns the message of the first check that fails; it names the field. Each operation has its list of checks
// in common/<op>_checks.h: `check_sizes`, which `*_workspace_bytes*` asks too, `check_forward` and `check_backward`.
//
// Bounds are so far from those of int64 that no sum, product or workspace of a kernel can overflow below them, and so
// far above any memory that no call with real tensors meets them.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "cosegflow/types.h"

namespace cosegflow {

constexpr int64_t kMaxElements = int64_t{1} << 40;  // of one tensor
constexpr int64_t kMaxProducts = int64_t{1} << 58;  // of pairs of positions, and of multiplications of one image
constexpr int64_t kMaxOffset = int64_t{1} << 56;    // of an element in any one dimension of a view

constexpr bool is_floating(DType t) {
  return t == DType::kFloat16 || t == DType::kBFloat16 || t == DType::kFloat32 || t == DType::kFloat64;
}
constexpr bool is_mask(DType t) { return t == DType::kBool || is_floating(t); }

// The product of positive factors, or a number above `limit` where it is above.
template <class... Factors>
constexpr int64_t bounded_product(int64_t limit, Factors... factors) {
  int64_t product = 1;
  for (const int64_t factor : {static_cast<int64_t>(factors)...}) {
    product = product > limit / factor ? limit + 1 : product * factor;
    if (product > limit) break;
  }
  return product;
}

// A field of params with the messages about it. `needs` says which dtypes it may have.
template <class T>
struct Field {
  const T& value;
  const char *null, *dtype, *alignment, *strides, *contiguous;
};
template <class T>
Field(const T&, const char*, const char*, const char*, const char*, const char*) -> Field<T>;
#define COSEGFLOW_FIELD(params, field, needs)                  \
  ::cosegflow::Field{(params).field,                           \
                     #field " is null",                        \
                     #field " must " needs,                    \
                     #field " is not aligned to its elements", \
                     #field " has strides that are too large", \
                     #field " must be contiguous"}

class Checks {
 public:
  Status status() const { return Status{message_}; }

  Checks& require(bool good, const char* message) {
    if (message_ == nullptr && !good) message_ = message;
    return *this;
  }

  // Sizes are positive: check_sizes comes first.
  template <int Rank>
  Checks& input(const Field<View<Rank>>& field, bool good_dtype, const int64_t (&sizes)[Rank]) {
    return require(field.value.data != nullptr, field.null).optional_input(field, good_dtype, sizes);
  }
  template <int Rank>
  Checks& optional_input(const Field<View<Rank>>& field, bool good_dtype, const int64_t (&sizes)[Rank]) {
    if (field.value.data == nullptr) return *this;
    require(good_dtype, field.dtype);
    require(aligned(field.value.data, element_size(field.value.dtype)), field.alignment);
    return require(strides_are_small(field.value, sizes), field.strides);
  }

  // The kernels do not look at the strides of these.
  template <int Rank>
  Checks& contiguous(const Field<View<Rank>>& field, bool good_dtype, const int64_t (&sizes)[Rank]) {
    return require(field.value.data != nullptr, field.null).optional_contiguous(field, good_dtype, sizes);
  }
  template <int Rank>
  Checks& optional_contiguous(const Field<View<Rank>>& field, bool good_dtype, const int64_t (&sizes)[Rank]) {
    if (field.value.data == nullptr) return *this;
    optional_input(field, good_dtype, sizes);
    return require(is_contiguous(field.value, sizes), field.contiguous);
  }
  template <class T>
  Checks& contiguous(const Field<T*>& field, int64_t element_bytes) {
    return require(field.value != nullptr, field.null).optional_contiguous(field, element_bytes);
  }
  template <class T>
  Checks& optional_contiguous(const Field<T*>& field, int64_t element_bytes) {
    return require(field.value == nullptr || aligned(field.value, element_bytes), field.alignment);
  }

 private:
  static bool aligned(const void* data, int64_t bytes) {
    return bytes <= 0 || reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0;
  }
  template <int Rank>
  static bool strides_are_small(const View<Rank>& view, const int64_t (&sizes)[Rank]) {
    for (int i = 0; i < Rank; ++i) {
      const int64_t largest = kMaxOffset / sizes[i];
      if (view.stride[i] > largest || view.stride[i] < -largest) return false;
    }
    return true;
  }
  template <int Rank>
  static bool is_contiguous(const View<Rank>& view, const int64_t (&sizes)[Rank]) {
    int64_t expected = 1;
    for (int i = Rank - 1; i >= 0; --i) {
      if (sizes[i] > 1 && view.stride[i] != expected) return false;
      expected *= sizes[i];
    }
    return true;
  }

  const char* message_ = nullptr;
};

// Of a launch function that asked for `bytes`. Arenas align their arrays themselves; vector accesses to what is not in
// an array need 16.
inline Status check_workspace(const void* workspace, size_t bytes) {
  if (bytes > 0 && workspace == nullptr) return {"workspace is null"};
  if (reinterpret_cast<uintptr_t>(workspace) % 16 != 0) return {"workspace must be aligned to 16 bytes"};
  return {};
}

// Sizes of a pair of images of features (B, C, H, W).
template <class Params>
Checks pair_sizes(const Params& p) {
  Checks c;
  c.require(p.batch >= 0 && p.batch <= kMaxElements, "batch must not be negative, nor too large");
  c.require(p.channels >= 1, "channels must be at least 1");
  c.require(p.height_a >= 1, "height_a must be at least 1");
  c.require(p.width_a >= 1, "width_a must be at least 1");
  c.require(p.height_b >= 1, "height_b must be at least 1");
  c.require(p.width_b >= 1, "width_b must be at least 1");
  if (!c.status().ok()) return c;
  const int64_t images = p.batch > 0 ? p.batch : 1;
  c.require(bounded_product(kMaxElements, images, p.channels, p.height_a, p.width_a) <= kMaxElements,
            "batch, channels, height_a, width_a: fa has too many elements");
  c.require(bounded_product(kMaxElements, images, p.channels, p.height_b, p.width_b) <= kMaxElements,
            "batch, channels, height_b, width_b: fb has too many elements");
  return c;
}

// One tensor of the pair's or of a volume's sizes has too many elements.
template <class Params>
bool volume_is_small(const Params& p, int64_t limit) {
  const int64_t images = p.batch > 0 ? p.batch : 1;
  return bounded_product(limit, images, p.height_a, p.width_a, p.height_b, p.width_b) <= limit;
}

constexpr const char* kTooManyPairs = "height_a, width_a, height_b, width_b: there are too many pairs of positions";

}  // namespace cosegflow
