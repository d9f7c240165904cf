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
            for (int k = 0; k < K; ++k)
                for (int half = 0; half < 2; ++half) {
                    Sums<V> magnitude, plain, energy;
                    double(*run)[PAIR] = running[k];
                    const int lane = 16 * half;
                    magnitude.load(run[0] + lane), plain.load(run[1] + lane), energy.load(run[2] + lane);
                    V peak = V::load(peaks[k] + lane);
                    for (int i = 0; i < padded; i += PAIR) {
                        V base[2], model[2];
                        load_ahead(in[0] + i, base[0], base[1]);
                        load_ahead(in[1 + k] + i, model[0], model[1]);
                        const V tau = half ? model[1] - base[1] : model[0] - base[0], size = tau.abs();
                        magnitude.add(size), plain.add(tau), energy.add_product(tau, tau);
                        peak = peak.or_larger(size);
                        counts[k] += 16 - std::popcount((infinite > size).bits());
                    }
                    magnitude.store(run[0] + lane), plain.store(run[1] + lane), energy.store(run[2] + lane);
                    peak.store(peaks[k] + lane);
                }
        }
        for (int k = 0; k < K; ++k) {
            for (int row = 0; row < 3; ++row) sums[row * K + k] = total<T>(running[k][row]);
            sums[3 * K + k] = 0;
            for (W peak : peaks[k])
                if (peak > sums[3 * K + k]) sums[3 * K + k] = peak;
        }
        return 0;
    });
}

}  // namespace fm::FM_ISA
