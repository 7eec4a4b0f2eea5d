// Where the results of a source pixel go: raster order, any strides.
#pragma once

#include <cstdint>

#include "cosegflow/match.h"
#include "primitives/launch.cuh"
#include "primitives/real_math.cuh"

namespace cosegflow::match_cuda {

struct Outputs {
  View4 flow;
  View3 lse, confidence;
  int width_a, width_b, height_b;
  int64_t batch, positions;
  int64_t* index;  // null where not wanted
  View3 score;
};

inline Outputs outputs_of(const MatchParams& p) {
  return {p.flow,
          p.lse,
          p.confidence,
          static_cast<int>(p.width_a),
          static_cast<int>(p.width_b),
          static_cast<int>(p.height_b),
          p.batch,
          p.height_a * p.width_a,
          p.index,
          p.score};
}

template <class Acc>
__device__ __forceinline__ void write_most_probable(const Outputs& out, int64_t b, int pixel, int64_t index,
                                                    Acc score) {
  out.index[b * out.positions + pixel] = index;
  const View3& v = out.score;
  static_cast<Acc*>(v.data)[b * v.stride[0] + pixel / out.width_a * v.stride[1] + pixel % out.width_a * v.stride[2]] =
      score;
}

template <class Acc>
__device__ __forceinline__ void write_match(const Outputs& out, int64_t b, int pixel, Acc flow_x, Acc flow_y, Acc lse,
                                            Acc confidence) {
  const int64_t y = pixel / out.width_a, x = pixel % out.width_a;
  Acc* const flow =
      static_cast<Acc*>(out.flow.data) + b * out.flow.stride[0] + y * out.flow.stride[2] + x * out.flow.stride[3];
  flow[0] = flow_x;
  flow[out.flow.stride[1]] = flow_y;
  const auto at3 = [&](const View3& v) { return b * v.stride[0] + y * v.stride[1] + x * v.stride[2]; };
  static_cast<Acc*>(out.lse.data)[at3(out.lse)] = lse;
  static_cast<Acc*>(out.confidence.data)[at3(out.confidence)] = confidence;
}

// The match of a pixel from the softmax over its targets, an OnlineSoftmax or a ValueSoftmax whose mean is relative to
// the centre of b's grid.
template <class Acc, class State>
__device__ __forceinline__ void write_state(const Outputs& out, int64_t b, int pixel, const State& state, Acc mean_x,
                                            Acc mean_y) {
  if (state.empty()) return write_match(out, b, pixel, Acc(0), Acc(0), minus_infinity<Acc>(), Acc(0));
  // The differences of whole and half numbers are exact.
  const Acc offset_x = static_cast<Acc>(out.width_b - 1) / 2 - static_cast<Acc>(pixel % out.width_a);
  const Acc offset_y = static_cast<Acc>(out.height_b - 1) / 2 - static_cast<Acc>(pixel / out.width_a);
  write_match(out, b, pixel, mean_x + offset_x, mean_y + offset_y, state.log_sum_exp(), state.largest_probability());
}

}  // namespace cosegflow::match_cuda
