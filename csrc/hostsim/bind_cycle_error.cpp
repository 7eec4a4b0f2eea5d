// hostsim: cycle_error on NumPy arrays.
#include <vector>

#include "cosegflow/cycle_error.h"
#include "hostsim/numpy_view.h"

namespace cosegflow {
namespace hostsim {
namespace {

CycleErrorParams params_of(const py::array& flow_ab, const py::array& flow_ba) {
  CycleErrorParams p;
  p.flow_ab = view<4>(flow_ab, "flow_ab");
  p.flow_ba = view<4>(flow_ba, "flow_ba");
  p.batch = flow_ab.shape(0), p.height_a = flow_ab.shape(2), p.width_a = flow_ab.shape(3);
  p.height_b = flow_ba.shape(2), p.width_b = flow_ba.shape(3);
  return p;
}

py::dtype accumulate_dtype(const CycleErrorParams& p) {
  return accumulate_type(p.flow_ab.dtype) == DType::kFloat64 ? py::dtype::of<double>() : py::dtype::of<float>();
}

}  // namespace

void bind_cycle_error(py::module_& m) {
  m.def(
      "cycle_error",
      [](py::array flow_ab, py::array flow_ba, bool simple) {
        CycleErrorParams p = params_of(flow_ab, flow_ba);
        p.simple = simple;
        py::array error(accumulate_dtype(p), {p.batch, p.height_a, p.width_a});
        py::array_t<bool> valid({p.batch, p.height_a, p.width_a});
        p.error = output<3>(error, "error");
        p.valid = output<3>(valid, "valid");
        check(cycle_error_forward_cuda(p, nullptr));
        return py::make_tuple(error, valid);
      },
      py::arg("flow_ab"), py::arg("flow_ba"), py::arg("simple") = false);
  m.def(
      "cycle_error_backward",
      [](py::array grad_error, py::array flow_ab, py::array flow_ba, bool need_ab, bool need_ba, bool deterministic,
         bool simple) {
        CycleErrorParams p = params_of(flow_ab, flow_ba);
        p.deterministic = deterministic, p.simple = simple;
        p.grad_error = view<3>(grad_error, "grad_error");
        py::object grad_ab = py::none(), grad_ba = py::none();
        if (need_ab) grad_ab = py::array(accumulate_dtype(p), {p.batch, int64_t{2}, p.height_a, p.width_a});
        if (need_ba) grad_ba = py::array(accumulate_dtype(p), {p.batch, int64_t{2}, p.height_b, p.width_b});
        p.grad_ab = output<4>(grad_ab, "grad_ab");
        p.grad_ba = output<4>(grad_ba, "grad_ba");
        std::vector<char> workspace(cycle_error_backward_workspace_bytes_cuda(p), char(0xff));
        check(cycle_error_backward_cuda(p, workspace.data(), nullptr));
        return py::make_tuple(grad_ab, grad_ba);
      },
      py::arg("grad_error"), py::arg("flow_ab"), py::arg("flow_ba"), py::arg("need_ab"), py::arg("need_ba"),
      py::arg("deterministic"), py::arg("simple") = false);
}

}  // namespace hostsim
}  // namespace cosegflow
