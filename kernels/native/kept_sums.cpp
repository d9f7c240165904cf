// How much of each task vector a selection keeps.
#include "kept.hpp"

namespace fm::FM_ISA {

template <class T, bool QUICK>
[[gnu::noinline]] static void kept_strip(const T *const *in, const Args &a, int n, const Kept<T> &kept, PairedSums<T> &sums) {
    using V = typename Working<T>::V;
    const V zero = V::set(0);
    for (int k = 0; k < a.models_count; ++k) {
        const auto filter = kept.of(k);
        V lanes[2] = {zero, zero};
        for (int i = 0; i < n; i += PAIR) {
            V tau[2];
            load_delta(in, a, k, i, tau);
            each<2>(2, [&](auto h) {
                const V size = tau[h].abs();
                const auto on = filter.template half<h>(i, size);
                if constexpr (QUICK) lanes[0].template take<h>(size), lanes[1].template take_where<h>(on, size);
                else sums.put_term(k, i + 16 * h, size, size.only(on));
            });
        }
        if constexpr (QUICK) sums.put_lanes(k, lanes);
    }
}

int64_t kept_sums(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        Kept<T> kept(a);
        PairedSums<T> terms(a, inputs);
        const T *in[MAX_INPUTS];
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            kept.at(begin + at, m);
            terms.over(padded, [&]<bool QUICK>(std::bool_constant<QUICK>) {
                kept_strip<T, QUICK>(in, a, padded, kept, terms);
            });
        }
        terms.total_into(sums);
        return 0;
    });
}

}  // namespace fm::FM_ISA
