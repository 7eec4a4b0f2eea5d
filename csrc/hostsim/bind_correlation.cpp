// hostsim: correlation on NumPy arrays. Results are new arrays, in the shapes and dtypes of the C++ API.
#include <pybind11/stl.h>

#include <cstring>
#include <vector>

#include "cosegflow/correlation.h"
#include "hostsim/numpy_view.h"

namespace cosegflow {
namespace hostsim {
namespace {

CorrelationParams params(const py::array& fa, const py::array& fb, bool normalize, bool relu, bool simple) {
  CorrelationParams p;
  p.fa = view<4>(fa, "fa");
  p.fb = view<4>(fb, "fb");
  if (p.fa.dtype != p.fb.dtype || fa.shape(0) != fb.shape(0) || fa.shape(1) != fb.shape(1)) {
    throw std::invalid_argument("fa and fb differ in dtype, batch or channels");
  }
  p.batch = fa.shape(0), p.channels = fa.shape(1);
  p.height_a = fa.shape(2), p.width_a = fa.shape(3), p.height_b = fb.shape(2), p.width_b = fb.shape(3);
  p.normalize = normalize, p.relu = relu, p.simple = simple;
  return p;
}

std::vector<py::ssize_t> shape_of(const py::array& a) { return {a.shape(), a.shape() + a.ndim()}; }

py::array forward(const py::array& fa, const py::array& fb, bool normalize, bool relu, bool simple, int precision,
                  bool portable) {
  CorrelationParams p = params(fa, fb, normalize, relu, simple);
  p.precision = static_cast<Precision>(precision), p.portable = portable;
  const std::vector<py::ssize_t> shape{p.batch, p.height_a, p.width_a, p.height_b, p.width_b};
  py::array corr(fa.dtype(), shape);
  std::memset(corr.mutable_data(), 0xff, static_cast<size_t>(corr.nbytes()));  // NaN: what is not written shows
  p.corr = pointer(corr, "corr");
  std::vector<char> workspace(correlation_forward_workspace_bytes_cuda(p), char(0xff));  // NaN
  check(correlation_forward_cuda(p, workspace.data(), nullptr));
  return corr;
}

py::tuple backward(const py::array& grad_corr, const py::array& fa, const py::array& fb, const py::object& corr,
                   bool normalize, bool relu, bool simple, const std::vector<bool>& need, bool portable,
                   size_t chunk_bytes) {
  CorrelationParams p = params(fa, fb, normalize, relu, simple);
  p.portable = portable, p.chunk_bytes = chunk_bytes;
  if (relu && corr.is_none()) throw std::invalid_argument("corr: relu needs the saved volume");
  p.grad_corr = pointer(grad_corr, "grad_corr");
  p.corr = pointer(corr, "corr");
  py::object grad_fa = py::none(), grad_fb = py::none();
  if (need.at(0)) {
    grad_fa = py::array(fa.dtype(), shape_of(fa));
    p.grad_fa = output<4>(grad_fa, "grad_fa");
  }
  if (need.at(1)) {
    grad_fb = py::array(fb.dtype(), shape_of(fb));
    p.grad_fb = output<4>(grad_fb, "grad_fb");
  }
  std::vector<char> workspace(correlation_backward_workspace_bytes_cuda(p), char(0xff));  // NaN
  check(correlation_backward_cuda(p, workspace.data(), nullptr));
  return py::make_tuple(grad_fa, grad_fb);
}

}  // namespace

void bind_correlation(py::module_& m) {
  m.def("correlation", &forward, py::arg("fa"), py::arg("fb"), py::arg("normalize") = false, py::arg("relu") = false,
        py::arg("simple") = false, py::arg("precision") = 0, py::arg("portable") = false);
  m.def("correlation_backward", &backward, py::arg("grad_corr"), py::arg("fa"), py::arg("fb"), py::arg("corr"),
        py::arg("normalize"), py::arg("relu"), py::arg("simple"), py::arg("need"), py::arg("portable") = false,
        py::arg("chunk_bytes") = 0);
}

}  // namespace hostsim
}  // namespace cosegflow
