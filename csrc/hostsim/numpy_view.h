// hostsim bindings: NumPy arrays as the views that params structs hold. Include this in bind_<op>.cpp.
//
//   #include "hostsim/numpy_view.h"
//   void bind_warp(pybind11::module_& m) {  // global namespace, cosegflow or cosegflow::hostsim: all are found
//     m.def("warp_forward", [](py::object x, py::object flow, py::array out) {
//       WarpParams p;
//       p.x = hostsim::view<4>(x, "x");
//       ...
//       hostsim::check(warp_forward_cuda(p, nullptr));
//     });
//   }
//
// float16, float32, float64 and bool are what they are called; NumPy has no bfloat16: an array of uint16 is one.
// None gives a null view. Strides are the array's, so any layout can be tested; the array is never copied.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cosegflow/types.h"

namespace cosegflow {
namespace hostsim {

namespace py = pybind11;

// A failed Status becomes a RuntimeError.
inline void check(Status status) {
  if (!status.ok()) throw std::runtime_error(status.message);
}

inline DType dtype_of(const py::array& a, const char* name) {
  const char kind = a.dtype().kind();
  const auto bytes = a.itemsize();
  if (kind == 'f' && bytes == 2) return DType::kFloat16;
  if (kind == 'f' && bytes == 4) return DType::kFloat32;
  if (kind == 'f' && bytes == 8) return DType::kFloat64;
  if (kind == 'u' && bytes == 2) return DType::kBFloat16;
  if (kind == 'b') return DType::kBool;
  throw std::invalid_argument(std::string(name) + ": no element type of cosegflow is a NumPy " +
                              py::str(a.dtype()).cast<std::string>());
}

template <int Rank>
inline View<Rank> view(const py::object& o, const char* name) {
  View<Rank> v;
  if (o.is_none()) return v;
  if (!py::isinstance<py::array>(o)) throw std::invalid_argument(std::string(name) + ": not a NumPy array");
  const auto a = py::reinterpret_borrow<py::array>(o);
  if (a.ndim() != Rank) {
    throw std::invalid_argument(std::string(name) + ": " + std::to_string(a.ndim()) + " dimensions, needs " +
                                std::to_string(Rank));
  }
  v.data = const_cast<void*>(a.data());
  v.dtype = dtype_of(a, name);
  for (int i = 0; i < Rank; ++i) {
    if (a.strides(i) % a.itemsize() != 0) throw std::invalid_argument(std::string(name) + ": strides within elements");
    v.stride[i] = a.strides(i) / a.itemsize();
  }
  return v;
}

// The same for results: the array must be writable.
template <int Rank>
inline View<Rank> output(const py::object& o, const char* name) {
  const View<Rank> v = view<Rank>(o, name);
  if (!o.is_none() && !py::reinterpret_borrow<py::array>(o).writeable()) {
    throw std::invalid_argument(std::string(name) + ": not writable");
  }
  return v;
}

// The data of a contiguous array of any type and rank (int64 index outputs, workspaces); None gives null.
template <class T = void>
inline T* pointer(const py::object& o, const char* name) {
  if (o.is_none()) return nullptr;
  const auto a = py::cast<py::array>(o);
  if (!(a.flags() & py::array::c_style)) throw std::invalid_argument(std::string(name) + ": not contiguous");
  return static_cast<T*>(const_cast<void*>(a.data()));
}

inline int64_t bytes_of(const py::object& o) {
  return o.is_none() ? 0 : static_cast<int64_t>(py::cast<py::array>(o).nbytes());
}

}  // namespace hostsim
}  // namespace cosegflow
