// Per-model statistics of task vectors. Their terms are widened to float64 from memory.
#include <cmath>
#include <limits>

#include "strips.hpp"

namespace fm::FM_ISA {

// Models side by side whose sums fit into registers.
constexpr int GROUP = REGISTER_BYTES == 64 ? 3 : 2;

template <class W> struct Running {
    alignas(64) double magnitude[8], plain[8], energy[8];
    W peak[16];
};

template <class T, int KN> [[gnu::noinline]] static void add_models(const T *base, const T *const *in, int n, Running<Wide<T>> *running) {
    using V = typename Working<T>::V;
    Eight<V> magnitude[KN], plain[KN], energy[KN];
    V peak[KN];
#pragma GCC unroll 3
    for (int k = 0; k < KN; ++k) {
        const auto &r = running[k];
        magnitude[k].load(r.magnitude), plain[k].load(r.plain), energy[k].load(r.energy);
        peak[k] = V::load(r.peak);
    }
    for (int i = 0; i < n; i += PAIR) {
        alignas(64) Wide<T> tau[KN][PAIR];
        V b[2];
        load_ahead(base + i, b[0], b[1]);
#pragma GCC unroll 3
        for (int k = 0; k < KN; ++k) {
            V x, y;
            load_ahead(in[k] + i, x, y);
            x = x - b[0], y = y - b[1];
            peak[k] = peak[k].or_larger(x.abs()).or_larger(y.abs());
            x.store(tau[k]), y.store(tau[k] + 16);
        }
        in_memory(tau);
#pragma GCC unroll 4
        for (int at : eights<T>)
#pragma GCC unroll 4
            for (int h = 0; h < Eight<V>::PARTS; ++h)
#pragma GCC unroll 3
                for (int k = 0; k < KN; ++k) {
                    const auto x = Doubles<V>::of(tau[k] + at + h * Eight<V>::COUNT);
                    magnitude[k].part[h].add(x.abs()), plain[k].part[h].add(x), energy[k].part[h].add_product(x, x);
                }
    }
#pragma GCC unroll 3
    for (int k = 0; k < KN; ++k) {
        auto &r = running[k];
        magnitude[k].store(r.magnitude), plain[k].store(r.plain), energy[k].store(r.energy), peak[k].store(r.peak);
    }
}

template <class T> static int64_t nonfinite(const T *base, const T *x, int n) {
    using V = typename Working<T>::V;
    const V infinite = V::set(std::numeric_limits<Wide<T>>::infinity());
    int64_t count = 0;
    for (int i = 0; i < n; i += PAIR) {
        V b[2], tau[2];
        load_pair(base + i, b[0], b[1]), load_pair(x + i, tau[0], tau[1]);
        for (int half = 0; half < 2; ++half) count += 16 - std::popcount((infinite > (tau[half] - b[half]).abs()).bits());
    }
    return count;
}

int64_t moments(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *counts) {
    const Inputs inputs(a);
    const int K = a.models_count;
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        const T *in[MAX_INPUTS];
        Running<Wide<T>> running[MAX_MODELS];
        memset(running, 0, sizeof running[0] * K);
        for (int64_t at = 0; at < n; at += STRIP) {
            const int padded = reader.at(begin + at, int(n - at < STRIP ? n - at : STRIP), in);
            in_groups<GROUP>(K, [&]<int KN>(int k, Models<KN>) { add_models<T, KN>(in[0], in + 1 + k, padded, running + k); });
        }
        bool finite = true;
        for (int k = 0; k < K; ++k) {
            const auto &r = running[k];
            sums[k] = total(r.magnitude), sums[K + k] = total(r.plain), sums[2 * K + k] = total(r.energy);
            sums[3 * K + k] = counts[k] = 0;
            for (double peak : r.peak)
                if (peak > sums[3 * K + k]) sums[3 * K + k] = peak;
            finite &= std::isfinite(sums[k]);
        }
        for (int64_t at = 0; at < n && !finite; at += STRIP) {
            const int padded = reader.at(begin + at, int(n - at < STRIP ? n - at : STRIP), in);
            for (int k = 0; k < K; ++k) counts[k] += nonfinite(in[0], in[1 + k], padded);
        }
        return 0;
    });
}

}  // namespace fm::FM_ISA
