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
        for (int64_t i = 0; i < LANES<W> && at + i < s.h; ++i) to[i] = {re[i], im[i]};
    }
    void take(const Spectrum &s, int64_t group, int64_t at) {
        const Complex<W> *from = group_of<W>(s, group) + at;
        for (int64_t i = 0; i < LANES<W>; ++i) {
            const bool there = at + i < s.h;
            re[i] = there ? from[i].re : Vector<W>{}, im[i] = there ? from[i].im : Vector<W>{};
        }
        turn();
    }
};

// Twice bin x, or, of an odd number of columns, the bin itself.
template <class W> static inline Complex<W> bin(const Spectrum &s, const Complex<W> *z, int64_t x, const W *unit) {
    if (s.w % 2) return z[x];
    const int64_t n = s.along.n;
    const Complex<W> a = z[x < n ? x : 0], b = z[x ? n - x : 0];
    const Complex<W> sum{a.re + b.re, a.im - b.im}, rest{a.re - b.re, a.im + b.im};
    return sum + rest.times(unit).times_minus_i();
}

// Adds what bin x and its mirror image are of, of the transform that comes back.
template <class W> static inline void add_bin(const Spectrum &s, Complex<W> *z, int64_t x, const Complex<W> &value, const W *unit) {
    const int64_t n = s.along.n;
    Complex<W> turned{};
    if (s.w % 2 == 0) {
        const W conjugate[] = {unit[0], -unit[1]};
        turned = value.times(conjugate).times_minus_i();
    }
    const Complex<W> own = value - turned, mirrored = value + turned;
    if (x < n) z[x].re += own.im, z[x].im += own.re;  // swapped
    if (x > 0) z[n - x].re -= mirrored.im, z[n - x].im += mirrored.re;
}

// How far from both ends the columns lie in the rows' transform.
static inline int64_t ends(const Spectrum &s) {
    if (s.first == 0) return s.columns;
    return s.w % 2 ? s.along.n : s.along.n - s.first + 1;
}

template <class W> void rows_to_panel(const Spectrum &s, int64_t block, const Rows<W> &rows) {
    const int64_t at = block * LANES<W>;
    auto *z = reinterpret_cast<Complex<W> *>(rows.other);
    Fft<W>(s.along, rows.convolution)(reinterpret_cast<const Complex<W> *>(rows.columns), z, s.along.n, ends(s));
    const W *unit = static_cast<const W *>(s.units);
    for (int64_t group = 0, x = s.first, end = s.first + s.columns; x < end; ++group) {
        Tile<W> tile;
        for (int i = 0; i < LANES<W>; ++i, ++x, unit += 2) {
            const Complex<W> value = x < end ? bin(s, z, x, unit) : Complex<W>{};
            tile.re[i] = value.re, tile.im[i] = value.im;
        }
        tile.put(s, group, at);
    }
}

template <class W> void panel_to_rows(const Spectrum &s, int64_t block, const Rows<W> &rows) {
    const int64_t at = block * LANES<W>;
    auto *z = reinterpret_cast<Complex<W> *>(rows.other);
    const Fft<W> fft(s.along, rows.convolution);
    const int64_t n = s.along.n, read = fft.reads(ends(s));
    memset(static_cast<void *>(z), 0, read * sizeof *z), memset(static_cast<void *>(z + n - read), 0, read * sizeof *z);
    const W *unit = static_cast<const W *>(s.units);
    for (int64_t group = 0, x = s.first, end = s.first + s.columns; x < end; ++group) {
        Tile<W> tile;
        tile.take(s, group, at);
        for (int i = 0; i < LANES<W> && x < end; ++i, ++x, unit += 2) add_bin(s, z, x, {tile.im[i], tile.re[i]}, unit);  // swapped
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
    const Fft<W> fft(s.across, z + s.h);
    const Factors<W> factors(s, group);
    const int64_t ends = factors.ends(), read = fft.reads(ends);
    fft(columns, z, s.h, ends);
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
    fft(z, columns, ends, s.h);
}
void filter_across(const Spectrum &s, int64_t group, void *work) {
    s.wide ? across<double>(s, group, work) : across<float>(s, group, work);
}

template void rows_to_panel(const Spectrum &, int64_t, const Rows<float> &);
template void rows_to_panel(const Spectrum &, int64_t, const Rows<double> &);
template void panel_to_rows(const Spectrum &, int64_t, const Rows<float> &);
template void panel_to_rows(const Spectrum &, int64_t, const Rows<double> &);

}  // namespace fm::FM_ISA
