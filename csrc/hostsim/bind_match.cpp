// hostsim: match on NumPy arrays. Results are new arrays, in the shapes and dtypes of the C++ API; they and the
// workspace start as NaN, so that what a kernel forgets to write shows.
#include <pybind11/stl.h>

#include <cstring>
#include <vector>

#include "cosegflow/match.h"
#include "hostsim/numpy_view.h"

namespace cosegflow {
namespace hostsim {
namespace {

using Shape = std::vector<py::ssize_t>;

py::array poisoned(py::array a) {
  std::memset(a.mutable_data(), 0xff, static_cast<size_t>(a.nbytes()));
  return a;
}
py::array accumulate_array(DType dtype, const Shape& shape) {
  if (accumulate_type(dtype) == DType::kFloat64) return poisoned(py::array_t<double>(shape));
  return poisoned(py::array_t<float>(shape));
}

MatchParams common(const py::array& fa, const py::array& fb, const py::object& mask_a, const py::object& mask_b,
                   const py::array& beta, bool normalize, bool simple) {
  MatchParams p;
  p.fa = view<4>(fa, "fa"), p.fb = view<4>(fb, "fb");
  p.batch = fa.shape(0), p.channels = fa.shape(1);
  p.height_a = fa.shape(2), p.width_a = fa.shape(3), p.height_b = fb.shape(2), p.width_b = fb.shape(3);
  if (fb.shape(0) != p.batch || fb.shape(1) != p.channels) throw std::invalid_argument("fb: its B and C are not fa's");
  p.mask_a = view<3>(mask_a, "mask_a"), p.mask_b = view<3>(mask_b, "mask_b");
  p.beta = view<1>(beta, "beta");
  if (beta.shape(0) != p.batch) throw std::invalid_argument("beta: needs shape (B,)");
  p.normalize = normalize, p.simple = simple;
  return p;
}

// A workspace of exactly the bytes that were asked for, so that AddressSanitizer sees one too few.
std::vector<char> workspace_of(size_t bytes) { return std::vector<char>(bytes, char(0xff)); }

py::tuple forward(const py::array& fa, const py::array& fb, const py::object& mask_a, const py::object& mask_b,
                  const py::array& beta, bool normalize, bool simple, double kernel_sigma, bool return_index,
                  int precision, bool portable) {
  MatchParams p = common(fa, fb, mask_a, mask_b, beta, normalize, simple);
  p.precision = static_cast<Precision>(precision), p.portable = portable;
  const py::array flow = accumulate_array(p.fa.dtype, {p.batch, 2, p.height_a, p.width_a});
  const py::array lse = accumulate_array(p.fa.dtype, {p.batch, p.height_a, p.width_a});
  const py::array confidence = accumulate_array(p.fa.dtype, {p.batch, p.height_a, p.width_a});
  p.flow = output<4>(flow, "flow"), p.lse = output<3>(lse, "lse");
  p.confidence = output<3>(confidence, "confidence");
  p.kernel_sigma = kernel_sigma;
  const bool indexed = return_index || kernel_sigma > 0;
  const Shape peaks = indexed ? Shape{p.batch, p.height_a, p.width_a} : Shape{0};
  const py::array index = poisoned(py::array_t<int64_t>(peaks)), score = accumulate_array(p.fa.dtype, peaks);
  if (indexed) p.index = pointer<int64_t>(index, "index"), p.score = output<3>(score, "score");
  std::vector<char> workspace = workspace_of(match_forward_workspace_bytes_cuda(p));
  check(match_forward_cuda(p, workspace.data(), nullptr));
  return py::make_tuple(flow, lse, confidence, index, score);
}

py::tuple backward(const py::array& fa, const py::array& fb, const py::object& mask_a, const py::object& mask_b,
                   const py::array& beta, const py::array& flow, const py::array& lse, const py::object& grad_flow,
                   const py::object& grad_lse, bool normalize, bool simple, const std::vector<bool>& need,
                   size_t chunk_bytes, const py::object& index, double kernel_sigma, bool portable) {
  MatchParams p = common(fa, fb, mask_a, mask_b, beta, normalize, simple);
  p.chunk_bytes = chunk_bytes, p.portable = portable;
  p.index = pointer<int64_t>(index, "index"), p.kernel_sigma = kernel_sigma;
  p.flow = view<4>(flow, "flow"), p.lse = view<3>(lse, "lse");
  p.grad_flow = view<4>(grad_flow, "grad_flow"), p.grad_lse = view<3>(grad_lse, "grad_lse");
  py::object grad_fa = py::none(), grad_fb = py::none(), grad_mask_b = py::none(), grad_beta = py::none();
  if (need.at(0)) {
    grad_fa = poisoned(py::array(fa.dtype(), Shape{p.batch, p.channels, p.height_a, p.width_a}));
    p.grad_fa = output<4>(grad_fa, "grad_fa");
  }
  if (need.at(1)) {
    grad_fb = poisoned(py::array(fb.dtype(), Shape{p.batch, p.channels, p.height_b, p.width_b}));
    p.grad_fb = output<4>(grad_fb, "grad_fb");
  }
  if (need.at(2)) {
    grad_mask_b = accumulate_array(p.fa.dtype, {p.batch, p.height_b, p.width_b});
    p.grad_mask_b = output<3>(grad_mask_b, "grad_mask_b");
  }
  if (need.at(3)) {
    grad_beta = accumulate_array(p.fa.dtype, {p.batch});
    p.grad_beta = output<1>(grad_beta, "grad_beta");
  }
  std::vector<char> workspace = workspace_of(match_backward_workspace_bytes_cuda(p));
  check(match_backward_cuda(p, workspace.data(), nullptr));
  return py::make_tuple(grad_fa, grad_fb, grad_mask_b, grad_beta);
}

}  // namespace

void bind_match(py::module_& m) {
  m.def("match", &forward, py::arg("fa"), py::arg("fb"), py::arg("mask_a"), py::arg("mask_b"), py::arg("beta"),
        py::arg("normalize") = true, py::arg("simple") = false, py::arg("kernel_sigma") = 0.0,
        py::arg("return_index") = false, py::arg("precision") = 0, py::arg("portable") = false);
  m.def("match_backward", &backward, py::arg("fa"), py::arg("fb"), py::arg("mask_a"), py::arg("mask_b"),
        py::arg("beta"), py::arg("flow"), py::arg("lse"), py::arg("grad_flow"), py::arg("grad_lse"),
        py::arg("normalize"), py::arg("simple"), py::arg("need"), py::arg("chunk_bytes") = 0,
        py::arg("index") = py::none(), py::arg("kernel_sigma") = 0.0, py::arg("portable") = false);
}

}  // namespace hostsim
}  // namespace cosegflow
