// The three roundings of xgblora.ops.merge_rank1, bit for bit. A NaN stays a NaN; which one is not part of the
// contract.
#pragma once

#include "portable.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace xgblora {

enum class Rounding { nearest = 0, stochastic = 1, remainder = 2 };

constexpr uint32_t SIGN = 0x80000000u;
constexpr uint32_t INFINITY_BITS = 0x7F800000u;

XGBLORA_HOST_DEVICE uint32_t magnitude_of(float value) { return bits_of(value) & ~SIGN; }
XGBLORA_HOST_DEVICE bool is_finite(float value) { return magnitude_of(value) < INFINITY_BITS; }
XGBLORA_HOST_DEVICE bool is_infinite(float value) { return magnitude_of(value) == INFINITY_BITS; }

struct Float32 {
  using Bits = uint32_t;
  static constexpr int64_t CODE = 0;

  static XGBLORA_HOST_DEVICE float to_float(Bits bits) { return float_of(bits); }
  static XGBLORA_HOST_DEVICE Bits from_float(float value) { return bits_of(value); }
};

struct Bfloat16 {
  using Bits = uint16_t;
  static constexpr int64_t CODE = 1;
  static constexpr uint32_t SPARE_BITS = 16;

  static XGBLORA_HOST_DEVICE float to_float(Bits bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

  // To nearest, ties to even.
  static XGBLORA_HOST_DEVICE Bits from_float(float value) {
    const uint32_t bits = bits_of(value);
    if (magnitude_of(value) > INFINITY_BITS) return static_cast<Bits>(bits >> 16 | 0x40);
    return static_cast<Bits>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }

  // To nearest, ties away from zero: the remainder of a tie is then -2^15, which an int16 holds, never 2^15.
  static XGBLORA_HOST_DEVICE Bits from_sum(float total) {
    return is_finite(total) ? static_cast<Bits>((bits_of(total) + 0x8000) >> 16) : from_float(total);
  }

  // Of a finite sum; up in magnitude where the low 16 bits and the noise carry.
  static XGBLORA_HOST_DEVICE Bits from_float_with_noise(float total, uint32_t noise) {
    return static_cast<Bits>((bits_of(total) + noise) >> 16);
  }
};

struct Float16 {
  using Bits = uint16_t;
  static constexpr int64_t CODE = 2;
  static constexpr uint32_t SPARE_BITS = 13;
  // fp32 bits of 2^-14, the smallest normal fp16 number, and of 2^16, above which all is infinite
  static constexpr uint32_t SMALLEST_NORMAL = 0x38800000u;
  static constexpr uint32_t BEYOND = 0x47800000u;
  // what the exponent of an fp32 pattern is too large by
  static constexpr uint32_t REBIAS = 0x38000000u;

  static XGBLORA_HOST_DEVICE float to_float(Bits bits) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(bits));
#else
    const uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
    if (magnitude >= 0x7C00) return float_of(sign | INFINITY_BITS | (magnitude & 0x3FF) << 13);
    if (magnitude < 0x400) return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
    return float_of(sign | ((magnitude << 13) + REBIAS));
#endif
  }

  // To nearest, ties to even.
  static XGBLORA_HOST_DEVICE Bits from_float(float value) {
#ifdef __CUDA_ARCH__
    return __half_as_ushort(__float2half_rn(value));
#else
    const uint32_t sign = bits_of(value) >> 16 & 0x8000u, magnitude = magnitude_of(value);
    if (magnitude > INFINITY_BITS) return static_cast<Bits>(sign | 0x7E00);
    if (magnitude >= BEYOND) return static_cast<Bits>(sign | 0x7C00);
    // beside 0.5 an fp32 number has the spacing of subnormal fp16 numbers, so the addition rounds as they do
    if (magnitude < SMALLEST_NORMAL) {
      return static_cast<Bits>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
    }
    return static_cast<Bits>(sign | ((magnitude + 0xFFF + (magnitude >> 13 & 1) - REBIAS) >> 13));
#endif
  }

  static XGBLORA_HOST_DEVICE Bits from_sum(float total) { return from_float(total); }

  // Of a finite sum; up in magnitude where what is cut off and the noise carry. Below the normal range the spacing is
  // 2^-24 whatever the exponent, and 13 bits of noise reach down to 2^-37: the product below is exact but for what
  // lies under that.
  static XGBLORA_HOST_DEVICE Bits from_float_with_noise(float total, uint32_t noise) {
    const uint32_t bits = bits_of(total), magnitude = magnitude_of(total);
    if (magnitude < SMALLEST_NORMAL) {
      const uint32_t steps = static_cast<uint32_t>(multiply(float_of(magnitude), 0x1p37f));
      return static_cast<Bits>((bits >> 16 & 0x8000u) | (steps + noise) >> SPARE_BITS);
    }
    return from_float(float_of((bits + noise) & ~((1u << SPARE_BITS) - 1)));
  }
};

// The fp32 value that a 16-bit weight and its remainder stand for.
template <class Weight>
XGBLORA_HOST_DEVICE float running_sum(typename Weight::Bits bits, int16_t remainder) {
  const float weight = Weight::to_float(bits);
  // a finite sum that rounds to a bf16 infinity lies a little below it, so its remainder is negative
  const bool adjusts = is_finite(weight) || (is_infinite(weight) && remainder < 0);
  return adjusts ? float_of(bits_of(weight) + static_cast<uint32_t>(static_cast<int32_t>(remainder))) : weight;
}

// What rounding `total` to `rounded` left, in fp32 units in the last place.
template <class Weight>
XGBLORA_HOST_DEVICE int16_t remainder_of(float total, typename Weight::Bits rounded) {
  const float weight = Weight::to_float(rounded);
  const bool lost = !is_finite(total) || (Weight::CODE == Float16::CODE && !is_finite(weight));
  const int32_t units = lost ? 0 : static_cast<int32_t>(bits_of(total) - bits_of(weight));
  return static_cast<int16_t>(units < -0x8000 ? -0x8000 : units > 0x7FFF ? 0x7FFF : units);
}

template <class Weight>
XGBLORA_HOST_DEVICE typename Weight::Bits round_stochastically(float total, uint32_t word) {
  if (!is_finite(total)) return Weight::from_float(total);
  return Weight::from_float_with_noise(total, word & ((1u << Weight::SPARE_BITS) - 1));
}

// One merge: the new weight of the old one and its update; reads and writes `remainder` where the rounding has one.
template <class Weight, Rounding rounding>
XGBLORA_HOST_DEVICE typename Weight::Bits merged(typename Weight::Bits bits, float update, uint32_t word,
                                                 int16_t& remainder) {
  if constexpr (Weight::CODE == Float32::CODE) {
    return bits_of(add(float_of(bits), update));
  } else if constexpr (rounding == Rounding::nearest) {
    return Weight::from_float(add(Weight::to_float(bits), update));
  } else if constexpr (rounding == Rounding::stochastic) {
    return round_stochastically<Weight>(add(Weight::to_float(bits), update), word);
  } else {
    const float total = add(running_sum<Weight>(bits, remainder), update);
    const typename Weight::Bits rounded = Weight::from_sum(total);
    remainder = remainder_of<Weight>(total, rounded);
    return rounded;
  }
}

}  // namespace xgblora
