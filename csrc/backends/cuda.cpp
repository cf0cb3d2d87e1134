// SPDX-License-Identifier: Apache-2.0
#include <Python.h>

#include <string>

#include "backends/backend.h"
#include "cuda/device_problem.h"

namespace fastkd {

namespace {

// Why the kernels can't run on a device; empty: they can.
PyObject* device_problem(PyObject*, PyObject* device) {
  const long index = PyLong_AsLong(device);
  if (index == -1 && PyErr_Occurred() != nullptr) return nullptr;
  return PyUnicode_FromString(cuda::device_problem(static_cast<int>(index)).c_str());
}

PyMethodDef functions[] = {{"device_problem", &device_problem, METH_O, nullptr}, {}};

}  // namespace

bool bind_backend(PyObject* module) {
  return PyModule_AddStringConstant(module, "device_type", "cuda") == 0 &&
         PyModule_AddStringConstant(module, "archs", FASTKD_CUDA_ARCHS) == 0 &&  // as compiled for
         PyModule_AddFunctions(module, functions) == 0;
}

}  // namespace fastkd
