// hostsim: transfer on NumPy arrays. Results are new arrays, in the shapes and dtypes of the C++ API; they and the
// workspace start as NaN, so that what a kernel forgets to write shows.
#include <pybind11/stl.h>

#include <cstring>
#include <vector>

#include "cosegflow/transfer.h"
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

TransferParams common(const py::array& fa, const py::array& fb, const py::array& values, const py::object& mask_a,
                      const py::object& mask_b, const py::array& beta, bool normalize, bool simple,
                      size_t chunk_bytes) {
  TransferParams p;
  p.fa = view<4>(fa, "fa"), p.fb = view<4>(fb, "fb"), p.values = view<4>(values, "values");
  p.batch = fa.shape(0), p.channels = fa.shape(1), p.value_channels = values.shape(1);
  p.height_a = fa.shape(2), p.width_a = fa.shape(3), p.height_b = fb.shape(2), p.width_b = fb.shape(3);
  if (fb.shape(0) != p.batch || fb.shape(1) != p.channels) throw std::invalid_argument("fb: its B and C are not fa's");
  if (values.shape(0) != p.batch || values.shape(2) != p.height_b || values.shape(3) != p.width_b) {
    throw std::invalid_argument("values: their B, H and W are not fb's");
  }
  p.mask_a = view<3>(mask_a, "mask_a"), p.mask_b = view<3>(mask_b, "mask_b");
  p.beta = view<1>(beta, "beta");
  if (beta.shape(0) != p.batch) throw std::invalid_argument("beta: needs shape (B,)");
  p.normalize = normalize, p.simple = simple, p.chunk_bytes = chunk_bytes;
  return p;
}

// A workspace of exactly the bytes that were asked for, so that AddressSanitizer sees one too few.
std::vector<char> workspace_of(size_t bytes) { return std::vector<char>(bytes, char(0xff)); }

py::tuple forward(const py::array& fa, const py::array& fb, const py::array& values, const py::object& mask_a,
                  const py::object& mask_b, const py::array& beta, bool normalize, bool simple, size_t chunk_bytes,
                  int precision, bool portable) {
  TransferParams p = common(fa, fb, values, mask_a, mask_b, beta, normalize, simple, chunk_bytes);
  p.precision = static_cast<Precision>(precision), p.portable = portable;
  const py::array out = accumulate_array(p.fa.dtype, {p.batch, p.value_channels, p.height_a, p.width_a});
  const py::array lse = accumulate_array(p.fa.dtype, {p.batch, p.height_a, p.width_a});
  p.out = output<4>(out, "out"), p.lse = output<3>(lse, "lse");
  std::vector<char> workspace = workspace_of(transfer_forward_workspace_bytes_cuda(p));
  check(transfer_forward_cuda(p, workspace.data(), nullptr));
  return py::make_tuple(out, lse);
}

py::tuple backward(const py::array& grad_out, const py::array& fa, const py::array& fb, const py::array& values,
                   const py::object& mask_a, const py::object& mask_b, const py::array& beta, const py::array& out,
                   const py::array& lse, bool normalize, bool simple, const std::vector<bool>& need, size_t chunk_bytes,
                   bool portable) {
  TransferParams p = common(fa, fb, values, mask_a, mask_b, beta, normalize, simple, chunk_bytes);
  p.portable = portable;
  p.out = view<4>(out, "out"), p.lse = view<3>(lse, "lse"), p.grad_out = view<4>(grad_out, "grad_out");
  py::object grad_fa = py::none(), grad_fb = py::none(), grad_values = py::none(), grad_mask_b = py::none(),
             grad_beta = py::none();
  if (need.at(0)) {
    grad_fa = poisoned(py::array(fa.dtype(), Shape{p.batch, p.channels, p.height_a, p.width_a}));
    p.grad_fa = output<4>(grad_fa, "grad_fa");
  }
  if (need.at(1)) {
    grad_fb = poisoned(py::array(fb.dtype(), Shape{p.batch, p.channels, p.height_b, p.width_b}));
    p.grad_fb = output<4>(grad_fb, "grad_fb");
  }
  if (need.at(2)) {
    grad_values = poisoned(py::array(values.dtype(), Shape{p.batch, p.value_channels, p.height_b, p.width_b}));
    p.grad_values = output<4>(grad_values, "grad_values");
  }
  if (need.at(3)) {
    grad_mask_b = accumulate_array(p.fa.dtype, {p.batch, p.height_b, p.width_b});
    p.grad_mask_b = output<3>(grad_mask_b, "grad_mask_b");
  }
  if (need.at(4)) {
    grad_beta = accumulate_array(p.fa.dtype, {p.batch});
    p.grad_beta = output<1>(grad_beta, "grad_beta");
  }
  std::vector<char> workspace = workspace_of(transfer_backward_workspace_bytes_cuda(p));
  check(transfer_backward_cuda(p, workspace.data(), nullptr));
  return py::make_tuple(grad_fa, grad_fb, grad_values, grad_mask_b, grad_beta);
}

}  // namespace

void bind_transfer(py::module_& m) {
  m.def("transfer", &forward, py::arg("fa"), py::arg("fb"), py::arg("values"), py::arg("mask_a"), py::arg("mask_b"),
        py::arg("beta"), py::arg("normalize") = true, py::arg("simple") = false, py::arg("chunk_bytes") = 0,
        py::arg("precision") = 0, py::arg("portable") = false);
  m.def("transfer_backward", &backward, py::arg("grad_out"), py::arg("fa"), py::arg("fb"), py::arg("values"),
        py::arg("mask_a"), py::arg("mask_b"), py::arg("beta"), py::arg("out"), py::arg("lse"), py::arg("normalize"),
        py::arg("simple"), py::arg("need"), py::arg("chunk_bytes") = 0, py::arg("portable") = false);
}

}  // namespace hostsim
}  // namespace cosegflow
