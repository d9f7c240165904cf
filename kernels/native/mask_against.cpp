// EMR-Merging's masks and sums for a task vector merged by another method.
#include "strips.hpp"

namespace fm::FM_ISA {

template <class T, bool QUICK>
[[gnu::noinline]] static void mask_strip(const T *const *in, int K, int n, uint32_t (*bits)[STRIP / PAIR],
                                         PairedSums<T> &sums) {
    using V = typename Working<T>::V;
    const V zero = V::set(0);
    for (int k = 0; k < K; ++k) {  // base and merged are read again from the first-level cache
        V lanes[4] = {zero, zero, zero, zero};
        for (int i = 0; i < n; i += PAIR) {
            V b0, b1, m0, m1, x, y;
            load_ahead(in[0] + i, b0, b1);
            load_ahead(in[1] + i, m0, m1);
            load_ahead(in[2 + k] + i, x, y);
            x = x - b0, y = y - b1;
            const auto a = (x.negate_where(m0.not_above(zero)) > zero) & (m0.abs() > zero);
            const auto b = (y.negate_where(m1.not_above(zero)) > zero) & (m1.abs() > zero);
            bits[k][i / PAIR] = pair_bits<T>(a, b);
            x = x.abs(), y = y.abs(), m0 = m0.abs(), m1 = m1.abs();
            if constexpr (QUICK) {
                lanes[0] = lanes[0] + x, lanes[1] = lanes[1] + y;
                lanes[2] = lanes[2].plus_where(a, m0), lanes[3] = lanes[3].plus_where(b, m1);
            } else {
                sums.put_term(k, i, x, V::select(a, m0, zero)), sums.put_term(k, i + 16, y, V::select(b, m1, zero));
            }
        }
        if constexpr (QUICK) sums.put_lanes(k, lanes);
    }
}

int64_t mask_against(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        PairedSums<T> terms(a, inputs);
        const T *in[MAX_INPUTS];
        uint32_t bits[MAX_MODELS][STRIP / PAIR];
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            terms.over(padded, [&]<bool QUICK>(std::bool_constant<QUICK>) {
                mask_strip<T, QUICK>(in, a.models_count, padded, bits, terms);
            });
            for (int k = 0; k < a.models_count; ++k) store_bits(a, k, begin + at, m, bits[k]);
        }
        terms.total_into(sums);
        return 0;
    });
}

}  // namespace fm::FM_ISA
