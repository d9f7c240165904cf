// What module.cpp and the ops agree on: arguments of each op, and one function per op and instruction set that computes
// a block of at most 65 536 elements. Plain data only: code compiled for one instruction set must not share inline
// functions with another, or the linker may keep the wrong copy.
#pragma once
#include <cstdint>

namespace fm {

enum DType : int { BF16, F16, F32, F64 };
constexpr int64_t BLOCK = 65536;
constexpr int MAX_MODELS = 64;

// What processors of one instruction set differ in.
extern const int ahead;         // bytes that prefetching runs ahead of every stream
extern const bool slow_stores;  // a store of 64 bytes takes two cycles

enum Consensus : int { SUM, MAX, WEIGHTED, UNWEIGHTED, COUNT };  // the last three vote on the sign

struct In {
    const void *data;
    int dtype;
};
struct Out {
    void *data;
    int dtype;
};

// Elements above the top cut and below the bottom one do not take part.
struct Window {
    double top;
    int64_t top_index;
    double bottom;
    int64_t bottom_index;
};
struct Drop {
    uint64_t key, threshold;
};

// The magnitudes that a task vector is clamped to, and the scores that give no weight and the full one.
struct Bounds {
    double least, most, low, high;
};

struct Args {
    In base;              // data is null where an op has no base
    const In *models;     // K of them
    int models_count;
    In merged;            // mask_against: τ_m; modulate: the unified task vector
    Out out;              // unified, merged or modulated
    uint8_t *masks;       // rows of `mask_stride` bytes, written; combine, kept_sums, modulate: read, null where not used
    int64_t mask_stride;
    const double *weights;  // K of them; mask_against: tall, or null
    double divisor, scale;
    Consensus consensus;
    const double *shares; // K of them: those of the terms that agree are what is divided by; or null
    bool as_delta;
    bool wide;            // working type float64
    bool streaming;       // out is large and aligned: write it past the cache
    const Window *trim;   // K of them, or null
    const Drop *drop;     // K of them, or null
    int64_t offset;       // index in its tensor of the first element
    const float *group_weights;  // blend: [K, groups]; element i of the tensor is in group (i / inner) mod groups
    int64_t groups, inner;
    const Bounds *bounds;  // balance: K of them; compete: those of model `own`
    int own;
    const void *up, *down;  // low_rank: matrices [rows, rank] and [rank, columns] of the working type
    int64_t rank, columns;
};

// `begin` is a multiple of BLOCK. `sums` is the block's own result: elect, mask_against and kept_sums 2K, moments 4K,
// inner_products 2K + 1, gram and row_gram K(K + 1)/2 (rows from the diagonal on), combine none. The return value counts non-finite
// results (combine, blend, balance) or elements that vary (variance), or is 0; moments adds K counts to `counts`.
// row_gram and row_divergence are given a row of the tensor, wherever it begins; row_divergence adds `added` to all probabilities,
// and works in memory for two rows of whole pairs.
#define FM_DECLARE(isa)                                                                                   \
    namespace isa {                                                                                       \
    int64_t elect(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);                 \
    int64_t modulate(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);              \
    int64_t low_rank(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);              \
    int64_t mask_against(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);          \
    int64_t combine(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);               \
    int64_t blend(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);                 \
    int64_t kept_sums(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);             \
    int64_t delta_sum(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);             \
    int64_t moments(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);               \
    int64_t inner_products(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);        \
    int64_t gram(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);                  \
    int64_t row_gram(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);              \
    double row_divergence(const Args &, int64_t begin, int64_t n, double added, double *memory);          \
    int64_t variance(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);              \
    int64_t compete(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);               \
    int64_t balance(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);               \
    int64_t pack_bits(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);             \
    int64_t unpack_bits(const Args &, int64_t begin, int64_t n, double *sums, int64_t *counts);           \
    }
FM_DECLARE(base)
FM_DECLARE(v3)
FM_DECLARE(v4)
#undef FM_DECLARE

using BlockFn = int64_t (*)(const Args &, int64_t, int64_t, double *, int64_t *);

}  // namespace fm
