// Drops by rank of whole tensors.
#pragma once
#include <vector>

#include "selection.hpp"

namespace fm {

// Masks of elements start … stop, a row of `stride` bytes for each model; n is the tensor's length.
void drop_by_rank(const Args &, int64_t n, int64_t columns, const std::vector<uint64_t> &keys,
                  const std::vector<const int64_t *> &thresholds, int64_t start, int64_t stop, uint8_t *masks);

}  // namespace fm
