// ⟨τ_j, τ_k⟩ of all pairs of models, products in float64.
//
// A strip's task vectors are formed once, each in a strip of its own, and stay in the cache for all pairs. With a base they
// stand there in order, without one as their type is read: so sums are those of inner_products of the vectors.
#include "strips.hpp"

namespace fm::FM_ISA {

constexpr int GROUP = 3;  // pairs whose sums fit into registers

template <class T> [[gnu::noinline]] static void form(const T *const *in, const Args &a, int k, int n, Wide<T> *to) {
    for (int i = 0; i < n; i += PAIR) {
        typename Working<T>::V tau[2];
        load_delta(in, a, k, i, tau);
        if constexpr (dtype_of<T> == BF16) {
            if (a.base.data) {
                store_even_odd(to + i, tau[0], tau[1]);
                continue;
            }
        }
        tau[0].store(to + i), tau[1].store(to + i + 16);
    }
}

// Order: whose eights are taken in turn.
template <class Order, int KN, class W>
[[gnu::noinline]] static void add_pairs(const W *left, const W (*right)[STRIP], int n, double (*dots)[8]) {
    using V = typename Working<W>::V;
    Eight<V> dot[KN];
#pragma GCC unroll 3
    for (int k = 0; k < KN; ++k) dot[k].load(dots[k]);
    for (int i = 0; i < n; i += PAIR)
#pragma GCC unroll 4
        for (int at : eights<Order>)
#pragma GCC unroll 4
            for (int h = 0; h < Eight<V>::PARTS; ++h) {
                const int place = i + at + h * Eight<V>::COUNT;
                const auto x = Doubles<V>::of(left + place);
#pragma GCC unroll 3
                for (int k = 0; k < KN; ++k) dot[k].part[h].add_product(x, Doubles<V>::of(right[k] + place));
            }
#pragma GCC unroll 3
    for (int k = 0; k < KN; ++k) dot[k].store(dots[k]);
}

template <class Order, class W> static void add_all(const W (*vectors)[STRIP], int models, int n, double (*dots)[8]) {
    for (int j = 0; j < models; ++j, dots += models - j + 1)
        in_groups<GROUP>(models - j, [&]<int KN>(int k, Models<KN>) {
            add_pairs<Order, KN>(vectors[j], vectors + j + k, n, dots + k);
        });
}

int64_t gram(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *) {
    const Inputs inputs(a);
    const int K = a.models_count, pairs = K * (K + 1) / 2;
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        const T *in[MAX_INPUTS];
        alignas(64) Wide<T> vectors[MAX_MODELS][STRIP];
        alignas(64) double dots[MAX_MODELS * (MAX_MODELS + 1) / 2][8];
        memset(dots, 0, sizeof dots[0] * pairs);
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            for (int k = 0; k < K; ++k) form(in, a, k, padded, vectors[k]);
            if (a.base.data) add_all<Wide<T>>(vectors, K, padded, dots);
            else add_all<T>(vectors, K, padded, dots);
        }
        for (int i = 0; i < pairs; ++i) sums[i] = total(dots[i]);
        return 0;
    });
}

}  // namespace fm::FM_ISA
