// ⟨g, θ_k⟩, ‖θ_k‖² and ‖g‖², products in float64. g stands in the place of base.
#include "strips.hpp"

namespace fm::FM_ISA {

// TOGETHER models at a time: with 3, AVX-512 keeps the 14 pairs of sums in registers and has just four left.
template <class T, int TOGETHER>
static void products_strip(const T *const *in, int models, int n, double (*running)[PAIR]) {
    using V = typename Working<T>::V;
    for (int first = 0; first < models; first += TOGETHER) {
        Sums<V> own[2], dot[TOGETHER][2], norm[TOGETHER][2];
        const auto each_sum = [&](auto body) {
            each<2>(2, [&](auto half) {
                body(own[half], running[2 * models] + 16 * half);
                each<TOGETHER>(models, [&](auto k) {
                    body(dot[k][half], running[first + k] + 16 * half);
                    body(norm[k][half], running[models + first + k] + 16 * half);
                });
            });
        };
        each_sum([](Sums<V> &sum, const double *from) { sum.load(from); });
        for (int i = 0; i < n; i += PAIR)
            each<2>(2, [&](auto half) {
                V g[2], x[2];
                if (half == 0) prefetch_ahead(in[0] + i);
                load_pair(in[0] + i, g[0], g[1]);
                if (first == 0) own[half].add_product(g[half], g[half]);
                each<TOGETHER>(models, [&](auto k) {
                    if (half == 0) prefetch_ahead(in[1 + first + k] + i);
                    load_pair(in[1 + first + k] + i, x[0], x[1]);
                    dot[k][half].add_product(g[half], x[half]), norm[k][half].add_product(x[half], x[half]);
                });
            });
        each_sum([](const Sums<V> &sum, double *to) { sum.store(to); });
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
        for (int j = 0; j < 2 * K + 1; ++j) sums[j] = total<T>(running[j]);
        return 0;
    });
}

}  // namespace fm::FM_ISA
