// Launches that forward and backward over tiles have in common: which tensors are read as they are, and the packing of
// the others.
#pragma once

#include "common/round_up.h"
#include "entry_checks.cuh"
#include "local_correlation/local_correlation_common.cuh"
#include "local_correlation/local_correlation_grid_pack_kernels.cuh"

namespace cosegflow::local_correlation_cuda {

inline int whole_units(int64_t width) { return static_cast<int>(round_up(width, kUnit)); }

// Whether rows are whole units by shape and strides. Sizes of workspaces depend on this, and not on pointers.
inline bool made_of_units(const View4& v, int64_t batch, int64_t planes, int64_t height, int64_t width) {
  const auto whole = [](int64_t count, int64_t stride) { return count == 1 || (stride >= 0 && stride % kUnit == 0); };
  return width % kUnit == 0 && v.stride[3] == 1 && whole(batch, v.stride[0]) && whole(planes, v.stride[1]) &&
         whole(height, v.stride[2]) && (height == 1 || v.stride[2] <= INT32_MAX / height);
}
template <class T>
bool aligned_to_units(const void* data) {
  constexpr size_t kBytes = kUnit * sizeof(T) < 16 ? kUnit * sizeof(T) : 16;
  return reinterpret_cast<uintptr_t>(data) % kBytes == 0;
}

// A stride that leads nowhere need not be aligned, so it is taken as 0.
template <class T>
Planes<T> planes_of(const View4& v, int64_t planes, int64_t height, int64_t width) {
  const int row = height == 1 ? 0 : static_cast<int>(v.stride[2]);
  return {static_cast<const T*>(v.data), v.stride[0], planes == 1 ? 0 : v.stride[1], row, static_cast<int>(height),
          static_cast<int>(width)};
}
template <class T>
Planes<T> packed_planes(const T* data, int64_t planes, int64_t height, int64_t width) {
  const int row = whole_units(width);
  const int64_t plane = height * row;
  return {data, planes * plane, plane, row, static_cast<int>(height), row};
}

// One side as planes: its features as they are, or room for them packed.
template <class T>
struct SidePlanes {
  T* packed = nullptr;
  Planes<T> planes{};

  SidePlanes(const LocalCorrelationParams& p, const Side<T>& side, bool fold_norm, bool wanted, Arena& arena) {
    if (!wanted) return;
    if (!fold_norm && made_of_units(side.features, p.batch, p.channels, side.height, side.width)) {
      planes = planes_of<T>(side.features, p.channels, side.height, side.width);
      return;
    }
    packed = arena.take<T>(p.batch * p.channels * side.height * whole_units(side.width));
    planes = packed_planes<T>(packed, p.channels, side.height, side.width);
  }
};

// Norms are folded in where the side has some.
template <class T>
Status pack(const LocalCorrelationParams& p, const Side<T>& side, const SidePlanes<T>& to, Stream stream) {
  if (to.packed == nullptr) return {};
  const int row = whole_units(side.width);
  const int64_t runs = ceil_div(static_cast<int64_t>(side.height) * row, kTileSide);
  const int64_t blocks = p.batch * runs * ceil_div(p.channels, kTileSide);
  if (blocks > INT32_MAX) return {"local_correlation: the tensors are too large for one launch"};
  return launch(&local_correlation_pack_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, side,
                row, to.packed);
}

// Whether what is read as it is can be copied in units. If not, the simple kernels take the call.
template <class T>
bool aligned(const SidePlanes<T>& side) {
  return side.packed != nullptr || aligned_to_units<T>(side.planes.data);
}

inline int64_t tiles_of(int64_t batch, int64_t height, int64_t width, int64_t rows) {
  return batch * ceil_div(height, rows) * ceil_div(width, kColumns);
}

}  // namespace cosegflow::local_correlation_cuda
