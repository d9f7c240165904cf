// What the elements of a task vector score in PCB-Merging, whose formulas are those of kernels/reference/competition.py.
#pragma once
#include <limits>

#include "exponential.hpp"
#include "strips.hpp"

namespace fm::FM_ISA {

// Task vectors of a strip, and their sum.
template <class T> struct Competitors {
    using W = Wide<T>;
    alignas(64) W tau[MAX_MODELS][STRIP], total[STRIP];

    [[gnu::noinline]] void form(const T *const *in, int models, int n) {
        for (int i = 0; i < n; i += PAIR) {
            typename Working<T>::V base[2], x[2], sum[2] = {Working<T>::V::set(0), Working<T>::V::set(0)};
            load_ahead(in[0] + i, base[0], base[1]);
            for (int k = 0; k < models; ++k) {
                load_ahead(in[1 + k] + i, x[0], x[1]);
                each<2>(2, [&](auto h) {
                    x[h] = x[h] - base[h], sum[h] = k ? sum[h] + x[h] : x[h];
                    x[h].store(tau[k] + i + 16 * h);
                });
            }
            each<2>(2, [&](auto h) { sum[h].store(total + i + 16 * h); });
        }
    }
};

template <class W> struct Clamped { Many<W> tau, size; };

// What brings low … high to 0 … 1; 0 where nothing does.
template <class W> static W slope(W low, W high) {
    const W found = 1 / (high - low);
    return found > 0 && found < std::numeric_limits<W>::infinity() ? found : 0;
}

// How a model's elements score and, of merging, what share of the full weight that gives.
template <class W> struct Scoring {
    const Many<W> least, most, low, by_size, by_score, models;

    Scoring(const Bounds &b, int models)
        : least(all(W(b.least))), most(all(W(b.most))), low(all(W(b.low))), by_size(all(slope(W(b.least), W(b.most)))),
          by_score(all(slope(W(b.low), W(b.high)))), models(all(W(models))) {}

    Clamped<W> clamped(const Many<W> &tau) const {
        const Many<W> none{};
        Many<W> size = tau < 0 ? -tau : tau;
        size = size < least ? least : size;
        size = size > most ? most : size;
        return {tau > 0 ? size : tau < 0 ? -size : none, size};
    }
    Many<W> score(const Clamped<W> &x, const Many<W> &total) const {
        constexpr W enough = sizeof(W) == 4 ? 20 : 40;  // the hyperbolic tangent of half of it rounds to 1
        const Many<W> place = (x.size - least) * by_size;
        const Many<W> agrees = x.tau * total, twice = agrees + agrees;
        const auto own = powers<W>(place * place * models);
        const auto among = powers<W>(twice < enough ? twice : all(enough));
        const Many<W> t = among.power * among.rest + (among.power - 1);
        return agrees > 0 ? (own.power * own.rest + own.power) * (t / (t + 2)) : Many<W>{};
    }
    Many<W> share(const Many<W> &score) const { return (score > low ? score - low : Many<W>{}) * by_score; }
};

}  // namespace fm::FM_ISA
