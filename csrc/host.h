// xgblora._host: `perturb`, `update_` and the merges of CPU tensors, bit for bit those of the eager reference.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace xgblora {

enum class Distribution { gaussian, rademacher };
enum class Rule { sgd, sign, momentum, adam };

// live[row] = cast(master + (signs[row] * eps) * z(seed of row)); rows share seeds in equal, consecutive groups.
struct Perturbation {
  const float* master;
  void* live;
  int64_t live_code;  // CODE of Float32, Bfloat16 or Float16
  int64_t size, rows;
  const uint64_t* seeds;
  int64_t seed_count;
  float eps;
  const float* signs;
  Distribution distribution;
};

// The step of xgblora.ops.update; moments and factors are null where the rule has none.
struct Update {
  float* master;
  int64_t size;
  const uint64_t* seeds;
  const float* coefficients;
  int64_t directions;
  float lr, weight_decay;
  Distribution distribution;
  Rule rule;
  float *first, *second;
  const float* factors;
};

// weight[r][c] += row_factors[r] * column_factors[c] of a weight without gaps; rounded to nearest, or with a remainder of
// its shape where `remainder` is not null.
struct Merge {
  void* weight;
  int16_t* remainder;
  int64_t weight_code;  // as live_code
  int64_t rows, columns;
  const float *row_factors, *column_factors;
};

// weight[r][c] += sum over terms of z_term[row_start + r] * z_term[column_start + c] of a weight without gaps, the noise
// of the rows or of the columns multiplied by the term's coefficient first; rounded as a Merge.
struct NoiseMerge {
  void* weight;
  int16_t* remainder;
  int64_t weight_code;  // as live_code
  int64_t rows, columns;
  int64_t row_start, column_start;
  bool scales_rows;
  const uint64_t* seeds;
  const float* coefficients;
  int64_t terms;
};

// The instruction sets that this machine can run, best first; the last one is the compiler's default.
std::vector<std::string> instruction_sets();

// Over the whole arena or weight, on `threads` threads at most and with instruction set number `set` of `instruction_sets()`:
// neither changes a bit.
void perturb(const Perturbation& job, int threads, int set = 0);
void update(const Update& job, int threads, int set = 0);
void merge(const Merge& job, int threads, int set = 0);
void merge_noise(const NoiseMerge& job, int threads, int set = 0);

}  // namespace xgblora
