// EMR-Merging's elect: unified, K packed masks and 2K sums from one reading.
#include "strips.hpp"

namespace fm::FM_ISA {

// KN models known when compiling keep their task vectors in registers; KN = 0 takes any number.
template <class T, int KN>
static void elect_strip(const T *const *in, int models, int n, Sink<T> &sink, uint32_t (*bits)[STRIP / PAIR],
                        PairedSums<T> &sums) {
    using V = typename Working<T>::V;
    constexpr int MOST = KN ? KN : MAX_MODELS;
    const int K = KN ? KN : models;
    const V zero = V::set(0);
    for (int i = 0; i < n; i += PAIR) {
        V b0, b1, s0 = zero, s1 = zero, tau[MOST][2];
        load_ahead(in[0] + i, b0, b1);
        for (int k = 0; k < K; ++k) {
            V x, y;
            load_ahead(in[1 + k] + i, x, y);
            V &t0 = tau[k][0] = x - b0, &t1 = tau[k][1] = y - b1;
            s0 = k ? s0 + t0 : t0, s1 = k ? s1 + t1 : t1;
            t0.abs().store(sums.magnitude + k * STRIP + i), t1.abs().store(sums.magnitude + k * STRIP + i + 16);
        }
        const auto down0 = s0.not_above(zero), down1 = s1.not_above(zero);
        V m0 = zero, m1 = zero;
        for (int k = 0; k < K; ++k) {  // from here on a task vector is positive where it agrees with the sum
            V &t0 = tau[k][0] = tau[k][0].negate_where(down0), &t1 = tau[k][1] = tau[k][1].negate_where(down1);
            m0 = m0.or_larger(t0), m1 = m1.or_larger(t1);
        }
        for (int k = 0; k < K; ++k) {
            const auto a = tau[k][0] > zero, b = tau[k][1] > zero;
            bits[k][i / PAIR] = pair_bits<T>(a, b);
            V::select(a, m0, zero).store(sums.kept + k * STRIP + i);
            V::select(b, m1, zero).store(sums.kept + k * STRIP + i + 16);
        }
        sink.put(i, V::select(down0, zero - m0, m0), V::select(down1, zero - m1, m1));
    }
}

int64_t elect(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        Sink<T> sink(a);
        PairedSums<T> terms(a.models_count);
        const T *in[MAX_INPUTS];
        uint32_t bits[MAX_MODELS][STRIP / PAIR];
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            sink.at(begin + at, m);
            switch (a.models_count) {
                case 1: elect_strip<T, 1>(in, 1, padded, sink, bits, terms); break;
                case 2: elect_strip<T, 2>(in, 2, padded, sink, bits, terms); break;
                case 3: elect_strip<T, 3>(in, 3, padded, sink, bits, terms); break;
                case 4: elect_strip<T, 4>(in, 4, padded, sink, bits, terms); break;
                default: elect_strip<T, 0>(in, a.models_count, padded, sink, bits, terms);
            }
            sink.flush();
            for (int k = 0; k < a.models_count; ++k) store_bits(a, k, begin + at, m, bits[k]);
            terms.add(padded);
        }
        terms.total_into(sums);
        fence();
        return 0;
    });
}

}  // namespace fm::FM_ISA
