// SPDX-License-Identifier: Apache-2.0
// Knobs of the emulator, for tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "backends/backend.h"
#include "backends/simulated_chip.h"
#include "cuda/plan.h"
#include "emulator/launch.h"

namespace fastkd {

namespace {

namespace py = pybind11;

using emulator::Async;
using emulator::Order;

Order order_of(const std::string& name) {
  if (name == "round_robin") return Order::kRoundRobin;
  if (name == "greedy") return Order::kGreedy;
  if (name == "reversed") return Order::kReversed;
  if (name == "random") return Order::kRandom;
  throw py::value_error("order must be one of round_robin, greedy, reversed, random, got " + name);
}

// Chip, order of threads, and whether copies land as late as they may.
void simulate(int capability, const std::string& order, uint64_t seed, bool lazy_copies,
              int register_threads, int room_for_clusters) {
  const Order chosen = order_of(order);
  if (register_threads < 32 || register_threads > cuda::kRegisterThreads ||
      register_threads % 32 != 0) {
    throw py::value_error("no kernel has blocks of " + std::to_string(register_threads) +
                          " threads");
  }
  if (!emulator::simulate_chip(capability, register_threads, room_for_clusters)) {
    throw py::value_error("no chip of capability " + std::to_string(capability));
  }
  emulator::set_order(chosen, seed);
  emulator::set_async(lazy_copies ? Async::kLazy : Async::kEager);
}

py::dict plan_of(int64_t classes, int64_t teacher_classes, int student_dtype, int teacher_dtype,
                 bool contiguous_classes, int capability, int max_cluster, int64_t shared_bytes) {
  LogitArgs args;
  args.student.classes = classes;
  args.teacher.classes = teacher_classes;
  args.student.dtype = static_cast<Dtype>(student_dtype);
  args.teacher.dtype = static_cast<Dtype>(teacher_dtype);
  args.student.stride_class = args.teacher.stride_class = contiguous_classes ? 1 : 2;
  const cuda::Plan plan = cuda::plan(args, {capability, max_cluster, max_cluster, shared_bytes});
  py::dict out;
  out["kernel"] = cuda::kernel_name(plan.kernel);
  out["threads"] = plan.threads;
  out["lanes"] = plan.lanes;
  out["cluster"] = plan.cluster;
  out["slice"] = plan.slice;
  out["slices"] = plan.slices;
  out["rows"] = plan.rows;
  return out;
}

}  // namespace

bool bind_backend(PyObject* module) {
  auto m = py::reinterpret_borrow<py::module_>(module);
  m.attr("device_type") = "cuda";
  m.def("simulate", &simulate, py::arg("capability"), py::arg("order"), py::arg("seed") = 0,
        py::arg("lazy_copies") = false, py::arg("register_threads") = cuda::kRegisterThreads,
        py::arg("room_for_clusters") = 16);
  m.def("launched", &emulator::take_launches);
  m.def("plan", &plan_of, py::arg("classes"), py::arg("teacher_classes"), py::arg("student_dtype"),
        py::arg("teacher_dtype"), py::arg("contiguous_classes"), py::arg("capability"),
        py::arg("max_cluster"), py::arg("shared_bytes"));
  return true;
}

}  // namespace fastkd
