// SPDX-License-Identifier: Apache-2.0
// From Python's objects to Args, and from an Outcome to an exception; the same for every backend.
//
// A tensor arrives as the tuple (address, dtype code, sizes, strides) that fastkd/_native.py makes.
// The gate in fastkd/_front.py has seen to types, devices and dispatch; what is checked here again
// is what would otherwise read or write out of bounds.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "core/logit_layout.h"
#include "kernels.h"

namespace fastkd {

namespace py = pybind11;

[[noreturn]] void reject(const std::string& what);

// None gives data == nullptr.
TensorRef read_tensor(const py::object& object);

// Whether the kernel took the layout; throws for every other failure.
bool settle(const Outcome& outcome);

// Runs a kernel without the interpreter's lock.
template <class Kernel>
bool run(Kernel&& kernel) {
  Outcome outcome;
  {
    const py::gil_scoped_release release;
    outcome = kernel();
  }
  return settle(outcome);
}

// A code of an enumeration with `count` values.
template <class Enum>
Enum checked_code(int code, int count, const char* what) {
  if (code < 0 || code >= count) reject(std::string("unknown ") + what + " code");
  return static_cast<Enum>(code);
}

template <class T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

// Storage that a kernel will read or write.
template <class T>
T* required(int64_t address, const char* what) {
  if (address == 0) reject(std::string("no ") + what);
  return pointer<T>(address);
}

void bind_logit_losses(py::module_& m);
void bind_pair_losses(py::module_& m);
void bind_feature_losses(py::module_& m);

}  // namespace fastkd
