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

// The same for all devices, from the driver's version alone.
PyObject* driver_problem(PyObject*, PyObject*) {
  return PyUnicode_FromString(cuda::driver_problem().c_str());
}

// The newest CUDA that the driver supports, as in "12.4"; None: there is no driver.
PyObject* cuda_driver(PyObject*, PyObject*) {
  const std::string version = cuda::driver_version();
  if (version.empty()) Py_RETURN_NONE;
  return PyUnicode_FromString(version.c_str());
}

PyMethodDef functions[] = {{"device_problem", &device_problem, METH_O, nullptr},
                           {"driver_problem", &driver_problem, METH_NOARGS, nullptr},
                           {"cuda_driver", &cuda_driver, METH_NOARGS, nullptr},
                           {}};

}  // namespace

bool bind_backend(PyObject* module) {
  return PyModule_AddStringConstant(module, "device_type", "cuda") == 0 &&
         PyModule_AddStringConstant(module, "archs", FASTKD_CUDA_ARCHS) == 0 &&  // as compiled for
         PyModule_AddStringConstant(module, "cuda_runtime", cuda::runtime_version().c_str()) == 0 &&
         PyModule_AddFunctions(module, functions) == 0;
}

}  // namespace fastkd
