// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "bindings/bindings.h"

namespace fastkd {

inline PairArgs sizes_of(int64_t rows, int64_t student_features, int64_t teacher_features,
                         bool with_grad) {
  if (rows < 1 || student_features < 1 || teacher_features < 1) reject("empty embeddings");
  PairArgs args;
  args.rows = rows;
  args.student.features = student_features;
  args.teacher.features = teacher_features;
  args.with_grad = with_grad;
  return args;
}

// `kernel` and how much scratch it wants, both of (args, options).
template <class Options>
inline void bind_pair_loss(py::module_& m, const std::string& name,
                           Outcome (*kernel)(const PairArgs&, const Options&),
                           int64_t (*workspace)(const PairArgs&, const Options&)) {
  m.def((name + "_workspace").c_str(),
        [workspace](const Options& options, int64_t rows, int64_t student_features,
                    int64_t teacher_features, bool with_grad) {
          return workspace(sizes_of(rows, student_features, teacher_features, with_grad), options);
        });
  m.def(name.c_str(),
        [kernel](const Options& options, int64_t rows, int64_t student_features,
                 int64_t teacher_features, int64_t student, int64_t teacher, int64_t loss,
                 int64_t grad, int64_t scratch, int device, int64_t stream) {
          PairArgs args = sizes_of(rows, student_features, teacher_features, grad != 0);
          args.student.data = required<const float>(student, "student");
          args.teacher.data = required<const float>(teacher, "teacher");
          args.loss = required<float>(loss, "loss");
          args.grad = pointer<float>(grad);
          args.workspace = required<void>(scratch, "workspace");
          args.queue = {device, pointer<void>(stream)};
          return run([&] { return kernel(args, options); });
        });
}

inline void bind_pair_losses(py::module_& m) {
  py::class_<RkdOptions>(m, "RkdOptions", py::module_local())
      .def(py::init([](double distance_weight, double angle_weight, int criterion, double beta,
                       int reduction, bool squared, double eps) {
             RkdOptions options;
             options.distance_weight = distance_weight;
             options.angle_weight = angle_weight;
             options.criterion = checked_code<Criterion>(criterion, 3, "criterion");
             options.beta = beta;
             options.reduction = checked_code<PairReduction>(reduction, 3, "reduction");
             options.squared = squared;
             options.eps = eps;
             return options;
           }),
           py::arg("distance_weight"), py::arg("angle_weight"), py::arg("criterion"),
           py::arg("beta"), py::arg("reduction"), py::arg("squared"), py::arg("eps"));
  py::class_<SimilarityOptions>(m, "SimilarityOptions", py::module_local())
      .def(py::init(
               [](int loss, int reduction, int criterion, double beta, double gamma, double eps) {
                 SimilarityOptions options;
                 options.loss = checked_code<Similarity>(loss, 4, "similarity");
                 options.reduction = checked_code<PairReduction>(reduction, 3, "reduction");
                 options.criterion = checked_code<Criterion>(criterion, 3, "criterion");
                 options.beta = beta;
                 options.gamma = gamma;
                 options.eps = eps;
                 return options;
               }),
           py::arg("loss"), py::arg("reduction"), py::arg("criterion"), py::arg("beta"),
           py::arg("gamma"), py::arg("eps"));
  bind_pair_loss(m, "rkd_loss", &rkd_loss, &rkd_loss_workspace);
  bind_pair_loss(m, "similarity_loss", &similarity_loss, &similarity_loss_workspace);
}

}  // namespace fastkd
