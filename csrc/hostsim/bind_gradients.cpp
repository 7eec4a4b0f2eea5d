// hostsim: the shared pieces of the backward passes on NumPy arrays.
#include "common/dispatch.h"
#include "hostsim/gradients_tests.h"
#include "hostsim/numpy_view.h"

namespace cosegflow {
namespace hostsim {
namespace {

// grad_f_hat (partials, B, rows, C), features (B, N, pitch) or None, inv_norm (B, pitch, stride) or None, index (B, N)
// or None, count (B) or None, unscale (B) or None; grad (B, C, N), whose type decides, is written.
void normalize_backward(const py::array& grad_f_hat, const py::object& features, const py::object& inv_norm,
                        const py::object& index, const py::object& count, const py::object& unscale, bool folded,
                        const py::array& grad) {
  check(dispatch_floating(dtype_of(grad, "grad"), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulate_t<T>;
    NormalizeBackwardArgs<T> args;
    args.batch = grad.shape(0), args.channels = grad.shape(1), args.positions = grad.shape(2);
    args.grad_f_hat = pointer<Acc>(grad_f_hat, "grad_f_hat");
    args.partials = grad_f_hat.shape(0), args.grad_rows = grad_f_hat.shape(2);
    args.partial_stride = args.batch * args.grad_rows * args.channels;
    if (!features.is_none()) {
      args.normalize = true, args.folded = folded;
      args.features = pointer<T>(features, "features");
      args.padded_channels = py::cast<py::array>(features).shape(2);
      args.inv_norm = pointer<Acc>(inv_norm, "inv_norm");
      args.inv_norm_pitch = py::cast<py::array>(inv_norm).shape(1);
      args.inv_norm_stride = py::cast<py::array>(inv_norm).shape(2);
    }
    args.unscale = pointer<float>(unscale, "unscale");
    args.index = pointer<int>(index, "index"), args.count = pointer<int>(count, "count");
    args.grad = pointer<T>(grad, "grad");
    return run_normalize_backward(args, nullptr);
  }));
}

// out (splits, B, out_rows, C) (+)= sum over k of lhs and rhs (B, rhs_rows, pitch). lhs and gate (B, anything, pitch):
// `rows` x `depth` of them, or where transposed depth x rows.
template <class T>
void product_of(const py::array& lhs, const py::object& gate, const py::array& rhs, int64_t rows, int64_t depth,
                bool transposed, const py::object& row_count, const py::object& depth_count, int64_t row_begin,
                int64_t depth_begin, bool accumulate, const py::array& out) {
  HalfLhs<T> left;
  left.data = pointer<T>(lhs, "lhs"), left.gate = pointer<T>(gate, "gate");
  left.pitch = lhs.shape(2), left.batch_stride = lhs.shape(1) * lhs.shape(2);
  ProductArgs<T> args;
  args.batch = lhs.shape(0), args.rows = rows, args.depth = depth;
  args.row_count = pointer<int>(row_count, "row_count"), args.depth_count = pointer<int>(depth_count, "depth_count");
  args.row_begin = row_begin, args.depth_begin = depth_begin;
  args.rhs = pointer<T>(rhs, "rhs"), args.rhs_rows = rhs.shape(1), args.padded_channels = rhs.shape(2);
  args.out = pointer<float>(out, "out"), args.out_rows = out.shape(2), args.channels = out.shape(3);
  args.accumulate = accumulate;
  const ProductSplits splits{static_cast<int>(out.shape(0)), out.shape(1) * out.shape(2) * out.shape(3)};
  check(run_gradient_product(args, left, transposed, splits, nullptr));
}

void gradient_product(const py::array& lhs, const py::object& gate, const py::array& rhs, int64_t rows, int64_t depth,
                      bool transposed, const py::object& row_count, const py::object& depth_count, int64_t row_begin,
                      int64_t depth_begin, bool accumulate, const py::array& out) {
  const auto run = dtype_of(lhs, "lhs") == DType::kFloat16 ? &product_of<Half> : &product_of<BFloat16>;
  run(lhs, gate, rhs, rows, depth, transposed, row_count, depth_count, row_begin, depth_begin, accumulate, out);
}

}  // namespace

void bind_gradients(py::module_& m) {
  m.def("normalize_backward", &normalize_backward, py::arg("grad_f_hat"), py::kw_only(),
        py::arg("features") = py::none(), py::arg("inv_norm") = py::none(), py::arg("index") = py::none(),
        py::arg("count") = py::none(), py::arg("unscale") = py::none(), py::arg("folded") = false, py::arg("grad"));
  m.def("gradient_product", &gradient_product, py::arg("lhs"), py::arg("gate"), py::arg("rhs"), py::kw_only(),
        py::arg("rows"), py::arg("depth"), py::arg("transposed") = false, py::arg("row_count") = py::none(),
        py::arg("depth_count") = py::none(), py::arg("row_begin") = 0, py::arg("depth_begin") = 0,
        py::arg("accumulate") = false, py::arg("out"));
}

}  // namespace hostsim
}  // namespace cosegflow
