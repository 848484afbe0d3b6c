// What device code and host code say differently: the same functions compile with nvcc and with a plain C++ compiler,
// so that the tests can run the maths of the kernels where there is no GPU. Compile the host side with
// -ffp-contract=off: a fused multiply-add rounds once where two roundings are meant.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#ifdef __CUDACC__
#define XGBLORA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define XGBLORA_HOST_DEVICE inline
#endif

namespace xgblora {

XGBLORA_HOST_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

XGBLORA_HOST_DEVICE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// x * y and x + y in fp32, each rounded once and never fused.
XGBLORA_HOST_DEVICE float multiply(float x, float y) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(x, y);
#else
  return x * y;
#endif
}

XGBLORA_HOST_DEVICE float add(float x, float y) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(x, y);
#else
  return x + y;
#endif
}

// 16 bytes: what a thread moves at once.
struct alignas(16) Vector {
  uint32_t word[4];
};

template <class Element>
constexpr int elements_per_vector = sizeof(Vector) / sizeof(Element);

XGBLORA_HOST_DEVICE bool is_aligned(int64_t address) { return (address & 15) == 0; }

inline void require_aligned(int64_t address) {
  if (!is_aligned(address)) throw std::logic_error("a 16-byte access to an address that is not a multiple of 16");
}

// Weights and remainders are read once and written once: evict them first, so that the factors stay in the cache.
XGBLORA_HOST_DEVICE Vector load_vector(int64_t address) {
  Vector vector;
#ifdef __CUDA_ARCH__
  const uint4 loaded = __ldcs(reinterpret_cast<const uint4*>(address));
  vector.word[0] = loaded.x, vector.word[1] = loaded.y, vector.word[2] = loaded.z, vector.word[3] = loaded.w;
#else
  require_aligned(address);
  memcpy(&vector, reinterpret_cast<const void*>(address), sizeof vector);
#endif
  return vector;
}

XGBLORA_HOST_DEVICE void store_vector(int64_t address, const Vector& vector) {
#ifdef __CUDA_ARCH__
  __stcs(reinterpret_cast<uint4*>(address),
         make_uint4(vector.word[0], vector.word[1], vector.word[2], vector.word[3]));
#else
  require_aligned(address);
  memcpy(reinterpret_cast<void*>(address), &vector, sizeof vector);
#endif
}

// Element `index` of a vector of 2- or 4-byte elements; `index` is a constant once the caller's loop is unrolled.
template <class Element>
XGBLORA_HOST_DEVICE Element get(const Vector& vector, int index) {
  if constexpr (sizeof(Element) == 4) return static_cast<Element>(vector.word[index]);
  return static_cast<Element>(vector.word[index / 2] >> (index % 2 * 16));
}

// Sets element `index` of a vector that holds zeros there.
template <class Element>
XGBLORA_HOST_DEVICE void put(Vector& vector, int index, Element element) {
  if constexpr (sizeof(Element) == 4) {
    vector.word[index] = element;
  } else {
    vector.word[index / 2] |= static_cast<uint32_t>(static_cast<uint16_t>(element)) << (index % 2 * 16);
  }
}

template <class Element>
XGBLORA_HOST_DEVICE Element* element_at(int64_t address, int64_t index) {
  return reinterpret_cast<Element*>(address) + index;
}

// One value of `a` or `b`, which many threads read: through the read-only cache.
XGBLORA_HOST_DEVICE float load_factor(int64_t address, int64_t index) {
#ifdef __CUDA_ARCH__
  return __ldg(element_at<const float>(address, index));
#else
  return *element_at<const float>(address, index);
#endif
}

// `WIDTH` neighbours of `a` or `b`, in 16-byte loads where the address allows.
template <int WIDTH>
XGBLORA_HOST_DEVICE void load_factors(int64_t address, int64_t index, float (&factors)[WIDTH]) {
  const int64_t first = address + index * static_cast<int64_t>(sizeof(float));
  if (WIDTH % 4 == 0 && is_aligned(first)) {
#pragma unroll
    for (int quad = 0; quad < WIDTH / 4; ++quad) {
#ifdef __CUDA_ARCH__
      const float4 loaded = __ldg(reinterpret_cast<const float4*>(first) + quad);
      factors[4 * quad] = loaded.x, factors[4 * quad + 1] = loaded.y;
      factors[4 * quad + 2] = loaded.z, factors[4 * quad + 3] = loaded.w;
#else
      memcpy(factors + 4 * quad, reinterpret_cast<const float*>(first) + 4 * quad, sizeof(Vector));
#endif
    }
  } else {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) factors[i] = load_factor(address, index + i);
  }
}

}  // namespace xgblora
