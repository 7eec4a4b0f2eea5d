// Features to panels and gradients of panels to features: compaction to the foreground, conversion to the accumulate
// type, normalisation and its gradient, any strides.
#pragma once

#include <cstdint>

#include "common/arena.h"
#include "common/round_up.h"
#include "cosegflow/types.h"
#include "cpu/foreground_cpu.h"
#include "cpu/runtime_cpu.h"
#include "cpu/tile/tile_kernels.h"

namespace cosegflow {

// Features of one image as panels (see tile_kernels.h). Positions are those of a Foreground, padded with zeros to
// whole panels; a representation that is not wanted has no memory.
//
// In pairs (bfloat16 only, see TileKernels::multiply_pairs) an element is two neighbouring channels in 32 bits. The
// features are then only scaled by a power of two for each position, which is exact; `factor` undoes that and
// normalises, to be applied to the products.
template <class T>
struct PackedFeatures {
  int64_t channels = 0, capacity = 0;  // positions with the padding
  int64_t elements = 0;                // of a position: channels, or pairs of them
  T* by_channel = nullptr;             // panels of channels, a row for each position
  T* by_position = nullptr;            // panels of positions, a row for each channel
  double* inverse_norm = nullptr;      // of each position; null: not normalised, or in pairs
  T* factor = nullptr;                 // of each position, in pairs
  T* scratch = nullptr;                // for each slot, what lies between the features and the panels
  int64_t scratch_size = 0;
  int64_t width = 0;  // of a panel
  bool normalize = false;

  void layout(Arena& arena, int64_t positions, int64_t channels, bool normalize, bool want_by_channel,
              bool want_by_position, int64_t slots, bool pairs = false);

  Panels<T> channel_panels(int64_t first_position) const {
    return {by_channel + first_position * width, capacity * width};
  }
  Panels<T> position_panels(int64_t first_position) const {  // first_position: a multiple of the width
    return {by_position + first_position * elements, elements * width};
  }
};

// Elements of a matrix of `positions` x `channels` kept as channel panels.
template <class T>
int64_t channel_panels_size(int64_t positions, int64_t channels) {
  const int64_t width = tile_kernels<T>().width;
  return round_up(positions, width) * round_up(channels, width);
}

// Fills `packed` from image b of `features`. Features of positions outside `foreground` are not read.
template <class T>
void pack_features(const View4& features, int64_t b, int64_t image_width, const Foreground& foreground,
                   const PackedFeatures<T>& packed, const CpuRuntime& runtime);

// Writes image b of the contiguous `grad` (B, C, H, W) from the gradient to the packed (normalised) features, kept in
// `parts` arrays of channel panels, `part_stride` apart, that are added in order. Excluded positions get 0.
// Overwrites the first part.
template <class T>
void unpack_gradient(const View4& grad, int64_t b, const Foreground& foreground, const PackedFeatures<T>& packed,
                     T* grad_panels, int64_t parts, int64_t part_stride, const CpuRuntime& runtime);

}  // namespace cosegflow
