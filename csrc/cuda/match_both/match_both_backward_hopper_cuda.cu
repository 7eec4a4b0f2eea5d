// match_both backward on Hopper, the host's side (hopper/gradient_chunks.cuh): one launch packs both images as the
// forward does, one prepares the pixels of both as sources, and the chunks take ds from
// match_both_backward_hopper_kernel.cuh. Three products for both directions, where two backwards of match need six.
//
// match_both_sources_kernel: a thread a pixel reads 7 numbers of the raster and leaves 8 for the rows, or 4 in planes
// for
//   the columns; B * (Na + Nb) * 60 bytes: bound by memory.
#include <climits>

#include "hopper/eligibility.cuh"
#include "hopper/gradient_chunks.cuh"
#include "match_both/match_both_backward_hopper_kernel.cuh"
#include "match_both/match_both_common.cuh"

namespace cosegflow::match_both_cuda {
namespace {

// An image's pixels as sources of the other image.
struct Sources {
  const int *index, *count;
  const Scale* scale;
  const Place* place;
  int64_t positions, pitch;
  int width, other_width, other_height;
  MatchDirection direction;
};

struct SourcesArgs {
  Sources a, b;
  int64_t batch, blocks_a;
  View1 beta;
  SourcePixel* rows;     // (B, Na)
  Place *source, *flow;  // (B, pitch_b), and zeros up to the end of the last tile
  int* bound;            // (B), 0 before; null: not wanted
  hopper::ChunkCounts chunks;
};

__device__ __forceinline__ float read_or_zero(const void* data, int64_t at) {
  return data == nullptr ? 0.0f : static_cast<const float*>(data)[at];
}

// A compact pixel; `most` is the largest |d / p| that it may have.
__device__ __forceinline__ SourcePixel source_pixel(const Sources& in, int64_t b, int64_t row, float& most) {
  const int64_t pixel = in.index[b * in.positions + row], y = pixel / in.width, x = pixel % in.width;
  const auto at4 = [&](const View4& v) { return b * v.stride[0] + y * v.stride[2] + x * v.stride[3]; };
  const auto at3 = [&](const View3& v) { return b * v.stride[0] + y * v.stride[1] + x * v.stride[2]; };
  const MatchDirection& d = in.direction;
  const Scale scale = in.scale[b * in.pitch + row];
  const Place place = in.place[b * in.pitch + row];
  SourcePixel p{};
  p.inv_norm = scale.inv_norm, p.log_weight = scale.log_weight;
  p.x = place.x, p.y = place.y;
  p.lse = static_cast<const float*>(d.lse.data)[at3(d.lse)];
  if (p.lse == minus_infinity<float>()) {  // matches nothing: p = 0, and nothing that comes in counts
    p.lse = HUGE_VALF;
    return p;
  }
  const float* const flow = static_cast<const float*>(d.flow.data) + at4(d.flow);
  // E, relative to the centre of the other image.
  const float mean_x = flow[0] + (static_cast<float>(x) - static_cast<float>(in.other_width - 1) / 2);
  const float mean_y = flow[d.flow.stride[1]] + (static_cast<float>(y) - static_cast<float>(in.other_height - 1) / 2);
  p.gx = read_or_zero(d.grad_flow.data, at4(d.grad_flow));
  p.gy = read_or_zero(d.grad_flow.data, at4(d.grad_flow) + d.grad_flow.stride[1]);
  const float grad_lse = read_or_zero(d.grad_lse.data, at3(d.grad_lse));
  p.g = grad_lse - fma_of(p.gx, mean_x, p.gy * mean_y);
  most = fabsf(p.gx) * static_cast<float>(in.other_width) + fabsf(p.gy) * static_cast<float>(in.other_height) +
         fabsf(grad_lse);
  return p;
}

__global__ void __launch_bounds__(256) match_both_sources_kernel(const __grid_constant__ SourcesArgs args) {
  const bool of_a = blockIdx.x < args.blocks_a;
  const Sources& in = of_a ? args.a : args.b;
  const int64_t i = (blockIdx.x - (of_a ? 0 : args.blocks_a)) * 256 + threadIdx.x;
  if (of_a) hopper::write_chunk_count(args.chunks, i);
  const int64_t b = i / in.pitch, row = i % in.pitch;  // a block is of one image
  if (b >= args.batch) return;
  const int count = in.count[b];
  float most = 0.0f;
  if (row < count) {
    const SourcePixel p = source_pixel(in, b, row, most);
    if (of_a) {
      args.rows[b * in.positions + row] = p;
    } else {
      args.source[i] = {p.lse, p.g};
      args.flow[i] = {p.gx, p.gy};
    }
  } else if (!of_a && row / hopper::kCols <= max(count - 1, 0) / hopper::kCols) {
    args.source[i] = {HUGE_VALF, 0.0f};
    args.flow[i] = {0.0f, 0.0f};
  }
  if (args.bound == nullptr) return;
  // What comes from either direction is at most half of it.
  const float beta = static_cast<const float*>(args.beta.data)[b * args.beta.stride[0]];
  raise_bound(args.bound, b, 2 * fabsf(beta) * most);
}

template <class T>
struct HopperSpace {
  Arena arena;
  hopper::GradientSpace<T> chunks;
  SourcePixel* rows;
  Place *source, *flow;
  float* row_sums = nullptr;   // of a chunk: (images, tiles of columns, row_room)
  float* mask_sums = nullptr;  // of a: (B, chunks, row_room)
  size_t bytes;

  HopperSpace(const MatchBothParams& p, void* base) : arena(base), chunks(arena, p, 0, p.grad_mask_a.data != nullptr) {
    const hopper::GradientPlan& plan = chunks.plan;
    rows = arena.take<SourcePixel>(p.batch * chunks.a.positions);
    source = arena.take<Place>(p.batch * chunks.b.pitch), flow = arena.take<Place>(p.batch * chunks.b.pitch);
    if (chunks.wants_sums) {
      row_sums = arena.take<float>(plan.images * (plan.pitch / hopper::kCols) * plan.row_room);
      mask_sums = arena.take<float>(p.batch * plan.chunks * plan.row_room);
    }
    bytes = arena.bytes();
  }
};

template <class T>
Sources sources_of(const TileSide<T>& side, const MatchDirection& direction, int64_t width, int64_t other_width,
                   int64_t other_height) {
  return {side.index,
          side.count,
          side.scale,
          side.place,
          side.positions,
          side.pitch,
          static_cast<int>(width),
          static_cast<int>(other_width),
          static_cast<int>(other_height),
          direction};
}

template <class T>
Status prepare_sources(const MatchBothParams& p, const HopperSpace<T>& w, Stream stream) {
  const TileSide<T>&a = w.chunks.a, &b = w.chunks.b;
  SourcesArgs args;
  args.a = sources_of(a, p.ab, p.width_a, p.width_b, p.height_b);
  args.b = sources_of(b, p.ba, p.width_b, p.width_a, p.height_a);
  args.batch = p.batch, args.beta = p.beta;
  args.rows = w.rows, args.source = w.source, args.flow = w.flow;
  args.bound = w.chunks.unscale == nullptr ? nullptr : w.chunks.bound;
  args.chunks = hopper::chunk_counts(w.chunks);
  args.blocks_a = ceil_div(p.batch * a.pitch, 256);  // at least a thread for each chunk, since it has a row
  const int64_t blocks = args.blocks_a + ceil_div(p.batch * b.pitch, 256);
  if (blocks > INT_MAX) return {"match_both: too many pixels for one launch"};
  if (Status s = launch(&match_both_sources_kernel, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args);
      !s.ok()) {
    return s;
  }
  if (w.chunks.unscale == nullptr) return {};
  return hopper::launch_unscale(w.chunks.bound, p.batch, w.chunks.unscale, stream);
}

// What mask_a gets of a chunk: the sums of its rows over the tiles, which stand where runs of rows stand for mask_b.
template <class T>
Status add_row_sums(const HopperSpace<T>& w, const hopper::GradientChunk<T>& chunk, Stream stream) {
  if (w.row_sums == nullptr) return {};
  const hopper::GradientPlan& plan = w.chunks.plan;
  match_cuda::ColumnSums<float> sums{};
  sums.columns = w.row_sums;
  sums.count_a = chunk.b.count, sums.count_b = chunk.live, sums.images = chunk.images;
  sums.row_begin = 0, sums.rows = INT_MAX, sums.first = true;
  sums.tile_rows = hopper::kCols, sums.tile_runs = 1;
  sums.runs = plan.pitch / hopper::kCols, sums.pitch = plan.row_room, sums.kinds = 1;
  sums.sums = w.mask_sums + (chunk.b0 * plan.chunks + chunk.number) * plan.row_room;
  return launch_add_columns(sums, stream);
}

// ds of a chunk, and what masks and beta get of it.
template <class T>
Status chunk_gradient(const MatchBothParams& p, const HopperSpace<T>& w, const hopper::GradientChunk<T>& chunk,
                      Stream stream) {
  hopper::GradientTiles<kPlanes> tiles;
  if (Status s = hopper::tiles_of(chunk, tiles); !s.ok()) return s;
  tiles.stream.plane_b[kPlace] = chunk.b.place;
  tiles.stream.plane_b[kSource] = w.source + chunk.b0 * chunk.b.pitch;
  tiles.stream.plane_b[kFlow] = w.flow + chunk.b0 * chunk.b.pitch;
  GradientHopperArgs<T> args;
  args.stream = tiles.stream;
  args.rows = w.rows + chunk.b0 * chunk.a.positions, args.positions_a = chunk.a.positions;
  args.beta = match_cuda::from_image(p.beta, chunk.b0);
  args.bound = w.chunks.bound + chunk.b0;
  args.ds = w.chunks.ds, args.row_room = w.chunks.plan.row_room, args.pitch = w.chunks.plan.pitch;
  args.column_sums = w.chunks.sums.columns, args.tile_sums = w.chunks.sums.tiles, args.row_sums = w.row_sums;
  const auto kernel =
      w.chunks.wants_sums ? &match_both_backward_hopper_kernel<T, true> : &match_both_backward_hopper_kernel<T, false>;
  if (Status s = launch_hopper(kernel, tiles.grid, dim3(hopper::kThreads), sizeof(hopper::GradientShared<kPlanes>),
                               stream, tiles.maps.a, tiles.maps.b, args);
      !s.ok()) {
    return s;
  }
  if (Status s = add_row_sums(w, chunk, stream); !s.ok()) return s;
  return hopper::add_sums(w.chunks, chunk, chunk.number == 0, stream);
}

template <class T>
Status mask_a_gradient(const MatchBothParams& p, const HopperSpace<T>& w, Stream stream) {
  match_cuda::MaskAndBeta<float> args{};
  args.sums = w.mask_sums, args.pitch = w.chunks.plan.chunks * w.chunks.plan.row_room, args.kinds = 1;
  args.count = w.chunks.a.count, args.index = w.chunks.a.index;
  args.batch = p.batch, args.positions = w.chunks.a.positions, args.width = static_cast<int>(p.width_a);
  args.mask = p.mask_a, args.grad_mask = p.grad_mask_a;
  return launch_mask_and_beta(args, stream);
}

template <class T>
Status backward(const MatchBothParams& p, void* workspace, Stream stream) {
  const HopperSpace<T> w(p, workspace);
  if (Status s = hopper::pack_sides(p, w.chunks, stream); !s.ok()) return s;
  if (Status s = prepare_sources(p, w, stream); !s.ok()) return s;
  const auto gradient = [&](const hopper::GradientChunk<T>& chunk) { return chunk_gradient(p, w, chunk, stream); };
  if (Status s = hopper::gradients_by_chunks(w.chunks, gradient, stream); !s.ok()) return s;
  if (Status s = mask_a_gradient(p, w, stream); !s.ok()) return s;
  return hopper::mask_and_beta(p, w.chunks, stream);
}

}  // namespace

size_t hopper_backward_bytes(const MatchBothParams& p) {
  return hopper::dispatch_packed(p, [&](auto tag) { return HopperSpace<decltype(tag)>(p, nullptr).bytes; });
}

Status hopper_backward(const MatchBothParams& p, void* workspace, Stream stream) {
  return hopper::dispatch_packed(p, [&](auto tag) { return backward<decltype(tag)>(p, workspace, stream); });
}

}  // namespace cosegflow::match_both_cuda
