// SPDX-License-Identifier: Apache-2.0
// Rows of logits as floats, vector by vector: of one type known when compiled, or of any mixture.
#pragma once

#include "cuda/row_call.h"
#include "cuda/vector_memory.h"

namespace fastkd::cuda {

// Stands for a type that the call names: student and teacher of different types.
struct AnyType {};

template <class T>
class LogitReader {
 public:
  static constexpr int kPerVector = kWidth<T>;

  // `count`: classes that are there; beyond them -inf is read.
  template <class Call>
  __device__ __forceinline__ LogitReader(const Call& call, const LogitView& view, int64_t row,
                                         int64_t count)
      : row_(call.template row_of<const T>(view, row)), count_(count), aligned_(call.aligned) {}

  __device__ __forceinline__ void read(int64_t first, float (&x)[kPerVector]) const {
    unpack<T>(load_vector(row_, first, count_, aligned_), x);
  }

  // Any class of the row, whatever `count` is.
  __device__ __forceinline__ float one(int64_t c) const { return widen(row_[c]); }

 private:
  const T* row_;
  int64_t count_;
  bool aligned_;
};

template <class T>
class LogitWriter {
 public:
  template <class Call>
  __device__ __forceinline__ LogitWriter(const Call& call, int64_t row, int64_t count)
      : row_(call.template row_of<T>(call.args.grad, row)), count_(count), aligned_(call.aligned) {}

  // Lane `rank` of `lanes` writes behind the lane before; all lanes of the warp call together.
  __device__ __forceinline__ void write(int64_t first, const float (&x)[kWidth<T>], int rank,
                                        int lanes) const {
    store_vector(row_, first, count_, aligned_, pack<T>(x), rank, lanes);
  }

  __device__ __forceinline__ void write_one(int64_t c, float x) const { row_[c] = narrow<T>(x); }

 private:
  T* row_;
  int64_t count_;
  bool aligned_;
};

template <>
class LogitReader<AnyType> {
 public:
  static constexpr int kPerVector = 8;

  template <class Call>
  __device__ __forceinline__ LogitReader(const Call& call, const LogitView& view, int64_t row,
                                         int64_t count)
      : row_(row_address(call, view, row)),
        dtype_(view.dtype),
        count_(count),
        aligned_(call.aligned) {}

  __device__ __forceinline__ void read(int64_t first, float (&x)[kPerVector]) const {
    if (dtype_ == Dtype::kFloat32) {
      const float* const row = static_cast<const float*>(row_);
      const Words low = load_vector(row, first, count_, aligned_);
      const Words high = load_vector(row, first + 4, count_, aligned_);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = bit_cast<float>(low.word[i]);
        x[4 + i] = bit_cast<float>(high.word[i]);
      }
    } else if (dtype_ == Dtype::kBFloat16) {
      unpack<BFloat16>(load_vector(static_cast<const BFloat16*>(row_), first, count_, aligned_), x);
    } else {
      unpack<Float16>(load_vector(static_cast<const Float16*>(row_), first, count_, aligned_), x);
    }
  }

  __device__ __forceinline__ float one(int64_t c) const {
    if (dtype_ == Dtype::kFloat32) return static_cast<const float*>(row_)[c];
    if (dtype_ == Dtype::kBFloat16) return widen(static_cast<const BFloat16*>(row_)[c]);
    return widen(static_cast<const Float16*>(row_)[c]);
  }

  template <class Call>
  static __device__ __forceinline__ void* row_address(const Call& call, const LogitView& view,
                                                      int64_t row) {
    LogitView bytes = view;
    const int64_t size = element_size(view.dtype);
    bytes.stride_outer *= size;
    bytes.stride_inner *= size;
    return call.template row_of<char>(bytes, row);
  }

 private:
  const void* row_;
  Dtype dtype_;
  int64_t count_;
  bool aligned_;
};

template <>
class LogitWriter<AnyType> {
 public:
  template <class Call>
  __device__ __forceinline__ LogitWriter(const Call& call, int64_t row, int64_t count)
      : row_(LogitReader<AnyType>::row_address(call, call.args.grad, row)),
        dtype_(call.args.grad.dtype),
        count_(count),
        aligned_(call.aligned) {}

  __device__ __forceinline__ void write(int64_t first, const float (&x)[8], int rank,
                                        int lanes) const {
    if (dtype_ == Dtype::kBFloat16) {
      store_vector(static_cast<BFloat16*>(row_), first, count_, aligned_, pack<BFloat16>(x), rank,
                   lanes);
    } else if (dtype_ == Dtype::kFloat16) {
      store_vector(static_cast<Float16*>(row_), first, count_, aligned_, pack<Float16>(x), rank,
                   lanes);
    } else {  // two vectors a lane: the lane before does not hold what stands before
      float* const row = static_cast<float*>(row_);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float four[4] = {x[4 * half], x[4 * half + 1], x[4 * half + 2], x[4 * half + 3]};
        store_vector(row, first + 4 * half, count_, aligned_, pack<float>(four), 0, 1);
      }
    }
  }

  __device__ __forceinline__ void write_one(int64_t c, float x) const {
    if (dtype_ == Dtype::kFloat32) {
      static_cast<float*>(row_)[c] = x;
    } else if (dtype_ == Dtype::kBFloat16) {
      static_cast<BFloat16*>(row_)[c] = narrow<BFloat16>(x);
    } else {
      static_cast<Float16*>(row_)[c] = narrow<Float16>(x);
    }
  }

 private:
  void* row_;
  Dtype dtype_;
  int64_t count_;
  bool aligned_;
};

}  // namespace fastkd::cuda
