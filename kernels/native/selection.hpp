// What selection_module.cpp and the ops that select by magnitude agree on. The keys of magnitudes are their bits, of 31 or
// 63 of them, so that integers compare as the magnitudes do.
#pragma once
#include "kernels.hpp"

namespace fm {

constexpr int COUNTERS = 8;        // of every bin, taken in turn, so that one need not wait for its last increment
constexpr int MAX_BIN_BITS = 13;
constexpr int TOP_BITS = 11;       // of a key, that buckets are first told by

// Bits shift … shift + bits of the keys whose bits above are a model's prefix, or of all.
struct Digit {
    int shift, bits;
    const uint64_t *prefixes;  // K of them, or null
    bool wide;                 // of keys in float64 even where the working type is float32
};

// The keys first … first + span of a model's magnitudes.
struct Bucket {
    int model;
    uint64_t first, span;
};

// Those of a block, in order, but how many equal `first`; and how many keys stand above the bucket.
struct Found {
    void *keys;  // of 32 bits, or 64 where the working type is float64; has room for the block and ROOM more
    int64_t size, firsts, above;
};
constexpr int ROOM = 16;
constexpr int SAMPLE = 32;  // neighbouring elements that are sampled together: a cache line of 16-bit weights

// Element i of a tensor is dropped where philox(i, key) is below the threshold of its rank; all are in least … most. Words
// from `most` − 1 down to `least` are in INTERVALS intervals of 2^shift. Where thresholds fall as ranks rise, the words of
// interval i keep ranks from needs[i + 1] on and drop those below needs[i]; where they do not, `needs` is null.
constexpr int INTERVALS = 32;
struct RankDrop {
    uint64_t key;
    const int64_t *thresholds;
    uint64_t least, most;
    int shift;
    const int64_t *needs;
};
// Bytes that rank_drop needs: for each of its elements (and 64 more), in float64 and else, and for the bins of a row.
constexpr int64_t RANK_BYTES_WIDE = 64, RANK_BYTES = 40, RANK_TABLES = 1 << 18;

// `begin` is a multiple of BLOCK, `n` at most BLOCK.
// magnitude_histogram adds to counts [K][2^bits][COUNTERS].
// kth_magnitude fills in what it finds in each bucket.
// sample_keys writes the keys of SAMPLE elements from `begin`, a multiple of SAMPLE: [K][SAMPLE], of 64 bits.
// nth_equal is the offset of the nth element (from 0) with that key.
// extract_topk writes the elements above the cut, offsets from `begin` and values; returns how many.
// rank_drop packs the masks of elements from … to of whole rows begin … begin + n (multiples of 8) of the only model.
// scatter_add: theta is the block, with n offsets; values begin … begin + n are theirs.
// gather and scatter move the n values of the block theta, of 2, 4 or 8 bytes each, bits and all.
#define FM_DECLARE(isa)                                                                                                  \
    namespace isa {                                                                                                      \
    void magnitude_histogram(const Args &, const Digit &, int64_t begin, int64_t n, uint32_t *counts);                   \
    void kth_magnitude(const Args &, const Bucket *, int count, int64_t begin, int64_t n, Found *found);                  \
    void sample_keys(const Args &, int64_t begin, uint64_t *keys);                                                       \
    int64_t nth_equal(const Args &, int model, uint64_t key, int64_t nth, int64_t begin, int64_t n);                     \
    int64_t extract_topk(const Args &, double magnitude, int64_t index, int64_t begin, int64_t n, uint16_t *offsets,     \
                         const Out &values);                                                                             \
    void rank_drop(const Args &, const RankDrop &, int64_t columns, int64_t begin, int64_t n, int64_t from, int64_t to,  \
                   char *memory, uint8_t *bits);                                                                         \
    void scatter_add(const Out &theta, const uint16_t *offsets, const In &values, int64_t begin, int64_t n, double scale); \
    void gather(const char *theta, int64_t item_size, const char *offsets, int64_t n, char *values);                     \
    void scatter(char *theta, int64_t item_size, const char *offsets, int64_t n, const char *values);                    \
    }
FM_DECLARE(base)
FM_DECLARE(v3)
FM_DECLARE(v4)
#undef FM_DECLARE

}  // namespace fm
