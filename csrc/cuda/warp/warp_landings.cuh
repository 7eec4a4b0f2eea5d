// Where warp's pixels land in x, for the map of warp_inverse.cuh.
//
// A pixel lands in the cell of x between its four taps. Cells have the coordinates of their upper left tap plus 1, so
// that those of the taps left of and above the image count too: (H + 1) rows of W + 1 cells. A pixel of x finds what
// reaches it in two runs of the list, one for the cells above it and one for those below.
#pragma once

#include "warp/warp_inverse.cuh"

namespace cosegflow::warp_cuda {

// A pixel of the output, as its gradient is gathered.
template <class A>
struct alignas(16) Landing {
  A wx, wy;    // the fractions
  int offset;  // of the pixel within a plane of grad_out
};

template <class A>
struct WarpPlaces {
  using Landing = warp_cuda::Landing<A>;
  WarpParams p;

  __device__ __forceinline__ WarpPoint<A> point(int64_t b, int pixel) const {
    const int width = static_cast<int>(p.out_width);
    return point_of_pixel<A>(p, b, pixel / width, pixel % width);
  }
  // -1 where no tap lies inside.
  __device__ __forceinline__ int cell(int64_t b, int pixel) const {
    const WarpPoint<A> at = point(b, pixel);
    const int lowest = at.nearest ? 0 : -1;
    const bool lands = at.finite && at.x0 >= lowest && at.x0 < p.width && at.y0 >= lowest && at.y0 < p.height;
    return lands ? (at.y0 + 1) * static_cast<int>(p.width + 2) + at.x0 + 1 : -1;
  }
  __device__ __forceinline__ Landing landing(int64_t b, int pixel) const {
    const int width = static_cast<int>(p.out_width);
    const WarpPoint<A> at = point(b, pixel);
    return {at.wx, at.wy, place_of(p.grad_out, pixel / width, pixel % width)};
  }
};

template <class A>
using WarpMap = InverseMap<Landing<A>>;

template <class A>
WarpMap<A> warp_map(const WarpParams& p, Arena& arena) {
  return inverse_map<Landing<A>>(p.batch, p.height + 1, p.width + 1, p.out_height * p.out_width, arena);
}

inline bool warp_map_fits(const WarpParams& p) { return inverse_map_fits(p.batch, p.height + 1, p.width + 1); }

// Of the gradient to x that is gathered by the map.
template <class A>
Status build_warp_map(const WarpParams& p, const WarpMap<A>& map, Stream stream) {
  return build_inverse_map(WarpPlaces<A>{p}, p.batch, map, stream);
}

}  // namespace cosegflow::warp_cuda
