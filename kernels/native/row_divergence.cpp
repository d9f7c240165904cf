// The Kullback-Leibler divergence of the softmax of a model's row from that of base's.
#include <cmath>
#include <limits>

#include "exponential.hpp"
#include "strips.hpp"

namespace fm::FM_ISA {

using Eights = Many<double>;
template <class W> struct EightOf { typedef W type __attribute__((vector_size(8 * sizeof(W)))); };

// A strip's elements in order, and behind n of them what has no probability.
template <class T> static void widen_row(const T *p, int n, int padded, Wide<T> *to) {
    for (int i = 0; i < padded; i += PAIR) {
        typename Working<T>::V a, b;
        load_ahead(p + i, a, b);
        if constexpr (dtype_of<T> == BF16) store_even_odd(to + i, a, b);
        else a.store(to + i), b.store(to + i + 16);
    }
    for (int i = n; i < padded; ++i) to[i] = -std::numeric_limits<Wide<T>>::infinity();
}

template <class W> static W largest(const W *x, int n, W most) {
    Many<W> lanes = all(most);
    for (int i = 0; i < n; i += MANY<W>) {
        const Many<W> own = load_many(x + i);
        lanes = own > lanes ? own : lanes;
    }
    for (int i = 0; i < MANY<W>; ++i) most = lanes[i] > most ? lanes[i] : most;
    return most;
}

static bool everywhere(const Many<int64_t> &mask) {
    bool found = true;
    for (int j = 0; j < 8; ++j) found &= mask[j] != 0;
    return found;
}

// (eˣ − 1) / x by DEGREE terms of its series.
template <int DEGREE> static Eights series(const Eights &x) {
    constexpr auto inverse = inverses<double>();
    Eights q = all(inverse.of[DEGREE]);
#pragma GCC unroll 16
    for (int j = DEGREE - 1; j; --j) q = q * x + inverse.of[j];
    return q;
}

// e to the power of the elements less a shift, of base's row and of the model's, and their sums.
template <class W> struct Raised {
    double shift[2] = {}, *to[2];
    Eights sums[2] = {};

    static Eights widened(const W *x) {
        typename EightOf<W>::type own;
        memcpy(&own, x, sizeof own);
        return __builtin_convertvector(own, Eights);
    }
    // Most weights are near zero, and those of the model near base's.
    void strip(const W *x, const W *y, int64_t at, int n) {
        if (!near(x, y, at, n)) [[unlikely]] anywhere(x, 0, at, n), anywhere(y, 1, at, n);
    }
    [[gnu::noinline]] bool near(const W *x, const W *y, int64_t at, int n) {
        Eights largest{}, farthest{}, sum[2] = {};
        for (int i = 0; i < n; i += 8) {
            const Eights own = widened(x + i) - shift[0], off = (widened(y + i) - shift[1]) - own;
            const Eights raised = 1 + own * series<11>(own), other = raised + raised * off * series<8>(off);
            store_many(to[0] + at + i, raised), store_many(to[1] + at + i, other);
            sum[0] += raised, sum[1] += other;
            const Eights size = own * own, distance = off * off;
            largest = size > largest ? size : largest, farthest = distance > farthest ? distance : farthest;
        }
        if (!everywhere((largest < 0x1p-4) & (farthest < 0x1p-10))) [[unlikely]] return false;
        sums[0] += sum[0], sums[1] += sum[1];
        return true;
    }
    [[gnu::noinline]] void anywhere(const W *x, int j, int64_t at, int n) {
        const Eights most = all(700.0);  // of which the exponential has room, and so its inverse
        for (int i = 0; i < n; i += 8) {
            Eights own = widened(x + i) - shift[j];
            own = own > most ? most : own < -most ? -most : own;
            const auto e = powers<double>(own);
            const Eights raised = e.power * e.rest + e.power;
            store_many(to[j] + at + i, raised), sums[j] += raised;
        }
    }
    double sum(int j) const {
        double lanes[8];
        store_many(lanes, sums[j]);
        return total(lanes);
    }
    bool within(int j) const { return sum(j) > 1e-200 && sum(j) < 1e300; }
};

// Σ p log(p / q) − (p − q), p and q being e and f times a factor plus `added`.
struct Probabilities {
    const double *e, *f;
    double to_p, to_q, added;

    Eights p(int64_t i) const { return load_many(e + i) * to_p + added; }
    Eights q(int64_t i) const { return load_many(f + i) * to_q + added; }
    // Of n of them, where p and q are near each other everywhere; else NaN. With s = (p − q) / (p + q) the logarithm is
    // 2 artanh s, and s · (p − q) is what its first term leaves.
    [[gnu::noinline]] Eights near(int64_t at, int n) const {
        Eights sum{}, farthest{};
        for (int64_t i = at; i < at + n; i += 8) {
            const Eights p = this->p(i), q = this->q(i), off = p - q, s = off / (p + q), z = s * s;
            sum += s * off + (p + p) * s * z * (1 / 3.0 + z * (1 / 5.0 + z * (1 / 7.0 + z * (1 / 9.0))));
            farthest = z > farthest ? z : farthest;
        }
        return farthest < 0x1p-10 ? sum : all(std::numeric_limits<double>::quiet_NaN());
    }
    [[gnu::noinline]] Eights anywhere(int64_t at, int n) const {
        Eights sum{};
        for (int64_t i = at; i < at + n; i += 8) {
            const Eights p = this->p(i), q = this->q(i);
            for (int j = 0; j < 8; ++j) sum[j] += p[j] * std::log(p[j] / q[j]) - (p[j] - q[j]);
        }
        return sum;
    }
    double divergence(int64_t n) const {
        Eights sum{};
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP);
            Eights part = near(at, m);
            sum += everywhere(part == part) ? part : anywhere(at, m);
        }
        double lanes[8];
        store_many(lanes, sum);
        return total(lanes);
    }
};

double row_divergence(const Args &a, int64_t begin, int64_t n, double added, double *memory) {
    const Inputs inputs(a);
    double found = 0;
    by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        using W = Wide<T>;
        Reader<T> reader(inputs, direct);
        const T *in[MAX_INPUTS];
        alignas(64) W x[2][STRIP];
        const int64_t all_padded = (n + PAIR - 1) / PAIR * PAIR;
        const auto over = [&](auto body) {
            for (int64_t at = 0; at < n; at += STRIP) {
                const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
                for (int j = 0; j < 2; ++j) widen_row(in[j], m, padded, x[j]);
                body(at, padded);
            }
        };
        Raised<W> raised{.to = {memory, memory + all_padded}};
        const auto raise = [&] { over([&](int64_t at, int padded) { raised.strip(x[0], x[1], at, padded); }); };
        raise();
        if (!raised.within(0) || !raised.within(1)) [[unlikely]] {
            W most[2] = {-std::numeric_limits<W>::infinity(), -std::numeric_limits<W>::infinity()};
            over([&](int64_t, int padded) {
                for (int j = 0; j < 2; ++j) most[j] = largest(x[j], padded, most[j]);
            });
            for (int j = 0; j < 2; ++j) raised.shift[j] = double(most[j]), raised.sums[j] = Eights{};
            raise();
        }
        const Probabilities both{raised.to[1], raised.to[0], 1 / raised.sum(1), 1 / raised.sum(0), added};
        found = both.divergence(all_padded);
        return 0;
    });
    return found < 0 ? 0 : found;
}

}  // namespace fm::FM_ISA
