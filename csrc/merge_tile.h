// The body of the merge kernel, as a function of (tile, lane): the kernel calls it with blockIdx.x and threadIdx.x, the
// tests call it from loops.
#pragma once

#include "merge_layer.h"
#include "philox.h"

namespace xgblora {

// Vectors of weights that a thread has in flight. A copy at 3 TB/s, 0.8 microseconds a load, needs about 20 KiB in
// flight on each of 132 multiprocessors; two vectors of 16 bytes for each of 768 threads are 24 KiB. Remainders come on
// top of that; random words want the registers: with four vectors the stochastic kernel spilled 40 bytes.
template <Rounding rounding>
constexpr int in_flight = rounding == Rounding::nearest ? 4 : 2;

struct Place {
  int64_t row, column;
};

// The place `offset` elements on, for an offset below `tile`, the elements of a tile. Rows longer than a tile are left
// at most once; for the others the numbers are small. No 64-bit division: that one is made once a tile.
XGBLORA_HOST_DEVICE Place advanced(Place origin, int offset, int64_t columns, int tile) {
  Place place = {origin.row, origin.column + offset};
  if (place.column >= columns) {
    if (columns >= tile) {
      place.column -= columns;
      place.row += 1;
    } else {
      const uint32_t rows = static_cast<uint32_t>(place.column) / static_cast<uint32_t>(columns);
      place.column -= rows * columns;
      place.row += rows;
    }
  }
  return place;
}

// (scale * b) * a of WIDTH elements that are neighbours in memory, from `place` on: two products, each rounded once.
// The factors of rows and columns are b and a, or a and b where the weight is transposed; times 1 is exact.
template <int WIDTH>
XGBLORA_HOST_DEVICE void updates_from(const Layer& layer, Place place, float scale, float (&update)[WIDTH]) {
  const int64_t of_rows = layer.transposed ? layer.a : layer.b, of_columns = layer.transposed ? layer.b : layer.a;
  const float row_scale = layer.transposed ? 1.0f : scale, column_scale = layer.transposed ? scale : 1.0f;
  float row[WIDTH], column[WIDTH];
  if (place.column + WIDTH <= layer.columns) {
    const float factor = load_factor(of_rows, place.row);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) row[i] = factor;
    load_factors(of_columns, place.column, column);
  } else {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      row[i] = load_factor(of_rows, place.row);
      column[i] = load_factor(of_columns, place.column);
      place.column += 1;
      if (place.column == layer.columns) {
        place.column = 0;
        place.row += 1;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    update[i] = multiply(multiply(row_scale, row[i]), multiply(column_scale, column[i]));
  }
}

// Merges one element on its own: for vectors that the weight does not fill.
template <class Weight, Rounding rounding>
XGBLORA_HOST_DEVICE void merge_element(const Layer& layer, int64_t index, float scale, uint64_t seed) {
  using Bits = typename Weight::Bits;
  const Place place = {index / layer.columns, index % layer.columns};
  float update[1];
  updates_from(layer, place, scale, update);
  const uint32_t word = rounding == Rounding::stochastic ? rounding_word(seed, layer.start + index) : 0;
  int16_t remainder = 0;
  if constexpr (rounding == Rounding::remainder && sizeof(Bits) == 2) {
    remainder = *element_at<int16_t>(layer.remainder, index);
  }
  Bits* weight = element_at<Bits>(layer.weight, index);
  *weight = merged<Weight, rounding>(*weight, update[0], word, remainder);
  if constexpr (rounding == Rounding::remainder && sizeof(Bits) == 2) {
    *element_at<int16_t>(layer.remainder, index) = remainder;
  }
}

// The remainders of the vector at element `first`; they may be aligned otherwise than the weights.
XGBLORA_HOST_DEVICE Vector load_remainders(const Layer& layer, int64_t first) {
  const int64_t address = layer.remainder + 2 * first;
  if (is_aligned(address)) return load_vector(address);
  Vector vector = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) put(vector, i, *element_at<uint16_t>(address, i));
  return vector;
}

XGBLORA_HOST_DEVICE void store_remainders(const Layer& layer, int64_t first, const Vector& vector) {
  const int64_t address = layer.remainder + 2 * first;
  if (is_aligned(address)) {
    store_vector(address, vector);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) *element_at<uint16_t>(address, i) = get<uint16_t>(vector, i);
  }
}

// Merges the loaded vector `weights` at element `first`, which lies at `place`, and stores it.
template <class Weight, Rounding rounding>
XGBLORA_HOST_DEVICE void merge_vector(const Layer& layer, int64_t first, Place place, const Vector& weights,
                                      const Vector& remainders, float scale, uint64_t seed) {
  using Bits = typename Weight::Bits;
  constexpr int WIDTH = elements_per_vector<Bits>;
  constexpr bool HALF = sizeof(Bits) == 2;
  float update[WIDTH];
  updates_from(layer, place, scale, update);
  uint32_t words[WIDTH] = {};
  if constexpr (HALF && rounding == Rounding::stochastic) rounding_words(seed, layer.start + first, words);
  Vector new_weights = {}, new_remainders = {};
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    int16_t remainder = 0;
    if constexpr (HALF && rounding == Rounding::remainder) remainder = get<int16_t>(remainders, i);
    put(new_weights, i, merged<Weight, rounding>(get<Bits>(weights, i), update[i], words[i], remainder));
    if constexpr (HALF && rounding == Rounding::remainder) put(new_remainders, i, remainder);
  }
  store_vector(layer.weight + first * static_cast<int64_t>(sizeof(Bits)), new_weights);
  if constexpr (HALF && rounding == Rounding::remainder) store_remainders(layer, first, new_remainders);
}

// Tile `tile` of one layer: lane `lane` of `lanes` takes vectors lane, lane + lanes, ...
template <class Weight, Rounding rounding>
XGBLORA_HOST_DEVICE void merge_tile_of(const Layer& layer, int64_t tile, int lane, int lanes, float scale,
                                       uint64_t seed) {
  using Bits = typename Weight::Bits;
  constexpr int WIDTH = elements_per_vector<Bits>;
  constexpr int TILE = TILE_VECTORS * WIDTH;
  constexpr int IN_FLIGHT = in_flight<rounding>;
  const int64_t count = layer.rows * layer.columns;
  const int64_t tile_start = tile * TILE - elements_before(layer);
  const int64_t inside = tile_start < 0 ? 0 : tile_start;
  const Place origin = {inside / layer.columns, inside % layer.columns};
  for (int start = lane; start < TILE_VECTORS; start += IN_FLIGHT * lanes) {
    Vector weights[IN_FLIGHT], remainders[IN_FLIGHT];
    int64_t first[IN_FLIGHT];
    bool whole[IN_FLIGHT];
    // all loads before the first use, so that they are under way together
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; ++j) {
      first[j] = tile_start + static_cast<int64_t>(start + j * lanes) * WIDTH;
      whole[j] = start + j * lanes < TILE_VECTORS && first[j] >= 0 && first[j] + WIDTH <= count;
      if (whole[j]) {
        weights[j] = load_vector(layer.weight + first[j] * static_cast<int64_t>(sizeof(Bits)));
        if constexpr (rounding == Rounding::remainder && sizeof(Bits) == 2) {
          remainders[j] = load_remainders(layer, first[j]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; ++j) {
      if (whole[j]) {
        const Place place = advanced(origin, static_cast<int>(first[j] - inside), layer.columns, TILE);
        merge_vector<Weight, rounding>(layer, first[j], place, weights[j], remainders[j], scale, seed);
      }
    }
    // the vectors that the weight begins or ends in; a loop that stays a loop, to keep the kernel small
#pragma unroll 1
    for (int vector = start; vector < start + IN_FLIGHT * lanes && vector < TILE_VECTORS; vector += lanes) {
      const int64_t from = tile_start + static_cast<int64_t>(vector) * WIDTH;
      if (from >= 0 && from + WIDTH <= count) continue;
#pragma unroll 1
      for (int64_t index = from < 0 ? 0 : from; index < from + WIDTH && index < count; ++index) {
        merge_element<Weight, rounding>(layer, index, scale, seed);
      }
    }
  }
}

// Tile `tile` of all layers.
template <Rounding rounding>
XGBLORA_HOST_DEVICE void merge_tile(const Layer* layers, int64_t count, int64_t tile, int lane, int lanes, float scale,
                                    uint64_t seed) {
  const Layer layer = layer_of(layers, count, tile);
  const int64_t own = tile - layer.first_tile;
  if (layer.dtype == Float32::CODE) {
    merge_tile_of<Float32, rounding>(layer, own, lane, lanes, scale, seed);
  } else if (layer.dtype == Bfloat16::CODE) {
    merge_tile_of<Bfloat16, rounding>(layer, own, lane, lanes, scale, seed);
  } else {
    merge_tile_of<Float16, rounding>(layer, own, lane, lanes, scale, seed);
  }
}

}  // namespace xgblora
