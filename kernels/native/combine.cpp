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

    // Of the elements begin … end of the strip.
    void form(const T *const *in, const Args &a, const Kept<T> &kept, int begin, int end);
    void mark(const T *const *in, const Args &a, int begin, int end);
    V at(int k, int i) const { return V::load(x[k] + i); }
};

template <class T>
[[gnu::noinline]] void Terms<T>::form(const T *const *in, const Args &a, const Kept<T> &kept, int begin, int end) {
    V spoilt = V::set(0);
    for (int k = 0; k < a.models_count; ++k) {
        const V w = V::set(a.consensus == UNWEIGHTED ? 1 : W(a.weights[k]));
        const auto filter = kept.of(k);
        for (int i = begin; i < end; i += PAIR) {
            V tau[2];
            load_delta(in, a, k, i, tau);
            each<2>(2, [&](auto h) {
                spoilt = spoilt.spoilt_by(tau[h]);
                (w * tau[h]).only(filter.template half<h>(i, tau[h].abs())).store(x[k] + i + 16 * h);
            });
        }
    }
    for (int i = begin; i < end; i += PAIR) marks[i / PAIR] = 0;
    if (spoilt.is_nan().bits()) [[unlikely]] mark(in, a, begin, end);
}

template <class T> [[gnu::noinline]] void Terms<T>::mark(const T *const *in, const Args &a, int begin, int end) {
    const V infinite = V::set(std::numeric_limits<W>::infinity());
    for (int k = 0; k < a.models_count; ++k)
        for (int i = begin; i < end; i += PAIR) {
            V tau[2];
            load_delta(in, a, k, i, tau);
            marks[i / PAIR] |= ~pair_bits<T>(infinite > tau[0].abs(), infinite > tau[1].abs());
        }
}

template <int KN, class V, class Term> static inline V sum(int models, Term term) {
    V d = V::set(0);
    each<KN>(models, [&](auto k) { d = k ? d + term(k) : term(k); });
    return d;
}

// A vote on the sign, among KN terms or as many as there are. The terms are w_k·τ_k or, where it is that which votes, τ_k.
template <class T, int KN> class Election {
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;

  public:
    Election(const Args &a, Consensus consensus) : models_(a.models_count), consensus_(consensus), shared_(a.shares) {
        for (int k = 0; k < models_; ++k) weights_[k] = W(a.weights[k]), shares_[k] = shared_ ? W(a.shares[k]) : 0;
    }
    template <class Term> V votes(Term term) const {
        const V zero = V::set(0), one = V::set(1);
        if (consensus_ != COUNT) return sum<KN, V>(models_, term);
        return sum<KN, V>(models_, [&](auto k) { return one.only(term(k) > zero) - one.only(zero > term(k)); });
    }
    // The sum of the terms that have the sign of the sum of votes (zero: +), divided as asked.
    template <class Term> V elected(Term term, const V &votes) const {
        const V zero = V::set(0);
        const auto down = zero > votes;
        V d = zero, total = zero;
        each<KN>(models_, [&](auto k) {
            const V y = term(k);
            const auto agrees = y.negate_where(down) > zero;
            if (consensus_ == UNWEIGHTED) {
                const V x = (V::set(weights_[k]) * y).only(agrees);
                d = k ? d + x : x;
            } else {
                d = d.plus_where(agrees, y);
            }
            if (shared_) total = total.plus_where(agrees, V::set(shares_[k]));
        });
        return shared_ ? d.divided_where(total.nonzero(), total) : d;
    }

  private:
    const int models_;
    const Consensus consensus_;
    const bool shared_;
    W weights_[KN ? KN : MAX_MODELS], shares_[KN ? KN : MAX_MODELS];
};

// The elements begin … end of a strip of n, whose terms are formed.
template <class T>
[[gnu::noinline]] static int64_t strip_of_terms(const T *const *in, const Args &a, const Terms<T> &terms, int n, int begin, int end,
                                                Sink<T> &sink) {
    using V = typename Working<T>::V;
    const Finish<T> finish(a);
    const Election<T, 0> election(a, a.consensus);
    int64_t nonfinite = 0;
    for (int i = begin; i < end; i += PAIR) {
        V d[2], base[2] = {V::set(0), V::set(0)};
        if (a.base.data) load_pair(in[0] + i, base[0], base[1]);
        each<2>(2, [&](auto h) {
            const auto term = [&](int k) { return terms.at(k, i + 16 * h); };
            V x = V::set(0);
            if (a.consensus > MAX) x = election.elected(term, election.votes(term));
            else if (a.consensus == SUM) x = sum<0, V>(a.models_count, term);
            else each<0>(a.models_count, [&](int k) { x = larger(x, term(k)); });
            d[h] = finish.complete(x, base[h]);
        });
        nonfinite += finish.nonfinite(d[0], d[1], terms.marks[i / PAIR], n - i);
        sink.put(i, d[0], d[1]);
    }
    return nonfinite;
}

// The same at once, where no cut's index lies in the strip and its elements are selected in one way: the terms of KN models stay
// in registers.
template <class T, int KN, By BY, Consensus CONSENSUS>
[[gnu::noinline]] static int64_t kept_strip(const T *const *in, const Args &a, const Kept<T> &kept, Terms<T> &terms, int n, int padded,
                                            Sink<T> &sink) {
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;
    const Finish<T> finish(a);
    const Election<T, KN> election(a, CONSENSUS);
    const V zero = V::set(0);
    const T *const base_data = a.base.data ? in[0] : nullptr, *models[KN];
    const uint32_t *bits[KN];
    V weights[KN], tops[KN], bottoms[KN];
    each<KN>(KN, [&](auto k) {
        models[k] = in[bool(base_data) + k], weights[k] = V::set(CONSENSUS == UNWEIGHTED ? 1 : W(a.weights[k]));
        const auto filter = kept.of(k);
        bits[k] = filter.bits, tops[k] = filter.top, bottoms[k] = filter.bottom;
    });
    int64_t nonfinite = 0;
    for (int i = 0; i < padded; i += PAIR) {
        V base[2] = {zero, zero}, d[2], checked[2];
        if (base_data) load_ahead(base_data + i, base[0], base[1]);
        each<KN>(KN, [&](auto k) { prefetch_ahead(models[k] + i); });
        each<2>(2, [&](auto h) {
            V x[KN], all = zero;  // not finite where a task vector is not: no finite bottom hides that
            each<KN>(KN, [&](auto k) {
                V pair[2];
                load_pair(models[k] + i, pair[0], pair[1]);
                const V tau = pair[h] - base[h], size = tau.abs();
                typename V::Mask on[2];
                if (BY == By::MASKS) split_bits<T>(bits[k][i / PAIR], on[0], on[1]);
                else on[h] = size.above_or_nan(bottoms[k]);
                if (BY == By::WINDOW) on[h] = on[h] & size.not_above(tops[k]);
                if (BY != By::BOTTOM) all = k ? all + tau : tau;
                x[k] = (weights[k] * tau).only(on[h]);
            });
            const auto term = [&](auto k) { return x[k]; };
            const V votes = sum<KN, V>(KN, term);
            if (BY == By::BOTTOM) all = votes;
            d[h] = finish.complete(CONSENSUS == SUM ? votes : election.elected(term, votes), base[h]);
            checked[h] = d[h].spoilt_by(all);
        });
        if (finish.nonfinite(checked[0], checked[1], 0, PAIR)) [[unlikely]] {
            terms.form(in, a, kept, i, i + PAIR);
            nonfinite += strip_of_terms<T>(in, a, terms, n, i, i + PAIR, sink);
        } else {
            sink.put(i, d[0], d[1]);
        }
    }
    return nonfinite;
}

template <class T> using Strip = int64_t (*)(const T *const *, const Args &, const Kept<T> &, Terms<T> &, int, int, Sink<T> &);

template <class T, int KN, By BY> static Strip<T> kept_strip_of(Consensus consensus) {
    switch (consensus) {
        case SUM: return kept_strip<T, KN, BY, SUM>;
        case WEIGHTED: return kept_strip<T, KN, BY, WEIGHTED>;
        case UNWEIGHTED: return kept_strip<T, KN, BY, UNWEIGHTED>;
        default: return nullptr;
    }
}

template <class T, int KN> static Strip<T> kept_strip_of(By by, Consensus consensus) {
    switch (by) {
        case By::MASKS: return kept_strip_of<T, KN, By::MASKS>(consensus);
        case By::BOTTOM: return kept_strip_of<T, KN, By::BOTTOM>(consensus);
        case By::WINDOW: return kept_strip_of<T, KN, By::WINDOW>(consensus);
        default: return nullptr;
    }
}

// The function for what is asked, or null.
template <class T>
static Strip<T> kept_strip_of([[maybe_unused]] int models, [[maybe_unused]] By by, [[maybe_unused]] Consensus consensus) {
    if constexpr (in_registers<typename Working<T>::V>) {
        if (models == 1 && by == By::MASKS && consensus == SUM) return kept_strip<T, 1, By::MASKS, SUM>;
        if (models == 2) return kept_strip_of<T, 2>(by, consensus);
        if (models == 3) return kept_strip_of<T, 3>(by, consensus);
        if (models == 4) return kept_strip_of<T, 4>(by, consensus);
    }
    return nullptr;
}

int64_t combine(const Args &a, int64_t begin, int64_t n, double *, int64_t *) {
    const Inputs inputs(a);
    const bool plain = !a.trim && !a.drop && !a.masks && a.consensus <= MAX, base = a.base.data, most = a.consensus == MAX;
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        Sink<T> sink(a);
        Kept<T> kept(a);
        Terms<T> terms;
        const Strip<T> strip_at_once = kept_strip_of<T>(a.models_count, kept.by(), a.consensus);
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
                if (strip_at_once && !kept.mixed()) {
                    nonfinite += strip_at_once(in, a, kept, terms, m, padded, sink);
                } else {
                    terms.form(in, a, kept, 0, padded);
                    nonfinite += strip_of_terms<T>(in, a, terms, m, 0, padded, sink);
                }
            }
            sink.flush();
        }
        fence();
        return nonfinite;
    });
}

}  // namespace fm::FM_ISA
