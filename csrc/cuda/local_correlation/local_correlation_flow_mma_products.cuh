// The products of eight pixels with their windows by tensor cores (mma.sync): float16 and bfloat16, exact products and
// float32 sums.
//
// 16 taps are the rows of A, the eight pixels of a run the columns of B, channels the depth. Both come from memory to
// their registers without a detour: a lane of a quad reads 16 bytes, 8 channels, of tap lane / 4 (and of the tap 8
// further; of pixel lane / 4 for B). The order of channels is the same in A and B, which is all that a sum over them
// asks: the four words of a lane serve two products of depth 16 as they are. Up to 256 channels of the pixels stay in
// registers (32 of them); 16 taps are then 16 loads of 16 bytes, 64 neighbouring bytes a quad, and 16 mma. Products are
// complete in the accumulators, and are added to the windows in shared memory. A tap that is not in a pixel's window
// has products of its own, which nobody takes: a NaN goes nowhere.
#pragma once

#include "local_correlation/local_correlation_flow_product_run.cuh"
#include "primitives/mma.cuh"

namespace cosegflow::local_correlation_cuda {

template <class T>
struct MmaProducts {
  static constexpr int kPixels = 8;  // of a run
  static constexpr int kTaps = 16;
  static constexpr int kGroups = 8, kGroupVectors = 4;  // of 32 channels, each of 4 lanes' 16 bytes

  static __device__ __forceinline__ void add(const ProductRun<T>& r, const RunWindows<kPixels>& windows) {
    const int vectors = windows.any ? r.rows_b.vectors : 0;
#pragma unroll 1
    for (int first = 0; first < vectors; first += kGroups * kGroupVectors) {
      uint32_t pixels[kGroups][4];
      load<false>(r.row_a(static_cast<int>(threadIdx.x) % 32 / 4), first, vectors, pixels);
#pragma unroll 1
      for (int turn = 0; turn < windows.turns(); ++turn) {
        if (first + kGroups * kGroupVectors <= vectors) {
          add_turn<true>(r, windows, turn, first, pixels);
        } else {
          add_turn<false>(r, windows, turn, first, pixels);
        }
      }
    }
  }

 private:
  // The lane's part of a row, from vector `first` on; 0 beyond the last channel.
  template <bool kWhole>
  static __device__ __forceinline__ void load(const T* row, int first, int vectors, uint32_t (&words)[kGroups][4]) {
    const int own = first + static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      uint4 w = make_uint4(0, 0, 0, 0);
      const int vector = own + i * kGroupVectors;
      if (kWhole || vector < vectors) w = *reinterpret_cast<const uint4*>(row + vector * 8);
      words[i][0] = w.x, words[i][1] = w.y, words[i][2] = w.z, words[i][3] = w.w;
    }
  }

  template <bool kWhole>
  static __device__ __forceinline__ void add_turn(const ProductRun<T>& r, const RunWindows<kPixels>& windows, int turn,
                                                  int first, const uint32_t (&pixels)[kGroups][4]) {
    const BoxTaps taps(windows.box(turn));
    const int lane = static_cast<int>(threadIdx.x) % 32, vectors = r.rows_b.vectors;
    // Of pixels 2 (lane % 4) and the next, whose products the lane gets: lanes 0 to 7 have one each.
    int window_y[2], window_x[2];
    float scale[2] = {1.0f, 1.0f};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int number = lane % 4 * 2 + k;
      window_y[k] = __shfl_sync(kWholeWarp, windows.takes_part(turn) ? windows.y : INT32_MAX / 2, number);
      window_x[k] = __shfl_sync(kWholeWarp, windows.x, number);
      if (r.a.inverse_norm != nullptr) {
        const RunPixel at = pixel_of_run(r.grid, r.run, number);
        scale[k] = r.a.scale(r.b, at.y, at.x);
      }
    }
#pragma unroll 1
    for (int n = r.part * kTaps; n < taps.count; n += r.parts * kTaps) {
      int y[2], x[2];
      uint32_t tap[2][kGroups][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        taps.place(min(n + lane / 4 + 8 * i, taps.count - 1), y[i], x[i]);
        load<kWhole>(r.row_b(y[i], x[i]), first, vectors, tap[i]);
      }
      float product[2][4] = {};  // of the two halves of a group: shorter chains
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        if (!kWhole && first + i * kGroupVectors >= vectors) break;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t a[4] = {tap[0][i][2 * half], tap[1][i][2 * half], tap[0][i][2 * half + 1],
                                 tap[1][i][2 * half + 1]};
          const uint32_t b[2] = {pixels[i][2 * half], pixels[i][2 * half + 1]};
          mma_m16n8k16<T>(product[half], a, b);
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (n + lane / 4 + 8 * i >= taps.count) break;
        const float scale_b = r.other.scale(r.b, y[i], x[i]);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const unsigned row = static_cast<unsigned>(y[i] - window_y[k]);
          const unsigned column = static_cast<unsigned>(x[i] - window_x[k]);
          if (row >= static_cast<unsigned>(windows.rows) || column >= static_cast<unsigned>(windows.columns)) continue;
          float* const to = r.windows + (lane % 4 * 2 + k) * kWindowPitch + row * kPieceTaps + column;
          *to += (product[0][2 * i + k] + product[1][2 * i + k]) * scale[k] * scale_b;
        }
      }
    }
  }
};

}  // namespace cosegflow::local_correlation_cuda
