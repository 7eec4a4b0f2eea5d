// The packed operands of the Hopper kernels: rows of halves that TMA reads, and what scales and places them.
//
// The allowed pixels of an image become rows 0 .. count in raster order; an excluded pixel has no row. float32 features
// become bfloat16: with x = hi + lo + rest, hi = bf16(x) and lo = bf16(x - hi), a row of the first side is
// [hi, hi, lo] and one of the second [hi, lo, hi] (three terms), so that one bfloat16 product over the concatenation
// is hi hi + hi lo + lo hi; with one term a row is [hi].
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/arena.h"
#include "common/half.h"
#include "common/round_up.h"
#include "cosegflow/types.h"

namespace cosegflow {

constexpr int64_t kTileRowStep = 256;  // rows of scale and place are valid up to a multiple of it, at least one
constexpr int64_t kCountSpan = 1024;   // pixels that one block counts, where the allowed pixels are counted first
// Up to here every block counts the mask of its whole image itself, which saves a launch of 2 to 3 us. Both sides
// masked, B images of N pixels: 2 B N / 32 blocks read 2 B N^2 sizeof(mask) / 32 bytes, which L2 gives at about 9 TB/s
// (assumed, as all times here; nothing is measured). For B = 8 that is
//   N = 4096:  8.4 MB or 0.9 us of a bool mask,  34 MB or 3.7 us of a float32 one;
//   N = 16384: 134 MB or 15 us,                 537 MB or 60 us;
// and it is a launch, 2.5 us, at N = 6700 and 3400 (at 19000 and 9500 for B = 1). The loop takes 51 instructions a warp
// for 1024 pixels of bool, 39 for 256 of float32 (SASS of sm_90a): at 4 a clock and multiprocessor 0.9 us and 1.4 us
// for B = 8, N = 4096. There the mask still hides behind the features, for any B: a block with 256 channels of halves,
// 0.3 of its pixels allowed, moves 10 KB of features, 2.9 ns of memory at 3.3 TB/s; 16 KB of mask are 1.8 ns of L2.
constexpr int64_t kSingleLaunchPositions = 4096;

struct Scale {
  float inv_norm, log_weight;
};

struct Place {
  float x, y;
};

// What the kernels read of one side; T is Half or BFloat16.
template <class T>
struct TileSide {
  int64_t batch = 0, positions = 0, channels = 0;  // positions = H * W
  int64_t depth = 0;                               // of a packed row: terms * round_up(channels, 8)
  int64_t pitch = 0;                               // of scale and place: round_up(positions, kTileRowStep)
  // (B, positions, depth). With a mask rows [count, round_up(max(count, 1), kTileRowStep)), if there are such, are
  // zeros. No other row beyond count is written.
  T* features = nullptr;
  // (B, pitch): 1 / max(||f||, 1e-12) (1 without normalization) and log(weight); {0, -inf} in the rows
  // [count, round_up(max(count, 1), kTileRowStep)).
  Scale* scale = nullptr;
  Place* place = nullptr;     // (B, pitch): from the centre of the image; {0, 0} in those rows
  int* index = nullptr;       // (B, positions): the pixel of a row, ascending; only rows below count are written
  int* count = nullptr;       // (B): the rows of an image
  int* span_count = nullptr;  // (B, ceil(positions / kCountSpan)): allowed pixels of a span, between the two launches

  // Images [b, b + images), packed already.
  TileSide some_images(int64_t b, int64_t images) const {
    TileSide s = *this;
    s.batch = images;
    s.features += b * positions * depth;
    s.scale += b * pitch, s.place += b * pitch;
    s.index += b * positions, s.count += b;
    s.span_count = nullptr;
    return s;
  }
};

// How many numbers of 16 bits one feature becomes: float32 at precision "high" is hi + lo.
inline int terms_of(DType features, Precision precision) {
  return features == DType::kFloat32 && precision == Precision::kHigh ? 3 : 1;
}

template <class T>
TileSide<T> take_tile_side(Arena& arena, int64_t batch, int64_t positions, int64_t channels, int terms) {
  TileSide<T> s;
  s.batch = batch, s.positions = positions, s.channels = channels;
  s.depth = terms * round_up(channels, 8), s.pitch = round_up(positions, kTileRowStep);
  s.features = arena.take<T>(batch * positions * s.depth);
  s.scale = arena.take<Scale>(batch * s.pitch);
  s.place = arena.take<Place>(batch * s.pitch);
  s.index = arena.take<int>(batch * positions);
  s.count = arena.take<int>(batch);
  s.span_count = arena.take<int>(batch * ceil_div(positions, kCountSpan));
  return s;
}

// Which sequence of terms a float32 number becomes; nothing to other types or to one term.
enum class SplitRole : int32_t { kFirst, kSecond };  // [hi, hi, lo], [hi, lo, hi]

struct TileSource {
  View4 features;  // (B, C, H, W), any strides
  View3 mask;      // (B, H, W), optional
  int64_t width = 0, height = 0;
  bool normalize = true;
  SplitRole role = SplitRole::kFirst;
};

// Results at the excluded pixels of a side, float32, each null where there is none of it: flow 0, lse -inf,
// confidence 0, index -1, score -inf. Not touched where the side has no mask.
struct ExcludedOutputs {
  View4 flow;                // (B, 2, H, W)
  View3 lse, confidence;     // (B, H, W)
  int64_t* index = nullptr;  // (B, H, W), contiguous
  View3 score;               // (B, H, W)
};

struct PackExtras {
  ExcludedOutputs a, b;
  int* counters = nullptr;  // `counter_count` of them are set to 0
  int64_t counter_count = 0;
};

// Fills both sides: in one launch, or in two where a side has a mask and more than `single_launch_positions` positions.
// T Half: float16 features; T BFloat16: bfloat16, or float32 as the terms that the depth of the sides says.
template <class T>
Status pack_tiles(const TileSource& a_source, const TileSource& b_source, const TileSide<T>& a, const TileSide<T>& b,
                  const PackExtras& extras, Stream stream, int64_t single_launch_positions = kSingleLaunchPositions);

}  // namespace cosegflow
