// Per-model statistics of task vectors.
#include <limits>

#include "strips.hpp"

namespace fm::FM_ISA {

int64_t moments(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *counts) {
    const Inputs inputs(a);
    const int K = a.models_count;
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        using V = typename Working<T>::V;
        using W = typename Working<T>::W;
        Reader<T> reader(inputs, direct);
        const T *in[MAX_INPUTS];
        alignas(64) double running[MAX_MODELS][3][PAIR];
        alignas(64) W peaks[MAX_MODELS][PAIR];
        memset(running, 0, sizeof running[0] * K);
        memset(peaks, 0, sizeof peaks[0] * K);
        for (int k = 0; k < K; ++k) counts[k] = 0;
        const V infinite = V::set(std::numeric_limits<W>::infinity());
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            for (int k = 0; k < K; ++k) {
                Sums<V> magnitude, plain, energy;
                magnitude.load(running[k][0]), plain.load(running[k][1]), energy.load(running[k][2]);
                V p0 = V::load(peaks[k]), p1 = V::load(peaks[k] + 16);
                for (int i = 0; i < padded; i += PAIR) {
                    V b0, b1, x, y;
                    load_ahead(in[0] + i, b0, b1);
                    load_ahead(in[1 + k] + i, x, y);
                    x = x - b0, y = y - b1;
                    const V ax = x.abs(), ay = y.abs();
                    magnitude.add(ax, ay), plain.add(x, y), energy.add_product(x, y, x, y);
                    p0 = p0.or_larger(ax), p1 = p1.or_larger(ay);
                    counts[k] += PAIR - std::popcount(pair_bits<T>(infinite > ax, infinite > ay));
                }
                magnitude.store(running[k][0]), plain.store(running[k][1]), energy.store(running[k][2]);
                p0.store(peaks[k]), p1.store(peaks[k] + 16);
            }
        }
        for (int k = 0; k < K; ++k) {
            Sums<V> s;
            for (int row = 0; row < 3; ++row) s.load(running[k][row]), sums[row * K + k] = total<T>(s);
            sums[3 * K + k] = 0;
            for (W peak : peaks[k])
                if (peak > sums[3 * K + k]) sums[3 * K + k] = peak;
        }
        return 0;
    });
}

}  // namespace fm::FM_ISA
