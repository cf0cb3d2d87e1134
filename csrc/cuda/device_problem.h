// SPDX-License-Identifier: Apache-2.0
// Why the kernels can't run on a device, and the versions of CUDA that meet in this process.
#pragma once

#include <string>

namespace fastkd::cuda {

// Empty: they can. The device is current.
std::string device_problem(int device);

// The part of the answer that needs no device: a driver that is missing or too old for this build.
// Neither this nor the versions below create a context.
std::string driver_problem();

// Versions of CUDA, as in 13.0: of the runtime in this build, and the newest that the driver
// supports, "" where there is no driver.
std::string runtime_version();
std::string driver_version();

}  // namespace fastkd::cuda
