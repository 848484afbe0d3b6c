// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the words of
// xgblora.ops.noise, by the numbers of kernels/noise_numbers.py. Word i of (seed, stream) is word i % 4 of the counter
// (i / 4 low, i / 4 high, stream, 0).
#pragma once

#include "portable.h"

namespace xgblora {

// `Stream`
constexpr uint32_t DIRECTION_STREAM = 0;
constexpr uint32_t ROUNDING_STREAM = 1;

constexpr uint32_t PHILOX_MULTIPLIER_0 = 0xD2511F53u, PHILOX_MULTIPLIER_1 = 0xCD9E8D57u;
constexpr uint32_t PHILOX_INCREMENT_0 = 0x9E3779B9u, PHILOX_INCREMENT_1 = 0xBB67AE85u;
constexpr int PHILOX_ROUNDS = 10;

struct Words {
  uint32_t word[4];
};

XGBLORA_HOST_DEVICE Words philox4x32(Words counter, uint32_t key_0, uint32_t key_1) {
  uint32_t* c = counter.word;
#pragma unroll
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    const uint64_t product_0 = static_cast<uint64_t>(c[0]) * PHILOX_MULTIPLIER_0;
    const uint64_t product_1 = static_cast<uint64_t>(c[2]) * PHILOX_MULTIPLIER_1;
    c[0] = static_cast<uint32_t>(product_1 >> 32) ^ c[1] ^ key_0;
    c[2] = static_cast<uint32_t>(product_0 >> 32) ^ c[3] ^ key_1;
    c[1] = static_cast<uint32_t>(product_1);
    c[3] = static_cast<uint32_t>(product_0);
    key_0 += PHILOX_INCREMENT_0;
    key_1 += PHILOX_INCREMENT_1;
  }
  return counter;
}

// Words 4 block .. 4 block + 3 of `seed`.
XGBLORA_HOST_DEVICE Words rounding_words(uint64_t seed, int64_t block) {
  const uint64_t counter = static_cast<uint64_t>(block);
  return philox4x32({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), ROUNDING_STREAM, 0},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// Word `index` of `seed`, for an element on its own. Masked and joined: an index known only at run time, or a selection
// that the compiler turns into one, would send the words through local memory.
XGBLORA_HOST_DEVICE uint32_t rounding_word(uint64_t seed, int64_t index) {
  const Words four = rounding_words(seed, index >> 2);
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word |= (index & 3) == i ? four.word[i] : 0;
  return word;
}

// Words first .. first + WIDTH - 1, one Philox call for four of them. Where `first` is no multiple of 4, one call more
// and a shift by 1 and by 2 places, selections between fixed registers.
template <int WIDTH>
XGBLORA_HOST_DEVICE void rounding_words(uint64_t seed, int64_t first, uint32_t (&words)[WIDTH]) {
  static_assert(WIDTH % 4 == 0, "whole Philox calls");
  uint32_t made[WIDTH + 4];
#pragma unroll
  for (int call = 0; call < WIDTH / 4; ++call) {
    const Words four = rounding_words(seed, (first >> 2) + call);
#pragma unroll
    for (int i = 0; i < 4; ++i) made[4 * call + i] = four.word[i];
  }
  const int skipped = static_cast<int>(first & 3);
  if (skipped != 0) {
    const Words four = rounding_words(seed, (first >> 2) + WIDTH / 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) made[WIDTH + i] = four.word[i];
#pragma unroll
    for (int i = 0; i < WIDTH + 3; ++i) made[i] = skipped & 1 ? made[i + 1] : made[i];
#pragma unroll
    for (int i = 0; i < WIDTH + 2; ++i) made[i] = skipped & 2 ? made[i + 2] : made[i];
  }
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) words[i] = made[i];
}

}  // namespace xgblora
