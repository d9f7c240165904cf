// Experts of whole tensors.
#pragma once
#include "selection.hpp"

namespace fm {

// The elements above a cut, as far as there is room for them; returns how many there are. counts: one a block.
int64_t extract(const Args &, int64_t n, double magnitude, int64_t index, int32_t *counts, uint16_t *offsets,
                const Out &values, int64_t room);

void scatter(const Out &theta, int64_t n, const int32_t *counts, const uint16_t *offsets, const In &values, double scale);

}  // namespace fm
