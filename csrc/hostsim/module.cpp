// The Python module cosegflow_hostsim. Every bind_<name>.cpp beside this file defines bind_<name>(module); build.py
// finds them and writes bind_all, which calls each.
#include <pybind11/pybind11.h>

void cosegflow_hostsim_bind_all(pybind11::module_& m);

PYBIND11_MODULE(cosegflow_hostsim, m) {
  m.doc() = "The CUDA kernels of cosegflow, compiled by a C++ compiler and run on the CPU (for tests)";
  cosegflow_hostsim_bind_all(m);
}
