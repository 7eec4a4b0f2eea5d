// Packing for a forward of match that multiplies halves: both images, and the results of excluded source pixels.
#pragma once

#include "cosegflow/match.h"
#include "pack_tiles.cuh"

namespace cosegflow::match_cuda {

// `counters` are set to 0.
template <class T>
Status pack_match(const MatchParams& p, const TileSide<T>& a, const TileSide<T>& b, int* counters,
                  int64_t counter_count, Stream stream) {
  PackExtras extras;
  extras.a = {p.flow, p.lse, p.confidence, p.index, p.score};
  extras.counters = counters, extras.counter_count = counter_count;
  return pack_tiles<T>({p.fa, p.mask_a, p.width_a, p.height_a, p.normalize, SplitRole::kFirst},
                       {p.fb, p.mask_b, p.width_b, p.height_b, p.normalize, SplitRole::kSecond}, a, b, extras, stream);
}

}  // namespace cosegflow::match_cuda
