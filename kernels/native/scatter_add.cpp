// Adds a block's share of an expert to a model.
#include "selection.hpp"
#include "strips.hpp"

namespace fm::FM_ISA {

constexpr int NEXT = 32;  // elements that prefetching runs ahead: each is in a cache line of its own

template <class T, class W>
static void add(char *theta, const uint16_t *offsets, const In &values, int64_t begin, int64_t n, W scale) {
    W strip[STRIP];
    for (int64_t at = 0; at < n; at += STRIP) {
        const int m = int(n - at < STRIP ? n - at : STRIP);
        widen_strip(values, begin + at, m, strip);
        for (int i = 0; i < m; ++i) {
            if (at + i + NEXT < n) __builtin_prefetch(theta + offsets[at + i + NEXT] * sizeof(T), 1);
            char *place = theta + offsets[at + i] * sizeof(T);
            T x;
            memcpy(&x, place, sizeof x);
            narrow(W(widen(x)) + scale * strip[i], x);
            memcpy(place, &x, sizeof x);
        }
    }
}

void scatter_add(const Out &theta, const uint16_t *offsets, const In &values, int64_t begin, int64_t n, double scale) {
    char *to = static_cast<char *>(theta.data);
    const bool wide = theta.dtype == F64 || values.dtype == F64;
    const auto typed = [&]<class T>(T) {
        if (wide) return add<T>(to, offsets, values, begin, n, scale);
        if constexpr (dtype_of<T> != F64) add<T>(to, offsets, values, begin, n, float(scale));
    };
    if (theta.dtype == BF16) typed(bf16());
    else if (theta.dtype == F16) typed(fp16());
    else if (theta.dtype == F32) typed(float());
    else typed(double());
}

}  // namespace fm::FM_ISA
