// Complex discrete Fourier transforms of several sequences side by side: a lane of a vector is a sequence of its own, so that
// no step needs a shuffle. Mixed radix, decimated in time, depth first: short transforms stay in the first-level cache.
// Lengths with a large prime factor go through a cyclic convolution of another length (Bluestein 1970).
#pragma once
#include <algorithm>
#include <type_traits>

#include "lanes.hpp"

namespace fm::FM_ISA {

template <class W> struct Complex {
    Vector<W> re, im;
    Complex operator+(const Complex &o) const { return {re + o.re, im + o.im}; }
    Complex operator-(const Complex &o) const { return {re - o.re, im - o.im}; }
    // times one number for all lanes
    Complex times(const W *w) const { return {re * w[0] - im * w[1], re * w[1] + im * w[0]}; }
    Complex times_minus_i() const { return {im, -re}; }
};

// The transform of R numbers, in their place.
template <class W> static inline void dft(Complex<W> (&x)[2]) {
    const Complex<W> difference = x[0] - x[1];
    x[0] = x[0] + x[1], x[1] = difference;
}
template <class W> static inline void dft(Complex<W> (&x)[4]) {
    const Complex<W> a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = (x[1] - x[3]).times_minus_i();
    x[0] = a + c, x[1] = b + d, x[2] = a - c, x[3] = b - d;
}
template <class W> static inline void dft(Complex<W> (&x)[8]) {
    constexpr W half = W(0.70710678118654752440);
    Complex<W> even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
    dft(even), dft(odd);
    const Complex<W> first = odd[1], third = odd[3];
    odd[1] = {(first.re + first.im) * half, (first.im - first.re) * half};
    odd[2] = odd[2].times_minus_i();
    odd[3] = {(third.im - third.re) * half, -(third.re + third.im) * half};
    for (int j = 0; j < 4; ++j) x[j] = even[j] + odd[j], x[j + 4] = even[j] - odd[j];
}

// Of an odd number p of them, given the p-th roots of unity; with sums and differences of x_j and x_(p−j), half the work.
// Beyond `given` of both ends they are zero, and beyond `wanted` of both ends they are not computed.
template <class W>
[[gnu::always_inline]] static inline void dft_odd(Complex<W> *x, int p, const W *roots, int given, int wanted) {
#pragma GCC unroll 6
    for (int j = 1; j <= given; ++j) {
        const Complex<W> a = x[j], b = x[p - j];
        x[j] = a + b, x[p - j] = a - b;
    }
    Complex<W> y[MAX_RADIX], all = x[0];
#pragma GCC unroll 6
    for (int j = 1; j <= given; ++j) all = all + x[j];
#pragma GCC unroll 6
    for (int k = 1; k <= wanted; ++k) {
        Complex<W> even = x[0], odd{};
#pragma GCC unroll 6
        for (int j = 1, at = k; j <= given; ++j, at = at + k < p ? at + k : at + k - p) {
            const W cosine = roots[2 * at], sine = roots[2 * at + 1];
            even.re += x[j].re * cosine, even.im += x[j].im * cosine;
            odd.re -= x[p - j].im * sine, odd.im += x[p - j].re * sine;
        }
        y[k] = even + odd, y[p - k] = even - odd;
    }
    x[0] = all;
#pragma GCC unroll 6
    for (int k = 1; k <= wanted; ++k) x[k] = y[k], x[p - k] = y[p - k];
}

// Steps by odd primes beyond those that are unrolled leave out what is zero or not wanted.
constexpr bool is_large(int radix) { return radix % 2 && radix > 13; }

// The last step: r transforms of every r-th part, of m numbers each, lie in `out` one after the other. Of the r parts of the
// result only the first E and the last E are computed.
template <int R, int E, class W> [[gnu::noinline]] static void merge_parts(Complex<W> *out, int64_t m, const W *twiddles) {
    for (int64_t k = 0; k < m; ++k, twiddles += 2 * (R - 1)) {
        Complex<W> x[R];
        x[0] = out[k];
        for (int j = 1; j < R; ++j) x[j] = out[k + j * m].times(twiddles + 2 * (j - 1));
        dft(x);
        for (int j = 0; j < R; ++j)
            if (j < E || j >= R - E) out[k + j * m] = x[j];
    }
}
template <int P, class W>
[[gnu::noinline]] static void merge_odd(Complex<W> *out, int64_t m, int p, const W *roots, const W *twiddles, int64_t ends) {
    const int r = P ? P : p, wanted = P ? P / 2 : int(std::min<int64_t>(p / 2, ends));
    for (int64_t k = 0; k < m; ++k, twiddles += 2 * (r - 1)) {
        Complex<W> x[P ? P : MAX_RADIX];
        x[0] = out[k];
        for (int j = 1; j < r; ++j) x[j] = out[k + j * m].times(twiddles + 2 * (j - 1));
        dft_odd(x, r, roots, r / 2, wanted);
        out[k] = x[0];
        for (int j = 1; j <= wanted; ++j) out[k + j * m] = x[j], out[k + (r - j) * m] = x[r - j];
    }
}

// `count` transforms of r numbers, a stride apart: the first begins at in, the next at in + 1 step, … Of the r numbers only
// the first E and the last E are not zero.
template <int R, int E, class W>
[[gnu::noinline]] static void leaves(const Complex<W> *in, int64_t step, int count, int64_t stride, Complex<W> *out) {
    for (int i = 0; i < count; ++i, in += step, out += R) {
        Complex<W> x[R];
        for (int j = 0; j < R; ++j) x[j] = j < E || j >= R - E ? in[j * stride] : Complex<W>{};
        dft(x);
        for (int j = 0; j < R; ++j) out[j] = x[j];
    }
}
template <int P, class W>
[[gnu::noinline]] static void leaves_odd(const Complex<W> *in, int64_t step, int count, int64_t stride, Complex<W> *out,
                                         int p, const W *roots, int64_t ends) {
    const int r = P ? P : p, given = P ? P / 2 : int(std::min<int64_t>(p / 2, ends));
    for (int i = 0; i < count; ++i, in += step, out += r) {
        Complex<W> x[P ? P : MAX_RADIX];
        x[0] = in[0];
        for (int j = 1; j <= given; ++j) {
            x[j] = P || j < ends ? in[j * stride] : Complex<W>{};
            x[r - j] = in[(r - j) * stride];
        }
        dft_odd(x, r, roots, given, r / 2);
        for (int j = 0; j < r; ++j) out[j] = x[j];
    }
}

// Calls body with E, which is `ends` where fewer than all r parts are within that of both ends.
template <int R, class Body> static inline void by_ends(int64_t ends, Body body) {
    if constexpr (R >= 4)
        if (ends <= 1) return body(std::integral_constant<int, 1>());
    if constexpr (R >= 8) {
        if (ends == 2) return body(std::integral_constant<int, 2>());
        if (ends == 3) return body(std::integral_constant<int, 3>());
    }
    body(std::integral_constant<int, R / 2>());
}

template <class W> class Fft {
  public:
    // `work`: what a convolution needs, twice the numbers of its own transform
    Fft(const Transform &t, void *work) : t_(t), work_(static_cast<Complex<W> *>(work)) {}

    // Σ_m in_m · exp(−2πi·km / n) for every k; in and out are not the same.
    void operator()(const Complex<W> *in, Complex<W> *out) const { (*this)(in, out, t_.n, t_.n); }
    // The same where numbers are given and wanted only less than so far from both ends (cyclically, from the first one):
    // others may be taken for zero, and left out.
    void operator()(const Complex<W> *in, Complex<W> *out, int64_t given, int64_t wanted) const {
        if (t_.inner) return convolve(in, out);
        if (t_.levels == 0) *out = *in;
        else if (t_.levels == 1) bottom(0, in, 0, 1, 1, out, given);
        else level(0, t_.n, in, 1, out, given, wanted);
    }
    // How far from both ends numbers are read, where as far as `given` they are not zero.
    int64_t reads(int64_t given) const {
        const int r = t_.levels ? t_.radix[t_.levels - 1] : 1;
        const int64_t part = t_.n / r, ends = ends_of(given, part);
        return t_.inner || !(r % 4 == 0 || is_large(r)) || 2 * ends >= r ? t_.n : ends * part;
    }

  private:
    const W *table(int i) const { return static_cast<const W *>(t_.tables) + t_.offset[i]; }
    static int64_t ends_of(int64_t numbers, int64_t part) { return (numbers + part - 1) / part; }

    void level(int i, int64_t n, const Complex<W> *in, int64_t stride, Complex<W> *out, int64_t given, int64_t wanted) const {
        const int r = t_.radix[i];
        const int64_t m = n / r;
        if (i + 2 == t_.levels) bottom(i + 1, in, stride, r, stride * r, out, given);
        else
            for (int j = 0; j < r; ++j) level(i + 1, m, in + j * stride, stride * r, out + j * m, given, m);
        const W *roots = table(i), *twiddles = roots + (r % 2 ? 2 * r : 0);
        const int64_t ends = ends_of(wanted, m);
        const auto parts = [&]<int R>(std::integral_constant<int, R>) {
            by_ends<R>(ends, [&]<int E>(std::integral_constant<int, E>) { merge_parts<R, E>(out, m, twiddles); });
        };
        switch (r) {
            case 2: return parts(std::integral_constant<int, 2>());
            case 4: return parts(std::integral_constant<int, 4>());
            case 8: return parts(std::integral_constant<int, 8>());
            case 3: return merge_odd<3>(out, m, 3, roots, twiddles, ends);
            case 5: return merge_odd<5>(out, m, 5, roots, twiddles, ends);
            case 7: return merge_odd<7>(out, m, 7, roots, twiddles, ends);
            case 11: return merge_odd<11>(out, m, 11, roots, twiddles, ends);
            case 13: return merge_odd<13>(out, m, 13, roots, twiddles, ends);
            default: return merge_odd<0>(out, m, r, roots, twiddles, ends);
        }
    }
    void bottom(int i, const Complex<W> *in, int64_t step, int count, int64_t stride, Complex<W> *out, int64_t given) const {
        const int64_t ends = ends_of(given, stride);
        const auto even = [&]<int R>(std::integral_constant<int, R>) {
            by_ends<R>(ends, [&]<int E>(std::integral_constant<int, E>) { leaves<R, E>(in, step, count, stride, out); });
        };
        switch (const int r = t_.radix[i]; r) {
            case 2: return even(std::integral_constant<int, 2>());
            case 4: return even(std::integral_constant<int, 4>());
            case 8: return even(std::integral_constant<int, 8>());
            case 3: return leaves_odd<3>(in, step, count, stride, out, 3, table(i), ends);
            case 5: return leaves_odd<5>(in, step, count, stride, out, 5, table(i), ends);
            case 7: return leaves_odd<7>(in, step, count, stride, out, 7, table(i), ends);
            case 11: return leaves_odd<11>(in, step, count, stride, out, 11, table(i), ends);
            case 13: return leaves_odd<13>(in, step, count, stride, out, 13, table(i), ends);
            default: return leaves_odd<0>(in, step, count, stride, out, r, table(i), ends);
        }
    }
    // X_k = c_k · Σ_m (in_m c_m) · conj(c)_(k−m), with the chirp c_m = exp(−πi·m² / n)
    void convolve(const Complex<W> *in, Complex<W> *out) const {
        const W *chirp = static_cast<const W *>(t_.tables), *filter = chirp + 2 * t_.n;
        const Fft inner(*t_.inner, nullptr);
        const int64_t size = t_.inner->n;
        Complex<W> *a = work_, *b = work_ + size;
        for (int64_t m = 0; m < t_.n; ++m) a[m] = in[m].times(chirp + 2 * m);
        memset(static_cast<void *>(a + t_.n), 0, (size - t_.n) * sizeof *a);
        inner(a, b);
        for (int64_t k = 0; k < size; ++k) {
            const Complex<W> x = b[k].times(filter + 2 * k);
            b[k] = {x.im, x.re};  // the transform of what is swapped so is the inverse, swapped
        }
        inner(b, a);
        for (int64_t k = 0; k < t_.n; ++k) out[k] = Complex<W>{a[k].im, a[k].re}.times(chirp + 2 * k);
    }

    const Transform &t_;
    Complex<W> *work_;
};

}  // namespace fm::FM_ISA
