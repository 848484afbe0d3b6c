// The maths and the tiling of the kernels for a plain C++ compiler, with C names for ctypes.
#include <cmath>
#include <exception>

#include "host.h"
#include "merge_tile.h"
#include "power_series.h"

using namespace xgblora;

namespace {

// the lanes of processors that have no others
using Lanes = uint64_t;
inline Lanes product(Lanes x, Lanes y) { return (x & 0xFFFFFFFFu) * (y & 0xFFFFFFFFu); }
#include "host_lanes.h"

template <class Weight, Rounding rounding>
void merge_all(int64_t count, void* weights, const float* updates, const uint32_t* words, int16_t* remainders) {
  auto* bits = static_cast<typename Weight::Bits*>(weights);
  for (int64_t i = 0; i < count; ++i) bits[i] = merged<Weight, rounding>(bits[i], updates[i], words[i], remainders[i]);
}

template <Rounding rounding>
void merge_of(int64_t dtype, int64_t count, void* weights, const float* updates, const uint32_t* words,
              int16_t* remainders) {
  if (dtype == Float32::CODE) merge_all<Float32, rounding>(count, weights, updates, words, remainders);
  if (dtype == Bfloat16::CODE) merge_all<Bfloat16, rounding>(count, weights, updates, words, remainders);
  if (dtype == Float16::CODE) merge_all<Float16, rounding>(count, weights, updates, words, remainders);
}

// The launch: `blocks` blocks of `lanes` threads take the tiles in turn.
template <Rounding rounding>
void launch(const Layer* layers, int64_t count, int64_t tiles, float scale, uint64_t seed, int blocks, int lanes) {
  for (int block = 0; block < blocks; ++block) {
    for (int64_t tile = block; tile < tiles; tile += blocks) {
      for (int lane = 0; lane < lanes; ++lane) merge_tile<rounding>(layers, count, tile, lane, lanes, scale, seed);
    }
  }
}

}  // namespace

extern "C" {

void xgblora_philox(const uint32_t* counter, const uint32_t* key, uint32_t* words) {
  const Words made = philox4x32({counter[0], counter[1], counter[2], counter[3]}, key[0], key[1]);
  memcpy(words, made.word, sizeof made);
}

// Words first .. first + 7, as a vector of 16-bit weights wants them.
void xgblora_rounding_words(uint64_t seed, int64_t first, uint32_t* words) {
  uint32_t made[8];
  rounding_words(seed, first, made);
  memcpy(words, made, sizeof made);
}

uint32_t xgblora_rounding_word(uint64_t seed, int64_t index) { return rounding_word(seed, index); }

void xgblora_noise_block(int gaussian, uint64_t seed, uint64_t first, float* made) {
  float z[BLOCK];
  noise_block(gaussian ? Distribution::gaussian : Distribution::rademacher, seed, first, z);
  memcpy(made, z, sizeof z);
}

// The series and factors of power_series.h, one after another.
void xgblora_power_series(double* made) {
  const auto append = [&made](const auto& numbers) {
    memcpy(made, numbers, sizeof numbers);
    made += sizeof numbers / sizeof(double);
  };
  append(LOG_SERIES_TIMES_MINUS_4);
  append(SIN_SERIES);
  append(COS_SERIES);
  const double factors[] = {LN_2, TWO_PI_2_M32};
  append(factors);
}

// weights[i] += updates[i], one element after another.
void xgblora_merge_elements(int64_t dtype, int rounding, int64_t count, void* weights, const float* updates,
                            const uint32_t* words, int16_t* remainders) {
  if (rounding == 0) merge_of<Rounding::nearest>(dtype, count, weights, updates, words, remainders);
  if (rounding == 1) merge_of<Rounding::stochastic>(dtype, count, weights, updates, words, remainders);
  if (rounding == 2) merge_of<Rounding::remainder>(dtype, count, weights, updates, words, remainders);
}

int64_t xgblora_plan_merge(Layer* layers, int64_t count) { return plan_merge(layers, count); }

// 0, or 1 where a 16-byte access was not aligned.
int xgblora_merge_rank1(const Layer* layers, int64_t count, int64_t tiles, int rounding, float scale, uint64_t seed,
                        int blocks, int lanes) {
  try {
    if (rounding == 0) launch<Rounding::nearest>(layers, count, tiles, scale, seed, blocks, lanes);
    if (rounding == 1) launch<Rounding::stochastic>(layers, count, tiles, scale, seed, blocks, lanes);
    if (rounding == 2) launch<Rounding::remainder>(layers, count, tiles, scale, seed, blocks, lanes);
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}
}
