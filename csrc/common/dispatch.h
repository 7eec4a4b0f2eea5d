// From a runtime dtype to a compile-time type.
#pragma once

#include "common/half.h"
#include "cosegflow/types.h"

namespace cosegflow {

template <class T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<T>{}) for the floating type `dtype`; body returns a Status.
template <class Body>
Status dispatch_floating(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kFloat16: return body(TypeTag<Half>{});
    case DType::kBFloat16: return body(TypeTag<BFloat16>{});
    case DType::kFloat32: return body(TypeTag<float>{});
    case DType::kFloat64: return body(TypeTag<double>{});
    default: return Status{"a floating dtype is needed"};
  }
}

}  // namespace cosegflow
