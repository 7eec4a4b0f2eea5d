// The products of the features of two images, tile by tile: what match and its kin need first.
#pragma once

#include "cpu/pack_cpu.h"

namespace cosegflow {

template <class T>
struct ScoreProduct {
  PackedFeatures<T> a, b;

  // bfloat16 features need no conversion where the machine multiplies them.
  static bool in_pairs(DType dtype) { return dtype == DType::kBFloat16 && tile_kernels<T>().multiply_pairs != nullptr; }

  void layout(Arena& arena, DType dtype, int64_t positions_a, int64_t positions_b, int64_t channels, bool normalize,
              int64_t slots) {
    const bool pairs = in_pairs(dtype);
    a.layout(arena, positions_a, channels, normalize, true, false, slots, pairs);
    b.layout(arena, positions_b, channels, normalize, false, true, slots, pairs);
  }

  // Params has the views fa and fb and the images' widths.
  template <class Params>
  void pack(const Params& p, int64_t image, const Foreground& foreground_a, const Foreground& foreground_b,
            const CpuRuntime& runtime) const {
    pack_features(p.fa, image, p.width_a, foreground_a, a, runtime);
    pack_features(p.fb, image, p.width_b, foreground_b, b, runtime);
  }

  // scores = rows [row, row + rows) of a times columns [column, column + columns) of b.
  void multiply(const TileKernels<T>& kernels, int64_t row, int64_t rows, int64_t column, int64_t columns,
                Panels<T> scores) const {
    if (a.factor != nullptr) {
      kernels.multiply_pairs(rows, a.elements, columns, a.channel_panels(row), b.position_panels(column),
                             a.factor + row, b.factor + column, scores);
    } else {
      kernels.multiply(rows, a.channels, columns, a.channel_panels(row), b.position_panels(column), scores, false);
    }
  }
};

}  // namespace cosegflow
