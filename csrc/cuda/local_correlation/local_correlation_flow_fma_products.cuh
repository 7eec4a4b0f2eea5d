// The products of four pixels with their windows by multiply-adds: float32 and float64.
//
// The features of the four pixels stay in registers, 128 (float64: 64) channels at a time. A step takes two taps an
// octet: 8 taps x 4 pixels x 128 channels are 128 multiply-adds a lane, for 8 loads of 16 bytes, all in flight; then
// one halving over the lanes of an octet (7 shuffles) leaves each lane one of the 32 products, which it adds to its
// pixel's window in shared memory. 231 instructions a step of float32 for sm_90a.
#pragma once

#include "local_correlation/local_correlation_flow_product_run.cuh"

namespace cosegflow::local_correlation_cuda {

template <class T>
struct FmaProducts {
  using Acc = accumulate_t<T>;
  using O = Octets<T>;
  using Values = typename LaneChannels<T>::Values;
  static constexpr int kPixels = kRunPixels;  // of a run

  // Adds the products of the run with the taps of its windows that are its warp's.
  static __device__ __forceinline__ void add(const ProductRun<T>& r, const RunWindows<kPixels>& windows) {
    const int chunks = windows.any ? chunks_of<T>(r.rows_b.vectors) : 0;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const LaneChannels<T> channels(chunk, r.rows_b.vectors);
      Values features[kPixels];
#pragma unroll
      for (int k = 0; k < kPixels; ++k) channels.template load<false>(r.row_a(k), features[k]);
#pragma unroll 1
      for (int turn = 0; turn < windows.turns(); ++turn) {
        if (channels.whole) {
          add_turn<true>(r, windows, turn, channels, features);
        } else {
          add_turn<false>(r, windows, turn, channels, features);
        }
      }
    }
  }

 private:
  template <bool kWhole>
  static __device__ __forceinline__ void add_turn(const ProductRun<T>& r, const RunWindows<kPixels>& windows, int turn,
                                                  const LaneChannels<T>& channels, const Values (&features)[kPixels]) {
    const BoxTaps taps(windows.box(turn));
    const bool takes_part = windows.takes_part(turn);
    const int lane = static_cast<int>(threadIdx.x) % 32, number = lane % kPixels;
    const int octet_tap = lane / O::kLanes * kTapsAtOnce, own_tap = octet_tap + lane / kPixels % kTapsAtOnce;
    Acc* const window = r.windows + number * kWindowPitch;
    Acc scale = Acc(1);
    if (r.a.inverse_norm != nullptr) {
      const RunPixel own = pixel_of_run(r.grid, r.run, number);
      scale = r.a.scale(r.b, own.y, own.x);
    }
#pragma unroll 1
    for (int n = r.part * kStepTaps; n < taps.count; n += r.parts * kStepTaps) {
      Acc product[kTapsAtOnce * kPixels];
#pragma unroll
      for (int u = 0; u < kTapsAtOnce; ++u) {
        int y, x;
        taps.place(min(n + octet_tap + u, taps.count - 1), y, x);
        Values tap;
        channels.template load<kWhole>(r.row_b(y, x), tap);
#pragma unroll
        for (int k = 0; k < kPixels; ++k) {
          Acc sum = Acc(0);
#pragma unroll
          for (int i = 0; i < O::kPieces; ++i) {
            if (!kWhole && i >= channels.pieces) break;
#pragma unroll
            for (int j = 0; j < O::kVector; ++j) sum += features[k][i][j] * tap[i][j];
          }
          product[u * kPixels + k] = sum;
        }
      }
      Acc sum = warp_scatter_sums<1>(product);  // of pixel lane % 4 with the tap own_tap
      int y, x;
      taps.place(min(n + own_tap, taps.count - 1), y, x);
      if (n + own_tap >= taps.count || !takes_part || !windows.holds(y, x)) continue;
      if (r.other.inverse_norm != nullptr) sum *= scale * r.other.scale(r.b, y, x);
      window[(y - windows.y) * kPieceTaps + (x - windows.x)] += sum;
    }
  }
};

}  // namespace cosegflow::local_correlation_cuda
