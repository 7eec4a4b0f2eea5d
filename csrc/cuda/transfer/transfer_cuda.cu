// transfer on CUDA: checks, which of the kernels a call takes, and the order of the launches (transfer_common.cuh) of
// all but the kernels of Hopper: transfer_hopper_cuda.cu, transfer_backward_hopper_cuda.cu.
//
// The kernels here move rows between the raster and compact rows: one thread a value or a row, no shared memory but in
// the block sum of grad_beta, 2 accumulators of traffic per value: bound by memory; not measured yet. No atomics.
#include <type_traits>

#include "common/dispatch.h"
#include "common/log.h"
#include "common/transfer_checks.h"
#include "entry_checks.cuh"
#include "normalize_backward.cuh"
#include "primitives/warp_reduce.cuh"
#include "transfer/transfer_common.cuh"

namespace cosegflow {
namespace transfer_cuda {
namespace {

constexpr size_t kDefaultChunkBytes = size_t{64} << 20;

// to (B, N, V) = the rows that `index` names of from (B, V, H, W).
template <class S, class Acc>
__global__ void __launch_bounds__(256)
    transfer_gather_kernel(View4 from, int width, const int* index, const int* count, int64_t batch, int64_t positions,
                           int64_t channels, Acc* to) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t row = e % positions, v = e / positions % channels, b = e / positions / channels;
  if (b >= batch || row >= count[b]) return;
  const int pixel = index[b * positions + row];
  const S* const source = static_cast<const S*>(from.data) + b * from.stride[0] + v * from.stride[1] +
                          pixel / width * from.stride[2] + pixel % width * from.stride[3];
  to[(b * positions + row) * channels + v] = to_float(*source);
}

template <class Acc>
__global__ void __launch_bounds__(256) transfer_clear_lse_kernel(Acc* lse, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i < n) lse[i] = minus_infinity<Acc>();
}

// Merges the states of the splits: peak and 1 / sum of each compact row, and lse to the raster.
template <class Acc>
__global__ void __launch_bounds__(256)
    transfer_finish_states_kernel(const OnlineSoftmax<Acc>* partial, int splits, const int* count, const int* index,
                                  int64_t batch, int64_t positions, Acc* peak, Acc* inverse, Acc* lse) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= batch * positions) return;
  const int64_t b = i / positions;
  if (i % positions >= count[b]) return;
  OnlineSoftmax<Acc> all = partial[i];
  for (int s = 1; s < splits; ++s) all.merge(partial[s * batch * positions + i]);
  peak[i] = OnlineSoftmax<Acc>::base_of(all.peak);
  inverse[i] = Acc(1) / all.total;
  lse[b * positions + index[i]] = all.log_sum_exp();
}

// lse of each compact row, and delta_i = <grad_out_i, out_i>.
template <class Acc>
__global__ void __launch_bounds__(256)
    transfer_delta_kernel(const Acc* grad_out, const Acc* out, const Acc* lse, const int* count, const int* index,
                          int64_t batch, int64_t positions, int64_t channels, Acc* row_lse, Acc* delta) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= batch * positions) return;
  const int64_t b = i / positions;
  if (i % positions >= count[b]) return;
  const int64_t pixel = index[i];
  Acc sum = Acc(0);
  for (int64_t v = 0; v < channels; ++v) {
    sum += grad_out[i * channels + v] * out[(b * channels + v) * positions + pixel];
  }
  row_lse[i] = lse[b * positions + pixel];
  delta[i] = sum;
}

// sums (images, 2, pitch) = or += the sums over the chunk's row tiles.
template <class Acc>
__global__ void __launch_bounds__(256)
    transfer_add_columns_kernel(const Acc* columns, const int* count_a, const int* count_b, int64_t images,
                                int row_begin, int rows, int tile_rows, int row_tiles, int64_t pitch, Acc* sums) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= images * 2 * pitch) return;
  const int64_t b = i / (2 * pitch), which_and_j = i % (2 * pitch);
  if (which_and_j % pitch >= count_b[b]) return;
  const int live = min(rows, count_a[b] - row_begin);
  Acc sum = row_begin == 0 ? Acc(0) : sums[i];
  for (int tile = 0; tile * tile_rows < live; ++tile) sum += columns[(b * row_tiles + tile) * 2 * pitch + which_and_j];
  sums[i] = sum;
}

// d(loss)/dm_j = sum_i dlogit_ij / m_j, scattered to the raster; excluded targets keep the 0 of the memset.
template <class Acc>
__global__ void __launch_bounds__(256)
    transfer_mask_gradient_kernel(const Acc* sums, int64_t pitch, const int* count, const int* index, const Acc* weight,
                                  int64_t batch, int64_t positions, Acc* grad) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= batch * positions) return;
  const int64_t b = i / positions, j = i % positions;
  if (j < count[b]) grad[b * positions + index[i]] = sums[b * 2 * pitch + j] / weight[i];
}

template <class Acc>
__global__ void __launch_bounds__(256)
    transfer_beta_gradient_kernel(const Acc* sums, int64_t pitch, const int* count, View1 grad) {
  const int64_t b = blockIdx.x;
  Acc sum = Acc(0);
  for (int j = threadIdx.x; j < count[b]; j += 256) sum += sums[(b * 2 + 1) * pitch + j];
  sum = block_reduce_sum(sum);
  if (threadIdx.x == 0) static_cast<Acc*>(grad.data)[b * grad.stride[0]] = sum;
}

template <class... P, class... A>
Status launch_threads(int64_t n, Stream stream, void (*kernel)(P...), A... args) {
  const int64_t blocks = ceil_div(n, 256);
  if (blocks > INT32_MAX) return {"transfer: too many values for one launch"};
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args...);
}

// Null where the tiled kernels take the call, else the reason why not (as for match).
const char* why_not_tiled(const TransferParams& p) {
  if (p.simple) return "the simple kernels were asked for";
  if (half_type(p.fa.dtype) && device_generation() < 8) return "mma.m16n8k16 and cp.async need compute capability 8.0";
  if (p.channels > (int64_t{1} << 23)) return "offsets within a tile of 128 rows need C <= 2^23";
  return nullptr;
}

// The workspace of either direction.
template <class T>
struct Space {
  using Acc = accumulate_t<T>;
  PackedSide<T> a, b;
  int64_t images, rows, row_tiles, pitch;  // of a chunk
  int splits = 1;                          // of the states
  Acc* values;                             // (B, Nb, V)
  Acc *base, *extra;                       // (B, Na): see ChunkArgs
  Acc* probability;
  OnlineSoftmax<Acc>* partial = nullptr;                             // forward
  Acc* out = nullptr;                                                // forward: (B, Na, V), compact
  Acc *grad_out = nullptr, *dscore = nullptr;                        // backward
  Acc *columns = nullptr, *sums = nullptr;                           // backward
  Acc *grad_a = nullptr, *grad_b = nullptr, *grad_values = nullptr;  // backward, compact
  size_t bytes;

  Space(const TransferParams& p, bool backward, void* base_of_memory) {
    using Tile = TileExtent<T>;
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b, v = p.value_channels;
    pitch = ceil_div(nb, Tile::kCols) * Tile::kCols;
    const int64_t row_bytes = (backward ? 2 : 1) * pitch * static_cast<int64_t>(sizeof(Acc));
    const int64_t fit = static_cast<int64_t>(p.chunk_bytes == 0 ? kDefaultChunkBytes : p.chunk_bytes) / row_bytes;
    images = fit >= na ? (fit / na < p.batch ? fit / na : p.batch) : 1;
    rows = fit >= na ? na : (fit < 1 ? 1 : fit);
    if (p.chunk_bytes == 0 && rows < Tile::kRows) rows = na < Tile::kRows ? na : Tile::kRows;
    if (rows < na && rows > Tile::kRows) rows = rows / Tile::kRows * Tile::kRows;
    row_tiles = ceil_div(rows, Tile::kRows);

    Arena arena(base_of_memory);
    a = take_packed_side<T>(arena, p.batch, na, p.channels);
    b = take_packed_side<T>(arena, p.batch, nb, p.channels);
    values = arena.take<Acc>(p.batch * nb * v);
    base = arena.take<Acc>(p.batch * na), extra = arena.take<Acc>(p.batch * na);
    probability = arena.take<Acc>(images * rows * pitch);
    if (!backward) {
      const int64_t tiles = p.batch * ceil_div(na, Tile::kRows);
      if (why_not_tiled(p) == nullptr) splits = match_cuda::choose_splits(tiles, pitch / Tile::kCols, 16);
      partial = arena.take<OnlineSoftmax<Acc>>(splits * p.batch * na);
      out = arena.take<Acc>(p.batch * na * v);
    } else {
      grad_out = arena.take<Acc>(p.batch * na * v);
      dscore = arena.take<Acc>(images * rows * pitch);
      if (p.grad_mask_b.data != nullptr || p.grad_beta.data != nullptr) {
        columns = arena.take<Acc>(images * row_tiles * 2 * pitch);
        sums = arena.take<Acc>(p.batch * 2 * pitch);
      }
      if (p.grad_fa.data != nullptr) grad_a = arena.take<Acc>(p.batch * na * p.channels);
      if (p.grad_fb.data != nullptr) grad_b = arena.take<Acc>(p.batch * nb * p.channels);
      if (p.grad_values.data != nullptr) grad_values = arena.take<Acc>(p.batch * nb * v);
    }
    bytes = arena.bytes();
  }
};

// One call: its parameters, workspace and stream.
template <class T>
class Run {
 public:
  using Acc = accumulate_t<T>;
  Run(const TransferParams& p, bool backward, void* workspace, Stream stream)
      : p_(p), w_(p, backward, workspace), simple_(why_not_tiled(p) != nullptr), stream_(stream) {}

  Status forward() const {
    const int64_t pixels = p_.batch * w_.a.positions;
    if (Status s = pack_both(); !s.ok()) return s;
    Acc* const lse = static_cast<Acc*>(p_.lse.data);
    if (Status s = launch_threads(pixels, stream_, &transfer_clear_lse_kernel<Acc>, lse, pixels); !s.ok()) return s;
    ForwardArgs<T> states;
    states.a = w_.a, states.b = w_.b;
    states.width_b = static_cast<int>(p_.width_b), states.height_b = static_cast<int>(p_.height_b);
    states.beta = p_.beta;
    states.row_tiles = static_cast<int>(ceil_div(w_.a.positions, TileExtent<T>::kRows));
    states.splits = w_.splits, states.partial = w_.partial;
    if (Status s = simple_ ? simple_states(w_.a, w_.b, p_.beta, w_.partial, stream_) : launch_states(states, stream_);
        !s.ok()) {
      return s;
    }
    if (Status s = launch_threads(pixels, stream_, &transfer_finish_states_kernel<Acc>, w_.partial, w_.splits,
                                  w_.a.count, w_.a.index, p_.batch, w_.a.positions, w_.base, w_.extra, lse);
        !s.ok()) {
      return s;
    }
    if (Status s = for_each_chunk([this](const ChunkArgs<T>& args, int64_t b0) { return forward_chunk(args, b0); });
        !s.ok()) {
      return s;
    }
    return scatter(w_.a, w_.out, p_.out);
  }

  Status backward() const {
    const int64_t pixels_a = p_.batch * w_.a.positions, pixels_b = p_.batch * w_.b.positions;
    if (Status s = pack_both(); !s.ok()) return s;
    if (Status s = gather(p_.grad_out, w_.a, p_.width_a, w_.grad_out); !s.ok()) return s;
    if (Status s =
            launch_threads(pixels_a, stream_, &transfer_delta_kernel<Acc>, w_.grad_out,
                           static_cast<const Acc*>(p_.out.data), static_cast<const Acc*>(p_.lse.data), w_.a.count,
                           w_.a.index, p_.batch, w_.a.positions, p_.value_channels, w_.base, w_.extra);
        !s.ok()) {
      return s;
    }
    if (Status s = for_each_chunk([this](const ChunkArgs<T>& args, int64_t b0) { return backward_chunk(args, b0); });
        !s.ok()) {
      return s;
    }
    if (Status s = features_gradient(w_.a, w_.grad_a, p_.grad_fa); !s.ok()) return s;
    if (Status s = features_gradient(w_.b, w_.grad_b, p_.grad_fb); !s.ok()) return s;
    if (p_.grad_values.data != nullptr) {
      if (Status s = scatter(w_.b, w_.grad_values, p_.grad_values); !s.ok()) return s;
    }
    if (p_.grad_mask_b.data != nullptr) {
      Acc* const grad = static_cast<Acc*>(p_.grad_mask_b.data);
      const size_t bytes = static_cast<size_t>(pixels_b) * sizeof(Acc);
      if (Status s = memset_async(grad, 0, bytes, stream_); !s.ok()) return s;
      if (Status s = launch_threads(pixels_b, stream_, &transfer_mask_gradient_kernel<Acc>, w_.sums, w_.pitch,
                                    w_.b.count, w_.b.index, w_.b.weight, p_.batch, w_.b.positions, grad);
          !s.ok()) {
        return s;
      }
    }
    if (p_.grad_beta.data == nullptr) return {};
    return launch_threads(p_.batch * 256, stream_, &transfer_beta_gradient_kernel<Acc>, w_.sums, w_.pitch, w_.b.count,
                          p_.grad_beta);
  }

 private:
  Status pack_both() const {
    if (Status s = pack(w_.a, p_.fa, p_.mask_a, p_.width_a, p_.normalize, stream_); !s.ok()) return s;
    if (Status s = pack(w_.b, p_.fb, p_.mask_b, p_.width_b, p_.normalize, stream_); !s.ok()) return s;
    return gather(p_.values, w_.b, p_.width_b, w_.values);
  }

  // Both dispatch on the type of values and gradients, whose accumulate type is that of T.
  template <class Body>
  static Status dispatch_values(DType dtype, const Body& body) {
    return dispatch_floating(dtype, [&](auto tag) -> Status {
      if constexpr (std::is_same_v<accumulate_t<typename decltype(tag)::type>, Acc>) return body(tag);
      return Status{"transfer: values need to be float64 if and only if fa is"};
    });
  }
  Status gather(const View4& from, const PackedSide<T>& side, int64_t width, Acc* to) const {
    return dispatch_values(from.dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      return launch_threads(p_.batch * side.positions * p_.value_channels, stream_, &transfer_gather_kernel<S, Acc>,
                            from, static_cast<int>(width), side.index, side.count, p_.batch, side.positions,
                            p_.value_channels, to);
    });
  }
  Status scatter(const PackedSide<T>& side, const Acc* from, const View4& to) const {  // excluded pixels get 0
    return dispatch_values(to.dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      NormalizeBackwardArgs<S> args;
      args.batch = side.batch, args.positions = side.positions, args.channels = p_.value_channels;
      args.grad_f_hat = from, args.index = side.index, args.count = side.count;
      args.grad = static_cast<S*>(to.data);
      return launch_normalize_backward(args, stream_);
    });
  }
  Status features_gradient(const PackedSide<T>& side, const Acc* grad_f_hat, const View4& grad) const {
    if (grad.data == nullptr) return {};
    NormalizeBackwardArgs<T> args;
    args.batch = side.batch, args.positions = side.positions;
    args.channels = side.channels, args.padded_channels = side.padded_channels;
    args.normalize = p_.normalize;
    args.grad_f_hat = grad_f_hat, args.features = side.features, args.inv_norm = side.inv_norm;
    args.index = side.index, args.count = side.count;
    args.grad = static_cast<T*>(grad.data);
    return launch_normalize_backward(args, stream_);
  }

  template <class Body>
  Status for_each_chunk(const Body& body) const {
    for (int64_t b0 = 0; b0 < p_.batch; b0 += w_.images) {
      for (int64_t row = 0; row < w_.a.positions; row += w_.rows) {
        ChunkArgs<T> args;
        args.a = w_.a.from_image(b0), args.b = w_.b.from_image(b0);
        args.beta = p_.beta;
        args.beta.data = static_cast<Acc*>(p_.beta.data) + b0 * p_.beta.stride[0];
        args.images = w_.images < p_.batch - b0 ? w_.images : p_.batch - b0;
        args.value_channels = p_.value_channels;
        args.row_begin = static_cast<int>(row);
        args.rows = static_cast<int>(w_.rows < w_.a.positions - row ? w_.rows : w_.a.positions - row);
        args.row_tiles = static_cast<int>(ceil_div(args.rows, TileExtent<T>::kRows));
        args.splits =
            match_cuda::choose_splits(args.images * args.row_tiles, w_.pitch / TileExtent<T>::kCols, INT32_MAX);
        args.pitch = w_.pitch;
        args.values = w_.values + b0 * w_.b.positions * p_.value_channels;
        if (w_.grad_out != nullptr) args.grad_out = w_.grad_out + b0 * w_.a.positions * p_.value_channels;
        args.base = w_.base + b0 * w_.a.positions, args.extra = w_.extra + b0 * w_.a.positions;
        args.probability = w_.probability, args.dscore = w_.dscore, args.columns = w_.columns;
        if (Status s = body(args, b0); !s.ok()) return s;
      }
    }
    return {};
  }

  template <bool kTransposed, class R>
  Status product(const ProductArgs<R>& args, const Acc* lhs, const ChunkArgs<T>& chunk) const {
    const MatrixLhs<Acc> matrix{lhs, chunk.pitch, chunk.rows * chunk.pitch};
    return simple_ ? simple_product<kTransposed>(args, matrix, stream_)
                   : launch_gradient_product<kTransposed>(args, matrix, stream_);
  }
  // The rows of the chunk times all of b; and, transposed, all of b times the rows of the chunk.
  template <class R>
  static ProductArgs<R> by_rows(const ChunkArgs<T>& chunk, int64_t channels) {
    ProductArgs<R> args;
    args.batch = chunk.images, args.channels = channels, args.padded_channels = channels;
    args.rows = chunk.rows, args.row_begin = chunk.row_begin, args.row_count = chunk.a.count;
    args.depth = chunk.b.positions, args.depth_begin = 0, args.depth_count = chunk.b.count;
    args.rhs_rows = chunk.b.positions, args.out_rows = chunk.a.positions;
    return args;
  }
  template <class R>
  static ProductArgs<R> by_targets(const ChunkArgs<T>& chunk, int64_t channels) {
    ProductArgs<R> args;
    args.batch = chunk.images, args.channels = channels, args.padded_channels = channels;
    args.rows = chunk.b.positions, args.row_begin = 0, args.row_count = chunk.b.count;
    args.depth = chunk.rows, args.depth_begin = chunk.row_begin, args.depth_count = chunk.a.count;
    args.rhs_rows = chunk.a.positions, args.out_rows = chunk.b.positions;
    args.accumulate = chunk.row_begin > 0;
    return args;
  }

  Status forward_chunk(const ChunkArgs<T>& chunk, int64_t b0) const {
    if (Status s = simple_ ? simple_probability(chunk, stream_) : launch_probability(chunk, stream_); !s.ok()) return s;
    ProductArgs<Acc> args = by_rows<Acc>(chunk, p_.value_channels);
    args.rhs = chunk.values, args.out = w_.out + b0 * w_.a.positions * p_.value_channels;
    return product<false>(args, chunk.probability, chunk);
  }

  Status backward_chunk(const ChunkArgs<T>& chunk, int64_t b0) const {
    if (Status s = simple_ ? simple_gradient(chunk, stream_) : launch_gradient(chunk, stream_); !s.ok()) return s;
    if (w_.columns != nullptr) {
      if (Status s =
              launch_threads(chunk.images * 2 * w_.pitch, stream_, &transfer_add_columns_kernel<Acc>, chunk.columns,
                             chunk.a.count, chunk.b.count, chunk.images, chunk.row_begin, chunk.rows,
                             TileExtent<T>::kRows, chunk.row_tiles, w_.pitch, w_.sums + b0 * 2 * w_.pitch);
          !s.ok()) {
        return s;
      }
    }
    if (w_.grad_a != nullptr) {
      ProductArgs<T> args = by_rows<T>(chunk, p_.channels);
      args.padded_channels = chunk.b.padded_channels;
      args.rhs = chunk.b.features, args.scale = p_.normalize ? chunk.b.inv_norm : nullptr;
      args.out = w_.grad_a + b0 * w_.a.positions * p_.channels;
      if (Status s = product<false>(args, chunk.dscore, chunk); !s.ok()) return s;
    }
    if (w_.grad_b != nullptr) {
      ProductArgs<T> args = by_targets<T>(chunk, p_.channels);
      args.padded_channels = chunk.a.padded_channels;
      args.rhs = chunk.a.features, args.scale = p_.normalize ? chunk.a.inv_norm : nullptr;
      args.out = w_.grad_b + b0 * w_.b.positions * p_.channels;
      if (Status s = product<true>(args, chunk.dscore, chunk); !s.ok()) return s;
    }
    if (w_.grad_values == nullptr) return {};
    ProductArgs<Acc> args = by_targets<Acc>(chunk, p_.value_channels);
    args.rhs = chunk.grad_out, args.out = w_.grad_values + b0 * w_.b.positions * p_.value_channels;
    return product<true>(args, chunk.probability, chunk);
  }

  const TransferParams& p_;
  const Space<T> w_;
  const bool simple_;
  const Stream stream_;
};

size_t workspace_bytes(const TransferParams& p, bool backward) {
  size_t bytes = 0;
  (void)dispatch_floating(p.fa.dtype, [&](auto tag) {
    bytes = Space<typename decltype(tag)::type>(p, backward, nullptr).bytes;
    return Status{};
  });
  return bytes;
}

// Null where the kernels of Hopper take the call, else why not.
const char* why_not_own(const TransferParams& p, bool backward) {
  return backward ? why_not_hopper_backward(p, compute_capability()) : why_not_hopper(p, compute_capability());
}

// Says with COSEGFLOW_LOG=1 which kernels a call takes.
void log_kernels(const TransferParams& p, bool backward) {
  if (!log_wanted()) return;
  const char* const operation = backward ? "transfer_backward" : "transfer";
  const char* const why_not_hopper = why_not_own(p, backward);
  if (why_not_hopper == nullptr) return log_path(operation, "Hopper kernels (wgmma, TMA)", nullptr);
  if (const char* why_not = why_not_tiled(p)) return log_path(operation, "simple kernels", why_not);
  log_path(operation, half_type(p.fa.dtype) ? "portable kernels (mma.sync)" : "portable kernels (FMA)", why_not_hopper);
}

// Rows of an image are counted in 32 bits.
Status check_pixels(const TransferParams& p) {
  constexpr int64_t kPixels = (int64_t{1} << 31) - 4096;
  if (p.height_a * p.width_a > kPixels || p.height_b * p.width_b > kPixels) {
    return {"transfer: an image has over 2^31 pixels"};
  }
  return {};
}

}  // namespace
}  // namespace transfer_cuda

using namespace transfer_cuda;

size_t transfer_forward_workspace_bytes_cuda(const TransferParams& p) {
  if (!check_sizes(p).ok() || !check_pixels(p).ok() || p.batch == 0) return 0;
  return why_not_own(p, false) == nullptr ? hopper_forward_bytes(p) : workspace_bytes(p, false);
}

Status transfer_forward_cuda(const TransferParams& p, void* workspace, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_pixels(p); !s.ok()) return s;
  if (Status s = check_workspace(workspace, transfer_forward_workspace_bytes_cuda(p)); !s.ok()) return s;
  log_kernels(p, false);
  if (why_not_own(p, false) == nullptr) return hopper_forward(p, workspace, stream);
  return dispatch_floating(
      p.fa.dtype, [&](auto tag) { return Run<typename decltype(tag)::type>(p, false, workspace, stream).forward(); });
}

size_t transfer_backward_workspace_bytes_cuda(const TransferParams& p) {
  if (!check_sizes(p).ok() || !check_pixels(p).ok() || p.batch == 0) return 0;
  return why_not_own(p, true) == nullptr ? hopper_backward_bytes(p) : workspace_bytes(p, true);
}

Status transfer_backward_cuda(const TransferParams& p, void* workspace, Stream stream) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_pixels(p); !s.ok()) return s;
  if (Status s = check_workspace(workspace, transfer_backward_workspace_bytes_cuda(p)); !s.ok()) return s;
  log_kernels(p, true);
  if (why_not_own(p, true) == nullptr) return hopper_backward(p, workspace, stream);
  return dispatch_floating(
      p.fa.dtype, [&](auto tag) { return Run<typename decltype(tag)::type>(p, true, workspace, stream).backward(); });
}

}  // namespace cosegflow
