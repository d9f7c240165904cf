// Experts of whole tensors.
#pragma once
#include <vector>

#include "selection.hpp"

namespace fm {

// The elements above a cut, as far as there is room for them; returns how many there are. counts: one a block.
int64_t extract(const Args &, int64_t n, double magnitude, int64_t index, int32_t *counts, uint16_t *offsets,
                const Out &values, int64_t room);

// Where the largest elements of a model go: how many of each block, offsets, and values of the working type.
struct Largest {
    int64_t k, room;
    int32_t *counts;
    uint16_t *offsets;
    void *values;
};
// The k largest elements of each model (of equal ones the first; NaN are not among them) in one reading, where a sample
// tells from about which magnitude on they are, and `room` is enough for what is above that. Returns 1 for those found, else 0.
std::vector<int> extract_largest(const Args &, int64_t n, const std::vector<Largest> &);

// The elements of an expert: how many each of `blocks` has, and all k offsets.
struct Elements {
    const char *counts;
    int64_t blocks;
    const char *offsets;
    int64_t k;
};
struct Valued {
    Elements elements;
    char *values;
};

// False, with nothing written, where counts and offsets are not those of k elements of a tensor of n.
bool add(const Out &theta, int64_t n, const Elements &, const In &values, double scale);
bool gather(const In &theta, int64_t n, const Valued &);
bool scatter(const Out &theta, int64_t n, const std::vector<Valued> &);

}  // namespace fm
