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

}  // namespace

void bind_gradients(py::module_& m) {
  m.def("normalize_backward", &normalize_backward, py::arg("grad_f_hat"), py::kw_only(),
        py::arg("features") = py::none(), py::arg("inv_norm") = py::none(), py::arg("index") = py::none(),
        py::arg("count") = py::none(), py::arg("unscale") = py::none(), py::arg("folded") = false, py::arg("grad"));
}

}  // namespace hostsim
}  // namespace cosegflow
