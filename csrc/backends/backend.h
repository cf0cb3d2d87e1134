// SPDX-License-Identifier: Apache-2.0
// What the module of a backend has besides the kernels.
#pragma once

#include <pybind11/pybind11.h>

namespace fastkd {

namespace py = pybind11;

void bind_backend(py::module_& m);

}  // namespace fastkd
