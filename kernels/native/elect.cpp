// EMR-Merging's elect: unified, K packed masks and 2K sums from one reading.
#include "strips.hpp"

namespace fm::FM_ISA {

// KN models known when compiling keep their task vectors in registers; KN = 0 takes any number.
template <class T, int KN, bool QUICK>
[[gnu::noinline]] static void elect_strip(const T *const *in, int models, int n, Sink<T> &sink,
                                          uint32_t (*bits)[STRIP / PAIR], PairedSums<T> &sums) {
    using V = typename Working<T>::V;
    constexpr int MOST = KN ? KN : MAX_MODELS;
    const V zero = V::set(0);
    V lanes[QUICK ? MOST : 1][2];
    if constexpr (QUICK)
        each<KN>(models, [&](auto k) { lanes[k][0] = lanes[k][1] = zero; });
    for (int i = 0; i < n; i += PAIR) {
        V unified[2];
        typename V::Mask masks[MOST][2];
        for (int j = 0; j <= models; ++j) prefetch_ahead(in[j] + i);
        each<2>(2, [&](auto h) {  // half a pair at a time, for the sake of instruction sets with few registers
            V sum = zero, most = zero, base[2], tau[MOST];
            load_pair(in[0] + i, base[0], base[1]);
            each<KN>(models, [&](auto k) {
                V model[2];
                load_pair(in[1 + k] + i, model[0], model[1]);
                tau[k] = model[h] - base[h];
                sum = k ? sum + tau[k] : tau[k];
            });
            const auto down = sum.not_above(zero);
            each<KN>(models, [&](auto k) {  // from here on a task vector is positive where it agrees with the sum
                tau[k] = tau[k].negate_where(down);
                most = most.or_larger(tau[k]);
            });
            each<KN>(models, [&](auto k) {
                masks[k][h] = tau[k] > zero;
                if constexpr (QUICK) {
                    lanes[k][0].template take<h>(tau[k].abs());
                    lanes[k][1].template take_where<h>(masks[k][h], most);
                } else {
                    sums.put_term(k, i + 16 * h, tau[k].abs(), V::select(masks[k][h], most, zero));
                }
            });
            unified[h] = V::select(down, zero - most, most);
        });
        each<KN>(models, [&](auto k) { bits[k][i / PAIR] = pair_bits<T>(masks[k][0], masks[k][1]); });
        sink.put(i, unified[0], unified[1]);
    }
    if constexpr (QUICK) each<KN>(models, [&](auto k) { sums.put_lanes(k, lanes[k]); });
}

int64_t elect(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        Sink<T> sink(a, dtype_of<T> == F16);  // rounding to float16 sets the inexact flag
        PairedSums<T> terms(a, inputs);
        const T *in[MAX_INPUTS];
        uint32_t bits[MAX_MODELS][STRIP / PAIR];
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            sink.at(begin + at, m);
            terms.over(padded, [&]<bool QUICK>(std::bool_constant<QUICK>) {
                const auto unrolled = [&]<int... I>(std::integer_sequence<int, I...>) {
                    return ((a.models_count == I + 1 &&
                             (elect_strip<T, I + 1, QUICK>(in, I + 1, padded, sink, bits, terms), true)) || ...);
                };
                constexpr int most = !in_registers<typename Working<T>::V> ? 0 : QUICK ? 12 : 4;
                if (!unrolled(std::make_integer_sequence<int, most>()))
                    elect_strip<T, 0, QUICK>(in, a.models_count, padded, sink, bits, terms);
            });
            sink.flush();
            for (int k = 0; k < a.models_count; ++k) store_bits(a, k, begin + at, m, bits[k]);
        }
        terms.total_into(sums);
        fence();
        return 0;
    });
}

}  // namespace fm::FM_ISA
