// The noise, `perturb` and `update_` of xgblora.ops over a range of an arena, and the merge of rows of a weight, in loops over fixed numbers of neighbours
// that a compiler turns into vector instructions. host.cpp includes this file once for each instruction set, inside a
// namespace of its own: no include guard, and what it uses is included there.

// Philox counters of a block: its words and normals stay in the first-level cache.
constexpr int COUNTERS = 64;
constexpr int BLOCK = 4 * COUNTERS;

// Philox words as the low halves of 64-bit lanes: what a vector multiplication of 32-bit numbers takes and makes.
struct alignas(64) BlockOfWords {
  uint64_t word[4][COUNTERS];
};

// Words of the counters first .. first + COUNTERS - 1 of the directions' stream; csrc/philox.h in lanes. High halves
// are left as they come, for `product` does not read them, and cleared at the end.
inline void words_of(uint64_t seed, uint64_t first, BlockOfWords& made) {
  uint64_t counters[COUNTERS];
  for (int i = 0; i < COUNTERS; ++i) counters[i] = first + i;
  const Lanes zero = {}, multiplier_0 = zero + PHILOX_MULTIPLIER_0, multiplier_1 = zero + PHILOX_MULTIPLIER_1;
  for (int i = 0; i < COUNTERS; i += sizeof(Lanes) / sizeof(uint64_t)) {
    Lanes c0;
    memcpy(&c0, counters + i, sizeof c0);
    Lanes c1 = c0 >> 32, c2 = zero + DIRECTION_STREAM, c3 = zero;
    uint32_t key_0 = static_cast<uint32_t>(seed), key_1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; ++round) {
      const Lanes product_0 = product(c0, multiplier_0), product_1 = product(c2, multiplier_1);
      c0 = product_1 >> 32 ^ c1 ^ uint64_t{key_0};
      c2 = product_0 >> 32 ^ c3 ^ uint64_t{key_1};
      c1 = product_1;
      c3 = product_0;
      key_0 += PHILOX_INCREMENT_0;
      key_1 += PHILOX_INCREMENT_1;
    }
    const Lanes made_here[4] = {c0 & 0xFFFFFFFFu, c1 & 0xFFFFFFFFu, c2 & 0xFFFFFFFFu, c3 & 0xFFFFFFFFu};
    for (int j = 0; j < 4; ++j) memcpy(made.word[j] + i, &made_here[j], sizeof(Lanes));
  }
}

// `integer - offset`, both exact in a double, of an integer below 2^52: its bits below those of 2^52.
inline double exact(uint64_t integer, double offset) { return double_of(TWO_52_BITS | integer) - (0x1p52 + offset); }

template <int COUNT>
inline double series(const double (&coefficients)[COUNT], double z) {
  double total = coefficients[COUNT - 1];
  for (int k = COUNT - 2; k >= 0; --k) total = total * z + coefficients[k];
  return total;
}

// -2 log(word + 1) 2^-32: the reference's own operations, but that factors of two, which round nothing, are moved to
// where they cost nothing: 2^-32 into the exponent, -4 = 2 * -2 into the coefficients.
inline double minus_two_log(uint64_t word) {
  const uint64_t shifted = bits_of(exact(word, -1.0)) + SQRT_HALF_TO_ONE;
  const double exponent = exact(shifted >> 52, 0x3FF + 32);
  const double mantissa = double_of((shifted & 0x000FFFFFFFFFFFFFu) + SQRT_HALF_BITS);
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  return exponent * (-2.0 * LN_2) + series(LOG_SERIES_TIMES_MINUS_4, s * s) * s;
}

// Two normals a lane: the cosine of the pair, then its sine. Two loops: a processor works on as many turns of a loop at
// once as it has room for, and the chains of additions are long (2.6 million normals by AVX2: 11 ms in one loop, 7 in two).
inline void box_muller(const uint64_t (&word_0)[COUNTERS], const uint64_t (&word_1)[COUNTERS],
                       float (&first)[COUNTERS], float (&second)[COUNTERS]) {
  double radius[COUNTERS];
  for (int i = 0; i < COUNTERS; ++i) radius[i] = std::sqrt(minus_two_log(word_0[i]));
  for (int i = 0; i < COUNTERS; ++i) {
    // the nearest quarter turn and the rest
    const uint64_t turned = word_1[i] + (1u << 29);
    const uint64_t quadrant = turned >> 30;
    const double x = exact(turned & 0x3FFFFFFFu, 0x1p29) * TWO_PI_2_M32;
    const double square = x * x;
    const uint64_t cosine = bits_of(series(COS_SERIES, square)), sine = bits_of(series(SIN_SERIES, square) * x);
    // odd quarter turns swap the two; the signs of a quarter turn are + - - + and + + - -
    const uint64_t swapped = (cosine ^ sine) & (0 - (quadrant & 1));
    first[i] = static_cast<float>(radius[i] * double_of(cosine ^ swapped ^ ((quadrant + 1) & 2) << 62));
    second[i] = static_cast<float>(radius[i] * double_of(sine ^ swapped ^ (quadrant & 2) << 62));
  }
}

// Elements 4 first .. 4 first + BLOCK - 1 of the noise of `seed`.
inline void noise_block(Distribution distribution, uint64_t seed, uint64_t first, float (&z)[BLOCK]) {
  BlockOfWords words;
  float column[4][COUNTERS];
  words_of(seed, first, words);
  if (distribution == Distribution::gaussian) {
    box_muller(words.word[0], words.word[1], column[0], column[1]);
    box_muller(words.word[2], words.word[3], column[2], column[3]);
  } else {
    for (int j = 0; j < 4; ++j) {
      for (int i = 0; i < COUNTERS; ++i) {
        column[j][i] = static_cast<float>(static_cast<int32_t>(words.word[j][i] & 1) * 2 - 1);
      }
    }
  }
  for (int i = 0; i < COUNTERS; ++i) {
    for (int j = 0; j < 4; ++j) z[4 * i + j] = column[j][i];
  }
}

template <class Live>
inline void perturb_row(const float* __restrict master, const float* __restrict z, float step, int count,
                        typename Live::Bits* __restrict live) {
  for (int i = 0; i < count; ++i) live[i] = Live::from_float(step * z[i] + master[i]);
}

template <class Live>
void perturb_range(const Perturbation& job, int64_t begin, int64_t end) {
  const int64_t rows = job.rows / job.seed_count;
  auto* live = static_cast<typename Live::Bits*>(job.live);
  float z[BLOCK];
  for (int64_t start = begin; start < end; start += BLOCK) {
    const int count = static_cast<int>(end - start < BLOCK ? end - start : BLOCK);
    for (int64_t row = 0; row < job.rows; ++row) {
      if (row % rows == 0) noise_block(job.distribution, job.seeds[row / rows], start / 4, z);
      perturb_row<Live>(job.master + start, z, job.signs[row] * job.eps, count, live + row * job.size + start);
    }
  }
}

// The step of `rule` along `gradient`, in its place.
inline void apply_rule(const Update& job, int64_t start, int count, float* __restrict gradient) {
  const float* f = job.factors;
  if (job.rule == Rule::sign) {
    for (int i = 0; i < count; ++i) {
      gradient[i] = static_cast<float>(static_cast<int>(gradient[i] > 0) - static_cast<int>(gradient[i] < 0));
    }
  } else if (job.rule == Rule::momentum) {
    float* __restrict first = job.first + start;
    const float decay = f[0], gain = f[1];
    for (int i = 0; i < count; ++i) gradient[i] = first[i] = first[i] * decay + gradient[i] * gain;
  } else if (job.rule == Rule::adam) {
    float* __restrict first = job.first + start;
    float* __restrict second = job.second + start;
    const float decay_1 = f[0], gain_1 = f[1], decay_2 = f[2], gain_2 = f[3];
    const float epsilon = f[4], correction_1 = f[5], correction_2 = f[6];
    for (int i = 0; i < count; ++i) {
      const float g = gradient[i];
      second[i] = second[i] * decay_2 + g * g * gain_2;
      first[i] = first[i] * decay_1 + g * gain_1;
      gradient[i] = first[i] / correction_1 / (std::sqrt(second[i] / correction_2) + epsilon);
    }
  }
}

inline void update_range(const Update& job, int64_t begin, int64_t end) {
  const float directions = static_cast<float>(job.directions), weight_decay = job.weight_decay, lr = job.lr;
  float z[BLOCK], total[BLOCK];
  for (int64_t start = begin; start < end; start += BLOCK) {
    const int count = static_cast<int>(end - start < BLOCK ? end - start : BLOCK);
    for (int i = 0; i < BLOCK; ++i) total[i] = 0.0f;
    for (int64_t direction = 0; direction < job.directions; ++direction) {
      const float coefficient = job.coefficients[direction];
      noise_block(job.distribution, job.seeds[direction], start / 4, z);
      for (int i = 0; i < BLOCK; ++i) total[i] = total[i] + z[i] * coefficient;
    }
    for (int i = 0; i < BLOCK; ++i) total[i] = total[i] / directions;
    apply_rule(job, start, count, total);
    float* __restrict master = job.master + start;
    for (int i = 0; i < count; ++i) master[i] = master[i] - (total[i] + weight_decay * master[i]) * lr;
  }
}

inline void run_perturb(const Perturbation& job, int64_t begin, int64_t end) {
  if (job.live_code == Float32::CODE) perturb_range<Float32>(job, begin, end);
  if (job.live_code == Bfloat16::CODE) perturb_range<Bfloat16>(job, begin, end);
  if (job.live_code == Float16::CODE) perturb_range<Float16>(job, begin, end);
}

template <class Weight, Rounding rounding>
void merge_rows_of(const Merge& job, int64_t begin, int64_t end) {
  using Bits = typename Weight::Bits;
  constexpr bool HAS_PLANE = rounding == Rounding::remainder && sizeof(Bits) == 2;
  const float* __restrict column_factors = job.column_factors;
  for (int64_t row = begin; row < end; ++row) {
    Bits* __restrict weight = static_cast<Bits*>(job.weight) + row * job.columns;
    int16_t* __restrict plane = HAS_PLANE ? job.remainder + row * job.columns : nullptr;
    const float factor = job.row_factors[row];
    for (int64_t i = 0; i < job.columns; ++i) {
      int16_t remainder = 0;
      if constexpr (HAS_PLANE) remainder = plane[i];
      weight[i] = merged<Weight, rounding>(weight[i], factor * column_factors[i], 0, remainder);
      if constexpr (HAS_PLANE) plane[i] = remainder;
    }
  }
}

template <Rounding rounding>
void merge_rows_by(const Merge& job, int64_t begin, int64_t end) {
  if (job.weight_code == Float32::CODE) merge_rows_of<Float32, rounding>(job, begin, end);
  if (job.weight_code == Bfloat16::CODE) merge_rows_of<Bfloat16, rounding>(job, begin, end);
  if (job.weight_code == Float16::CODE) merge_rows_of<Float16, rounding>(job, begin, end);
}

inline void merge_rows(const Merge& job, int64_t begin, int64_t end) {
  if (job.remainder == nullptr) merge_rows_by<Rounding::nearest>(job, begin, end);
  if (job.remainder != nullptr) merge_rows_by<Rounding::remainder>(job, begin, end);
}

// Partial sums of a dot product: 64 bytes of fp32, in one order whatever the width of a vector.
constexpr int PARTIALS = 16;

template <class X, class A>
inline float dot(const typename X::Bits* __restrict x, const typename A::Bits* __restrict a, int64_t count) {
  float partial[PARTIALS] = {};
  int64_t i = 0;
  for (; i + PARTIALS <= count; i += PARTIALS) {
    for (int j = 0; j < PARTIALS; ++j) partial[j] = partial[j] + X::to_float(x[i + j]) * A::to_float(a[i + j]);
  }
  for (int j = 0; i < count; ++i, ++j) partial[j] = partial[j] + X::to_float(x[i]) * A::to_float(a[i]);
  for (int half = PARTIALS / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) partial[j] = partial[j] + partial[j + half];
  }
  return partial[0];
}

template <class X, class A>
void row_terms_of(const RowTerms& job, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t group = job.groups[row / job.rows_per_entry];
    const auto* x = static_cast<const typename X::Bits*>(job.x) + row * job.inputs;
    const auto* a = static_cast<const typename A::Bits*>(job.a) + group * job.a_stride;
    const float t = job.given ? job.t[row] : dot<X, A>(x, a, job.inputs);
    if (!job.given && job.t != nullptr) job.t[row] = t;
    if (job.y == nullptr) continue;
    const float factor = job.scale * t;
    auto* __restrict y = static_cast<typename X::Bits*>(job.y) + row * job.outputs;
    const auto* __restrict b = static_cast<const typename A::Bits*>(job.b) + group * job.b_stride;
    for (int64_t i = 0; i < job.outputs; ++i) y[i] = X::from_float(X::to_float(y[i]) + factor * A::to_float(b[i]));
  }
}

template <class X>
void row_terms_by(const RowTerms& job, int64_t begin, int64_t end) {
  if (job.a_code == Float32::CODE) row_terms_of<X, Float32>(job, begin, end);
  if (job.a_code != Float32::CODE) row_terms_of<X, X>(job, begin, end);
}

inline void run_row_terms(const RowTerms& job, int64_t begin, int64_t end) {
  if (job.x_code == Float32::CODE) row_terms_of<Float32, Float32>(job, begin, end);
  if (job.x_code == Bfloat16::CODE) row_terms_by<Bfloat16>(job, begin, end);
  if (job.x_code == Float16::CODE) row_terms_by<Float16>(job, begin, end);
}
