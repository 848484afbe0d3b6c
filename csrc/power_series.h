// The numbers of kernels/noise_numbers.py, by the same operations: equal bits need equal numbers.
#pragma once

#include "portable.h"

namespace xgblora {

inline uint64_t bits_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline double double_of(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

constexpr double factorial(int n) { return n < 2 ? 1.0 : n * factorial(n - 1); }

constexpr double LOG_SERIES_TIMES_MINUS_4[] = {
    -4.0 * (1.0 / 1),  -4.0 * (1.0 / 3),  -4.0 * (1.0 / 5),  -4.0 * (1.0 / 7),  -4.0 * (1.0 / 9),
    -4.0 * (1.0 / 11), -4.0 * (1.0 / 13), -4.0 * (1.0 / 15), -4.0 * (1.0 / 17), -4.0 * (1.0 / 19)};
constexpr double SIN_SERIES[] = {1.0 / factorial(1),   -1.0 / factorial(3),  1.0 / factorial(5),
                                 -1.0 / factorial(7),  1.0 / factorial(9),   -1.0 / factorial(11),
                                 1.0 / factorial(13),  -1.0 / factorial(15), 1.0 / factorial(17)};
constexpr double COS_SERIES[] = {1.0 / factorial(0),   -1.0 / factorial(2),  1.0 / factorial(4),
                                 -1.0 / factorial(6),  1.0 / factorial(8),   -1.0 / factorial(10),
                                 1.0 / factorial(12),  -1.0 / factorial(14), 1.0 / factorial(16)};
constexpr uint64_t SQRT_HALF_BITS = 0x3FE6A09E00000000u;
constexpr uint64_t SQRT_HALF_TO_ONE = 0x3FF0000000000000u - SQRT_HALF_BITS;
// the bits of 2^52, whose last bit counts 1
constexpr uint64_t TWO_52_BITS = 0x4330000000000000u;
constexpr double LN_2 = 0.6931471805599453;
constexpr double TWO_PI_2_M32 = 2.0 * 3.141592653589793 * 0x1p-32;

}  // namespace xgblora
