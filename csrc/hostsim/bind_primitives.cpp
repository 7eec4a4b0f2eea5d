// run_primitive_test and run_hopper_test (name, a, b, out, ...): see primitives_tests.cu and primitives_hopper_tests.cu
// for what each does with its arrays.
#include <algorithm>
#include <vector>

#include <pybind11/stl.h>

#include "hostsim/numpy_view.h"
#include "hostsim/primitives_tests.h"

namespace cosegflow {
namespace hostsim {

void bind_primitives(py::module_& m) {
  m.def(
      "run_primitive_test",
      [](const std::string& name, const py::object& a, const py::object& b, const py::object& out, int parameter,
         int block, int grid, int64_t dynamic_bytes) {
        PrimitiveTest t;
        t.a = pointer(a, "a");
        t.b = pointer(b, "b");
        t.out = pointer(out, "out");
        t.parameter = parameter;
        t.block = block;
        t.grid = grid;
        t.dynamic_bytes = dynamic_bytes;
        check(run_primitive_test(name.c_str(), t, nullptr));
      },
      py::arg("name"), py::arg("a") = py::none(), py::arg("b") = py::none(), py::arg("out") = py::none(), py::kw_only(),
      py::arg("parameter") = 0, py::arg("block") = 32, py::arg("grid") = 1, py::arg("dynamic_bytes") = 0);
  m.def(
      "run_hopper_test",
      [](const std::string& name, const py::object& a, const py::object& b, const py::object& out, int parameter,
         int block, int grid, int64_t dynamic_bytes, int fault, const std::vector<int64_t>& numbers) {
        PrimitiveTest t;
        t.a = pointer(a, "a");
        t.b = pointer(b, "b");
        t.out = pointer(out, "out");
        t.parameter = parameter;
        t.block = block;
        t.grid = grid;
        t.dynamic_bytes = dynamic_bytes;
        t.fault = fault;
        if (numbers.size() > 7) throw std::invalid_argument("run_hopper_test: more than 7 numbers");
        std::copy(numbers.begin(), numbers.end(), t.numbers);
        check(run_hopper_test(name.c_str(), t, nullptr));
      },
      py::arg("name"), py::arg("a") = py::none(), py::arg("b") = py::none(), py::arg("out") = py::none(), py::kw_only(),
      py::arg("parameter") = 0, py::arg("block") = 128, py::arg("grid") = 1, py::arg("dynamic_bytes") = 0,
      py::arg("fault") = 0, py::arg("numbers") = std::vector<int64_t>());
}

}  // namespace hostsim
}  // namespace cosegflow
