// ⟨g, θ_k⟩, ‖θ_k‖² and ‖g‖², products in float64. g stands in the place of base.
#include "strips.hpp"

namespace fm::FM_ISA {

template <class T, int KN>
static void products_strip(const T *const *in, int models, int n, double (*running)[PAIR]) {
    using V = typename Working<T>::V;
    constexpr int MOST = KN ? KN : 1;
    // Models are taken MOST at a time, so that sums stay in registers: 2·MOST + 1 of them.
    for (int first = 0; first < models; first += MOST) {
        Sums<V> own, dot[MOST], norm[MOST];
        own.load(running[2 * models]);
        for (int k = 0; k < MOST; ++k) dot[k].load(running[first + k]), norm[k].load(running[models + first + k]);
        for (int i = 0; i < n; i += PAIR) {
            V g0, g1;
            load_ahead(in[0] + i, g0, g1);
            if (first == 0) own.add_product(g0, g1, g0, g1);
            for (int k = 0; k < MOST; ++k) {
                V x, y;
                load_ahead(in[1 + first + k] + i, x, y);
                dot[k].add_product(g0, g1, x, y), norm[k].add_product(x, y, x, y);
            }
        }
        own.store(running[2 * models]);
        for (int k = 0; k < MOST; ++k) dot[k].store(running[first + k]), norm[k].store(running[models + first + k]);
    }
}

int64_t inner_products(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *) {
    const Inputs inputs(a);
    const int K = a.models_count;
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        const T *in[MAX_INPUTS];
        alignas(64) double running[2 * MAX_MODELS + 1][PAIR];
        memset(running, 0, sizeof running[0] * (2 * K + 1));
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            if (K % 3 == 0) products_strip<T, 3>(in, K, padded, running);
            else if (K % 2 == 0) products_strip<T, 2>(in, K, padded, running);
            else products_strip<T, 1>(in, K, padded, running);
        }
        for (int j = 0; j < 2 * K + 1; ++j) {
            Sums<typename Working<T>::V> s;
            s.load(running[j]);
            sums[j] = total<T>(s);
        }
        return 0;
    });
}

}  // namespace fm::FM_ISA
