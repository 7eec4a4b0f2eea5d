// match forward, the tiled path: pack both sides, tiles with an online softmax (match_forward_kernel.cuh), and the two
// small kernels here.
//
// clear: only where mask_a is given, every source pixel starts as excluded. One thread a pixel.
// finish: one thread a compact row merges the states of the splits and scatters the results to the raster: 16 bytes in
//   per split, 16 bytes out. Both are bound by memory and take microseconds; not measured yet.
#include "common/dispatch.h"
#include "match/match_common.cuh"

namespace cosegflow::match_cuda {
namespace {

struct Outputs {
  View4 flow;
  View3 lse, confidence;
  int width_a, width_b, height_b;
  int64_t batch, positions;
};

template <class Acc>
__device__ __forceinline__ void write_match(const Outputs& out, int64_t b, int pixel, Acc flow_x, Acc flow_y, Acc lse,
                                            Acc confidence) {
  const int64_t y = pixel / out.width_a, x = pixel % out.width_a;
  Acc* const flow =
      static_cast<Acc*>(out.flow.data) + b * out.flow.stride[0] + y * out.flow.stride[2] + x * out.flow.stride[3];
  flow[0] = flow_x;
  flow[out.flow.stride[1]] = flow_y;
  const auto at3 = [&](const View3& v) { return b * v.stride[0] + y * v.stride[1] + x * v.stride[2]; };
  static_cast<Acc*>(out.lse.data)[at3(out.lse)] = lse;
  static_cast<Acc*>(out.confidence.data)[at3(out.confidence)] = confidence;
}

template <class Acc>
__global__ void __launch_bounds__(256) match_clear_kernel(Outputs out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= out.batch * out.positions) return;
  write_match(out, i / out.positions, static_cast<int>(i % out.positions), Acc(0), Acc(0), minus_infinity<Acc>(),
              Acc(0));
}

template <class Acc>
__global__ void __launch_bounds__(256) match_finish_kernel(Outputs out, const int* count, const int* index, int splits,
                                                           const OnlineSoftmax<Acc>* partial) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= out.batch * out.positions) return;
  const int64_t b = i / out.positions;
  if (i % out.positions >= count[b]) return;
  OnlineSoftmax<Acc> all = partial[i];
  for (int s = 1; s < splits; ++s) all.merge(partial[s * out.batch * out.positions + i]);
  const int pixel = index[i];
  if (all.empty()) return write_match(out, b, pixel, Acc(0), Acc(0), minus_infinity<Acc>(), Acc(0));
  // The differences of whole and half numbers are exact.
  const Acc offset_x = static_cast<Acc>(out.width_b - 1) / 2 - static_cast<Acc>(pixel % out.width_a);
  const Acc offset_y = static_cast<Acc>(out.height_b - 1) / 2 - static_cast<Acc>(pixel / out.width_a);
  write_match(out, b, pixel, all.mean_x() + offset_x, all.mean_y() + offset_y, all.log_sum_exp(),
              all.largest_probability());
}

template <class T>
struct ForwardSpace {
  ForwardArgs<T> args;
  size_t bytes;

  ForwardSpace(const MatchParams& p, void* base) {
    using Acc = accumulate_t<T>;
    Arena arena(base);
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    args.a = take_packed_side<T>(arena, p.batch, na, p.channels);
    args.b = take_packed_side<T>(arena, p.batch, nb, p.channels);
    args.width_b = static_cast<int>(p.width_b), args.height_b = static_cast<int>(p.height_b);
    args.beta = p.beta;
    args.row_tiles = static_cast<int>(ceil_div(na, TileExtent<T>::kRows));
    args.splits = choose_splits(p.batch * args.row_tiles, ceil_div(nb, TileExtent<T>::kCols), 16);
    args.partial = arena.take<OnlineSoftmax<Acc>>(args.splits * p.batch * na);
    bytes = arena.bytes();
  }
};

template <class T>
Status forward(const MatchParams& p, void* workspace, Stream stream) {
  using Acc = accumulate_t<T>;
  const ForwardSpace<T> space(p, workspace);
  const ForwardArgs<T>& args = space.args;
  const int64_t rows = p.batch * args.a.positions;
  if (ceil_div(rows, 256) > INT32_MAX) return {"match: too many source pixels for one launch"};
  const Outputs out{p.flow,       p.lse,         p.confidence, static_cast<int>(p.width_a),
                    args.width_b, args.height_b, p.batch,      args.a.positions};
  const dim3 grid(static_cast<unsigned>(ceil_div(rows, 256)));
  if (Status s = pack(args.a, p.fa, p.mask_a, p.width_a, p.normalize, stream); !s.ok()) return s;
  if (Status s = pack(args.b, p.fb, p.mask_b, p.width_b, p.normalize, stream); !s.ok()) return s;
  if (p.mask_a.data != nullptr) {
    if (Status s = launch(&match_clear_kernel<Acc>, grid, dim3(256), 0, stream, out); !s.ok()) return s;
  }
  if (Status s = launch_forward(args, stream); !s.ok()) return s;
  return launch(&match_finish_kernel<Acc>, grid, dim3(256), 0, stream, out, args.a.count, args.a.index, args.splits,
                args.partial);
}

}  // namespace

size_t tiled_forward_bytes(const MatchParams& p) {
  size_t bytes = 0;
  (void)dispatch_floating(p.fa.dtype, [&](auto tag) {
    bytes = ForwardSpace<typename decltype(tag)::type>(p, nullptr).bytes;
    return Status{};
  });
  return bytes;
}

Status tiled_forward(const MatchParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.fa.dtype,
                           [&](auto tag) { return forward<typename decltype(tag)::type>(p, workspace, stream); });
}

}  // namespace cosegflow::match_cuda
