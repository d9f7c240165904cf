// ⟨g, θ_k⟩, ‖θ_k‖² and ‖g‖², products in float64. g stands in the place of base.
//
// A few models are read side by side, which memory serves faster than one after the other, and their sums stay in registers. Elements
// are widened to float64 from memory: from registers that takes shuffles, of which a core does few at a time.
#include "strips.hpp"

namespace fm::FM_ISA {

constexpr int GROUP = REGISTER_BYTES == 16 ? 2 : 3;  // models whose sums fit into registers

template <class T, class G> static inline void load_g(const G *g, typename Working<T>::V &x, typename Working<T>::V &y) {
    if constexpr (std::is_same_v<T, G>) load_ahead(g, x, y);
    else prefetch_ahead(g), load_lanes<T>(g, x, y);
}

// G: what g is read as, T or its working type.
template <class T, int KN, class G>
[[gnu::noinline]] static void add_models(const G *g, const T *const *in, int n, double (*dots)[8], double (*norms)[8], double *of_g) {
    using V = typename Working<T>::V;
    Eight<V> dot[KN], norm[KN], square;
#pragma GCC unroll 3
    for (int k = 0; k < KN; ++k) dot[k].load(dots[k]), norm[k].load(norms[k]);
    square.load(of_g);
    for (int i = 0; i < n; i += PAIR) {
        alignas(64) Wide<T> widened[KN + 1][PAIR];
#pragma GCC unroll 4
        for (int k = 0; k <= KN; ++k) {
            V x, y;
            if (k < KN) load_ahead(in[k] + i, x, y);
            else load_g<T>(g + i, x, y);
            x.store(widened[k]), y.store(widened[k] + 16);
        }
        in_memory(widened);
#pragma GCC unroll 4
        for (int at : eights<T>)
#pragma GCC unroll 4
            for (int h = 0; h < Eight<V>::PARTS; ++h) {
                const auto part = [&](int k) { return Doubles<V>::of(widened[k] + at + h * Eight<V>::COUNT); };
                const auto left = part(KN);
                square.part[h].add_product(left, left);
#pragma GCC unroll 3
                for (int k = 0; k < KN; ++k) {
                    const auto x = part(k);
                    dot[k].part[h].add_product(left, x), norm[k].part[h].add_product(x, x);
                }
            }
    }
#pragma GCC unroll 3
    for (int k = 0; k < KN; ++k) dot[k].store(dots[k]), norm[k].store(norms[k]);
    square.store(of_g);
}

int64_t inner_products(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *) {
    Args others = a;
    others.base.data = nullptr;
    const Inputs models(others);
    const int K = a.models_count;
    return by_type(models, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        using W = Wide<T>;
        Reader<T> reader(models, direct);
        const T *in[MAX_INPUTS];
        alignas(64) double dots[MAX_MODELS][8], norms[MAX_MODELS + 1][8], again[8] = {};
        alignas(64) W strip[STRIP];
        memset(dots, 0, sizeof dots[0] * K), memset(norms, 0, sizeof norms[0] * (K + 1));
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            const auto add = [&](const auto *g) {
                in_groups<GROUP>(K, [&]<int KN>(int k, Models<KN>) {
                    add_models<T, KN>(g, in + k, padded, dots + k, norms + k, k ? again : norms[K]);
                });
            };
            if (m == padded && a.base.dtype == dtype_of<T>) add(static_cast<const T *>(a.base.data) + begin + at);
            else if (m == padded && a.base.dtype == dtype_of<W>) add(static_cast<const W *>(a.base.data) + begin + at);
            else {
                widen_strip(a.base, begin + at, m, strip);
                memset(strip + m, 0, (padded - m) * sizeof(W));
                add(static_cast<const W *>(strip));
            }
        }
        for (int k = 0; k < K; ++k) sums[k] = total(dots[k]), sums[K + k] = total(norms[k]);
        sums[2 * K] = total(norms[K]);
        return 0;
    });
}

}  // namespace fm::FM_ISA
