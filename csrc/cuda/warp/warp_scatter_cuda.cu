// warp's backward for few channels: launches.
#include "warp/warp_launch.cuh"
#include "warp/warp_scatter_kernel.cuh"

namespace cosegflow::warp_cuda {
namespace {

// Contiguous, in this order of dimensions or with the channels last.
bool is_dense(const View4& view, const WarpParams& p) {
  const int64_t size[4] = {p.batch, p.channels, p.height, p.width};
  const auto in_order = [&](const int (&order)[4]) {
    int64_t expected = 1;
    for (const int d : order) {
      if (size[d] != 1 && view.stride[d] != expected) return false;
      expected *= size[d];
    }
    return true;
  };
  return in_order({3, 2, 1, 0}) || in_order({1, 3, 2, 0});
}

template <class A>
Status scatter(const WarpParams& p, Stream stream) {
  constexpr int64_t kCached = 16 << 20;  // bytes of sums at a time, of 50 MB of second-level cache
  const TileGrid grid = tile_grid(p.out_height, p.out_width, kScatterSide, kScatterSide);
  const int64_t bytes = p.channels * p.height * p.width * static_cast<int64_t>(sizeof(A));
  const int64_t images = bytes < kCached ? kCached / bytes : 1;
  for (int64_t b = 0; b < p.batch; b += images) {
    const int64_t count = p.batch - b < images ? p.batch - b : images;
    char* sums = static_cast<char*>(p.grad_x.data) + b * bytes;
    if (Status s = memset_async(sums, 0, static_cast<size_t>(count * bytes), stream); !s.ok()) return s;
    Status s = launch(&warp_scatter_kernel<A>, dim3(blocks_of(grid, count)), dim3(kThreads), 0, stream, p, grid, b);
    if (!s.ok()) return s;
  }
  return {};
}

}  // namespace

bool warp_scatters(const WarpParams& p) {
  return !p.deterministic && p.channels <= kScatterChannels && p.x.dtype == accumulate_type(p.x.dtype) &&
         fast_sizes(p) && short_offsets(p.grad_out, 1, p.out_height, p.out_width) &&
         short_offsets(p.grad_x, 1, p.height, p.width) && is_dense(p.grad_x, p);
}

Status warp_backward_scatter(const WarpParams& p, Stream stream) {
  return p.x.dtype == DType::kFloat64 ? scatter<double>(p, stream) : scatter<float>(p, stream);
}

}  // namespace cosegflow::warp_cuda
