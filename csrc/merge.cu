#include <limits>
#include <stdexcept>
#include <string>

#include "merge.h"
#include "merge_tile.h"

namespace xgblora {
namespace {

constexpr int THREADS = 256;
// 768 threads a multiprocessor: at most 80 registers each, which spills nothing
constexpr int BLOCKS_PER_MULTIPROCESSOR = 3;

// One block a tile. A persistent grid would save the search for the layer, a few cached loads beside 32 KiB of traffic
// or more, and lose what the hardware's scheduler does about multiprocessors of different speed.
template <Rounding rounding>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_MULTIPROCESSOR)
    merge_rank1_kernel(const Layer* __restrict__ layers, int64_t count, float scale, uint64_t seed) {
  merge_tile<rounding>(layers, count, blockIdx.x, threadIdx.x, THREADS, scale, seed);
}

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error that is reported is not reported again by the next call
  throw std::runtime_error(std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error) + " (" + call + ")");
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

using Kernel = void (*)(const Layer*, int64_t, float, uint64_t);

Kernel kernel_of(Rounding rounding) {
  switch (rounding) {
    case Rounding::nearest:
      return merge_rank1_kernel<Rounding::nearest>;
    case Rounding::stochastic:
      return merge_rank1_kernel<Rounding::stochastic>;
    default:
      return merge_rank1_kernel<Rounding::remainder>;
  }
}

}  // namespace

void merge_rank1(const Layer* layers, int64_t count, int64_t tiles, Rounding rounding, float scale, uint64_t seed,
                 int device, void* stream) {
  if (tiles == 0) return;
  // 2^31 - 1 blocks of 16 KiB are 32 TiB of weights
  if (tiles > std::numeric_limits<int>::max()) {
    throw std::runtime_error("cudaErrorInvalidConfiguration: a merge of more than 32 TiB of weights");
  }
  const DeviceGuard guard(device);
  void* arguments[] = {&layers, &count, &scale, &seed};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel_of(rounding)), dim3(static_cast<unsigned>(tiles)),
                         dim3(THREADS), arguments, 0, static_cast<cudaStream_t>(stream)),
        "cudaLaunchKernel");
}

KernelFacts merge_facts(Rounding rounding, int device) {
  const DeviceGuard guard(device);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel_of(rounding))),
        "cudaFuncGetAttributes");
  return {attributes.numRegs, static_cast<int>(attributes.localSizeBytes)};
}

}  // namespace xgblora
