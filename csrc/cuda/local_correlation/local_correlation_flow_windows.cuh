// The windows of a run of neighbouring pixels, four (or eight), as one warp walks over them.
//
// Where a flow is smooth the windows of a run are nearly one: four of 10 x 10 taps are 10 x 13 together. The warp walks
// over all pixels of fb that any of the windows holds, and reads each once for all. Where the flow is torn that
// would be more than the windows themselves, and the warp takes them one after the other: the same loop, over one
// window. Boxes end at the edges of fb, so a tap outside is never read, and nothing of it is multiplied by anything.
// Windows are cut into pieces of up to 10 x 10 taps.
#pragma once

#include "local_correlation/local_correlation_flow_rows.cuh"

namespace cosegflow::local_correlation_cuda {

constexpr int kRunPixels = 4;  // of a warp, where they are not eight
constexpr int kPieceTaps = 10;
constexpr int kTapsAtOnce = 2;              // of an octet
constexpr int kStepTaps = kTapsAtOnce * 4;  // of a warp
// Of a block: small, so that a multiprocessor has three of them with 168 registers a thread; of float64 two.
constexpr int kFlowThreads = 128, kWarps = kFlowThreads / 32;
template <class T>
constexpr int kFlowBlocks = sizeof(T) == 8 ? 2 : 3;
constexpr int kBlockPixels = kWarps * kRunPixels;  // of the gradients to features

// How an image is cut into runs of pixels of a row, and those into blocks.
struct RunGrid {
  int height, width;      // of the image
  int run_pixels;         // of a run
  int across, per_image;  // runs
  int of_block, blocks;   // runs of a block, blocks of an image

  __device__ __forceinline__ int first_run(int block) const { return block * of_block; }
};

inline RunGrid run_grid(int64_t height, int64_t width, int run_pixels, int of_block) {
  const int64_t across = (width + run_pixels - 1) / run_pixels, runs = across * height;
  RunGrid grid;
  grid.height = static_cast<int>(height), grid.width = static_cast<int>(width), grid.run_pixels = run_pixels;
  grid.across = static_cast<int>(across), grid.per_image = static_cast<int>(runs);
  grid.of_block = of_block, grid.blocks = static_cast<int>((runs + of_block - 1) / of_block);
  return grid;
}

// One pixel of a run. A pixel beyond the image has the place of one that is.
struct RunPixel {
  int y, x;
  bool exists;
};

__device__ __forceinline__ RunPixel pixel_of_run(const RunGrid& grid, int run, int number) {
  const bool in_image = run < grid.per_image;
  if (!in_image) run = grid.per_image - 1;
  const int y = run / grid.across, x = run % grid.across * grid.run_pixels + number;
  return {y, min(x, grid.width - 1), in_image && x < grid.width};
}

// A part of a window: its first tap, and how many.
struct Piece {
  int i, j, rows, columns;
};

// Piece `number` of side x side taps or outputs, cut every `step`; pieces have `more` beyond the next cut.
__device__ __forceinline__ Piece piece_of(int number, int side, int step, int more) {
  const int across = (side + step - 1) / step;
  const int i = number / across * step, j = number % across * step;
  return {i, j, min(step, side - i) + more, min(step, side - j) + more};
}

// Pixels of fb.
struct Box {
  int left, top, right, bottom;  // right and bottom are beyond it

  __device__ __forceinline__ int64_t area() const {
    return right <= left || bottom <= top ? 0 : static_cast<int64_t>(right - left) * (bottom - top);
  }
};

// Taps of a box by number, row by row. Up to eight pieces' taps, so that the quotient by a multiplication is
// exact.
struct BoxTaps {
  int left, top, columns, count;
  unsigned reciprocal;

  __device__ __forceinline__ explicit BoxTaps(const Box& box)
      : left(box.left), top(box.top), columns(box.right - box.left), count(static_cast<int>(box.area())) {
    const unsigned divisor = columns < 1 ? 1u : static_cast<unsigned>(columns);
    reciprocal = ((1u << 20) + divisor - 1u) / divisor;
  }
  __device__ __forceinline__ void place(int tap, int& y, int& x) const {
    const int row = static_cast<int>(static_cast<unsigned>(tap) * reciprocal >> 20);
    y = top + row, x = left + (tap - row * columns);
  }
};

// The piece of the window of pixel lane % kPixels of a run, and what a warp makes of them. Little of it is kept:
// registers are for features and sums.
template <int kPixels>
struct RunWindows {
  int y, x;                    // of the piece's first tap
  int rows, columns;           // of the piece
  int height, width;           // of fb
  bool exists, any, together;  // the last two are the same in all lanes

  template <class A>
  __device__ __forceinline__ RunWindows(const Window<A>& w, bool pixel_exists, const Piece& piece, int height_b,
                                        int width_b)
      : y(w.y + piece.i),
        x(w.x + piece.j),
        rows(piece.rows),
        columns(piece.columns),
        height(height_b),
        width(width_b),
        exists(pixel_exists && w.finite) {
    int taps = static_cast<int>(own().area());
    exists = taps > 0;
#pragma unroll
    for (int apart = 1; apart < kPixels; apart *= 2) taps += __shfl_xor_sync(kWholeWarp, taps, apart);
    any = taps > 0;
    together = all().area() <= taps;
  }

  // Within fb; without a pixel it is nowhere.
  __device__ __forceinline__ Box own() const {
    if (!exists) return {INT32_MAX, INT32_MAX, 0, 0};
    return {max(x, 0), max(y, 0), min(x + columns, width), min(y + rows, height)};
  }
  __device__ __forceinline__ Box all() const {
    Box box = own();
#pragma unroll
    for (int apart = 1; apart < kPixels; apart *= 2) {
      box.left = min(box.left, __shfl_xor_sync(kWholeWarp, box.left, apart));
      box.top = min(box.top, __shfl_xor_sync(kWholeWarp, box.top, apart));
      box.right = max(box.right, __shfl_xor_sync(kWholeWarp, box.right, apart));
      box.bottom = max(box.bottom, __shfl_xor_sync(kWholeWarp, box.bottom, apart));
    }
    return box;
  }

  __device__ __forceinline__ int turns() const { return !any ? 0 : together ? 1 : kPixels; }

  // The taps of a turn: of all windows, or of one. The whole warp must call it.
  __device__ __forceinline__ Box box(int turn) const {
    if (together) return all();
    const Box box = own();
    return {__shfl_sync(kWholeWarp, box.left, turn), __shfl_sync(kWholeWarp, box.top, turn),
            __shfl_sync(kWholeWarp, box.right, turn), __shfl_sync(kWholeWarp, box.bottom, turn)};
  }

  // Whether the lane's pixel takes part in a turn.
  __device__ __forceinline__ bool takes_part(int turn) const {
    return exists && (together || static_cast<int>(threadIdx.x) % kPixels == turn);
  }

  // Whether the piece holds a pixel of fb.
  __device__ __forceinline__ bool holds(int yb, int xb) const {
    return static_cast<unsigned>(yb - y) < static_cast<unsigned>(rows) &&
           static_cast<unsigned>(xb - x) < static_cast<unsigned>(columns);
  }
};

}  // namespace cosegflow::local_correlation_cuda
