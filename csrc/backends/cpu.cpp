// SPDX-License-Identifier: Apache-2.0
#include "backends/backend.h"
#include "cpu/parallel.h"

namespace fastkd {

void bind_backend(py::module_& m) {
  m.attr("device_type") = "cpu";
  m.def("set_parallel_for", [](int64_t address) {
    cpu::set_parallel_for(reinterpret_cast<cpu::ParallelFor>(address));
  });
}

}  // namespace fastkd
