// SPDX-License-Identifier: Apache-2.0
#include "backends/backend.h"
#include "cpu/parallel.h"

namespace fastkd {

namespace {

// Takes the address of torch's thread pool entry.
PyObject* set_parallel_for(PyObject*, PyObject* address) {
  void* const entry = PyLong_AsVoidPtr(address);
  if (entry == nullptr && PyErr_Occurred() != nullptr) return nullptr;
  cpu::set_parallel_for(reinterpret_cast<cpu::ParallelFor>(entry));
  Py_RETURN_NONE;
}

PyMethodDef functions[] = {{"set_parallel_for", &set_parallel_for, METH_O, nullptr}, {}};

}  // namespace

// Written with Python's C API: pybind11's header would take most of the time to compile this file.
bool bind_backend(PyObject* module) {
  return PyModule_AddStringConstant(module, "device_type", "cpu") == 0 &&
         PyModule_AddFunctions(module, functions) == 0;
}

}  // namespace fastkd
