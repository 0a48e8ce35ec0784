// The machine's limits, one short probe a call (exec/probe.h).
#include "exec/probe.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

namespace nb = nanobind;
using namespace nb::literals;
using namespace octavo;

void bind_probe(nb::module_& m);

void bind_probe(nb::module_& m) {
  using Free = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<MachineProbe>(m, "MachineProbe")
      .def(nb::init<int, int, const std::string&>(), "threads"_a, "usable_cpus"_a, "isa"_a = "")
      .def("read", &MachineProbe::read, "bytes"_a, "seconds"_a, Free())
      .def("peak", &MachineProbe::peak, "kind"_a, "seconds"_a, Free())
      .def("instruction", &MachineProbe::instruction, "kind"_a)
      .def("barrier", &MachineProbe::barrier, "seconds"_a, Free())
      .def("clock", &MachineProbe::clock, "seconds"_a, Free());
}
