// Where a sample says that ranks are to be looked for.
#pragma once
#include <optional>
#include <vector>

#include "selection.hpp"

namespace fm {

struct Bracket {
    Bucket bucket;
    int64_t population;  // of the bucket, as far as the sample tells
};

// For every model and rank a bucket that most likely holds the rank-th largest key, or nothing where the sample is of no
// help. The sample depends on n alone.
std::vector<std::vector<std::optional<Bracket>>> brackets(const Args &, int64_t n, const std::vector<std::vector<int64_t>> &ranks);

}  // namespace fm
