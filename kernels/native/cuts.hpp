// Counts and cuts of whole tensors.
#pragma once
#include <vector>

#include "selection.hpp"

namespace fm {

// Adds to counts [K][2^bits].
void count_magnitudes(const Args &, const Digit &, int64_t n, int64_t *counts);

// magnitudes, indices: [K][R].
void find_cuts(const Args &, int64_t n, const std::vector<std::vector<int64_t>> &ranks, double *magnitudes, int64_t *indices);

}  // namespace fm
