// A block of rows as the transforms have it.
#pragma once
#include "lanes.hpp"

namespace fm::FM_ISA {

template <class W> struct Rows {
    Vector<W> *columns, *other;  // of the block; and as much to work with
    void *convolution;

    Rows(const Spectrum &s, void *work) : columns(static_cast<Vector<W> *>(work)) {
        other = columns + 2 * s.along.n, convolution = other + 2 * s.along.n;
    }
};

// Which vector has column x on its way to the panel, and back from there, where real and imaginary parts are swapped.
static inline int64_t going(const Spectrum &s, int64_t x) { return s.w % 2 ? 2 * x : x; }
static inline int64_t coming(const Spectrum &s, int64_t x) { return s.w % 2 ? 2 * x + 1 : x ^ 1; }

// From rows.columns to the panel, and back.
template <class W> void rows_to_panel(const Spectrum &, int64_t block, const Rows<W> &);
template <class W> void panel_to_rows(const Spectrum &, int64_t block, const Rows<W> &);

}  // namespace fm::FM_ISA
