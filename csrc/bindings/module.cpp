// SPDX-License-Identifier: Apache-2.0
// The Python module of one backend. Types are module_local: several builds may be loaded side by
// side.
#include "backends/backend.h"
#include "bindings/bindings.h"

// Of fastkd/_native_module.py, which has the same number and says when to raise it.
constexpr int kInterface = 5;

PYBIND11_MODULE(FASTKD_MODULE, m) {
  m.doc() = "Kernels of one fastkd backend; call them through fastkd.";
  m.attr("interface") = kInterface;
  fastkd::bind_logit_losses(m);
  fastkd::bind_pair_losses(m);
  fastkd::bind_feature_losses(m);
  fastkd::bind_backend(m);
}
