// The table of a merge: one row a weight, and how the weights are cut into tiles.
#pragma once

#include "rounding.h"

namespace xgblora {

// A weight as it lies in memory, `rows` x `columns` without gaps: [N, K], or [K, N] where `transposed`.
// Ten int64, in the order in which xgblora/ops/backends/cuda.py writes them.
struct Layer {
  int64_t weight, remainder;  // addresses; the remainders lie as the weights do, 0 where there are none
  int64_t a, b;               // addresses of fp32 [K] and [N]
  int64_t rows, columns;
  int64_t dtype;  // CODE of Float32, Bfloat16 or Float16
  int64_t transposed;
  int64_t start;       // elements in the weights before this one
  int64_t first_tile;  // tiles in the weights before this one
};

// A tile is 1,024 vectors of 16 bytes, 16 KiB of weights, whatever the dtype and shape: every block of the grid has
// the same amount of memory traffic, and a layer of any shape fills it but for its last tile.
constexpr int TILE_VECTORS = 1024;

XGBLORA_HOST_DEVICE int64_t element_size(const Layer& layer) { return layer.dtype == Float32::CODE ? 4 : 2; }

// Vectors start at multiples of 16 bytes, so the first one may begin before the weight: by this many elements.
XGBLORA_HOST_DEVICE int64_t elements_before(const Layer& layer) { return (layer.weight & 15) / element_size(layer); }

inline int64_t tiles_of(const Layer& layer) {
  const int64_t count = layer.rows * layer.columns;
  const int64_t tile = TILE_VECTORS * (16 / element_size(layer));
  return count == 0 ? 0 : (elements_before(layer) + count + tile - 1) / tile;
}

// Fills in `start` and `first_tile` of every layer; the number of tiles.
inline int64_t plan_merge(Layer* layers, int64_t count) {
  int64_t start = 0, tiles = 0;
  for (Layer* layer = layers; layer < layers + count; ++layer) {
    layer->start = start;
    layer->first_tile = tiles;
    start += layer->rows * layer->columns;
    tiles += tiles_of(*layer);
  }
  return tiles;
}

// The layer that a tile belongs to: the last one that starts at or before it. An empty layer starts where the next one
// does and is never the last.
XGBLORA_HOST_DEVICE const Layer& layer_of(const Layer* layers, int64_t count, int64_t tile) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (layers[middle].first_tile <= tile ? low : high) = middle;
  }
  return layers[low];
}

}  // namespace xgblora
