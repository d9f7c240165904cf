// The variance of task vectors over models, and how many elements have one.
#include <bit>
#include <limits>

#include "strips.hpp"

namespace fm::FM_ISA {

template <class T, int KN>
[[gnu::noinline]] static int64_t variance_strip(const T *const *in, int models, int padded, Sink<T> &sink) {
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;
    const V count = V::set(W(models)), zero = V::set(0), infinity = V::set(std::numeric_limits<W>::infinity());
    int64_t nonzero = 0;
    for (int i = 0; i < padded; i += PAIR) {
        V base[2], mean[2] = {zero, zero}, spread[2] = {zero, zero};
        load_ahead(in[0] + i, base[0], base[1]);
        each<KN>(models, [&](auto k) {
            V x[2];
            load_ahead(in[1 + k] + i, x[0], x[1]);
            each<2>(2, [&](auto h) { mean[h] = k ? mean[h] + (x[h] - base[h]) : x[h] - base[h]; });
        });
        each<2>(2, [&](auto h) { mean[h] = mean[h] / count; });
        each<KN>(models, [&](auto k) {
            V x[2];
            load_pair(in[1 + k] + i, x[0], x[1]);
            each<2>(2, [&](auto h) {
                const V off = (x[h] - base[h]) - mean[h];
                spread[h] = spread[h] + off * off;
            });
        });
        each<2>(2, [&](auto h) {
            spread[h] = spread[h] / count;
            spread[h] = spread[h].only(infinity > spread[h]);
            nonzero += std::popcount((spread[h] > zero).bits());
        });
        sink.put(i, spread[0], spread[1]);
    }
    return nonzero;
}

int64_t variance(const Args &a, int64_t begin, int64_t n, double *, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        Sink<T> sink(a);
        const T *in[MAX_INPUTS];
        int64_t nonzero = 0;
        for (int64_t at = 0; at < n; at += STRIP) {
            // What is padded does not vary, and is not counted.
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            sink.at(begin + at, m);
            switch (in_registers<typename Working<T>::V> ? a.models_count : 0) {
                case 2: nonzero += variance_strip<T, 2>(in, 2, padded, sink); break;
                case 3: nonzero += variance_strip<T, 3>(in, 3, padded, sink); break;
                case 4: nonzero += variance_strip<T, 4>(in, 4, padded, sink); break;
                default: nonzero += variance_strip<T, 0>(in, a.models_count, padded, sink);
            }
            sink.flush();
        }
        fence();
        return nonzero;
    });
}

}  // namespace fm::FM_ISA
