// The generalised task arithmetic, with a count of non-finite results.
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
    V worst = V::set(0);
    for (int k = 0; k < a.models_count; ++k) {
        const V w = V::set(a.consensus == UNWEIGHTED ? 1 : W(a.weights[k]));
        const auto filter = kept.of(k);
        for (int i = 0; i < padded; i += PAIR) {
            V tau[2];
            load_delta(in, a, k, i, tau);
            each<2>(2, [&](auto h) {
                const V size = tau[h].abs();
                worst = worst.or_worse(size);
                (w * tau[h]).only(filter.template half<h>(i, size)).store(x[k] + i + 16 * h);
            });
        }
    }
    memset(marks, 0, sizeof marks);
    if ((V::set(std::numeric_limits<W>::infinity()) > worst).bits() != 0xffff) [[unlikely]] mark(in, a, padded);
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

// The sum of the terms whose vote has the sign of the sum of votes (zero: +), divided as asked.
template <class T, class V = typename Working<T>::V> static inline V elected(const Args &a, const Terms<T> &terms, int i) {
    using W = typename Working<T>::W;
    const V zero = V::set(0), one = V::set(1);
    V votes = zero, d = zero, share = zero;
    for (int k = 0; k < a.models_count; ++k) {
        const V y = terms.at(k, i);
        votes = votes + (a.consensus == COUNT ? one.only(y > zero) - one.only(zero > y) : y);
    }
    const auto down = zero > votes;
    for (int k = 0; k < a.models_count; ++k) {
        const V y = terms.at(k, i), w = V::set(W(a.weights[k]));
        const auto agrees = y.negate_where(down) > zero;
        const V x = (a.consensus == UNWEIGHTED ? w * y : y).only(agrees);
        d = k ? d + x : x;
        if (a.shares) share = share + V::set(W(a.shares[k])).only(agrees);
    }
    return a.shares ? V::select((share.abs() > zero) | share.is_nan(), d / share, d) : d;
}

template <class T, class V = typename Working<T>::V> static inline V consensus(const Args &a, const Terms<T> &terms, int i) {
    if (a.consensus > MAX) return elected<T>(a, terms, i);
    V d = a.consensus == MAX ? larger(V::set(0), terms.at(0, i)) : terms.at(0, i);
    for (int k = 1; k < a.models_count; ++k) d = a.consensus == MAX ? larger(d, terms.at(k, i)) : d + terms.at(k, i);
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
        each<2>(2, [&](auto h) { d[h] = finish.complete(consensus<T>(a, terms, i + 16 * h), base[h]); });
        nonfinite += finish.nonfinite(d[0], d[1], terms.marks[i / PAIR], n - i);
        sink.put(i, d[0], d[1]);
    }
    return nonfinite;
}

int64_t combine(const Args &a, int64_t begin, int64_t n, double *, int64_t *) {
    const Inputs inputs(a);
    const bool plain = !a.trim && !a.drop && !a.masks && a.consensus <= MAX, base = a.base.data, most = a.consensus == MAX;
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
                terms.form(in, a, kept, padded);
                nonfinite += strip_of_terms<T>(in, a, terms, m, padded, sink);
            }
            sink.flush();
        }
        fence();
        return nonfinite;
    });
}

}  // namespace fm::FM_ISA
