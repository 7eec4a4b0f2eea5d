// hostsim: warp on NumPy arrays.
#include <string>
#include <vector>

#include "cosegflow/warp.h"
#include "hostsim/numpy_view.h"

namespace cosegflow {
namespace hostsim {
namespace {

WarpParams params_of(const py::array& x, const py::array& flow, const std::string& mode, const std::string& padding) {
  WarpParams p;
  p.x = view<4>(x, "x");
  p.flow = view<4>(flow, "flow");
  p.batch = x.shape(0), p.channels = x.shape(1), p.height = x.shape(2), p.width = x.shape(3);
  p.out_height = flow.shape(2), p.out_width = flow.shape(3);
  p.mode = mode == "nearest" ? WarpMode::kNearest : WarpMode::kBilinear;
  p.padding = padding == "border" ? WarpPadding::kBorder : WarpPadding::kZeros;
  return p;
}

// An array of these sizes: NCHW, or channels last where x is.
py::array like_x(const py::array& x, const py::dtype& dtype, int64_t batch, int64_t channels, int64_t height,
                 int64_t width) {
  const int64_t bytes = dtype.itemsize();
  const bool channels_last = x.strides(1) == x.itemsize() && x.strides(3) == x.shape(1) * x.itemsize() &&
                             x.strides(2) == x.shape(3) * x.strides(3) && x.shape(1) > 1;
  const std::vector<int64_t> sizes{batch, channels, height, width};
  if (!channels_last) return py::array(dtype, sizes);
  return py::array(
      dtype, sizes,
      std::vector<int64_t>{height * width * channels * bytes, bytes, width * channels * bytes, channels * bytes});
}

}  // namespace

void bind_warp(py::module_& m) {
  m.def(
      "warp",
      [](py::array x, py::array flow, const std::string& mode, const std::string& padding, bool simple) {
        WarpParams p = params_of(x, flow, mode, padding);
        p.simple = simple;
        py::array out = like_x(x, x.dtype(), p.batch, p.channels, p.out_height, p.out_width);
        py::array_t<bool> valid({p.batch, p.out_height, p.out_width});
        p.out = output<4>(out, "out");
        p.valid = output<3>(valid, "valid");
        check(warp_forward_cuda(p, nullptr));
        return py::make_tuple(out, valid);
      },
      py::arg("x"), py::arg("flow"), py::arg("mode"), py::arg("padding"), py::arg("simple") = false);
  m.def(
      "warp_backward",
      [](py::array grad_out, py::array x, py::array flow, const std::string& mode, const std::string& padding,
         bool need_x, bool need_flow, bool deterministic, bool simple) {
        WarpParams p = params_of(x, flow, mode, padding);
        p.deterministic = deterministic, p.simple = simple;
        p.grad_out = view<4>(grad_out, "grad_out");
        py::object grad_x = py::none(), grad_flow = py::none();
        if (need_x) {
          grad_x = like_x(x, x.dtype(), p.batch, p.channels, p.height, p.width);
          p.grad_x = output<4>(grad_x, "grad_x");
          if (!warp_grad_x_of_any_kind_cuda(p))
            grad_x = py::array(flow.dtype(), {p.batch, p.channels, p.height, p.width});
        }
        if (need_flow) grad_flow = py::array(flow.dtype(), {p.batch, int64_t{2}, p.out_height, p.out_width});
        p.grad_x = output<4>(grad_x, "grad_x");
        p.grad_flow = output<4>(grad_flow, "grad_flow");
        std::vector<char> workspace(warp_backward_workspace_bytes_cuda(p), char(0xff));
        check(warp_backward_cuda(p, workspace.data(), nullptr));
        return py::make_tuple(grad_x, grad_flow);
      },
      py::arg("grad_out"), py::arg("x"), py::arg("flow"), py::arg("mode"), py::arg("padding"), py::arg("need_x"),
      py::arg("need_flow"), py::arg("deterministic"), py::arg("simple") = false);
}

}  // namespace hostsim
}  // namespace cosegflow
