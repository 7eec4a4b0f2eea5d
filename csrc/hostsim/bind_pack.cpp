// hostsim: packing for the Hopper kernels on NumPy arrays. Results are new arrays that start as 0xff bytes, so that the
// test sees which rows were written; the outputs at excluded pixels are written in place.
#include <pybind11/stl.h>

#include <cstring>
#include <vector>

#include "common/dispatch.h"
#include "hostsim/numpy_view.h"
#include "pack_tiles.cuh"

namespace cosegflow {
namespace hostsim {
namespace {

using Shape = std::vector<py::ssize_t>;

template <class Element>
py::array poisoned(const Shape& shape) {
  py::array_t<Element> a(shape);
  std::memset(a.mutable_data(), 0xff, static_cast<size_t>(a.nbytes()));
  return std::move(a);
}

template <class Pointer>
void point_at(Pointer*& p, const py::array& a) {
  p = static_cast<Pointer*>(const_cast<void*>(a.data()));
}

TileSource source_of(const py::array& features, const py::object& mask, bool normalize, SplitRole role) {
  TileSource s;
  s.features = view<4>(features, "features"), s.mask = view<3>(mask, "mask");
  s.height = features.shape(2), s.width = features.shape(3);
  s.normalize = normalize, s.role = role;
  return s;
}

// (flow, lse, confidence, index, score), each an array or None; or None.
ExcludedOutputs excluded_outputs(const py::object& arrays) {
  ExcludedOutputs out;
  if (arrays.is_none()) return out;
  const auto t = py::cast<py::tuple>(arrays);
  out.flow = output<4>(t[0], "flow"), out.lse = output<3>(t[1], "lse"), out.confidence = output<3>(t[2], "confidence");
  out.index = pointer<int64_t>(t[3], "index"), out.score = output<3>(t[4], "score");
  return out;
}

// Arrays of their own instead of parts of an arena, so that AddressSanitizer sees the end of each.
template <class T>
TileSide<T> side_of(const py::array& features, int terms, py::dict& arrays) {
  Arena nowhere;
  const int64_t positions = features.shape(2) * features.shape(3);
  TileSide<T> s = take_tile_side<T>(nowhere, features.shape(0), positions, features.shape(1), terms);
  const py::array rows = poisoned<uint16_t>({s.batch, s.positions, s.depth});
  const py::array scale = poisoned<float>({s.batch, s.pitch, 2}), place = poisoned<float>({s.batch, s.pitch, 2});
  const py::array index = poisoned<int>({s.batch, s.positions}), count = poisoned<int>({s.batch});
  const py::array spans = poisoned<int>({s.batch, ceil_div(s.positions, kCountSpan)});
  point_at(s.features, rows), point_at(s.scale, scale), point_at(s.place, place);
  point_at(s.index, index), point_at(s.count, count), point_at(s.span_count, spans);
  arrays["features"] = rows, arrays["scale"] = scale, arrays["place"] = place;
  arrays["index"] = index, arrays["count"] = count, arrays["span_count"] = spans;
  return s;
}

py::tuple pack(const py::array& fa, const py::array& fb, const py::object& mask_a, const py::object& mask_b, int terms,
               bool normalize, const py::object& excluded_a, const py::object& excluded_b, const py::object& counters,
               int64_t single_launch_positions) {
  const TileSource a = source_of(fa, mask_a, normalize, SplitRole::kFirst);
  const TileSource b = source_of(fb, mask_b, normalize, SplitRole::kSecond);
  PackExtras extras;
  extras.a = excluded_outputs(excluded_a), extras.b = excluded_outputs(excluded_b);
  extras.counters = pointer<int>(counters, "counters");
  extras.counter_count = bytes_of(counters) / static_cast<int64_t>(sizeof(int));
  py::dict out_a, out_b;
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    const TileSide<T> side_a = side_of<T>(fa, terms, out_a), side_b = side_of<T>(fb, terms, out_b);
    check(pack_tiles<T>(a, b, side_a, side_b, extras, nullptr, single_launch_positions));
  };
  if (a.features.dtype == DType::kFloat16) {
    run(TypeTag<Half>{});
  } else {
    run(TypeTag<BFloat16>{});
  }
  return py::make_tuple(out_a, out_b);
}

// Where take_tile_side puts the arrays of a side, in bytes from an aligned base, and how many bytes it asks for.
py::tuple layout(int64_t batch, int64_t positions, int64_t channels, int terms) {
  constexpr uintptr_t kBase = 1 << 20;
  Arena arena(reinterpret_cast<void*>(kBase)), nowhere;
  const TileSide<Half> s = take_tile_side<Half>(arena, batch, positions, channels, terms);
  (void)take_tile_side<Half>(nowhere, batch, positions, channels, terms);
  std::vector<uintptr_t> begins;
  for (const void* p :
       {static_cast<const void*>(s.features), static_cast<const void*>(s.scale), static_cast<const void*>(s.place),
        static_cast<const void*>(s.index), static_cast<const void*>(s.count), static_cast<const void*>(s.span_count)}) {
    begins.push_back(reinterpret_cast<uintptr_t>(p) - kBase);
  }
  return py::make_tuple(begins, nowhere.bytes());
}

}  // namespace

void bind_pack(py::module_& m) {
  m.def("pack_tiles", &pack, py::arg("fa"), py::arg("fb"), py::arg("mask_a") = py::none(),
        py::arg("mask_b") = py::none(), py::arg("terms") = 1, py::arg("normalize") = true,
        py::arg("excluded_a") = py::none(), py::arg("excluded_b") = py::none(), py::arg("counters") = py::none(),
        py::arg("single_launch_positions") = kSingleLaunchPositions);
  m.def("tile_side_layout", &layout, py::arg("batch"), py::arg("positions"), py::arg("channels"), py::arg("terms"));
}

}  // namespace hostsim
}  // namespace cosegflow
