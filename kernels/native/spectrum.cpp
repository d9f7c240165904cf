// Blocks of rows, transformed to columns of the panel and back, and the panel's columns filtered. A block has as many rows as
// a vector has lanes: a vector is a column of the block. Transforms are of pairs of columns as complex numbers; or, of an
// odd number of columns, of each with an imaginary part of zero.
#include <algorithm>

#include "fft.hpp"
#include "rows.hpp"

namespace fm::FM_ISA {

template <class W> static Complex<W> *group_of(const Spectrum &s, int64_t group) {
    return static_cast<Complex<W> *>(s.panel) + group * s.h;
}

// Row `at` of a group of columns and as many after it as a block has, of which it lacks the last.
template <class W> struct Tile {
    Vector<W> re[LANES<W>], im[LANES<W>];

    void turn() { transpose(re), transpose(im); }
    void put(const Spectrum &s, int64_t group, int64_t at) {
        turn();
        Complex<W> *to = group_of<W>(s, group) + at;
        const auto put = [&](int i) { to[i] = {re[i], im[i]}; };
        each(s, at, put, [](int) {});
    }
    void take(const Spectrum &s, int64_t group, int64_t at) {
        const Complex<W> *from = group_of<W>(s, group) + at;
        const auto take = [&](int i) { re[i] = from[i].re, im[i] = from[i].im; };
        each(s, at, take, [&](int i) { re[i] = im[i] = Vector<W>{}; });
        turn();
    }
    // Groups lie far apart, so that processors do not foresee the next one.
    template <bool WRITES> static void expect(const Spectrum &s, int64_t group, int64_t at) {
        const char *tile = reinterpret_cast<const char *>(group_of<W>(s, group + 4) + at);
        for (size_t i = 0; i < LANES<W> * sizeof(Complex<W>); i += 64) __builtin_prefetch(tile + i, WRITES);
    }
    template <class There, class Beyond> [[gnu::always_inline]] static void each(const Spectrum &s, int64_t at, There there, Beyond beyond) {
        if (at + LANES<W> <= s.h) {
#pragma GCC unroll 8
            for (int i = 0; i < LANES<W>; ++i) there(i);
        } else {
            for (int i = 0; i < LANES<W>; ++i) at + i < s.h ? there(i) : beyond(i);
        }
    }
};

// Twice a bin of an even number of columns, of what stands there and in the place of its mirror image.
template <class W> [[gnu::always_inline]] static inline Complex<W> twice(const Complex<W> &a, const Complex<W> &b, const W *unit) {
    const Complex<W> sum{a.re + b.re, a.im - b.im}, rest{a.re - b.re, a.im + b.im};
    return sum + rest.times(unit).times_minus_i();
}
// Twice bin x, or, of an odd number of columns, the bin itself.
template <class W> static inline Complex<W> bin(const Spectrum &s, const Complex<W> *z, int64_t x, const W *unit) {
    if (s.w % 2) return z[x];
    const int64_t n = s.along.n;
    return twice(z[x < n ? x : 0], z[x ? n - x : 0], unit);
}

// What makes a bin's value differ from that of its mirror image, of an even number of columns.
template <class W> [[gnu::always_inline]] static inline Complex<W> turned(const Complex<W> &value, const W *unit) {
    const W conjugate[] = {unit[0], -unit[1]};
    return value.times(conjugate).times_minus_i();
}
// Adds numbers, swapped, to what stands in the place of a bin and of its mirror image.
template <class W> [[gnu::always_inline]] static inline void add_own(Complex<W> &z, const Complex<W> &x) { z.re += x.im, z.im += x.re; }
template <class W> [[gnu::always_inline]] static inline void add_mirrored(Complex<W> &z, const Complex<W> &x) {
    z.re -= x.im, z.im += x.re;
}
// Adds what bin x and its mirror image are of, of the transform that comes back.
template <class W> static inline void add_bin(const Spectrum &s, Complex<W> *z, int64_t x, const Complex<W> &value, const W *unit) {
    const int64_t n = s.along.n;
    const Complex<W> other = s.w % 2 ? Complex<W>{} : turned(value, unit);
    if (x < n) add_own(z[x], value - other);
    if (x > 0) add_mirrored(z[n - x], value + other);
}

// Whether a group of columns from x on is whole, of an even number of columns, and none of it its own mirror image.
template <class W> static inline bool plain_group(const Spectrum &s, int64_t x) {
    return s.w % 2 == 0 && x > 0 && x + LANES<W> <= std::min(s.first + s.columns, s.along.n);
}

// How far from both ends the columns lie in the rows' transform.
static inline int64_t ends(const Spectrum &s) {
    if (s.first == 0) return s.columns;
    return s.w % 2 ? s.along.n : s.along.n - s.first + 1;
}

template <class W> void rows_to_panel(const Spectrum &s, int64_t block, const Rows<W> &rows) {
    const int64_t at = block * LANES<W>;
    auto *z = reinterpret_cast<Complex<W> *>(rows.other);
    const int64_t n = s.along.n;
    Fft<W>(s.along, rows.convolution)(reinterpret_cast<const Complex<W> *>(rows.columns), z, n, ends(s));
    const W *unit = static_cast<const W *>(s.units);
    for (int64_t group = 0, x = s.first, end = s.first + s.columns; x < end; ++group) {
        Tile<W> tile;
        tile.template expect<true>(s, group, at);
        const auto set = [&](int i, const Complex<W> &value) { tile.re[i] = value.re, tile.im[i] = value.im; };
        if (plain_group<W>(s, x)) {
#pragma GCC unroll 8
            for (int i = 0; i < LANES<W>; ++i) set(i, twice(z[x + i], z[n - x - i], unit + 2 * i));
        } else {
            for (int i = 0; i < LANES<W>; ++i) set(i, x + i < end ? bin(s, z, x + i, unit + 2 * i) : Complex<W>{});
        }
        x += LANES<W>, unit += 2 * LANES<W>;
        tile.put(s, group, at);
    }
}

template <class W> void panel_to_rows(const Spectrum &s, int64_t block, const Rows<W> &rows) {
    const int64_t at = block * LANES<W>;
    auto *z = reinterpret_cast<Complex<W> *>(rows.other);
    const Fft<W> fft(s.along_back, rows.convolution);
    const int64_t n = s.along.n, read = fft.reads(ends(s));
    memset(static_cast<void *>(z), 0, read * sizeof *z), memset(static_cast<void *>(z + n - read), 0, read * sizeof *z);
    const W *unit = static_cast<const W *>(s.units);
    for (int64_t group = 0, x = s.first, end = s.first + s.columns; x < end; ++group) {
        Tile<W> tile;
        tile.template expect<false>(s, group, at);
        tile.take(s, group, at);
        if (plain_group<W>(s, x)) {
#pragma GCC unroll 8
            for (int i = 0; i < LANES<W>; ++i) {
                const Complex<W> value{tile.im[i], tile.re[i]}, other = turned(value, unit + 2 * i);  // swapped
                add_own(z[x + i], value - other), add_mirrored(z[n - x - i], value + other);
            }
        } else {
            for (int i = 0; i < LANES<W> && x + i < end; ++i) add_bin(s, z, x + i, {tile.im[i], tile.re[i]}, unit + 2 * i);
        }
        x += LANES<W>, unit += 2 * LANES<W>;
    }
    fft(z, reinterpret_cast<Complex<W> *>(rows.columns), ends(s), n);
}

// What the columns of a group are multiplied with at row y, [lanes].
template <class W> class Factors {
    using Integers = decltype(Vector<W>() < Vector<W>());

  public:
    Factors(const Spectrum &s, int64_t group) : h_(s.h), middle_(s.middle) {
        const int64_t offset = group * VECTOR;
        memcpy(&reach_, static_cast<const char *>(s.reaches) + offset, VECTOR);
        memcpy(&mirrored_, static_cast<const char *>(s.mirrored) + offset, VECTOR);
        const double all = (s.w % 2 ? 1.0 : 0.5) / (double(s.h) * double(s.w));
        half_ = W(all / 2), removed_ = s.subtract ? W(all) : 0;
    }
    // How far from both ends rows are not multiplied with zero.
    int64_t ends() const {
        if (removed_ == 0) return h_;
        int64_t least = h_;
        for (int i = 0; i < LANES<W>; ++i) least = std::min({least, int64_t(reach_[i]), int64_t(mirrored_[i])});
        return std::min(h_, std::max((middle_ - least) / 2, h_ - (middle_ + least) / 2) + 1);
    }
    Vector<W> at(int64_t y) const {
        const auto own = far(y) <= reach_, other = far(y ? h_ - y : 0) <= mirrored_;
        const Vector<W> half = Vector<W>{} + half_, none{};
        return (own ? half : none) + (other ? half : none) - removed_;
    }

  private:
    Integers far(int64_t y) const {
        const int64_t distance = 2 * y - middle_;
        return Integers{} + static_cast<std::remove_reference_t<decltype(Integers{}[0])>>(distance < 0 ? -distance : distance);
    }
    int64_t h_, middle_;
    Integers reach_, mirrored_;
    W half_, removed_;
};

template <class W> static void across(const Spectrum &s, int64_t group, void *work) {
    Complex<W> *columns = group_of<W>(s, group), *z = static_cast<Complex<W> *>(work);
    const Fft<W> there(s.across, z + s.h), back(s.across_back, z + s.h);
    const Factors<W> factors(s, group);
    const int64_t ends = factors.ends(), read = back.reads(ends);
    there(columns, z, s.h, ends);
    const auto filter = [&](int64_t from, int64_t to) {
        for (int64_t y = from; y < to; ++y) {
            const Vector<W> factor = factors.at(y), re = z[y].re * factor;
            z[y].re = z[y].im * factor, z[y].im = re;  // the transform of what is swapped so is the inverse, swapped
        }
    };
    const auto clear = [&](int64_t from, int64_t to) {
        for (int64_t y = from; y < to; ++y) z[y] = Complex<W>{};
    };
    if (2 * ends >= s.h) {
        filter(0, s.h);
    } else {
        const int64_t middle = s.h / 2, after = std::min(read, middle), before = std::max(s.h - read, middle);
        filter(0, ends), clear(ends, after), clear(before, s.h - ends), filter(s.h - ends, s.h);
    }
    back(z, columns, ends, s.h);
}
void filter_across(const Spectrum &s, int64_t group, void *work) {
    s.wide ? across<double>(s, group, work) : across<float>(s, group, work);
}

template void rows_to_panel(const Spectrum &, int64_t, const Rows<float> &);
template void rows_to_panel(const Spectrum &, int64_t, const Rows<double> &);
template void panel_to_rows(const Spectrum &, int64_t, const Rows<float> &);
template void panel_to_rows(const Spectrum &, int64_t, const Rows<double> &);

}  // namespace fm::FM_ISA
