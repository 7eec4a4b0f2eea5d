// hostsim: soft_argmax on NumPy arrays. Results are new arrays, in the shapes and dtypes of the C++ API.
#include <pybind11/stl.h>
#include <vector>

#include "cosegflow/soft_argmax.h"
#include "hostsim/numpy_view.h"

namespace cosegflow {
namespace hostsim {
namespace {

using Shape = std::vector<py::ssize_t>;

py::array accumulate_array(DType dtype, const Shape& shape) {
  if (accumulate_type(dtype) == DType::kFloat64) return py::array_t<double>(shape);
  return py::array_t<float>(shape);
}

struct Call {
  SoftArgmaxParams p;
  py::array corr;
  Shape shape;  // of corr: (B, Ha, Wa, Hb, Wb)

  Call(const py::array& corr_, const py::object& mask_b, const py::array& beta, bool simple) : corr(corr_) {
    const View<5> volume = view<5>(corr, "corr");
    for (int i = 0; i < 5; ++i) shape.push_back(corr.shape(i));
    p.batch = shape[0], p.height_a = shape[1], p.width_a = shape[2], p.height_b = shape[3], p.width_b = shape[4];
    p.simple = simple;
    p.dtype = volume.dtype;
    p.corr = pointer(corr, "corr");
    p.mask_b = view<3>(mask_b, "mask_b");
    p.beta = view<1>(beta, "beta");
    if (p.beta.dtype != accumulate_type(p.dtype)) throw std::invalid_argument("beta: needs the accumulate type");
  }
  py::array positions(bool of_a, int channels) const {
    Shape s{shape[0]};
    if (channels != 0) s.push_back(channels);
    s.push_back(shape[of_a ? 1 : 3]);
    s.push_back(shape[of_a ? 2 : 4]);
    return accumulate_array(p.dtype, s);
  }
};

py::tuple forward(const py::array& corr, const py::object& mask_b, const py::array& beta, bool simple,
                  double kernel_sigma, bool return_index) {
  Call call(corr, mask_b, beta, simple);
  const py::array flow = call.positions(true, 2), lse = call.positions(true, 0), confidence = call.positions(true, 0);
  call.p.flow = output<4>(flow, "flow");
  call.p.lse = output<3>(lse, "lse");
  call.p.confidence = output<3>(confidence, "confidence");
  call.p.kernel_sigma = kernel_sigma;
  const bool indexed = return_index || kernel_sigma > 0;
  const Shape peaks = indexed ? Shape{call.shape[0], call.shape[1], call.shape[2]} : Shape{0};
  const py::array index = py::array_t<int64_t>(peaks), score = accumulate_array(call.p.dtype, peaks);
  if (indexed) call.p.index = pointer<int64_t>(index, "index"), call.p.score = output<3>(score, "score");
  std::vector<char> workspace(soft_argmax_forward_workspace_bytes_cuda(call.p), char(0xff));  // NaN
  check(soft_argmax_forward_cuda(call.p, workspace.data(), nullptr));
  return py::make_tuple(flow, lse, confidence, index, score);
}

py::tuple backward(const py::array& corr, const py::object& mask_b, const py::array& beta, const py::array& flow,
                   const py::array& lse, const py::object& grad_flow, const py::object& grad_lse, bool simple,
                   const std::vector<bool>& need, const py::object& index, double kernel_sigma) {
  Call call(corr, mask_b, beta, simple);
  SoftArgmaxParams& p = call.p;
  pointer(flow, "flow"), pointer(lse, "lse");  // contiguous
  p.index = pointer<int64_t>(index, "index"), p.kernel_sigma = kernel_sigma;
  p.flow = view<4>(flow, "flow");
  p.lse = view<3>(lse, "lse");
  p.grad_flow = view<4>(grad_flow, "grad_flow");
  p.grad_lse = view<3>(grad_lse, "grad_lse");
  py::object grad_corr = py::none(), grad_mask_b = py::none(), grad_beta = py::none();
  if (need.at(0)) {
    grad_corr = py::array(corr.dtype(), call.shape);
    p.grad_corr = pointer(grad_corr, "grad_corr");
  }
  if (need.at(1)) {
    grad_mask_b = call.positions(false, 0);
    p.grad_mask_b = output<3>(grad_mask_b, "grad_mask_b");
  }
  if (need.at(2)) {
    grad_beta = accumulate_array(p.dtype, {call.shape[0]});
    p.grad_beta = output<1>(grad_beta, "grad_beta");
  }
  std::vector<char> workspace(soft_argmax_backward_workspace_bytes_cuda(p), char(0xff));  // NaN
  check(soft_argmax_backward_cuda(p, workspace.data(), nullptr));
  return py::make_tuple(grad_corr, grad_mask_b, grad_beta);
}

}  // namespace

void bind_soft_argmax(py::module_& m) {
  m.def("soft_argmax", &forward, py::arg("corr"), py::arg("mask_b"), py::arg("beta"), py::arg("simple") = false,
        py::arg("kernel_sigma") = 0.0, py::arg("return_index") = false);
  m.def("soft_argmax_backward", &backward, py::arg("corr"), py::arg("mask_b"), py::arg("beta"), py::arg("flow"),
        py::arg("lse"), py::arg("grad_flow"), py::arg("grad_lse"), py::arg("simple"), py::arg("need"),
        py::arg("index") = py::none(), py::arg("kernel_sigma") = 0.0);
}

}  // namespace hostsim
}  // namespace cosegflow
