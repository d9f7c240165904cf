// ⟨g, θ_k⟩, ‖θ_k‖² and ‖g‖², products in float64. g stands in the place of base.
//
// A few models are read side by side, which memory serves faster than one after the other, and their sums stay in registers. Elements
// are widened to float64 from memory: from registers that takes shuffles, of which a core does few at a time.
#include "strips.hpp"

namespace fm::FM_ISA {

constexpr int GROUP = 3;  // models whose sums fit into registers

template <class T, int KN>
[[gnu::noinline]] static void add_models(const T *const *in, const double *g, int n, double (*dots)[8], double (*norms)[8]) {
    using V = typename Working<T>::V;
    using W = Wide<T>;
    constexpr bool direct = std::is_same_v<T, W>;
    Eight<V> dot[KN], norm[KN];
#pragma GCC unroll 3
    for (int k = 0; k < KN; ++k) dot[k] = Eight<V>::of(dots[k]), norm[k] = Eight<V>::of(norms[k]);
    for (int i = 0; i < n; i += PAIR) {
        alignas(64) W widened[KN][PAIR];
#pragma GCC unroll 3
        for (int k = 0; k < KN; ++k) {
            prefetch_ahead(in[k] + i);
            if constexpr (direct) continue;
            V x, y;
            load_pair(in[k] + i, x, y);
            x.store(widened[k]), y.store(widened[k] + 16);
        }
        if (!direct) in_memory(widened);
#pragma GCC unroll 4
        for (int at : eights<T>) {
            const auto left = Eight<V>::of(g + i + at);
#pragma GCC unroll 3
            for (int k = 0; k < KN; ++k) {
                const auto own = Eight<V>::of((direct ? reinterpret_cast<const W *>(in[k] + i) : widened[k]) + at);
                dot[k].add_product(left, own), norm[k].add_product(own, own);
            }
        }
    }
#pragma GCC unroll 3
    for (int k = 0; k < KN; ++k) dot[k].store(dots[k]), norm[k].store(norms[k]);
}

// g in float64, in the lanes that pairs of T have, and the sums of its squares.
template <class T> static void widen_g(const In &in, int64_t begin, int n, int padded, double *g, double (&norms)[8]) {
    using V = typename Working<T>::V;
    using W = Wide<T>;
    alignas(64) W strip[STRIP], pair[PAIR];
    const bool whole = n == padded, direct = whole && in.dtype == dtype_of<T>;
    const T *from = static_cast<const T *>(in.data) + begin;
    const W *wide = strip;
    if (whole && in.dtype == dtype_of<W>) {
        wide = static_cast<const W *>(in.data) + begin;
    } else if (!direct) {
        widen_strip(in, begin, n, strip);
        memset(strip + n, 0, (padded - n) * sizeof(W));
    }
    auto norm = Eight<V>::of(norms);
    for (int i = 0; i < padded; i += PAIR) {
        V x, y;
        if (direct) load_ahead(from + i, x, y);
        else prefetch_ahead(wide + i), load_lanes<T>(wide + i, x, y);
        x.store(pair), y.store(pair + 16);
        in_memory(pair);
#pragma GCC unroll 4
        for (int at : eights<T>) {
            const auto own = Eight<V>::of(pair + at);
            own.store(g + i + at), norm.add_product(own, own);
        }
    }
    norm.store(norms);
}

int64_t inner_products(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *) {
    Args others = a;
    others.base.data = nullptr;
    const Inputs models(others);
    const int K = a.models_count;
    return by_type(models, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(models, direct);
        const T *in[MAX_INPUTS];
        alignas(64) double dots[MAX_MODELS][8], norms[MAX_MODELS + 1][8], g[STRIP];
        memset(dots, 0, sizeof dots[0] * K), memset(norms, 0, sizeof norms[0] * (K + 1));
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            widen_g<T>(a.base, begin + at, m, padded, g, norms[K]);
            in_groups<GROUP>(K, [&]<int KN>(int k, Models<KN>) { add_models<T, KN>(in + k, g, padded, dots + k, norms + k); });
        }
        for (int k = 0; k < K; ++k) sums[k] = total(dots[k]), sums[K + k] = total(norms[k]);
        sums[2 * K] = total(norms[K]);
        return 0;
    });
}

}  // namespace fm::FM_ISA
