// transfer backward on Hopper, the host's side (hopper/gradient_chunks.cuh): a launch packs both images as the forward
// does, one gathers the values of the allowed targets, one prepares the rows of a. What the values get comes from the
// forward's kernel with the images swapped, a pass for every 8 values and nothing stored of the scores; the chunks take
// ds from transfer_backward_hopper_kernel.cuh.
//
// transfer_rows_kernel: a thread a row of a reads the incoming gradients and the results of all values, and leaves
// pairs
//   of gradients and, for each launch that its scores go through, 16 bytes; B * Na * (12 V + 24) bytes: bound by
//   memory.
// Rejected: p as a second matrix of halves and its product with the incoming gradients, which for 8 values would be
//   cheaper than a pass (predicted: 80 us instead of 170 at B = 8, 64 x 64 pixels, C = 256), but rounds p, while values
//   are often float32 (labels, masks) and so are their gradients; column sums of p g in registers, which cost about 14
//   instructions a score for 8 values, and registers that are not there.
#include <climits>

#include "common/dispatch.h"
#include "hopper/eligibility.cuh"
#include "hopper/gradient_chunks.cuh"
#include "primitives/value_softmax.cuh"
#include "transfer/transfer_backward_hopper_kernel.cuh"
#include "transfer/transfer_common.cuh"
#include "transfer/transfer_hopper_passes.cuh"

namespace cosegflow::transfer_cuda {
namespace {

constexpr int64_t kMostHopperValues = 64;

struct RowsArgs {
  const int *index, *count;
  const Scale* scale;
  int64_t batch, positions, pitch;
  int width, value_channels, launch_values;  // that one launch takes
  View1 beta;
  View4 grad;          // (B, V, Ha, Wa)
  const float* out;    // (B, V, Na)
  const float* lse;    // (B, Na)
  RowGradient* rows;   // (launches, B, positions)
  Place* planes;       // (ceil(V / 2), B, pitch): the incoming gradients; zeros up to the end of the last tile
  Scale* columns;      // (B, pitch): norms of rows, and -lse; -inf up to the end of the last tile
  const int* largest;  // (B): bits of the largest |value|; null where ds needs no bound
  int* bound;          // (B), 0 before
  hopper::ChunkCounts chunks;
};

// One row, and what it may make of ds.
__device__ __forceinline__ float prepare_row(const RowsArgs& args, int64_t b, int64_t row) {
  const int64_t pixel = args.index[b * args.positions + row];
  const float lse = args.lse[b * args.positions + pixel];
  const bool matches = lse != minus_infinity<float>();  // else p = 0, and nothing that comes in counts
  const float inv_norm = args.scale[b * args.pitch + row].inv_norm;
  const ExponentBase base = ExponentBase::of(lse);
  const View4& g = args.grad;
  const float* const grad = static_cast<const float*>(g.data) + b * g.stride[0] + pixel / args.width * g.stride[2] +
                            pixel % args.width * g.stride[3];
  const float* const out = args.out + b * args.value_channels * args.positions + pixel;
  args.columns[b * args.pitch + row] = {inv_norm, matches ? -lse : minus_infinity<float>()};
  float delta = 0.0f, sum = 0.0f;
  for (int v = 0; v < args.value_channels; v += 2) {
    Place pair = {0.0f, 0.0f};
    if (matches) {
      pair.x = grad[v * g.stride[1]];
      delta = fma_of(pair.x, out[v * args.positions], delta);
      if (v + 1 < args.value_channels) {
        pair.y = grad[(v + 1) * g.stride[1]];
        delta = fma_of(pair.y, out[(v + 1) * args.positions], delta);
      }
    }
    sum += fabsf(pair.x) + fabsf(pair.y);
    args.planes[(v / 2 * args.batch + b) * args.pitch + row] = pair;
    if (v + 2 < args.value_channels && (v + 2) % args.launch_values != 0) continue;
    args.rows[(v / args.launch_values * args.batch + b) * args.positions + row] = {
        inv_norm, base.k, matches ? base.base : HUGE_VALF, delta};
    delta = 0.0f;
  }
  return sum;
}

__global__ void __launch_bounds__(256) transfer_rows_kernel(const __grid_constant__ RowsArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  hopper::write_chunk_count(args.chunks, i);
  const int64_t b = i / args.pitch, row = i % args.pitch;  // a warp is of one image
  if (b >= args.batch) return;
  const int count = args.count[b];
  float sum = 0.0f;
  if (row < count) {
    sum = prepare_row(args, b, row);
  } else if (row / hopper::kCols <= max(count - 1, 0) / hopper::kCols) {
    args.columns[b * args.pitch + row] = {0.0f, minus_infinity<float>()};
    for (int v = 0; v < args.value_channels; v += 2) {
      args.planes[(v / 2 * args.batch + b) * args.pitch + row] = {0.0f, 0.0f};
    }
  }
  if (args.largest == nullptr) return;
  const float beta = static_cast<const float*>(args.beta.data)[b * args.beta.stride[0]];
  raise_bound(args.bound, b, 2 * fabsf(beta) * __int_as_float(args.largest[b]) * sum);
}

template <class T>
struct HopperSpace {
  Arena arena;
  int64_t value_counters;  // of the passes that give the gradient of values
  hopper::GradientSpace<T> chunks;
  int launch_values;  // of a launch that gives ds
  int64_t launches;
  RowGradient* rows;         // (launches, B, Na)
  Place *values, *incoming;  // (ceil(V / 2), B, pitch) of b and of a
  Scale* columns;            // (B, pitch of a)
  int* largest;              // (B), 0 before
  Passes<T> passes;
  size_t bytes;

  HopperSpace(const TransferParams& p, void* base)
      : arena(base), value_counters(counters_of(p)), chunks(arena, p, p.batch + value_counters) {
    const TileSide<T>&a = chunks.a, &b = chunks.b;
    const int64_t planes = ceil_div(p.value_channels, 2) * p.batch;
    launch_values = 2 * most_planes(chunks.wants_sums);
    launches = ceil_div(p.value_channels, launch_values);
    rows = arena.take<RowGradient>(launches * p.batch * a.positions);
    values = arena.take<Place>(planes * b.pitch), incoming = arena.take<Place>(planes * a.pitch);
    columns = arena.take<Scale>(p.batch * a.pitch);
    largest = chunks.counters;
    if (p.grad_values.data != nullptr) {
      const bool masked = p.mask_a.data != nullptr || p.mask_b.data != nullptr;
      passes.take(arena, b, a, masked, p.value_channels, multiprocessors());
      passes.columns = columns, passes.planes = incoming, passes.beta = p.beta;
      passes.counters = chunks.counters + p.batch;
    }
    bytes = arena.bytes();
  }
  static int64_t counters_of(const TransferParams& p) {
    if (p.grad_values.data == nullptr) return 0;
    return Passes<T>::counter_count(p.batch, p.height_b * p.width_b, p.value_channels);
  }
};

template <class T>
Status prepare(const TransferParams& p, const HopperSpace<T>& w, Stream stream) {
  const TileSide<T>&a = w.chunks.a, &b = w.chunks.b;
  if (Status s = hopper::pack_sides(p, w.chunks, stream); !s.ok()) return s;
  GatherArgs gather;
  gather.values = p.values;
  gather.index = b.index, gather.count = b.count;
  gather.positions_b = b.positions, gather.pitch_b = b.pitch;
  gather.value_channels = static_cast<int>(p.value_channels), gather.width_b = static_cast<int>(p.width_b);
  gather.batch = static_cast<int>(p.batch);
  gather.planes = w.values, gather.largest = w.chunks.unscale == nullptr ? nullptr : w.largest;
  if (Status s = launch_gather(gather, stream); !s.ok()) return s;

  RowsArgs args;
  args.index = a.index, args.count = a.count, args.scale = a.scale;
  args.batch = p.batch, args.positions = a.positions, args.pitch = a.pitch;
  args.width = static_cast<int>(p.width_a), args.value_channels = static_cast<int>(p.value_channels);
  args.launch_values = w.launch_values;
  args.beta = p.beta, args.grad = p.grad_out;
  args.out = static_cast<const float*>(p.out.data), args.lse = static_cast<const float*>(p.lse.data);
  args.rows = w.rows, args.planes = w.incoming, args.columns = w.columns;
  args.largest = gather.largest, args.bound = w.chunks.bound;
  args.chunks = hopper::chunk_counts(w.chunks);
  const int64_t blocks = ceil_div(p.batch * a.pitch, 256);  // at least a thread for each chunk, since it has a row
  if (blocks > INT_MAX) return {"transfer: too many source pixels for one launch"};
  if (Status s = launch(&transfer_rows_kernel, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args);
      !s.ok()) {
    return s;
  }
  if (w.chunks.unscale == nullptr) return {};
  return hopper::launch_unscale(w.chunks.bound, p.batch, w.chunks.unscale, stream);
}

template <class T>
Status values_gradient(const TransferParams& p, const HopperSpace<T>& w, Stream stream) {
  if (p.grad_values.data == nullptr) return {};
  if (p.mask_b.data != nullptr) {  // excluded targets keep the 0
    const int64_t count = p.batch * p.value_channels * w.chunks.b.positions;
    const size_t bytes = static_cast<size_t>(count * element_size(p.grad_values.dtype));
    if (Status s = memset_async(p.grad_values.data, 0, bytes, stream); !s.ok()) return s;
  }
  Output out;
  out.values = p.grad_values.data, out.type = p.grad_values.dtype, out.value_channels = p.value_channels;
  out.gradient = true;
  return run_passes(w.passes, out, stream);
}

// The number-th launch of a chunk.
template <int kPlanes, bool kSums, class T>
Status launch_gradient(const TransferParams& p, const HopperSpace<T>& w, const hopper::GradientChunk<T>& chunk,
                       int64_t number, Stream stream) {
  const int64_t planes = ceil_div(p.value_channels, 2), first = number * w.launch_values / 2;
  hopper::GradientTiles<kPlanes> tiles;
  if (Status s = hopper::tiles_of(chunk, tiles); !s.ok()) return s;
  GradientHopperArgs<T, kPlanes> args;
  for (int v = 0; v < kPlanes; ++v) {  // beyond the last one any will do: it is multiplied with 0
    const bool there = first + v < planes;
    const int64_t at = (there ? first + v : planes - 1) * p.batch + chunk.b0;
    tiles.stream.plane_b[v] = w.values + at * chunk.b.pitch;
    args.incoming[v] = there ? w.incoming + at * chunk.a.pitch : nullptr;
  }
  args.stream = tiles.stream;
  args.rows = w.rows + (number * p.batch + chunk.b0) * chunk.a.positions;
  args.positions_a = chunk.a.positions, args.pitch_a = chunk.a.pitch;
  args.beta = match_cuda::from_image(p.beta, chunk.b0);
  args.bound = w.chunks.bound + chunk.b0;
  args.ds = w.chunks.ds, args.row_room = w.chunks.plan.row_room, args.pitch = w.chunks.plan.pitch;
  args.accumulate = number > 0;
  args.column_sums = w.chunks.sums.columns, args.tile_sums = w.chunks.sums.tiles;
  if (Status s = launch_hopper(&transfer_backward_hopper_kernel<T, kPlanes, kSums>, tiles.grid, dim3(hopper::kThreads),
                               sizeof(hopper::GradientShared<kPlanes>), stream, tiles.maps.a, tiles.maps.b, args);
      !s.ok()) {
    return s;
  }
  return hopper::add_sums(w.chunks, chunk, chunk.number == 0 && number == 0, stream);
}

template <class T>
Status chunk_gradient(const TransferParams& p, const HopperSpace<T>& w, const hopper::GradientChunk<T>& chunk,
                      Stream stream) {
  // Only the widest launch can add to what is there.
  const int planes = w.launches > 1 ? w.launch_values / 2 : planes_of(p.value_channels);
  for (int64_t number = 0; number < w.launches; ++number) {
    Status s;
    if (w.chunks.wants_sums) {
      s = planes == 1 ? launch_gradient<1, true>(p, w, chunk, number, stream)
                      : launch_gradient<2, true>(p, w, chunk, number, stream);
    } else if (planes == 1) {
      s = launch_gradient<1, false>(p, w, chunk, number, stream);
    } else if (planes == 2) {
      s = launch_gradient<2, false>(p, w, chunk, number, stream);
    } else {
      s = launch_gradient<4, false>(p, w, chunk, number, stream);
    }
    if (!s.ok()) return s;
  }
  return {};
}

template <class T>
Status backward(const TransferParams& p, void* workspace, Stream stream) {
  const HopperSpace<T> w(p, workspace);
  if (Status s = prepare(p, w, stream); !s.ok()) return s;
  if (Status s = values_gradient(p, w, stream); !s.ok()) return s;
  if (w.chunks.wants_products() || w.chunks.wants_sums) {
    const auto gradient = [&](const hopper::GradientChunk<T>& chunk) { return chunk_gradient(p, w, chunk, stream); };
    if (Status s = hopper::gradients_by_chunks(w.chunks, gradient, stream); !s.ok()) return s;
  }
  return hopper::mask_and_beta(p, w.chunks, stream);
}

}  // namespace

const char* why_not_hopper_backward(const TransferParams& p, int capability) {
  if (const char* reason = hopper::why_not_backward(p, capability)) return reason;
  if (p.value_channels > kMostHopperValues) {
    return "over 64 values: the gradient of scores would be rounded once for every 8";
  }
  return nullptr;
}

size_t hopper_backward_bytes(const TransferParams& p) {
  return hopper::dispatch_packed(p, [&](auto tag) { return HopperSpace<decltype(tag)>(p, nullptr).bytes; });
}

Status hopper_backward(const TransferParams& p, void* workspace, Stream stream) {
  return hopper::dispatch_packed(p, [&](auto tag) { return backward<decltype(tag)>(p, workspace, stream); });
}

}  // namespace cosegflow::transfer_cuda
