// hostsim: match_both on NumPy arrays, as bind_match.cpp: results and workspaces start as NaN, so that what a kernel
// forgets to write shows.
#include <pybind11/stl.h>

#include <cstring>
#include <vector>

#include "cosegflow/match_both.h"
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

MatchBothParams common(const py::array& fa, const py::array& fb, const py::object& mask_a, const py::object& mask_b,
                       const py::array& beta, bool normalize, bool simple, size_t chunk_bytes) {
  MatchBothParams p;
  p.fa = view<4>(fa, "fa"), p.fb = view<4>(fb, "fb");
  p.batch = fa.shape(0), p.channels = fa.shape(1);
  p.height_a = fa.shape(2), p.width_a = fa.shape(3), p.height_b = fb.shape(2), p.width_b = fb.shape(3);
  if (fb.shape(0) != p.batch || fb.shape(1) != p.channels) throw std::invalid_argument("fb: its B and C are not fa's");
  p.mask_a = view<3>(mask_a, "mask_a"), p.mask_b = view<3>(mask_b, "mask_b");
  p.beta = view<1>(beta, "beta");
  if (beta.shape(0) != p.batch) throw std::invalid_argument("beta: needs shape (B,)");
  p.normalize = normalize, p.simple = simple, p.chunk_bytes = chunk_bytes;
  return p;
}

// A workspace of exactly the bytes that were asked for, so that AddressSanitizer sees one too few.
std::vector<char> workspace_of(size_t bytes) { return std::vector<char>(bytes, char(0xff)); }

py::tuple forward(const py::array& fa, const py::array& fb, const py::object& mask_a, const py::object& mask_b,
                  const py::array& beta, bool normalize, bool simple, size_t chunk_bytes, int precision,
                  bool portable) {
  MatchBothParams p = common(fa, fb, mask_a, mask_b, beta, normalize, simple, chunk_bytes);
  p.precision = static_cast<Precision>(precision), p.portable = portable;
  py::tuple results(6);
  const auto outputs = [&](MatchDirection& d, int64_t height, int64_t width, size_t first) {
    const py::array flow = accumulate_array(p.fa.dtype, {p.batch, 2, height, width});
    const py::array lse = accumulate_array(p.fa.dtype, {p.batch, height, width});
    const py::array confidence = accumulate_array(p.fa.dtype, {p.batch, height, width});
    d.flow = output<4>(flow, "flow"), d.lse = output<3>(lse, "lse");
    d.confidence = output<3>(confidence, "confidence");
    results[first] = flow, results[first + 1] = lse, results[first + 2] = confidence;
  };
  outputs(p.ab, p.height_a, p.width_a, 0);
  outputs(p.ba, p.height_b, p.width_b, 3);
  std::vector<char> workspace = workspace_of(match_both_forward_workspace_bytes_cuda(p));
  check(match_both_forward_cuda(p, workspace.data(), nullptr));
  return results;
}

// `saved`: flow and lse of both directions; `grads`: their incoming gradients, None where there is none; `need`: fa,
// fb, mask_a, mask_b, beta.
py::tuple backward(const py::array& fa, const py::array& fb, const py::object& mask_a, const py::object& mask_b,
                   const py::array& beta, const std::vector<py::array>& saved, const std::vector<py::object>& grads,
                   bool normalize, bool simple, const std::vector<bool>& need, size_t chunk_bytes, bool portable) {
  MatchBothParams p = common(fa, fb, mask_a, mask_b, beta, normalize, simple, chunk_bytes);
  p.portable = portable;
  const auto inputs = [&](MatchDirection& d, size_t first) {
    d.flow = view<4>(saved.at(first), "flow"), d.lse = view<3>(saved.at(first + 1), "lse");
    d.grad_flow = view<4>(grads.at(first), "grad_flow"), d.grad_lse = view<3>(grads.at(first + 1), "grad_lse");
  };
  inputs(p.ab, 0);
  inputs(p.ba, 2);
  py::object results[5] = {py::none(), py::none(), py::none(), py::none(), py::none()};
  if (need.at(0)) {
    results[0] = poisoned(py::array(fa.dtype(), Shape{p.batch, p.channels, p.height_a, p.width_a}));
    p.grad_fa = output<4>(results[0], "grad_fa");
  }
  if (need.at(1)) {
    results[1] = poisoned(py::array(fb.dtype(), Shape{p.batch, p.channels, p.height_b, p.width_b}));
    p.grad_fb = output<4>(results[1], "grad_fb");
  }
  if (need.at(2)) {
    results[2] = accumulate_array(p.fa.dtype, {p.batch, p.height_a, p.width_a});
    p.grad_mask_a = output<3>(results[2], "grad_mask_a");
  }
  if (need.at(3)) {
    results[3] = accumulate_array(p.fa.dtype, {p.batch, p.height_b, p.width_b});
    p.grad_mask_b = output<3>(results[3], "grad_mask_b");
  }
  if (need.at(4)) {
    results[4] = accumulate_array(p.fa.dtype, {p.batch});
    p.grad_beta = output<1>(results[4], "grad_beta");
  }
  std::vector<char> workspace = workspace_of(match_both_backward_workspace_bytes_cuda(p));
  check(match_both_backward_cuda(p, workspace.data(), nullptr));
  return py::make_tuple(results[0], results[1], results[2], results[3], results[4]);
}

}  // namespace

void bind_match_both(py::module_& m) {
  m.def("match_both", &forward, py::arg("fa"), py::arg("fb"), py::arg("mask_a"), py::arg("mask_b"), py::arg("beta"),
        py::arg("normalize") = true, py::arg("simple") = false, py::arg("chunk_bytes") = 0, py::arg("precision") = 0,
        py::arg("portable") = false);
  m.def("match_both_backward", &backward, py::arg("fa"), py::arg("fb"), py::arg("mask_a"), py::arg("mask_b"),
        py::arg("beta"), py::arg("saved"), py::arg("grads"), py::arg("normalize"), py::arg("simple"), py::arg("need"),
        py::arg("chunk_bytes") = 0, py::arg("portable") = false);
}

}  // namespace hostsim
}  // namespace cosegflow
