// A block of rows as the transforms have it.
#pragma once
#include "lanes.hpp"

namespace fm::FM_ISA {

static inline int64_t whole_pairs(int64_t n) { return (n + 31) / 32 * 32; }

template <class W> struct Rows {
    Vector<W> *columns, *other, *sum;  // of the block; and as much to work with, twice
    void *convolution;

    Rows(const Spectrum &s, void *work) : columns(static_cast<Vector<W> *>(work)) {
        other = columns + s.block_vectors(), sum = other + s.block_vectors(), convolution = sum + s.block_vectors();
    }
    // Where row r begins in `other` and `sum`, which have them one after the other: whole pairs, and apart so that rows do
    // not share cache sets
    static int64_t offset(const Spectrum &s, int r) { return r * (whole_pairs(s.w) + 32); }
    W *row(const Spectrum &s, int r) const { return reinterpret_cast<W *>(other) + offset(s, r); }
    W *sum_row(const Spectrum &s, int r) const { return reinterpret_cast<W *>(sum) + offset(s, r); }
};

// Which vector has column x on its way to the panel, and back from there, where real and imaginary parts are swapped.
static inline int64_t going(const Spectrum &s, int64_t x) { return s.w % 2 ? 2 * x : x; }
static inline int64_t coming(const Spectrum &s, int64_t x) { return s.w % 2 ? 2 * x + 1 : x ^ 1; }

// From rows.columns to the panel, and back.
template <class W> void rows_to_panel(const Spectrum &, int64_t block, const Rows<W> &);
template <class W> void panel_to_rows(const Spectrum &, int64_t block, const Rows<W> &);

}  // namespace fm::FM_ISA
