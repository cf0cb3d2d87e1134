// SPDX-License-Identifier: Apache-2.0
// Why the kernels can't run on a device.
#pragma once

#include <string>

namespace fastkd::cuda {

std::string device_problem(int device);  // empty: they can

}  // namespace fastkd::cuda
