// ⟨g, θ_k⟩, ‖θ_k‖² and ‖g‖², products in float64. g stands in the place of base.
//
// g is widened once a strip for all models, each of which is read in its own dtype: on two cores this keeps up with memory.
#include "strips.hpp"

namespace fm::FM_ISA {

constexpr int LONG = 1024;  // elements of a strip: g in float64 and a model stay in the first-level cache

// One half of every pair after the other, so that the sums of a model stay in registers.
template <class T> static void products_strip(const T *x, const double *g, int n, double *dots, double *norms) {
    for (int half = 0; half < PAIR; half += 16) {
        Sums<typename Working<T>::V> dot, norm;
        dot.load(dots + half), norm.load(norms + half);
        for (int i = half; i < n; i += PAIR) {
            if (half == 0) prefetch_ahead(x + i);
            const auto own = load_half(x + i);
            dot.add_product(g + i, own), norm.add_product(own, own);
        }
        dot.store(dots + half), norm.store(norms + half);
    }
}

// A model's strip where it is, but for an odd one, which is padded with zeros.
template <class T> static void model_strip(const In &in, int64_t begin, int n, int padded, const double *g, double *dots, double *norms) {
    const T *x = static_cast<const T *>(in.data) + begin;
    alignas(64) T copy[LONG];
    if (n != padded) {
        memcpy(static_cast<void *>(copy), static_cast<const void *>(x), n * sizeof(T));
        memset(static_cast<void *>(copy + n), 0, (padded - n) * sizeof(T));
        x = copy;
    }
    products_strip(x, g, padded, dots, norms);
}

// The same in float64, whatever the model's dtype.
static void wide_strip(const In &in, int64_t begin, int n, int padded, const double *g, double *dots, double *norms) {
    alignas(64) double copy[LONG];
    widen_strip(in, begin, n, copy);
    memset(copy + n, 0, (padded - n) * sizeof(double));
    products_strip(copy, g, padded, dots, norms);
}

int64_t inner_products(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *) {
    const int K = a.models_count;
    alignas(64) double running[2 * MAX_MODELS + 1][PAIR], g[LONG];
    memset(running, 0, sizeof running[0] * (2 * K + 1));
    for (int64_t at = 0; at < n; at += LONG) {
        const int m = int(n - at < LONG ? n - at : LONG), padded = (m + PAIR - 1) / PAIR * PAIR;
        widen_strip(a.base, begin + at, m, g);
        memset(g + m, 0, (padded - m) * sizeof(double));
        for (int i = 0; i < padded; i += PAIR)
            for (int j = 0; j < PAIR; ++j) running[2 * K][j] += g[i + j] * g[i + j];
        for (int k = 0; k < K; ++k) {
            const In &in = a.models[k];
            const auto strip = a.wide ? wide_strip : in.dtype == BF16 ? model_strip<bf16> : in.dtype == F16 ? model_strip<fp16> : model_strip<float>;
            strip(in, begin + at, m, padded, g, running[k], running[K + k]);
        }
    }
    for (int j = 0; j < 2 * K + 1; ++j) sums[j] = total<float>(running[j]);
    return 0;
}

}  // namespace fm::FM_ISA
