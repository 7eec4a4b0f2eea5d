// match backward on Hopper, the host's side (hopper/gradient_chunks.cuh): one launch packs both images as the forward
// does, one prepares the rows of a, and the chunks take ds from match_backward_hopper_kernel.cuh.
//
// match_rows_kernel: a thread a row of a reads 7 numbers of the raster and leaves 8 for its chunk; B * Na * 60 bytes.
#include <climits>

#include "hopper/eligibility.cuh"
#include "hopper/gradient_chunks.cuh"
#include "match/match_backward_hopper_kernel.cuh"
#include "match/match_common.cuh"
#include "primitives/value_softmax.cuh"

namespace cosegflow::match_cuda {
namespace {

struct RowsArgs {
  const int *index, *count;
  const Scale* scale;
  int64_t batch, positions, pitch;
  int width_a, width_b, height_b;
  bool folded;
  View1 beta;
  View4 flow, grad_flow;
  View3 lse, grad_lse;
  RowGradient* rows;
  int* bound;  // (B), 0 before
  hopper::ChunkCounts chunks;
};

__device__ __forceinline__ float read_or_zero(const void* data, int64_t at) {
  return data == nullptr ? 0.0f : static_cast<const float*>(data)[at];
}

__global__ void __launch_bounds__(256) match_rows_kernel(RowsArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  hopper::write_chunk_count(args.chunks, i);
  const int64_t b = i / args.positions, row = i % args.positions;
  float bound = -1.0f;
  if (b < args.batch && row < args.count[b]) {
    const int64_t pixel = args.index[i], y = pixel / args.width_a, x = pixel % args.width_a;
    const auto at4 = [&](const View4& v) { return b * v.stride[0] + y * v.stride[2] + x * v.stride[3]; };
    const auto at3 = [&](const View3& v) { return b * v.stride[0] + y * v.stride[1] + x * v.stride[2]; };
    const float* const flow = static_cast<const float*>(args.flow.data) + at4(args.flow);
    const int64_t g = at4(args.grad_flow);
    const float beta = static_cast<const float*>(args.beta.data)[b * args.beta.stride[0]];
    const float lse = static_cast<const float*>(args.lse.data)[at3(args.lse)];
    // E_i, relative to the centre of b's grid.
    const float mean_x = flow[0] + (static_cast<float>(x) - static_cast<float>(args.width_b - 1) / 2);
    const float mean_y =
        flow[args.flow.stride[1]] + (static_cast<float>(y) - static_cast<float>(args.height_b - 1) / 2);

    RowGradient r;
    r.inv_norm = args.scale[b * args.pitch + row].inv_norm;
    const ExponentBase base = ExponentBase::of(lse);
    r.k = base.k, r.base = lse == minus_infinity<float>() ? HUGE_VALF : base.base;  // no target: p = 0
    r.gx = read_or_zero(args.grad_flow.data, g);
    r.gy = read_or_zero(args.grad_flow.data, g + args.grad_flow.stride[1]);
    const float grad_lse = read_or_zero(args.grad_lse.data, at3(args.grad_lse));
    r.g = grad_lse - fma_of(r.gx, mean_x, r.gy * mean_y);
    r.unused[0] = r.unused[1] = 0.0f;
    args.rows[i] = r;
    bound = fabsf(beta) * (fabsf(r.gx) * static_cast<float>(args.width_b) +
                           fabsf(r.gy) * static_cast<float>(args.height_b) + fabsf(grad_lse));
  }
  if (!args.folded) raise_bound(args.bound, b, bound);
}

template <class T>
struct HopperSpace {
  Arena arena;
  hopper::GradientSpace<T> chunks;
  RowGradient* rows;
  size_t bytes;

  HopperSpace(const MatchParams& p, void* base) : arena(base), chunks(arena, p) {
    rows = arena.take<RowGradient>(p.batch * chunks.a.positions);
    bytes = arena.bytes();
  }
};

template <class T>
Status prepare_rows(const MatchParams& p, const HopperSpace<T>& w, Stream stream) {
  const TileSide<T>& a = w.chunks.a;
  RowsArgs args;
  args.index = a.index, args.count = a.count, args.scale = a.scale;
  args.batch = p.batch, args.positions = a.positions, args.pitch = a.pitch;
  args.width_a = static_cast<int>(p.width_a);
  args.width_b = static_cast<int>(p.width_b), args.height_b = static_cast<int>(p.height_b);
  args.folded = hopper::kFolded<T>, args.beta = p.beta;
  args.flow = p.flow, args.grad_flow = p.grad_flow, args.lse = p.lse, args.grad_lse = p.grad_lse;
  args.rows = w.rows, args.bound = w.chunks.bound;
  args.chunks = hopper::chunk_counts(w.chunks);
  const int64_t blocks = ceil_div(p.batch * a.positions, 256);  // at least a thread for each chunk, since it has a row
  if (blocks > INT_MAX) return {"match: too many source pixels for one launch"};
  if (Status s = launch(&match_rows_kernel, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args); !s.ok()) {
    return s;
  }
  if (w.chunks.unscale == nullptr) return {};
  return hopper::launch_unscale(w.chunks.bound, p.batch, w.chunks.unscale, stream);
}

// ds of a chunk, and what mask and beta get of it.
template <class T>
Status chunk_gradient(const MatchParams& p, const HopperSpace<T>& w, const hopper::GradientChunk<T>& chunk,
                      Stream stream) {
  hopper::GradientTiles<1> tiles;
  if (Status s = hopper::tiles_of(chunk, tiles); !s.ok()) return s;
  tiles.stream.plane_b[0] = chunk.b.place;
  GradientHopperArgs<T> args;
  args.stream = tiles.stream;
  args.rows = w.rows + chunk.b0 * chunk.a.positions, args.positions_a = chunk.a.positions;
  args.beta = from_image(p.beta, chunk.b0);
  args.bound = w.chunks.bound + chunk.b0;
  args.ds = w.chunks.ds, args.row_room = w.chunks.plan.row_room, args.pitch = w.chunks.plan.pitch;
  args.column_sums = w.chunks.sums.columns, args.tile_sums = w.chunks.sums.tiles;
  const auto kernel =
      w.chunks.wants_sums ? &match_backward_hopper_kernel<T, true> : &match_backward_hopper_kernel<T, false>;
  if (Status s = launch_hopper(kernel, tiles.grid, dim3(hopper::kThreads), sizeof(hopper::Shared<1>), stream,
                               tiles.maps.a, tiles.maps.b, args);
      !s.ok()) {
    return s;
  }
  return hopper::add_sums(w.chunks, chunk, chunk.number == 0, stream);
}

template <class T>
Status backward(const MatchParams& p, void* workspace, Stream stream) {
  const HopperSpace<T> w(p, workspace);
  if (Status s = hopper::pack_sides(p, w.chunks, stream); !s.ok()) return s;
  if (Status s = prepare_rows(p, w, stream); !s.ok()) return s;
  const auto gradient = [&](const hopper::GradientChunk<T>& chunk) { return chunk_gradient(p, w, chunk, stream); };
  if (Status s = hopper::gradients_by_chunks(w.chunks, gradient, stream); !s.ok()) return s;
  return hopper::mask_and_beta(p, w.chunks, stream);
}

}  // namespace

const char* why_not_hopper_backward(const MatchParams& p, int capability) {
  if (p.kernel_sigma > 0 && !p.simple) return "the tiles know no window yet";
  return hopper::why_not_backward(p, capability);
}

size_t hopper_backward_bytes(const MatchParams& p) {
  return hopper::dispatch_packed(p, [&](auto tag) { return HopperSpace<decltype(tag)>(p, nullptr).bytes; });
}

Status hopper_backward(const MatchParams& p, void* workspace, Stream stream) {
  return hopper::dispatch_packed(p, [&](auto tag) { return backward<decltype(tag)>(p, workspace, stream); });
}

}  // namespace cosegflow::match_cuda
