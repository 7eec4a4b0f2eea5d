// What a forward multiplies: the type of the packed halves, and the maps by which TMA finds their tiles.
#pragma once

#include "hopper/tile_shape.cuh"
#include "pack_tiles.cuh"

namespace cosegflow::hopper {

// Calls body(tag) with that type: float16's own, bfloat16 for bfloat16 and for float32.
template <class Params, class Body>
auto dispatch_packed(const Params& p, const Body& body) {
  return p.fa.dtype == DType::kFloat16 ? body(Half{}) : body(BFloat16{});
}

struct Maps {
  TensorMap a, b;
};

template <class T>
Status make_maps(Maps& maps, const TileSide<T>& a, const TileSide<T>& b) {
  if (Status s = make_tensor_map(maps.a, a.features, a.depth, a.positions, a.batch, kRows); !s.ok()) return s;
  return make_tensor_map(maps.b, b.features, b.depth, b.positions, b.batch, kCols);
}

}  // namespace cosegflow::hopper
