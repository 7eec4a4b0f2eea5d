// Packing for the Hopper kernels: one read and one write of the features of both sides, in one launch.
//
// pack_tiles: a block of 256 threads takes 32 consecutive pixels of one image. Every warp keeps all 32 in its lanes, so
//   ranks need shuffles only; the allowed pixels before them and of the whole image are counted by the block itself
//   (or from the counts of pack_tiles_count: one block 1024 pixels), while the first features are on their way.
//   Excluded pixels take the rows from count on: the zero tail costs no pass of its own, and every run gives the same.
//   Chunks of 256 bytes a row, the next one loaded to registers while this one is written. Planes (NCHW) are turned in
//   shared memory (2 x 8 KB, quads XORed with the pixel pair: no bank conflicts), read as pairs of pixels, 4 bytes of
//   halves or 8 of floats, where strides and alignment allow, else as single elements; channels_last goes from
//   registers to registers, 16 bytes a load where alignment allows. Stores are 16 bytes of halves (8 of a split float).
// Moves N * C * sizeof(S) + N * depth * 2 + 20 N bytes, and N * sizeof(mask) a block (from L2); 2 FLOPs an element, 5
// for three terms. Bound by memory. Fraction of the limit reached: not measured yet.
#include <type_traits>

#include "mask_weight.cuh"
#include "pack_tiles_count.cuh"
#include "pack_tiles_rows.cuh"
#include "primitives/launch.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow {
namespace {

template <class T>
struct PackSide {
  TileSource source;
  TileSide<T> out;
  ExcludedOutputs excluded;
  Layout layout;
  CountedMask mask;
  bool counted;  // span_count holds the counts
};

template <class T>
struct PackArgs {
  PackSide<T> side[2];
  int blocks_a;
  int* counters;
  int64_t counter_count;
};

// The allowed pixels of image b before pixel p0, and of the whole image; one barrier where there is a mask.
template <class T>
__device__ __forceinline__ AllowedCount count_image(const PackSide<T>& side, int64_t b, int p0, int positions,
                                                    int (&sums)[2][kWarps]) {
  if (side.source.mask.data == nullptr) return {p0, positions};
  // Where the spans are counted only the pixels of the own span before p0 are left.
  const int own = p0 / static_cast<int>(kCountSpan);
  const int begin = side.counted ? own * static_cast<int>(kCountSpan) : 0, end = side.counted ? p0 : positions;
  AllowedCount count = count_allowed(side.mask, b, begin, end, p0);
  if (side.counted) {
    const int spans = static_cast<int>(ceil_div(positions, kCountSpan));
    count.total = 0;
    for (int s = static_cast<int>(threadIdx.x); s < spans; s += kThreads) {
      const int n = side.out.span_count[b * spans + s];
      count.total += n;
      if (s < own) count.before += n;
    }
  }
  count.before = warp_reduce_sum(count.before), count.total = warp_reduce_sum(count.total);
  if (threadIdx.x % 32 == 0) {
    sums[0][threadIdx.x / 32] = count.before;
    sums[1][threadIdx.x / 32] = count.total;
  }
  __syncthreads();
  count = {};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) count.before += sums[0][w], count.total += sums[1][w];
  return count;
}

__device__ __forceinline__ void store(const View3& v, int64_t b, unsigned y, unsigned x, float value) {
  if (v.data == nullptr) return;
  static_cast<float*>(v.data)[b * v.stride[0] + y * v.stride[1] + x * v.stride[2]] = value;
}

__device__ __forceinline__ void write_excluded(const ExcludedOutputs& out, int64_t b, unsigned y, unsigned x,
                                               int64_t at) {
  if (out.flow.data != nullptr) {
    const View4& v = out.flow;
    float* const flow = static_cast<float*>(v.data) + b * v.stride[0] + y * v.stride[2] + x * v.stride[3];
    flow[0] = 0;
    flow[v.stride[1]] = 0;
  }
  store(out.lse, b, y, x, minus_infinity<float>());
  store(out.confidence, b, y, x, 0);
  if (out.index != nullptr) out.index[at] = -1;
  store(out.score, b, y, x, minus_infinity<float>());
}

using Turned = Quad[2][kTileRows][kQuads];  // two, so that one barrier a chunk is enough

template <class S, class T, int kTerms>
struct PackBlock {
  static constexpr int kChunk = kChunkWords * kWordChannels<S>;  // channels
  static constexpr int kRows = kRowsPerWarp / 2;                 // of a thread, as it writes

  const PackSide<T>& side;
  int b, lane, warp;
  int64_t offset;    // of the features of the lane's pixel
  unsigned allowed;  // a bit a pixel
  uint32_t raw[16];  // features on their way

  __device__ __forceinline__ int channels() const { return static_cast<int>(side.out.channels); }
  __device__ __forceinline__ int term() const { return (channels() + 7) / 8 * 8; }  // padded channels
  __device__ __forceinline__ int row_of(int n) const { return warp * kRowsPerWarp + 2 * n + lane / 16; }
  __device__ __forceinline__ const S* image() const {
    return static_cast<const S*>(side.source.features.data) + b * side.source.features.stride[0];
  }

  template <Layout kLayout>
  __device__ __forceinline__ PlaneReader<S, kLayout> plane_reader() const {
    const int pair = warp % 2 * 8 + lane % 8, c = (warp / 2 * 4 + lane / 8) * kWordChannels<S>;
    const int64_t first = __shfl_sync(kAllLanes, offset, 2 * pair),
                  second = __shfl_sync(kAllLanes, offset, 2 * pair + 1);
    const int64_t stride = side.source.features.stride[1];
    return {image() + first + c * stride,
            second - first,
            stride,
            channels() - c,
            {(allowed >> (2 * pair) & 1) != 0, (allowed >> (2 * pair + 1) & 1) != 0}};
  }

  template <Layout kLayout>
  __device__ __forceinline__ ChannelReader<S, kLayout> channel_reader() const {
    ChannelReader<S, kLayout> reader;
    const int c = lane % 16 * kQuadChannels<S>;
    reader.channels = channels() - c;
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
      reader.at[n] = image() + __shfl_sync(kAllLanes, offset, row_of(n)) + c;
      reader.allowed[n] = (allowed >> row_of(n) & 1) != 0;
    }
    return reader;
  }

  template <Layout kLayout>
  __device__ __forceinline__ void load_first() {
    if constexpr (kLayout == Layout::kPairs || kLayout == Layout::kPixels) {
      plane_reader<kLayout>().load(raw, 0);
    } else {
      const auto reader = channel_reader<kLayout>();
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) reader.load(raw, slot, 0);
    }
  }

  // Where channel c of a compact row goes; null where the row is -1.
  __device__ __forceinline__ T* at(int row, int c) const {
    return row < 0 ? nullptr : side.out.features + (b * side.out.positions + row) * side.out.depth + c;
  }

  template <Layout kLayout>
  __device__ __forceinline__ void write_rows(const int (&row)[kRows], float (&squares)[kRows], Turned& turned) {
    const SplitRole role = side.source.role;
    const int term = this->term();
    const int quad = lane % 16, c_out = quad * kQuadChannels<S>;
    if constexpr (kLayout == Layout::kPairs || kLayout == Layout::kPixels) {
      const auto reader = plane_reader<kLayout>();
      const int pair = warp % 2 * 8 + lane % 8, swizzle = lane % 8;
      for (int c0 = 0, buffer = 0; c0 < term; c0 += kChunk, buffer ^= 1) {
#pragma unroll
        for (int n = 0; n < kItems; ++n) {
          const Pair words = reader.words(raw, n);
          const int place = (warp / 2 + 4 * n) ^ swizzle;
          turned[buffer][2 * pair][place].word[lane / 8] = words.word[0];
          turned[buffer][2 * pair + 1][place].word[lane / 8] = words.word[1];
        }
        __syncthreads();
        if (c0 + kChunk < term) reader.load(raw, c0 + kChunk);
#pragma unroll
        for (int n = 0; n < kRows; ++n) {
          if (c0 + c_out >= term) break;
          const int r = row_of(n);
          write_quad<S, T, kTerms>(turned[buffer][r][quad ^ r / 2 % 8], at(row[n], c0 + c_out), term, role, squares[n]);
        }
      }
    } else {
      const auto reader = channel_reader<kLayout>();
      for (int c0 = 0; c0 < term; c0 += 2 * kChunk) {
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
          const int n = slot % kRows, c = c0 + slot / kRows * kChunk + c_out;
          const Quad now = {{raw[4 * slot], raw[4 * slot + 1], raw[4 * slot + 2], raw[4 * slot + 3]}};
          if (c0 + 2 * kChunk < term) reader.load(raw, slot, c0 + 2 * kChunk);
          if (c >= term) continue;
          write_quad<S, T, kTerms>(now, at(row[n], c), term, role, squares[n]);
        }
      }
    }
  }

  template <class Body>
  __device__ __forceinline__ void by_layout(Body&& body) {
    switch (side.layout) {
      case Layout::kQuads: return body(std::integral_constant<Layout, Layout::kQuads>());
      case Layout::kChannels: return body(std::integral_constant<Layout, Layout::kChannels>());
      case Layout::kPairs: return body(std::integral_constant<Layout, Layout::kPairs>());
      case Layout::kPixels: return body(std::integral_constant<Layout, Layout::kPixels>());
    }
  }
};

template <class S, class T, int kTerms>
__global__ void __launch_bounds__(kThreads, 4) pack_tiles_kernel(const __grid_constant__ PackArgs<T> args) {
  using Sums = int[2][kWarps];
  CSF_SHARED(Turned, turned);
  CSF_SHARED(Sums, sums);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < args.counter_count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    args.counters[i] = 0;
  }
  const bool in_a = static_cast<int>(blockIdx.x) < args.blocks_a;
  const int block = static_cast<int>(blockIdx.x) - (in_a ? 0 : args.blocks_a);
  const PackSide<T>& side = args.side[in_a ? 0 : 1];
  const TileSource& source = side.source;
  const TileSide<T>& out = side.out;
  const int positions = static_cast<int>(out.positions), width = static_cast<int>(source.width);
  const int tiles = (positions + kTileRows - 1) / kTileRows, b = block / tiles, p0 = block % tiles * kTileRows;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int pixel = p0 + lane;
  const unsigned y = static_cast<unsigned>(pixel) / width, x = static_cast<unsigned>(pixel) % width;
  MaskWeight<float> weight = excluded_weight<float>();
  if (pixel < positions) weight = mask_weight<float>(source.mask, b, y, x);
  PackBlock<S, T, kTerms> pack{side, b, lane, warp, {}, {}, {}};
  pack.allowed = __ballot_sync(kAllLanes, weight.weight > 0);
  const bool is_row = (pack.allowed >> lane & 1) != 0;
  pack.offset = y * source.features.stride[2] + x * source.features.stride[3];
  // Before the features are on their way: it needs registers of its own.
  if (warp == 1 && pixel < positions && !is_row) {
    write_excluded(side.excluded, b, y, x, b * out.positions + pixel);
  }
  pack.by_layout([&](auto layout) { pack.template load_first<decltype(layout)::value>(); });

  const AllowedCount count = count_image(side, b, p0, positions, sums);
  const int end = (max(count.total, 1) + static_cast<int>(kTileRowStep) - 1) / static_cast<int>(kTileRowStep) *
                  static_cast<int>(kTileRowStep);  // of the rows that somebody reads
  const unsigned below = (1u << lane) - 1;
  int row = -1;
  if (is_row) {
    row = count.before + __popc(pack.allowed & below);
  } else if (pixel < positions) {
    row = count.total + (p0 - count.before) + __popc(~pack.allowed & below);
    if (row >= end) row = -1;
  }
  if (warp == 0 && row >= 0) {
    Place place = {0, 0};
    if (is_row) {
      place = {static_cast<float>(x) - static_cast<float>(width - 1) / 2,
               static_cast<float>(y) - static_cast<float>(static_cast<int>(source.height) - 1) / 2};
      out.index[b * out.positions + row] = pixel;
    }
    out.place[b * out.pitch + row] = place;
    out.scale[b * out.pitch + row].log_weight = weight.log_weight;  // the norm follows
  }
  if (p0 + kTileRows >= positions) {
    if (threadIdx.x == 0) out.count[b] = count.total;
    const int beyond = positions + static_cast<int>(threadIdx.x);  // rows that no pixel is left for: fewer than 256
    if (beyond < end) {
      out.scale[b * out.pitch + beyond] = {0, minus_infinity<float>()};
      out.place[b * out.pitch + beyond] = {0, 0};
    }
  }
  if (__ballot_sync(kAllLanes, row >= 0) == 0) return;  // the same in every warp

  constexpr int kRows = kRowsPerWarp / 2;
  int rows[kRows];
  float squares[kRows] = {};
#pragma unroll
  for (int n = 0; n < kRows; ++n) rows[n] = __shfl_sync(kAllLanes, row, pack.row_of(n));
  pack.by_layout([&](auto layout) { pack.template write_rows<decltype(layout)::value>(rows, squares, turned); });
#pragma unroll
  for (int n = 0; n < kRows; ++n) {
    const float norm = sqrtf(warp_reduce_sum<16>(squares[n]));
    if (lane % 16 != 0 || rows[n] < 0) continue;
    const float clamped = norm < 1e-12f ? 1e-12f : norm;  // keeps a NaN
    float inv_norm = source.normalize ? 1.0f / clamped : 1.0f;
    if ((pack.allowed >> pack.row_of(n) & 1) == 0) inv_norm = 0;
    out.scale[b * out.pitch + rows[n]].inv_norm = inv_norm;
  }
}

bool divides(int64_t step, int64_t n) { return n % step == 0; }

Layout layout_of(const TileSource& source, int64_t batch, int64_t channels) {
  const View4& v = source.features;
  const int64_t size = element_size(v.dtype);
  const auto at = static_cast<int64_t>(reinterpret_cast<uintptr_t>(v.data) % 16);
  const bool one_row = source.height == 1, one_column = source.width == 1;
  if (channels > 1 && v.stride[1] == 1) {
    const int64_t quad = 16 / size;
    const bool aligned = at == 0 && (batch == 1 || divides(quad, v.stride[0])) &&
                         (one_row || divides(quad, v.stride[2])) && (one_column || divides(quad, v.stride[3]));
    return aligned ? Layout::kQuads : Layout::kChannels;
  }
  // Pixels 2n and 2n + 1 lie side by side where the plane is flat, or where no row ends between them.
  const bool flat = one_row || v.stride[2] == source.width;
  const bool paired = v.stride[3] == 1 && divides(2, source.width * source.height) &&
                      (flat || (divides(2, source.width) && divides(2, v.stride[2])));
  const bool aligned =
      divides(2 * size, at) && (batch == 1 || divides(2, v.stride[0])) && (channels == 1 || divides(2, v.stride[1]));
  return paired && aligned ? Layout::kPairs : Layout::kPixels;
}

template <class T>
bool is_counted(const TileSource& source, const TileSide<T>& side, int64_t limit) {
  return source.mask.data != nullptr && side.positions > limit;
}

template <class T>
Status launch_count(const TileSource* const (&source)[2], const TileSide<T>* const (&side)[2], const bool (&counted)[2],
                    Stream stream) {
  CountArgs args;
  int64_t blocks[2];
  for (int i = 0; i < 2; ++i) {
    args.side[i] = {counted_mask(*source[i]), static_cast<int>(side[i]->positions), side[i]->span_count};
    blocks[i] = counted[i] ? side[i]->batch * ceil_div(side[i]->positions, kCountSpan) : 0;
  }
  args.blocks_a = static_cast<int>(blocks[0]);
  return launch(&pack_tiles_count_kernel, dim3(static_cast<unsigned>(blocks[0] + blocks[1])), dim3(kThreads), 0, stream,
                args);
}

template <class T>
Status launch_pack(DType dtype, int terms, const PackArgs<T>& args, unsigned blocks, Stream stream) {
  const dim3 grid(blocks), threads(kThreads);
  if constexpr (std::is_same<T, Half>::value) {
    if (dtype == DType::kFloat16 && terms == 1) {
      return launch(&pack_tiles_kernel<Half, Half, 1>, grid, threads, 0, stream, args);
    }
  } else {
    if (dtype == DType::kBFloat16 && terms == 1) {
      return launch(&pack_tiles_kernel<BFloat16, BFloat16, 1>, grid, threads, 0, stream, args);
    }
    if (dtype == DType::kFloat32 && terms == 1) {
      return launch(&pack_tiles_kernel<float, BFloat16, 1>, grid, threads, 0, stream, args);
    }
    if (dtype == DType::kFloat32 && terms == 3) {
      return launch(&pack_tiles_kernel<float, BFloat16, 3>, grid, threads, 0, stream, args);
    }
  }
  return {"cosegflow: features of this type cannot be packed into tiles of that type and depth (a bug in cosegflow)"};
}

}  // namespace

template <class T>
Status pack_tiles(const TileSource& a_source, const TileSource& b_source, const TileSide<T>& a, const TileSide<T>& b,
                  const PackExtras& extras, Stream stream, int64_t single_launch_positions) {
  if (a.batch == 0)
    return memset_async(extras.counters, 0, sizeof(int) * static_cast<size_t>(extras.counter_count), stream);
  const int64_t blocks_a = a.batch * ceil_div(a.positions, kTileRows),
                blocks_b = b.batch * ceil_div(b.positions, kTileRows);
  constexpr int64_t kMostPositions = INT32_MAX - 8 * kThreads;
  if (a.positions > kMostPositions || b.positions > kMostPositions || blocks_a + blocks_b > INT32_MAX) {
    return {"cosegflow: the features have more than 2^31 pixels"};
  }
  if (a.channels > INT32_MAX / 4) return {"cosegflow: the features have more than 2^29 channels"};
  if (a.depth != b.depth || a.channels != b.channels || a_source.features.dtype != b_source.features.dtype) {
    return {"cosegflow: the sides to pack are not of one type and depth (a bug in cosegflow)"};
  }
  const bool counted[2] = {is_counted(a_source, a, single_launch_positions),
                           is_counted(b_source, b, single_launch_positions)};
  if (counted[0] || counted[1]) {
    const TileSource* const sources[2] = {&a_source, &b_source};
    const TileSide<T>* const sides[2] = {&a, &b};
    if (Status s = launch_count(sources, sides, counted, stream); !s.ok()) return s;
  }
  const PackArgs<T> args{
      {{a_source, a, extras.a, layout_of(a_source, a.batch, a.channels), counted_mask(a_source), counted[0]},
       {b_source, b, extras.b, layout_of(b_source, b.batch, b.channels), counted_mask(b_source), counted[1]}},
      static_cast<int>(blocks_a),
      extras.counters,
      extras.counter_count};
  const int terms = static_cast<int>(a.depth / round_up(a.channels, 8));
  return launch_pack(a_source.features.dtype, terms, args, static_cast<unsigned>(blocks_a + blocks_b), stream);
}

template Status pack_tiles<Half>(const TileSource&, const TileSource&, const TileSide<Half>&, const TileSide<Half>&,
                                 const PackExtras&, Stream, int64_t);
template Status pack_tiles<BFloat16>(const TileSource&, const TileSource&, const TileSide<BFloat16>&,
                                     const TileSide<BFloat16>&, const PackExtras&, Stream, int64_t);

}  // namespace cosegflow
