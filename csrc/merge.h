// What merge.cu offers to the bindings.
#pragma once

#include "merge_layer.h"

namespace xgblora {

// Merges `tiles` tiles of the `count` layers at `layers`, a table in the memory of `device`, in one launch on `stream`.
// Restores the current device. Throws std::runtime_error with the name of the CUDA error.
void merge_rank1(const Layer* layers, int64_t count, int64_t tiles, Rounding rounding, float scale, uint64_t seed,
                 int device, void* stream);

struct KernelFacts {
  int registers, local_bytes;  // of a thread
};

// What the kernel of `rounding` takes on `device`; throws where it cannot run there.
KernelFacts merge_facts(Rounding rounding, int device);

}  // namespace xgblora
