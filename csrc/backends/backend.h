// SPDX-License-Identifier: Apache-2.0
// What the module of a backend has besides the kernels.
#pragma once

#include <Python.h>

namespace fastkd {

// False: a Python exception is set.
bool bind_backend(PyObject* module);

}  // namespace fastkd
