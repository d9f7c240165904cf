// The generalised task arithmetic, with a count of non-finite results.
#include <array>

#include "kept.hpp"
#include "plain.hpp"

namespace fm::FM_ISA {

// What each model contributes to a strip: w_k·τ_k (τ_k, where it is that which votes) of the elements that take part, else
// +0; and marks of the elements that are not finite in some model, which a selection or a vote may hide.
template <class T> struct Terms {
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;
    alignas(64) W x[MAX_MODELS][STRIP];
    uint32_t marks[STRIP / PAIR];

    void form(const T *const *in, const Args &a, const Kept<T> &kept, int padded);
    void mark(const T *const *in, const Args &a, int padded);
    V at(int k, int i) const { return V::load(x[k] + i); }
};

template <class T>
[[gnu::noinline]] void Terms<T>::form(const T *const *in, const Args &a, const Kept<T> &kept, int padded) {
    V spoilt = V::set(0);
    for (int k = 0; k < a.models_count; ++k) {
        const V w = V::set(a.consensus == UNWEIGHTED ? 1 : W(a.weights[k]));
        const auto filter = kept.of(k);
        for (int i = 0; i < padded; i += PAIR) {
            V tau[2];
            load_delta(in, a, k, i, tau);
            each<2>(2, [&](auto h) {
                spoilt = spoilt.spoilt_by(tau[h]);
                (w * tau[h]).only(filter.template half<h>(i, tau[h].abs())).store(x[k] + i + 16 * h);
            });
        }
    }
    memset(marks, 0, sizeof marks);
    if (spoilt.is_nan().bits()) [[unlikely]] mark(in, a, padded);
}

template <class T> [[gnu::noinline]] void Terms<T>::mark(const T *const *in, const Args &a, int padded) {
    const V infinite = V::set(std::numeric_limits<W>::infinity());
    for (int k = 0; k < a.models_count; ++k)
        for (int i = 0; i < padded; i += PAIR) {
            V tau[2];
            load_delta(in, a, k, i, tau);
            marks[i / PAIR] |= ~pair_bits<T>(infinite > tau[0].abs(), infinite > tau[1].abs());
        }
}

// The sum of the terms whose vote has the sign of the sum of votes (zero: +), divided as asked. term(k): a model's.
template <class T, int KN, class Term, class V = typename Working<T>::V> static inline V elected(const Args &a, Term term) {
    using W = typename Working<T>::W;
    const V zero = V::set(0), one = V::set(1);
    V votes = zero, d = zero, share = zero;
    each<KN>(a.models_count, [&](auto k) {
        const V y = term(k);
        votes = votes + (a.consensus == COUNT ? one.only(y > zero) - one.only(zero > y) : y);
    });
    const auto down = zero > votes;
    each<KN>(a.models_count, [&](auto k) {
        const V y = term(k);
        const auto agrees = y.negate_where(down) > zero;
        const V x = (a.consensus == UNWEIGHTED ? V::set(W(a.weights[k])) * y : y).only(agrees);
        d = k ? d + x : x;
        if (a.shares) share = share + V::set(W(a.shares[k])).only(agrees);
    });
    return a.shares ? V::select((share.abs() > zero) | share.is_nan(), d / share, d) : d;
}

template <int KN, class V, class Term> static inline V sum(int models, Term term) {
    V d = V::set(0);
    each<KN>(models, [&](auto k) { d = k ? d + term(k) : term(k); });
    return d;
}

template <class T, int KN, class Term, class V = typename Working<T>::V> static inline V consensus(const Args &a, Term term) {
    if (a.consensus > MAX) return elected<T, KN>(a, term);
    if (a.consensus == SUM) return sum<KN, V>(a.models_count, term);
    V d = V::set(0);
    each<KN>(a.models_count, [&](auto k) { d = larger(d, term(k)); });
    return d;
}

template <class T>
[[gnu::noinline]] static int64_t strip_of_terms(const T *const *in, const Args &a, const Terms<T> &terms, int n, int padded,
                                                Sink<T> &sink) {
    using V = typename Working<T>::V;
    const Finish<T> finish(a);
    int64_t nonfinite = 0;
    for (int i = 0; i < padded; i += PAIR) {
        V d[2], base[2] = {V::set(0), V::set(0)};
        if (a.base.data) load_pair(in[0] + i, base[0], base[1]);
        each<2>(2, [&](auto h) {
            d[h] = finish.complete(consensus<T, 0>(a, [&](int k) { return terms.at(k, i + 16 * h); }), base[h]);
        });
        nonfinite += finish.nonfinite(d[0], d[1], terms.marks[i / PAIR], n - i);
        sink.put(i, d[0], d[1]);
    }
    return nonfinite;
}

// The same where no cut's index lies in the strip: the terms of KN models stay in registers. SUMS: nothing is asked for but the
// sum of what masks leave.
template <class T, int KN, bool SUMS>
[[gnu::noinline]] static int64_t kept_strip(const T *const *in, const Args &a, const Kept<T> &kept, int n, int padded, Sink<T> &sink) {
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;
    const Finish<T> finish(a);
    const bool based = a.base.data;
    const auto filters = [&]<int... K>(std::integer_sequence<int, K...>) {
        return std::array<typename Kept<T>::Filter, KN>{kept.of(K)...};
    }(std::make_integer_sequence<int, KN>());
    const T *models[KN];
    V weights[KN];
    each<KN>(KN, [&](auto k) {
        models[k] = in[based + k];
        weights[k] = V::set(a.consensus == UNWEIGHTED ? 1 : W(a.weights[k]));
    });
    int64_t nonfinite = 0;
    for (int i = 0; i < padded; i += PAIR) {
        V d[2], checked[2];
        if (based) prefetch_ahead(in[0] + i);
        each<KN>(KN, [&](auto k) { prefetch_ahead(models[k] + i); });
        each<2>(2, [&](auto h) {
            V base[2] = {V::set(0), V::set(0)}, x[KN], spoilt = V::set(0);
            if (based) load_pair(in[0] + i, base[0], base[1]);
            each<KN>(KN, [&](auto k) {
                V tau[2];
                load_pair(models[k] + i, tau[0], tau[1]);
                tau[h] = tau[h] - base[h];
                spoilt = spoilt.spoilt_by(tau[h]);
                const auto on = SUMS ? filters[k].template unmasked<h>(i) : filters[k].template half<h>(i, tau[h].abs());
                x[k] = (weights[k] * tau[h]).only(on);
            });
            const auto term = [&](auto k) { return x[k]; };
            d[h] = finish.complete(SUMS ? sum<KN, V>(KN, term) : consensus<T, KN>(a, term), base[h]);
            checked[h] = d[h] + spoilt;
        });
        nonfinite += finish.nonfinite(checked[0], checked[1], 0, n - i);
        sink.put(i, d[0], d[1]);
    }
    return nonfinite;
}

// The function for so many models, or null.
template <class T, bool SUMS> static auto kept_strip_of([[maybe_unused]] int models) -> decltype(&kept_strip<T, 2, SUMS>) {
    if constexpr (in_registers<typename Working<T>::V>) {
        if (models == 2) return kept_strip<T, 2, SUMS>;
        if (models == 3) return kept_strip<T, 3, SUMS>;
        if (models == 4) return kept_strip<T, 4, SUMS>;
    }
    return nullptr;
}

int64_t combine(const Args &a, int64_t begin, int64_t n, double *, int64_t *) {
    const Inputs inputs(a);
    const bool masked = a.drop || a.masks, sums = masked && !a.trim && a.consensus == SUM;
    const bool plain = !a.trim && !masked && a.consensus <= MAX, base = a.base.data, most = a.consensus == MAX;
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        Sink<T> sink(a);
        Kept<T> kept(a);
        Terms<T> terms;
        const T *in[MAX_INPUTS];
        int64_t nonfinite = 0;
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            sink.at(begin + at, m);
            if (plain) {
                const auto strip = base ? most ? plain_strip<T, true, true, Sink<T>> : plain_strip<T, true, false, Sink<T>>
                                        : most ? plain_strip<T, false, true, Sink<T>> : plain_strip<T, false, false, Sink<T>>;
                nonfinite += strip(in, a, nullptr, m, padded, sink);
            } else {
                kept.at(begin + at, m);
                const int fused = kept.mixed() ? 0 : a.models_count;
                const auto strip = sums ? kept_strip_of<T, true>(fused) : kept_strip_of<T, false>(fused);
                if (strip) nonfinite += strip(in, a, kept, m, padded, sink);
                else terms.form(in, a, kept, padded), nonfinite += strip_of_terms<T>(in, a, terms, m, padded, sink);
            }
            sink.flush();
        }
        fence();
        return nonfinite;
    });
}

}  // namespace fm::FM_ISA
