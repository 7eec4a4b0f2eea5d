// Reading features of any layout and writing packed rows: what a thread of pack_tiles holds.
#pragma once

#include "pack_tiles.cuh"
#include "primitives/launch.cuh"

namespace cosegflow {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTileRows = 32;  // pixels of a block: the lanes of a warp
constexpr int kQuads = 16;     // of a row in a chunk
constexpr int kChunkWords = 4 * kQuads;
constexpr int kItems = kTileRows / 2 * kChunkWords / kThreads;  // words of a pixel pair that a thread loads for a chunk
constexpr int kRowsPerWarp = kTileRows / kWarps;
constexpr int kSlots = 2 * kRowsPerWarp / 2;  // quads of two chunks that a thread loads where channels are contiguous
constexpr unsigned kAllLanes = 0xffffffffu;

struct alignas(16) Quad {
  uint32_t word[4];
};
struct alignas(8) Pair {
  uint32_t word[2];
};

// How the features lie: channels contiguous, in quads of 16 bytes or one by one; else planes, in aligned pairs of
// pixels or one by one.
enum class Layout : int32_t { kQuads, kChannels, kPairs, kPixels };

__device__ __forceinline__ uint32_t bits_of(Half v) { return v.bits; }
__device__ __forceinline__ uint32_t bits_of(BFloat16 v) { return v.bits; }
__device__ __forceinline__ uint32_t bits_of(float v) { return __float_as_uint(v); }

// A word of 32 bits is two halves or one float.
template <class S>
constexpr int kWordChannels = 4 / static_cast<int>(sizeof(S));
template <class S>
constexpr int kQuadChannels = 4 * kWordChannels<S>;

__device__ __forceinline__ uint32_t join(uint32_t low, uint32_t high) { return low | high << 16; }

// Planes: a thread has one pair of pixels and kItems words (channel, or two channels) of it. Loaded values are put
// together only when they are turned, so that nothing waits for them before.
template <class S, Layout kLayout>
struct PlaneReader {
  static constexpr bool kPairs = kLayout == Layout::kPairs, kHalves = sizeof(S) == 2;
  static constexpr int kItemStep = 16 * kWordChannels<S>;  // channels from one item to the next
  static constexpr int kRaw = kHalves && !kPairs ? 4 : 2;

  const S* at;  // the first pixel of the pair in image b, channel 0 of the thread's first item
  int64_t to_second, channel_stride;
  int channels;  // that there are from there on
  bool allowed[2];

  __device__ __forceinline__ void load(uint32_t (&raw)[16], int c0) const {
#pragma unroll
    for (int n = 0; n < kItems; ++n) {
      uint32_t* const r = raw + kRaw * n;
#pragma unroll
      for (int k = 0; k < kRaw; ++k) r[k] = 0;
      const int c = c0 + n * kItemStep;
      const S* const from = at + c * channel_stride;
      if constexpr (kPairs && kHalves) {
        if (!allowed[0] && !allowed[1]) continue;
        if (c < channels) r[0] = *reinterpret_cast<const uint32_t*>(from);
        if (c + 1 < channels) r[1] = *reinterpret_cast<const uint32_t*>(from + channel_stride);
      } else if constexpr (kPairs) {
        if (!allowed[0] && !allowed[1]) continue;
        if (c >= channels) continue;
        const Pair pair = *reinterpret_cast<const Pair*>(from);
        r[0] = pair.word[0], r[1] = pair.word[1];
      } else {
#pragma unroll
        for (int k = 0; k < kRaw / 2; ++k) {
          if (c + k >= channels) continue;
          if (allowed[0]) r[2 * k] = bits_of(from[k * channel_stride]);
          if (allowed[1]) r[2 * k + 1] = bits_of(from[to_second + k * channel_stride]);
        }
      }
    }
  }

  // Word n of the two pixels.
  __device__ __forceinline__ Pair words(const uint32_t (&raw)[16], int n) const {
    const uint32_t* const r = raw + kRaw * n;
    Pair out;
    if constexpr (kPairs && kHalves) {
      out = {{join(r[0] & 0xffffu, r[1]), join(r[0] >> 16, r[1] >> 16)}};
    } else if constexpr (kHalves) {
      out = {{join(r[0], r[2]), join(r[1], r[3])}};
    } else {
      out = {{r[0], r[1]}};
    }
    if (!allowed[0]) out.word[0] = 0;
    if (!allowed[1]) out.word[1] = 0;
    return out;
  }
};

// Channels contiguous: a thread has a quad of kRowsPerWarp / 2 rows in each of two chunks.
template <class S, Layout kLayout>
struct ChannelReader {
  const S* at[kRowsPerWarp / 2];  // of the thread's first quad
  int channels;                   // that there are from there on
  bool allowed[kRowsPerWarp / 2];

  __device__ __forceinline__ void load(uint32_t (&raw)[16], int slot, int c0) const {
    constexpr int kWord = kWordChannels<S>;
    const int n = slot % (kRowsPerWarp / 2);
    const int c = c0 + slot / (kRowsPerWarp / 2) * kChunkWords * kWord;
    Quad quad = {};
    if (allowed[n]) {
      if (kLayout == Layout::kQuads && c + kQuadChannels<S> <= channels) {
        quad = *reinterpret_cast<const Quad*>(at[n] + c);
      } else {
#pragma unroll
        for (int k = 0; k < kQuadChannels<S>; ++k) {
          if (c + k < channels) quad.word[k / kWord] |= bits_of(at[n][c + k]) << k % kWord * 16;
        }
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) raw[4 * slot + k] = quad.word[k];
  }
};

// Writes a quad of a row and adds its squares. The row is null where none is wanted.
template <class S, class T, int kTerms>
__device__ __forceinline__ void write_quad(const Quad& quad, T* row, int term, SplitRole role, float& squares) {
  if constexpr (sizeof(S) == 2) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float low = to_float(S{static_cast<uint16_t>(quad.word[k] & 0xffffu)});
      const float high = to_float(S{static_cast<uint16_t>(quad.word[k] >> 16)});
      squares = fmaf(low, low, squares);
      squares = fmaf(high, high, squares);
    }
    if (row != nullptr) *reinterpret_cast<Quad*>(row) = quad;
  } else {
    Pair hi = {{0, 0}}, lo = {{0, 0}};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float x = __uint_as_float(quad.word[k]);
      squares = fmaf(x, x, squares);
      const T h = from_float<T>(x);
      hi.word[k / 2] |= bits_of(h) << k % 2 * 16;
      if constexpr (kTerms == 3) {
        T rest = from_float<T>(x - to_float(h));
        if (!(fabsf(to_float(h)) < HUGE_VALF)) rest = T{0};  // of infinity it would be NaN
        lo.word[k / 2] |= bits_of(rest) << k % 2 * 16;
      }
    }
    if (row == nullptr) return;
    *reinterpret_cast<Pair*>(row) = hi;
    if constexpr (kTerms == 3) {
      const bool first = role == SplitRole::kFirst;
      *reinterpret_cast<Pair*>(row + term) = first ? hi : lo;
      *reinterpret_cast<Pair*>(row + 2 * term) = first ? lo : hi;
    }
  }
}

}  // namespace
}  // namespace cosegflow
