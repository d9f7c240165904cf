// What describes a matrix's filter to the code that is compiled per instruction set: plain data, with tables that
// spectrum.py lays out.
#pragma once
#include "kernels.hpp"

namespace fm {

constexpr int MAX_RADIX = 127;
constexpr int MAX_LEVELS = 40;
constexpr int VECTOR = 32;  // bytes: 8 float32 or 4 float64 side by side

// Of n numbers, the product of the radices, each 2, 4, 8 or odd. `tables`, of the working type: of each level, from its
// offset on, the roots of unity, if the radix is odd, and then the twiddles. Or, with an inner one, of any number: the chirp,
// and the transform of its conjugate.
struct Transform {
    int64_t n;
    int levels;
    int radix[MAX_LEVELS];
    int64_t offset[MAX_LEVELS];
    const void *tables;
    const Transform *inner;
};

// The columns first … first + columns of an h × w matrix's half-spectrum are what is held of it, as panel
// [groups of a vector's lanes of columns][h][re, im][lanes]. Bin (y, x) is kept where |2y − middle| ≤ reach of x; half of it
// and half of its mirror image are what is real. What is subtracted is what is not kept.
struct Spectrum {
    int64_t h, w, first, columns;
    bool subtract;
    bool wide;
    int64_t middle;
    const void *reaches, *mirrored;  // integers as wide as the working type, [columns, padded to whole groups]
    const void *units;               // exp(−2πi·x / w) of each column
    Transform along, across;         // rows: of w / 2 numbers, pairs being complex, or of w where that is odd
    Transform along_back, across_back;
    void *panel;

    int lanes() const;
    int64_t groups() const;
    int64_t blocks() const;
    int64_t block_vectors() const;  // what a block's rows take, padded
};

// A filter, and what it is called with.
struct Filtering {
    const Spectrum *spectrum;
    const Args *args;
};

#define FM_DECLARE(isa)                                                                                             \
    namespace isa {                                                                                                 \
    /* a block of as many rows as a vector has lanes: formed, and transformed into the panel */                     \
    void filter_forward(const Args &, const Spectrum &, int64_t block, void *work);                                 \
    /* a group of columns: transformed, filtered, and transformed back */                                           \
    void filter_across(const Spectrum &, int64_t group, void *work);                                                \
    /* a block transformed back, and its elements start … stop of the matrix merged into out, whose first is start; \
       returns those that are not finite */                                                                         \
    int64_t filter_back(const Args &, const Spectrum &, int64_t block, int64_t start, int64_t stop, void *work);    \
    /* the same of filters of one model each, whose weighted sum is merged, if there is an out; and Σ|G(τ_k)| of the \
       block */                                                                                                     \
    int64_t filter_back_each(const Args &, const Filtering *, int count, int64_t block, int64_t start, int64_t stop, \
                             void *work, double *magnitudes);                                                       \
    }
FM_DECLARE(base)
FM_DECLARE(v3)
FM_DECLARE(v4)
#undef FM_DECLARE

}  // namespace fm
