// EMR-Merging's masks and sums for a task vector merged by another method.
#include "strips.hpp"

namespace fm::FM_ISA {

template <class T, bool QUICK>
[[gnu::noinline]] static void mask_strip(const T *const *in, const Args &a, int n, uint32_t (*bits)[STRIP / PAIR],
                                         PairedSums<T> &sums) {
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;
    const V zero = V::set(0);
    for (int k = 0; k < a.models_count; ++k) {  // base and merged are read again from the first-level cache
        V lanes[2] = {zero, zero};
        const V tall = V::set(a.weights ? W(a.weights[k]) : 0);
        for (int i = 0; i < n; i += PAIR) {
            V base[2], merged[2], tau[2];
            typename V::Mask on[2];
            load_in_turn(a.models_count, in[0] + i, base[0], base[1]);
            load_in_turn(a.models_count, in[1] + i, merged[0], merged[1]);
            load_in_turn(a.models_count, in[2 + k] + i, tau[0], tau[1]);
            each<2>(2, [&](auto h) {
                tau[h] = tau[h] - base[h];
                const V size = tau[h].abs(), most = merged[h].abs();
                if (!QUICK && a.weights) on[h] = size >= tall * (merged[h] - tau[h]).abs();
                else on[h] = (tau[h].negate_where(merged[h].not_above(zero)) > zero) & (most > zero);
                if constexpr (QUICK) lanes[0].template take<h>(size), lanes[1].template take_where<h>(on[h], most);
                else sums.put_term(k, i + 16 * h, size, most.only(on[h]));
            });
            bits[k][i / PAIR] = pair_bits<T>(on[0], on[1]);
        }
        if constexpr (QUICK) sums.put_lanes(k, lanes);
    }
}

int64_t mask_against(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        PairedSums<T> terms(a, inputs, a.weights);
        const T *in[MAX_INPUTS];
        uint32_t bits[MAX_MODELS][STRIP / PAIR];
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            terms.over(padded, [&]<bool QUICK>(std::bool_constant<QUICK>) {
                mask_strip<T, QUICK>(in, a, padded, bits, terms);
            });
            for (int k = 0; k < a.models_count; ++k) {
                if (m % PAIR) bits[k][m / PAIR] &= (1u << m % PAIR) - 1;  // the strip's padding passes for tall
                store_bits(a, k, begin + at, m, bits[k]);
            }
        }
        terms.total_into(sums);
        return 0;
    });
}

}  // namespace fm::FM_ISA
