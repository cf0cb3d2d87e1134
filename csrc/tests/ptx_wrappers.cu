// SPDX-License-Identifier: Apache-2.0
// Smoke test of cuda/device.h on a GPU: what nvcc sees and the emulator does not. Each wrapper is
// checked by itself, so that a failing kernel is not the first sign of a wrong one.
//
//   nvcc -std=c++17 -arch=native -I csrc csrc/tests/ptx_wrappers.cu -o ptx_wrappers &&
//   ./ptx_wrappers
//
// One line per wrapper; exit status 1 if one fails, 2 if there is no GPU.
#include "cuda/device.h"
#include "tests/on_gpu.h"

namespace fastkd::cuda {
namespace {

// ---- words ----

__global__ void move_words(const Words* in, Words* out) {
  Words words = load_words(in + thread_index());
  make_new(words);
  store_words(out + thread_index(), words);
}

__global__ void funnel(const uint32_t* low, const uint32_t* high, uint32_t* out) {
  const int i = thread_index();
  out[2 * i] = funnel_right(low[i], high[i], 0);
  out[2 * i + 1] = funnel_right(low[i], high[i], 16);
}

__global__ void who_runs(int64_t* out) {
  const int64_t i = block_index() * block_threads() + thread_index();
  out[i] = ((block_index() * 100 + warp_index()) * 100 + lane_index()) * 100 + grid_blocks();
}

std::vector<uint32_t> some_bits(size_t count) {
  std::vector<uint32_t> bits(count);
  uint32_t state = 1;
  for (uint32_t& each : bits) each = state = state * 1664525u + 1013904223u;
  return bits;
}

void check_words() {
  constexpr int kThreads = 64;
  std::vector<Words> words(kThreads);
  const std::vector<uint32_t> bits = some_bits(4 * kThreads);
  memcpy(words.data(), bits.data(), sizeof(Words) * kThreads);
  const DeviceArray<Words> in(words), out(kThreads);
  move_words<<<1, kThreads>>>(in.data(), out.data());
  const std::vector<Words> moved = out.read("load_words, store_words, make_new");
  report("load_words, store_words, make_new",
         memcmp(moved.data(), words.data(), sizeof(Words) * kThreads) == 0);

  const std::vector<uint32_t> low(bits.begin(), bits.begin() + kThreads);
  const std::vector<uint32_t> high(bits.begin() + kThreads, bits.begin() + 2 * kThreads);
  const DeviceArray<uint32_t> low_there(low), high_there(high), shifted(2 * kThreads);
  funnel<<<1, kThreads>>>(low_there.data(), high_there.data(), shifted.data());
  const std::vector<uint32_t> found = shifted.read("funnel_right");
  bool right = true;
  for (int i = 0; i < kThreads; ++i) {
    right = right && found[2 * i] == low[i] && found[2 * i + 1] == (low[i] >> 16 | high[i] << 16);
  }
  report("funnel_right by 0 and 16", right);

  const DeviceArray<int64_t> indices(3 * kThreads);
  who_runs<<<3, kThreads>>>(indices.data());
  const std::vector<int64_t> who = indices.read("indices");
  right = true;
  for (int64_t i = 0; i < 3 * kThreads; ++i) {
    const int64_t block = i / kThreads, thread = i % kThreads;
    right = right && who[i] == ((block * 100 + thread / 32) * 100 + thread % 32) * 100 + 3;
  }
  report("thread, lane, warp and block indices", right);
}

// ---- halves ----

// Bits, but any NaN is as good as another.
template <class T>
__host__ __device__ bool same_half(uint32_t a, uint32_t b) {
  const float x = to_float(T{static_cast<uint16_t>(a)}), y = to_float(T{static_cast<uint16_t>(b)});
  return a == b || (x != x && y != y);
}

__host__ __device__ bool same_float(float a, float b) {
  return bit_cast<uint32_t>(a) == bit_cast<uint32_t>(b) || (a != a && b != b);
}

template <class T>
__global__ void unpack_all(float2* out) {
  const uint32_t bits = static_cast<uint32_t>(block_index() * block_threads() + thread_index());
  out[bits] = unpack_pair<T>(bits | (bits ^ 0xffffu) << 16);
}

template <class T>
__global__ void pack_some(const float* in, int count, uint32_t* out) {
  for (int i = thread_index(); i < count; i += block_threads()) {
    out[2 * i] = pack_pair<T>(in[i], in[count - 1 - i]);
    out[2 * i + 1] = narrow<T>(in[i]).bits;
  }
}

// Every float there is, against core/dtype.h on the GPU itself.
template <class T>
__global__ void pack_all(unsigned long long* wrong) {
  unsigned long long mine = 0;
  for (int64_t i = block_index() * block_threads() + thread_index(); i < int64_t{1} << 32;
       i += grid_blocks() * block_threads()) {
    const float x = bit_cast<float>(static_cast<uint32_t>(i));
    const uint32_t expected = from_float<T>(x).bits;
    const uint32_t low = pack_pair<T>(x, 0.0f), high = pack_pair<T>(0.0f, x);
    mine += !same_half<T>(low & 0xffffu, expected) || low >> 16 != 0 ||
            !same_half<T>(high >> 16, expected) || (high & 0xffffu) != 0;
  }
  if (mine != 0) atomicAdd(wrong, mine);
}

std::vector<float> edge_values() {
  const float inf = INFINITY;
  // Zeros, units, ties to even, and the largest and smallest numbers of either type.
  std::vector<float> values = {0.0f,
                               -0.0f,
                               1.0f,
                               -1.0f,
                               0.5f,
                               3.14159265f,
                               1e4f,
                               -1e4f,
                               inf,
                               -inf,
                               NAN,
                               -NAN,
                               65504.0f,
                               65519.996f,
                               65520.0f,
                               -65520.0f,
                               1e6f,
                               FLT_MAX,
                               -FLT_MAX,
                               FLT_MIN,
                               -FLT_MIN,
                               3.3895314e38f,
                               3.3961775e38f,
                               6.1035156e-5f,
                               6.0975552e-5f,
                               5.9604645e-8f,
                               2.9802322e-8f,
                               2.9802326e-8f,
                               -5.9604645e-8f,
                               1.4e-45f,
                               -1.4e-45f,
                               9.18e-41f,
                               4.6e-41f,
                               1.00390625f,
                               1.01171875f,
                               1.00048828125f,
                               1.00146484375f};
  for (const uint32_t bits : some_bits(4096)) values.push_back(bit_cast<float>(bits));
  return values;
}

template <class T>
void check_halves(const char* unpacking, const char* packing, const char* packing_all) {
  const DeviceArray<float2> out(65536);
  unpack_all<T><<<256, 256>>>(out.data());
  const std::vector<float2> unpacked = out.read(unpacking);
  bool right = true;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const T low{static_cast<uint16_t>(bits)}, high{static_cast<uint16_t>(bits ^ 0xffffu)};
    right = right && same_float(unpacked[bits].x, to_float(low)) &&
            same_float(unpacked[bits].y, to_float(high));
  }
  report(unpacking, right);

  const std::vector<float> values = edge_values();
  const int count = static_cast<int>(values.size());
  const DeviceArray<float> in(values);
  const DeviceArray<uint32_t> bits(2 * values.size());
  pack_some<T><<<1, 256>>>(in.data(), count, bits.data());
  const std::vector<uint32_t> packed = bits.read(packing);
  right = true;
  for (int i = 0; i < count; ++i) {
    const uint32_t low = from_float<T>(values[i]).bits;
    const uint32_t high = from_float<T>(values[count - 1 - i]).bits;
    const bool same = same_half<T>(packed[2 * i] & 0xffffu, low) &&
                      same_half<T>(packed[2 * i] >> 16, high) &&
                      same_half<T>(packed[2 * i + 1], low);
    if (!same && right) {
      std::printf("  %.9g and %.9g give %08x, not %04x%04x\n", values[i], values[count - 1 - i],
                  packed[2 * i], high, low);
    }
    right = right && same;
  }
  report(packing, right);

  const DeviceArray<unsigned long long> wrong(std::vector<unsigned long long>{0});
  pack_all<T><<<1024, 256>>>(wrong.data());
  report(packing_all, wrong.read(packing_all)[0] == 0);
}

// ---- clusters ----

// Each block tells every other its number, round after round; out: [blocks][2] rank, errors.
template <class Int>
__device__ void talk(Int* out, int blocks) {
  constexpr int kRounds = 100;
  Int* const slots = reinterpret_cast<Int*>(shared_memory());  // [2][blocks]
  const int rank = cluster_rank();
  const Int first = static_cast<Int>(block_index()) - rank;  // block of the cluster
  Int errors = 0;
  arrive_cluster();
  wait_cluster();
  for (int round = 0; round < kRounds; ++round) {
    Int* const mine = slots + round % 2 * blocks;
    if (thread_index() < blocks) {
      *peer_shared(mine + rank, thread_index()) = static_cast<Int>(block_index()) * kRounds + round;
    }
    arrive_cluster();
    wait_cluster();
    for (int i = 0; i < blocks; ++i) errors += mine[i] != (first + i) * kRounds + round;
  }
  arrive_cluster();
  wait_cluster();  // none leaves while another may still write to it
  if (thread_index() == 0) {
    out[2 * block_index()] = rank;
    out[2 * block_index() + 1] = errors;
  }
}

template <class Int>
__global__ void talk_in_cluster(Int* out, int blocks) {
  if constexpr (kHasClusters) talk(out, blocks);
}

void check_cluster(int blocks) {
  char what[64];
  std::snprintf(what, sizeof(what), "cluster_rank, peer_shared: %d blocks", blocks);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  const int grid = 3 * blocks;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(64);
  config.dynamicSmemBytes = 2 * sizeof(int) * static_cast<size_t>(blocks);
  config.attrs = &cluster;
  config.numAttrs = 1;
  if (blocks > 8) {
    require(cudaFuncSetAttribute(talk_in_cluster<int>,
                                 cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
            what);
  }
  const DeviceArray<int> out(2 * static_cast<size_t>(grid));
  const cudaError_t error = cudaLaunchKernelEx(&config, talk_in_cluster<int>, out.data(), blocks);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return report(what, false, cudaGetErrorString(error));
  }
  const std::vector<int> found = out.read(what);
  bool right = true;
  for (int i = 0; i < grid; ++i) {
    right = right && found[2 * i] == i % blocks && found[2 * i + 1] == 0;
  }
  report(what, right);
}

// ---- bulk copies ----

// Two arrays of `bytes` come through shared memory, phase after phase; out: [2][phases][bytes].
template <class Byte>
__device__ void fetch(const Byte* in, Byte* out, int bytes, int phases) {
  char* const arena = shared_memory();
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(arena);
  Byte* const shared = reinterpret_cast<Byte*>(arena + 128);
  if (thread_index() == 0) copy_barrier_init(barrier);
  __syncthreads();
  for (int phase = 0; phase < phases; ++phase) {
    if (thread_index() == 0) {
      copy_barrier_expect(barrier, 2 * static_cast<uint32_t>(bytes));
      for (int half = 0; half < 2; ++half) {
        bulk_copy(shared + half * bytes, in + (half * phases + phase) * bytes,
                  static_cast<uint32_t>(bytes), barrier);
      }
    }
    copy_barrier_wait(barrier, static_cast<uint32_t>(phase) & 1u);
    for (int i = thread_index(); i < 2 * bytes; i += block_threads()) {
      const int half = i / bytes;
      out[(half * phases + phase) * bytes + i % bytes] = shared[i];
    }
    __syncthreads();  // all have read before the next copies come
  }
}

template <class Byte>
__global__ void fetch_in_bulk(const Byte* in, Byte* out, int bytes, int phases) {
  if constexpr (kHasClusters) fetch(in, out, bytes, phases);
}

void check_bulk_copy(int bytes) {
  constexpr int kPhases = 5;
  char what[64];
  std::snprintf(what, sizeof(what), "bulk_copy, copy_barrier: 2 x %d bytes", bytes);
  const size_t size = 2 * kPhases * static_cast<size_t>(bytes);
  std::vector<unsigned char> values(size);
  const std::vector<uint32_t> bits = some_bits(size);
  for (size_t i = 0; i < size; ++i) values[i] = static_cast<unsigned char>(bits[i] >> 24);
  const DeviceArray<unsigned char> in(values), out(size);
  const int shared_bytes = 128 + 2 * bytes;
  require(cudaFuncSetAttribute(fetch_in_bulk<unsigned char>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          what);
  fetch_in_bulk<<<1, 128, static_cast<size_t>(shared_bytes)>>>(in.data(), out.data(), bytes,
                                                               kPhases);
  report(what, out.read(what) == values);
}

int run() {
  cudaDeviceProp chip{};
  if (cudaGetDeviceProperties(&chip, 0) != cudaSuccess) {
    std::printf("there is no GPU\n");
    return 2;
  }
  std::printf("%s, compute capability %d.%d\n", chip.name, chip.major, chip.minor);
  check_words();
  check_halves<BFloat16>("unpack_pair<BFloat16>, all halves", "pack_pair<BFloat16>, narrow: edges",
                         "pack_pair<BFloat16>, all floats");
  check_halves<Float16>("unpack_pair<Float16>, all halves", "pack_pair<Float16>, narrow: edges",
                        "pack_pair<Float16>, all floats");
  if (chip.major >= 9) {
    for (const int bytes : {16, 2048, 98304 / 2 - 64}) check_bulk_copy(bytes);
    for (const int blocks : {2, 4, 8, 16}) {
      if (blocks <= 8 || chip.major < 12) check_cluster(blocks);
    }
  } else {
    std::printf("no clusters, no bulk copies before compute capability 9.0\n");
  }
  std::printf("%d of device.h's wrappers fail\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace fastkd::cuda

int main() { return fastkd::cuda::run(); }
