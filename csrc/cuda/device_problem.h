// SPDX-License-Identifier: Apache-2.0
// Why the kernels can't run on a device.
#pragma once

#include <string>

namespace fastkd::cuda {

// Empty: they can. The device is current.
std::string device_problem(int device);

}  // namespace fastkd::cuda
