// hostsim: local_correlation on NumPy arrays. Results are new arrays, in the shapes and dtypes of the C++ API.
#include <pybind11/stl.h>

#include <vector>

#include "cosegflow/local_correlation.h"
#include "hostsim/numpy_view.h"

namespace cosegflow {
namespace hostsim {
namespace {

LocalCorrelationParams params(const py::array& fa, const py::array& fb, const py::object& flow, int64_t radius,
                              bool normalize) {
  LocalCorrelationParams p;
  p.fa = view<4>(fa, "fa");
  p.fb = view<4>(fb, "fb");
  p.flow = view<4>(flow, "flow");
  if (p.fa.dtype != p.fb.dtype || fa.shape(0) != fb.shape(0) || fa.shape(1) != fb.shape(1)) {
    throw std::invalid_argument("fa and fb differ in dtype, batch or channels");
  }
  p.batch = fa.shape(0), p.channels = fa.shape(1);
  p.height_a = fa.shape(2), p.width_a = fa.shape(3), p.height_b = fb.shape(2), p.width_b = fb.shape(3);
  p.radius = radius, p.normalize = normalize;
  return p;
}

py::array forward(const py::array& fa, const py::array& fb, const py::object& flow, int64_t radius, bool normalize,
                  bool simple) {
  LocalCorrelationParams p = params(fa, fb, flow, radius, normalize);
  p.simple = simple;
  py::array out(fa.dtype(), std::vector<py::ssize_t>{p.batch, p.side() * p.side(), p.height_a, p.width_a});
  p.out = pointer(out, "out");
  std::vector<char> workspace(local_correlation_forward_workspace_bytes_cuda(p), char(0xff));  // NaN
  check(local_correlation_forward_cuda(p, workspace.data(), nullptr));
  return out;
}

py::tuple backward(const py::array& grad_out, const py::array& fa, const py::array& fb, const py::object& flow,
                   int64_t radius, bool normalize, bool deterministic, const std::vector<bool>& need, bool simple) {
  LocalCorrelationParams p = params(fa, fb, flow, radius, normalize);
  p.deterministic = deterministic, p.simple = simple;
  p.grad_out = view<4>(grad_out, "grad_out");
  py::object grads[3] = {py::none(), py::none(), py::none()};
  const py::object inputs[3] = {fa, fb, flow};
  View4* const views[3] = {&p.grad_fa, &p.grad_fb, &p.grad_flow};
  for (int i = 0; i < 3; ++i) {
    if (!need.at(i)) continue;
    const auto like = py::cast<py::array>(inputs[i]);
    grads[i] = py::array(like.dtype(), std::vector<py::ssize_t>(like.shape(), like.shape() + like.ndim()));
    *views[i] = output<4>(grads[i], "grad");
  }
  std::vector<char> workspace(local_correlation_backward_workspace_bytes_cuda(p), char(0xff));  // NaN
  check(local_correlation_backward_cuda(p, workspace.data(), nullptr));
  return py::make_tuple(grads[0], grads[1], grads[2]);
}

}  // namespace

void bind_local_correlation(py::module_& m) {
  m.def("local_correlation", &forward, py::arg("fa"), py::arg("fb"), py::arg("flow"), py::arg("radius"),
        py::arg("normalize") = false, py::arg("simple") = false);
  m.def("local_correlation_backward", &backward, py::arg("grad_out"), py::arg("fa"), py::arg("fb"), py::arg("flow"),
        py::arg("radius"), py::arg("normalize"), py::arg("deterministic"), py::arg("need"), py::arg("simple") = false);
}

}  // namespace hostsim
}  // namespace cosegflow
