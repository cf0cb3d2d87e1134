// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "backends/backend.h"
#include "cuda/device_problem.h"

namespace fastkd {

void bind_backend(py::module_& m) {
  m.attr("device_type") = "cuda";
  // Why the kernels can't run on a device; empty: they can.
  m.def("device_problem", &cuda::device_problem, py::arg("device"));
  m.attr("archs") = FASTKD_CUDA_ARCHS;  // what setup.py compiled for
}

}  // namespace fastkd
