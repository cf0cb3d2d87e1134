// SPDX-License-Identifier: Apache-2.0
// The gradient of features from the gradient of their map: every element is read once and written
// once, times the factor of its position.
#include "core/feature_layout.h"
#include "cuda/feature_runs.h"
#include "cuda/launch.h"
#include "kernels.h"
#include "losses/attention_transfer_loss.h"

namespace fastkd {

namespace cuda {
namespace {

struct GradientCall {
  LogitView x, grad;
  int64_t positions;
  uint32_t tiles;   // of a sample's positions
  uint32_t shares;  // of the channels: a block for each tile and share
  int lanes;
  bool x_aligned, grad_aligned;  // every run begins at a multiple of 16 bytes
  const float* map_grad;         // [samples, positions]
  const float* grad_loss;        // [1]
  double slope_scale;

  __device__ __forceinline__ float scale() const {
    return static_cast<float>(static_cast<double>(*grad_loss) * slope_scale);
  }
};

// Vectors that a thread loads before it stores the first.
constexpr int kGradientLoads = 4;

template <class T, class Power>
__device__ __forceinline__ void multiply_slopes(const Power& power, Words& words,
                                                float (&factor)[kWidth<T>]) {
  with_functor(power, [&](const auto& functor) {
    const auto turn = [&](int word) {
      float x[kPerWord<T>];
      unpack_word<T>(words.word[word], x);
#pragma unroll
      for (int i = 0; i < kPerWord<T>; ++i) {
        x[i] = factor[word * kPerWord<T> + i] * functor.slope(x[i]);
      }
      if constexpr (sizeof(T) == 4) {
        words.word[word] = bit_cast<uint32_t>(x[0]);
      } else {
        words.word[word] = pack_pair<T>(x[0], x[1]);
      }
    };
    for_words(functor, turn, [&] {
      rotate(words);
      rotate_by_word<T>(factor);
    });
  });
}

// Channels apart: a thread keeps the factors of a vector of positions for some channels.
template <class T, class Power>
__global__ void __launch_bounds__(kFeatureThreads, kFeatureBlocks)
    gradient_along_positions(const GradientCall call, const Power power) {
  constexpr int kPerVector = kWidth<T>;
  const uint32_t block = static_cast<uint32_t>(block_index());
  const int64_t share = block % call.shares;
  const uint32_t tile_of_all = block / call.shares;
  const int64_t sample = tile_of_all / call.tiles, tile = tile_of_all % call.tiles;
  const FeaturePlace place(1, call.lanes);
  const int64_t first = (tile * call.lanes + place.lane) * kPerVector;
  const T* const x = call.x.template at<const T>(sample, 0);
  T* const grad = call.grad.template at<T>(sample, 0);

  const float scale = call.scale();
  float factor[kPerVector];
#pragma unroll
  for (int i = 0; i < kPerVector; ++i) {
    const bool inside = first + i < call.positions;
    factor[i] = inside ? call.map_grad[sample * call.positions + first + i] * scale : 0.0f;
  }
  const int64_t begin = share * kGradientLoads * place.slices + place.slice;
  const auto count_of = [&](int64_t c) { return c < call.x.classes ? call.positions : 0; };
  Words words[kGradientLoads];
#pragma unroll
  for (int k = 0; k < kGradientLoads; ++k) {
    const int64_t c = begin + k * place.slices;
    words[k] = load_vector(x + c * call.x.stride_class, first, count_of(c), call.x_aligned);
  }
#pragma unroll
  for (int k = 0; k < kGradientLoads; ++k) {
    const int64_t c = begin + k * place.slices;
    multiply_slopes<T>(power, words[k], factor);
    store_vector(grad + c * call.grad.stride_class, first, count_of(c), call.grad_aligned, words[k],
                 place.lane, call.lanes);
  }
}

// Channels together: the lanes of a position share its factor.
template <class T, class Power>
__global__ void __launch_bounds__(kFeatureThreads, kFeatureBlocks)
    gradient_along_channels(const GradientCall call, const Power power) {
  constexpr int kPerVector = kWidth<T>;
  constexpr int kLoads = 2;
  const FeaturePlace place(call.tiles, call.lanes);
  const float scale = call.scale();
  for (int k = 0; k < kPositionTurns; ++k) {
    const int64_t position = (place.tile * kPositionTurns + k) * place.slices + place.slice;
    const bool inside = position < call.positions;
    const int64_t here = inside ? position : 0, count = inside ? call.x.classes : 0;
    const T* const x = call.x.template at<const T>(place.sample, here);
    T* const grad = call.grad.template at<T>(place.sample, here);
    const float of_position = call.map_grad[place.sample * call.positions + here] * scale;
    float factor[kPerVector];
#pragma unroll
    for (int i = 0; i < kPerVector; ++i) factor[i] = of_position;
    // As many turns for every thread: stores shuffle.
    const int64_t step = call.lanes * kPerVector;
    for (int64_t begin = 0; begin < call.x.classes; begin += kLoads * step) {
      const int64_t first = begin + place.lane * kPerVector;
      Words words[kLoads];
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        words[load] = load_vector(x, first + load * step, count, call.x_aligned);
      }
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        multiply_slopes<T>(power, words[load], factor);
        store_vector(grad, first + load * step, count, call.grad_aligned, words[load], place.lane,
                     call.lanes);
      }
    }
  }
}

// Strides that nobody should have, where the features' order is not the gradient's: a block takes a
// position, element by element.
template <class T>
__global__ void __launch_bounds__(kFeatureThreads, kFeatureBlocks)
    gradient_one_by_one(const GradientCall call, const RunTimePower power) {
  const int64_t sample = static_cast<uint32_t>(block_index()) / call.tiles;
  const int64_t position = static_cast<uint32_t>(block_index()) % call.tiles;
  const T* const x = call.x.template at<const T>(sample, position);
  T* const grad = call.grad.template at<T>(sample, position);
  const float factor = call.map_grad[block_index()] * call.scale();
  for (int64_t c = thread_index(); c < call.x.classes; c += kFeatureThreads) {
    const float element = widen(x[c * call.x.stride_class]);
    with_functor(power, [&](const auto& functor) {
      grad[c * call.grad.stride_class] = narrow<T>(factor * functor.slope(element));
    });
  }
}

template <class T>
void launch_gradient(Launcher& launch, const AttentionGradArgs& args) {
  const LogitView &x = args.student, &grad = args.grad;
  const bool along_positions = runs_along_positions(x, args.positions);
  GradientCall call{x,
                    grad,
                    args.positions,
                    0,
                    1,
                    0,
                    is_aligned(x, along_positions),
                    is_aligned(grad, along_positions),
                    args.map_grad,
                    args.grad_loss,
                    slope_scale(args.power, x.classes)};
  const int64_t samples = args.samples;
  if (!has_runs(x, args.positions) || !has_runs(grad, args.positions) ||
      along_positions != runs_along_positions(grad, args.positions)) {
    call.tiles = static_cast<uint32_t>(args.positions);
    launch("gradient_one_by_one", gradient_one_by_one<T>,
           {samples * args.positions, kFeatureThreads, 1, 0}, call, RunTimePower(args.power));
    return;
  }
  with_two_or_any(args.power, [&](const auto& power) {
    using Power = std::decay_t<decltype(power)>;
    if (along_positions) {
      call.lanes = lanes_for<T>(args.positions, kPositionLanes);
      call.tiles = parts(args.positions, call.lanes * kWidth<T>);
      call.shares = parts(x.classes, kFeatureThreads / call.lanes * kGradientLoads);
      launch("gradient_along_positions", gradient_along_positions<T, Power>,
             {samples * call.tiles * call.shares, kFeatureThreads, 1, 0}, call, power);
    } else {
      call.lanes = lanes_for<T>(x.classes, kWarp);
      call.tiles = parts(args.positions, kFeatureThreads / call.lanes * kPositionTurns);
      launch("gradient_along_channels", gradient_along_channels<T, Power>,
             {samples * call.tiles, kFeatureThreads, 1, 0}, call, power);
    }
  });
}

}  // namespace
}  // namespace cuda

Outcome attention_transfer_gradient(const AttentionGradArgs& args) {
  if (args.samples * args.positions * args.student.classes == 0) return {};
  cuda::Launcher launch(args.queue);
  visit(args.student.dtype,
        [&](auto type) { cuda::launch_gradient<typename decltype(type)::type>(launch, args); });
  return launch.outcome();
}

}  // namespace fastkd
