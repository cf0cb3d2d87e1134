// SPDX-License-Identifier: Apache-2.0
// Kernels of a GPU over the host's memory: every call copies its arrays to allocations of their
// exact sizes, so that compute-sanitizer sees each access outside them, and back.
#pragma once

#include <vector>

#include "tests/on_gpu.h"

namespace fastkd::check::call {

// The device's twins of the arrays of one call.
class Twins {
 public:
  Twins() = default;
  Twins(const Twins&) = delete;
  Twins& operator=(const Twins&) = delete;

  // Waits, copies back what was copied there, and frees.
  ~Twins() {
    cuda::require(cudaDeviceSynchronize(), "kernel");
    for (const Twin& twin : twins_) {
      if (twin.copied) copy(twin.host, twin.device, twin.bytes, cudaMemcpyDeviceToHost);
      cudaFree(twin.allocation);
    }
  }

  // `copied`: else the kernel finds what nobody wrote, as in a workspace.
  template <class T>
  T* of(T* array, int64_t count, bool copied = true) {
    void* const host = const_cast<void*>(static_cast<const void*>(array));
    const size_t bytes = static_cast<size_t>(count) * size_of(array);
    if (host == nullptr || bytes == 0) return array;
    for (const Twin& twin : twins_) {
      if (twin.host == host) return static_cast<T*>(twin.device);
    }
    const size_t past = reinterpret_cast<uintptr_t>(host) % 16;  // a multiple of 16 bytes
    void* allocation = nullptr;
    cuda::require(cudaMalloc(&allocation, past + bytes), "cudaMalloc");
    void* const device = static_cast<char*>(allocation) + past;
    if (copied) copy(device, host, bytes, cudaMemcpyHostToDevice);
    twins_.push_back({host, device, allocation, bytes, copied});
    return static_cast<T*>(device);
  }

  void move(LogitView& view, int64_t outer, int64_t inner) {
    const int64_t last = (outer - 1) * view.stride_outer + (view.classes - 1) * view.stride_class +
                         (inner - 1) * view.stride_inner;
    view.data = of(static_cast<char*>(view.data), (last + 1) * element_size(view.dtype));
  }

 private:
  struct Twin {
    void *host, *device, *allocation;
    size_t bytes;
    bool copied;
  };

  template <class T>
  static size_t size_of(T*) {
    return sizeof(T);
  }
  static size_t size_of(void*) { return 1; }

  static void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    cuda::require(cudaMemcpy(to, from, bytes, kind), "cudaMemcpy");
  }

  std::vector<Twin> twins_;
};

inline LogitArgs move(Twins& twins, LogitArgs args, const RowOptions& rows) {
  twins.move(args.student, args.outer, args.inner);
  twins.move(args.teacher, args.outer, args.inner);
  twins.move(args.grad, args.outer, args.inner);
  args.target = twins.of(args.target, args.rows());
  args.sample_weight = twins.of(args.sample_weight, args.rows());
  args.loss = twins.of(args.loss, rows.reduction == Reduction::kNone ? args.rows() : 1);
  args.unscale = twins.of(args.unscale, 1);
  args.workspace = twins.of(args.workspace, workspace_bytes(args.rows()), false);
  return args;
}

inline Outcome kd_loss(const LogitArgs& args, const RowOptions& rows, const KdLossOptions& o) {
  Twins twins;
  return fastkd::kd_loss(move(twins, args, rows), rows, o);
}

inline Outcome topk_kd_loss(const LogitArgs& args, const NamedClasses& named,
                            const RowOptions& rows, const TopKKdLossOptions& o) {
  Twins twins;
  const int64_t entries = args.rows() * named.count;
  const NamedClasses moved{twins.of(named.values, entries), twins.of(named.indices, entries),
                           named.count};
  return fastkd::topk_kd_loss(move(twins, args, rows), moved, rows, o);
}

inline Outcome scale_gradient(ScaleArgs args) {
  Twins twins;
  twins.move(args.grad, args.outer, args.inner);
  twins.move(args.out, args.outer, args.inner);
  args.grad_loss = twins.of(args.grad_loss, args.per_row ? args.outer * args.inner : 1);
  args.unscale = twins.of(args.unscale, 1);
  return fastkd::scale_gradient(args);
}

inline PairArgs move(Twins& twins, PairArgs args, int64_t workspace) {
  args.student.data = twins.of(args.student.data, args.rows * args.student.features);
  args.teacher.data = twins.of(args.teacher.data, args.rows * args.teacher.features);
  args.loss = twins.of(args.loss, 1);
  args.grad = twins.of(args.grad, args.rows * args.student.features);
  args.workspace = twins.of(args.workspace, workspace, false);
  return args;
}

inline Outcome rkd_loss(const PairArgs& args, const RkdOptions& o) {
  Twins twins;
  return fastkd::rkd_loss(move(twins, args, rkd_loss_workspace(args, o)), o);
}

inline Outcome similarity_loss(const PairArgs& args, const SimilarityOptions& o) {
  Twins twins;
  return fastkd::similarity_loss(move(twins, args, similarity_loss_workspace(args, o)), o);
}

inline Outcome attention_transfer_loss(AttentionArgs args) {
  Twins twins;
  const int64_t workspace = attention_transfer_loss_workspace(args);
  twins.move(args.student, args.samples, args.positions);
  twins.move(args.teacher, args.samples, args.positions);
  args.loss = twins.of(args.loss, 1);
  args.map_grad = twins.of(args.map_grad, args.samples * args.positions);
  args.workspace = twins.of(args.workspace, workspace, false);
  return fastkd::attention_transfer_loss(args);
}

inline Outcome attention_transfer_gradient(AttentionGradArgs args) {
  Twins twins;
  twins.move(args.student, args.samples, args.positions);
  twins.move(args.grad, args.samples, args.positions);
  args.map_grad = twins.of(args.map_grad, args.samples * args.positions);
  args.grad_loss = twins.of(args.grad_loss, 1);
  return fastkd::attention_transfer_gradient(args);
}

}  // namespace fastkd::check::call
