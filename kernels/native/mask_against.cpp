// EMR-Merging's masks and sums for a task vector merged by another method.
#include "strips.hpp"

namespace fm::FM_ISA {

template <class T>
static void mask_strip(const T *const *in, int K, int n, uint32_t (*bits)[STRIP / PAIR], PairedSums<T> &sums) {
    using V = typename Working<T>::V;
    const V zero = V::set(0);
    for (int i = 0; i < n; i += PAIR) {
        V b0, b1, m0, m1;
        load_ahead(in[0] + i, b0, b1);
        load_ahead(in[1] + i, m0, m1);
        const auto down0 = m0.not_above(zero), down1 = m1.not_above(zero);
        m0 = m0.abs(), m1 = m1.abs();
        const auto some0 = m0 > zero, some1 = m1 > zero;
        for (int k = 0; k < K; ++k) {
            V x, y;
            load_ahead(in[2 + k] + i, x, y);
            x = x - b0, y = y - b1;
            x.abs().store(sums.magnitude + k * STRIP + i), y.abs().store(sums.magnitude + k * STRIP + i + 16);
            const auto a = (x.negate_where(down0) > zero) & some0, b = (y.negate_where(down1) > zero) & some1;
            bits[k][i / PAIR] = pair_bits<T>(a, b);
            V::select(a, m0, zero).store(sums.kept + k * STRIP + i);
            V::select(b, m1, zero).store(sums.kept + k * STRIP + i + 16);
        }
    }
}

int64_t mask_against(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        PairedSums<T> terms(a.models_count);
        const T *in[MAX_INPUTS];
        uint32_t bits[MAX_MODELS][STRIP / PAIR];
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            mask_strip<T>(in, a.models_count, padded, bits, terms);
            for (int k = 0; k < a.models_count; ++k) store_bits(a, k, begin + at, m, bits[k]);
            terms.add(padded);
        }
        terms.total_into(sums);
        return 0;
    });
}

}  // namespace fm::FM_ISA
