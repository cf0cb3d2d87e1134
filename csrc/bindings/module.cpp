// SPDX-License-Identifier: Apache-2.0
// The Python module of every backend: compiled once and linked into each, which exports the entry
// of its own name. Types are module_local: several builds may be loaded side by side.
#include "backends/backend.h"
#include "bindings/bindings.h"
#include "bindings/feature_losses.h"
#include "bindings/logit_losses.h"
#include "bindings/pair_losses.h"

namespace {

// Of fastkd/_native_module.py, which has the same number and says when to raise it.
constexpr int kInterface = 6;

void fill(fastkd::py::module_& m) {
  m.doc() = "Kernels of one fastkd backend; call them through fastkd.";
  m.attr("interface") = kInterface;
  fastkd::bind_logit_losses(m);
  fastkd::bind_pair_losses(m);
  fastkd::bind_feature_losses(m);
  if (!fastkd::bind_backend(m.ptr())) throw fastkd::py::error_already_set();
}

}  // namespace

PYBIND11_MODULE(_cpu_base, m) { fill(m); }
PYBIND11_MODULE(_cpu_avx2, m) { fill(m); }
PYBIND11_MODULE(_cpu_avx512, m) { fill(m); }
PYBIND11_MODULE(_cuda, m) { fill(m); }
PYBIND11_MODULE(_cuda_emulated, m) { fill(m); }
