// The sum of rank-1 noise of xgblora.ops.merge_noise, added to a weight in tiles. host.cpp includes this file after
// host_lanes.h, once for each instruction set, inside a namespace of its own: no include guard.

// A tile's sums stay in registers while all terms pass: with AVX-512 16 of them, 64 bytes each.
constexpr int VECTORS = sizeof(Reals) == 64 ? 4 : 2;
constexpr int NEIGHBOURS = sizeof(Reals) / sizeof(float) * VECTORS;
static_assert(TILE_COLUMNS % NEIGHBOURS == 0, "a tile is a whole number of steps");

// Noise start .. start + size - 1 of a seed times `factor` where `scales`, as term `term` of a panel: tiles of WIDTH
// elements, in each tile term after term.
template <int WIDTH>
inline void fill_term(uint64_t seed, int64_t start, int64_t size, bool scales, float factor, int64_t term,
                      float* panel) {
  float z[BLOCK];
  for (int64_t first = start - start % 4; first < start + size; first += BLOCK) {
    noise_block(Distribution::gaussian, seed, first / 4, z);
    const int64_t begin = first < start ? start - first : 0;
    const int64_t end = start + size - first < BLOCK ? start + size - first : BLOCK;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t place = first + i - start;
      panel[(place / WIDTH * TERMS + term) * WIDTH + place % WIDTH] = scales ? z[i] * factor : z[i];
    }
  }
}

inline void fill_terms(const NoiseMerge& job, const NoisePanels& panels, int64_t begin, int64_t end) {
  for (int64_t term = begin; term < end; ++term) {
    const uint64_t seed = job.seeds[panels.first + term];
    const float factor = job.coefficients[panels.first + term];
    fill_term<TILE_ROWS>(seed, job.row_start, job.rows, job.scales_rows, factor, term, panels.rows);
    fill_term<TILE_COLUMNS>(seed, job.column_start, job.columns, !job.scales_rows, factor, term, panels.columns);
  }
}

// sums += the outer products of `count` terms, one after another.
inline void add_terms(const float* __restrict rows, const float* __restrict columns, int64_t count,
                      float* __restrict sums) {
  constexpr int LANES = sizeof(Reals) / sizeof(float);
  for (int first = 0; first < TILE_COLUMNS; first += NEIGHBOURS) {
    Reals total[TILE_ROWS][VECTORS];
    for (int r = 0; r < TILE_ROWS; ++r) {
      for (int v = 0; v < VECTORS; ++v) memcpy(&total[r][v], sums + r * TILE_COLUMNS + first + v * LANES, sizeof(Reals));
    }
    for (int64_t term = 0; term < count; ++term) {
      Reals column[VECTORS];
      for (int v = 0; v < VECTORS; ++v) memcpy(&column[v], columns + term * TILE_COLUMNS + first + v * LANES, sizeof(Reals));
      for (int r = 0; r < TILE_ROWS; ++r) {
        const float row = rows[term * TILE_ROWS + r];
        for (int v = 0; v < VECTORS; ++v) total[r][v] = total[r][v] + column[v] * row;
      }
    }
    for (int r = 0; r < TILE_ROWS; ++r) {
      for (int v = 0; v < VECTORS; ++v) memcpy(sums + r * TILE_COLUMNS + first + v * LANES, &total[r][v], sizeof(Reals));
    }
  }
}

template <class Weight, Rounding rounding>
void merge_sums(const NoiseMerge& job, int64_t first_row, int64_t first_column, const float* sums) {
  using Bits = typename Weight::Bits;
  constexpr bool HAS_PLANE = rounding == Rounding::remainder && sizeof(Bits) == 2;
  const int64_t rows = job.rows - first_row < TILE_ROWS ? job.rows - first_row : TILE_ROWS;
  const int64_t columns = job.columns - first_column < TILE_COLUMNS ? job.columns - first_column : TILE_COLUMNS;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t place = (first_row + row) * job.columns + first_column;
    Bits* __restrict weight = static_cast<Bits*>(job.weight) + place;
    int16_t* __restrict plane = HAS_PLANE ? job.remainder + place : nullptr;
    const float* __restrict sum = sums + row * TILE_COLUMNS;
    for (int64_t i = 0; i < columns; ++i) {
      int16_t remainder = 0;
      if constexpr (HAS_PLANE) remainder = plane[i];
      weight[i] = merged<Weight, rounding>(weight[i], sum[i], 0, remainder);
      if constexpr (HAS_PLANE) plane[i] = remainder;
    }
  }
}

// Rows of tiles begin .. end - 1: a panel of columns stays in the second-level cache while all rows pass.
template <class Weight, Rounding rounding>
void sum_tiles_of(const NoiseMerge& job, const NoisePanels& panels, int64_t begin, int64_t end) {
  const int64_t across = (job.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
  for (int64_t column = 0; column < across; ++column) {
    for (int64_t row = begin; row < end; ++row) {
      alignas(64) float here[TILE_ROWS * TILE_COLUMNS] = {};
      float* sums = panels.sums == nullptr ? here : panels.sums + (row * across + column) * TILE_ROWS * TILE_COLUMNS;
      add_terms(panels.rows + row * TERMS * TILE_ROWS, panels.columns + column * TERMS * TILE_COLUMNS, panels.count, sums);
      if (panels.is_last) merge_sums<Weight, rounding>(job, row * TILE_ROWS, column * TILE_COLUMNS, sums);
    }
  }
}

template <Rounding rounding>
void sum_tiles_by(const NoiseMerge& job, const NoisePanels& panels, int64_t begin, int64_t end) {
  if (job.weight_code == Float32::CODE) sum_tiles_of<Float32, rounding>(job, panels, begin, end);
  if (job.weight_code == Bfloat16::CODE) sum_tiles_of<Bfloat16, rounding>(job, panels, begin, end);
  if (job.weight_code == Float16::CODE) sum_tiles_of<Float16, rounding>(job, panels, begin, end);
}

inline void sum_tiles(const NoiseMerge& job, const NoisePanels& panels, int64_t begin, int64_t end) {
  if (job.remainder == nullptr) sum_tiles_by<Rounding::nearest>(job, panels, begin, end);
  if (job.remainder != nullptr) sum_tiles_by<Rounding::remainder>(job, panels, begin, end);
}
