// The instruction sets and the threads of xgblora._host. Compile with -ffp-contract=off: a fused multiply-add rounds
// once where two roundings are meant. -fno-math-errno and -fno-trapping-math let square roots and choices become vector
// instructions, and change no value.
#include "host.h"

#include <cfloat>
#include <cmath>
#include <stdexcept>
#include <system_error>
#include <thread>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define XGBLORA_X86_SETS
#include <immintrin.h>
#endif

#include "philox.h"
#include "power_series.h"
#include "rounding.h"

static_assert(FLT_EVAL_METHOD == 0, "each operation must be rounded to its own type");

namespace xgblora {

// A tile of a merge of noise, and how many terms are summed at once: a panel of 64 columns and 256 terms is 64 KB.
constexpr int TILE_ROWS = 4, TILE_COLUMNS = 64;
constexpr int64_t TERMS = 256;

// The noise of terms first .. first + count - 1, tile after tile, and the sums of tiles where there are more terms.
struct NoisePanels {
  float *rows, *columns;
  float* sums;  // null where these are all terms
  int64_t first, count;
  bool is_last;
};

// Each instruction set says what its lanes are, and multiplies their low halves.
#ifndef XGBLORA_X86_SETS
namespace baseline {
using Lanes = uint64_t;
using Reals = float;
inline Lanes product(Lanes x, Lanes y) { return (x & 0xFFFFFFFFu) * (y & 0xFFFFFFFFu); }
#include "host_lanes.h"
#include "host_noise_sum.h"
}  // namespace baseline
#else
namespace baseline {
typedef uint64_t Lanes __attribute__((vector_size(16)));
typedef float Reals __attribute__((vector_size(16)));
inline Lanes product(Lanes x, Lanes y) { return (Lanes)_mm_mul_epu32((__m128i)x, (__m128i)y); }
#include "host_lanes.h"
#include "host_noise_sum.h"
}  // namespace baseline
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
typedef uint64_t Lanes __attribute__((vector_size(32)));
typedef float Reals __attribute__((vector_size(32)));
inline Lanes product(Lanes x, Lanes y) { return (Lanes)_mm256_mul_epu32((__m256i)x, (__m256i)y); }
#include "host_lanes.h"
#include "host_noise_sum.h"
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
namespace avx512 {
typedef uint64_t Lanes __attribute__((vector_size(64)));
typedef float Reals __attribute__((vector_size(64)));
inline Lanes product(Lanes x, Lanes y) { return (Lanes)_mm512_mul_epu32((__m512i)x, (__m512i)y); }
#include "host_lanes.h"
#include "host_noise_sum.h"
}  // namespace avx512
#pragma GCC pop_options
#endif

namespace {

struct InstructionSet {
  const char* name;
  void (*perturb)(const Perturbation&, int64_t, int64_t);
  void (*update)(const Update&, int64_t, int64_t);
  void (*merge)(const Merge&, int64_t, int64_t);
  void (*fill_terms)(const NoiseMerge&, const NoisePanels&, int64_t, int64_t);
  void (*sum_tiles)(const NoiseMerge&, const NoisePanels&, int64_t, int64_t);
  void (*row_terms)(const RowTerms&, int64_t, int64_t);
};

std::vector<InstructionSet> find_sets() {
  std::vector<InstructionSet> found;
#ifdef XGBLORA_X86_SETS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    found.push_back({"AVX-512", avx512::run_perturb, avx512::update_range, avx512::merge_rows, avx512::fill_terms,
                     avx512::sum_tiles, avx512::run_row_terms});
  }
  if (__builtin_cpu_supports("avx2")) {
    found.push_back({"AVX2", avx2::run_perturb, avx2::update_range, avx2::merge_rows, avx2::fill_terms,
                     avx2::sum_tiles, avx2::run_row_terms});
  }
#endif
  found.push_back({"baseline", baseline::run_perturb, baseline::update_range, baseline::merge_rows,
                   baseline::fill_terms, baseline::sum_tiles, baseline::run_row_terms});
  return found;
}

const std::vector<InstructionSet>& sets() {
  static const std::vector<InstructionSet> found = find_sets();
  return found;
}

// Elements that are worth a thread of their own: a thread costs 20 microseconds, these take 100.
constexpr int64_t ELEMENTS_A_THREAD = 1 << 16;

// Between matrix products a thread has to wait for theirs, which stay busy for some milliseconds after their work.
// Measured for `row_terms` on two cores: 160,000 elements 8.5 ms in two threads and under 0.1 in one; 9 million 10.6 and
// 4.0; 49 million 19.3 and 20.9.
constexpr int64_t ELEMENTS_A_THREAD_AMID_PRODUCTS = 1 << 25;

// `body(begin, end)` over 0 .. units, the last range in the caller's thread.
template <class Body>
void in_threads(int64_t units, int64_t elements_a_unit, int threads, Body body,
                int64_t elements_a_thread = ELEMENTS_A_THREAD) {
  const int64_t worthwhile = units * elements_a_unit / elements_a_thread;
  const int64_t parts = worthwhile < 1 || threads < 1 ? 1 : worthwhile < threads ? worthwhile : threads;
  const int64_t part = (units + parts - 1) / parts;
  std::vector<std::thread> running;
  int64_t begin = 0;
  for (; begin + part < units; begin += part) {
    try {
      running.emplace_back(body, begin, begin + part);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: the rest runs here
    }
  }
  body(begin, units);
  for (std::thread& thread : running) thread.join();
}

// Over an arena of `size`, in ranges that begin at whole blocks.
template <class Job>
void in_blocks(const Job& job, int threads, void (*run)(const Job&, int64_t, int64_t)) {
  constexpr int64_t BLOCK = baseline::BLOCK;
  in_threads((job.size + BLOCK - 1) / BLOCK, BLOCK, threads, [&job, run](int64_t begin, int64_t end) {
    run(job, begin * BLOCK, end * BLOCK < job.size ? end * BLOCK : job.size);
  });
}

const InstructionSet& set_number(int number) {
  if (number < 0 || number >= static_cast<int>(sets().size())) throw std::out_of_range("no such instruction set");
  return sets()[number];
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : sets()) names.emplace_back(set.name);
  return names;
}

void perturb(const Perturbation& job, int threads, int set) { in_blocks(job, threads, set_number(set).perturb); }

void update(const Update& job, int threads, int set) { in_blocks(job, threads, set_number(set).update); }

void merge(const Merge& job, int threads, int set) {
  const auto run = set_number(set).merge;
  in_threads(job.rows, job.columns, threads, [&job, run](int64_t begin, int64_t end) { run(job, begin, end); });
}

void merge_noise(const NoiseMerge& job, int threads, int set) {
  const InstructionSet& run = set_number(set);
  const int64_t down = (job.rows + TILE_ROWS - 1) / TILE_ROWS;
  const int64_t across = (job.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
  // beyond the edges of the weight the panels are zero
  std::vector<float> rows(down * TILE_ROWS * TERMS), columns(across * TILE_COLUMNS * TERMS);
  std::vector<float> sums(job.terms > TERMS ? down * across * TILE_ROWS * TILE_COLUMNS : 0);
  NoisePanels panels = {rows.data(), columns.data(), sums.empty() ? nullptr : sums.data(), 0, 0, false};
  do {
    panels.count = job.terms - panels.first < TERMS ? job.terms - panels.first : TERMS;
    panels.is_last = panels.first + panels.count == job.terms;
    in_threads(panels.count, job.rows + job.columns, threads, [&](int64_t begin, int64_t end) {
      run.fill_terms(job, panels, begin, end);
    });
    in_threads(down, TILE_ROWS * across * TILE_COLUMNS * (1 + panels.count / 8), threads,
               [&](int64_t begin, int64_t end) { run.sum_tiles(job, panels, begin, end); });
    panels.first += panels.count;
  } while (!panels.is_last);
}

void row_terms(const RowTerms& job, int threads, int set) {
  const auto run = set_number(set).row_terms;
  in_threads(job.rows, job.inputs + job.outputs, threads,
             [&job, run](int64_t begin, int64_t end) { run(job, begin, end); }, ELEMENTS_A_THREAD_AMID_PRODUCTS);
}

}  // namespace xgblora
