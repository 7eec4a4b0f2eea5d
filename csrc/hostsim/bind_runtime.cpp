// Python control over the simulation: in which order threads and blocks run, and how much work a test did.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "hostsim/runtime.h"

namespace py = pybind11;

namespace cosegflow {
namespace hostsim {

void bind_runtime(py::module_& m) {
  m.def(
      "set_order",
      [](const std::string& order, uint64_t seed) {
        if (order == "forward") {
          set_order(Order::kForward, seed);
        } else if (order == "reverse") {
          set_order(Order::kReverse, seed);
        } else if (order == "random") {
          set_order(Order::kRandom, seed);
        } else {
          throw std::invalid_argument("order is 'forward', 'reverse' or 'random', not '" + order + "'");
        }
      },
      py::arg("order"), py::arg("seed") = 0, "In which order the threads and blocks of later launches run.");
  m.def(
      "counters",
      [](bool reset) {
        const Counters c = counters(reset);
        py::dict d;
        d["launches"] = c.launches;
        d["blocks"] = c.blocks;
        d["threads"] = c.threads;
        d["switches"] = c.switches;
        return d;
      },
      py::arg("reset") = false, "Launches, blocks, threads and fiber switches since the last reset.");
}

}  // namespace hostsim
}  // namespace cosegflow
