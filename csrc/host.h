// xgblora._host: `perturb`, `update_` and the merges of CPU tensors, bit for bit those of the eager reference; and the
// rank-1 term of rows that each name their adapter.
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

// t[m] = x[m] . a[g], and y[m] += (scale * t[m]) * b[g] where y is not null; g is groups[m / rows_per_entry]. t is read
// where it is `given`, else made, and written where `t` is not null. Adapters are fp32 or of the dtype of x.
struct RowTerms {
  const void* x;
  void* y;
  int64_t x_code;  // as live_code; of y too
  int64_t rows, inputs, outputs;
  const void *a, *b;
  int64_t a_code, a_stride, b_stride;  // the code of b too; elements between two adapters
  const int32_t* groups;
  int64_t rows_per_entry;
  float scale;
  float* t;
  bool given;
};

// The instruction sets that this machine can run, best first; the last one is the compiler's default.
std::vector<std::string> instruction_sets();

// Over the whole arena or weight, on `threads` threads at most and with instruction set number `set` of `instruction_sets()`:
// neither changes a bit.
void perturb(const Perturbation& job, int threads, int set = 0);
void update(const Update& job, int threads, int set = 0);
void merge(const Merge& job, int threads, int set = 0);
void merge_noise(const NoiseMerge& job, int threads, int set = 0);
void row_terms(const RowTerms& job, int threads, int set = 0);

}  // namespace xgblora
