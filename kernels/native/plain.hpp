// Weighted sums of task vectors, or the largest of them, of a strip.
#pragma once
#include "finish.hpp"

namespace fm::FM_ISA {

template <class V> [[gnu::always_inline]] static inline V larger(const V &d, const V &x) {
    return V::select((x.abs() > d.abs()) | x.is_nan(), x, d);
}

// All elements take part and none votes. `addend` joins the sum, where there is one: lanes of the pairs, one after the other.
template <class T, int KN, bool BASE, bool TAKE_MAX, class To>
[[gnu::noinline]] static int64_t plain_strip(const T *const *in, const Args &a, const Wide<T> *addend, int n, int padded,
                                          To &sink) {
    using V = typename Working<T>::V;
    using W = Wide<T>;
    const int K = KN ? KN : a.models_count;
    const V zero = V::set(0);
    const Finish<T> finish(a);
    int64_t nonfinite = 0;
    for (int i = 0; i < padded; i += PAIR) {
        V b0 = zero, b1 = zero, d0 = zero, d1 = zero;
        if (BASE) load_ahead(in[0] + i, b0, b1);
        for (int k = 0; k < K; ++k) {
            V x, y;
            load_ahead(in[BASE + k] + i, x, y);
            if (BASE) x = x - b0, y = y - b1;
            const V w = V::set(W(a.weights[k]));
            x = w * x, y = w * y;
            if (TAKE_MAX) d0 = larger(d0, x), d1 = larger(d1, y);
            else d0 = k ? d0 + x : x, d1 = k ? d1 + y : y;
        }
        if (addend) {
            const V x = V::load(addend + i), y = V::load(addend + i + 16);
            d0 = K ? d0 + x : x, d1 = K ? d1 + y : y;
        }
        d0 = finish.complete(d0, b0), d1 = finish.complete(d1, b1);
        nonfinite += finish.nonfinite(d0, d1, 0, n - i);
        sink.put(i, d0, d1);
    }
    return nonfinite;
}

template <class T, bool BASE, bool TAKE_MAX, class To>
static int64_t plain_strip(const T *const *in, const Args &a, const Wide<T> *addend, int n, int padded, To &sink) {
    switch (in_registers<typename Working<T>::V> ? a.models_count : 0) {
        case 1: return plain_strip<T, 1, BASE, TAKE_MAX>(in, a, addend, n, padded, sink);
        case 2: return plain_strip<T, 2, BASE, TAKE_MAX>(in, a, addend, n, padded, sink);
        case 3: return plain_strip<T, 3, BASE, TAKE_MAX>(in, a, addend, n, padded, sink);
        case 4: return plain_strip<T, 4, BASE, TAKE_MAX>(in, a, addend, n, padded, sink);
        default: return plain_strip<T, 0, BASE, TAKE_MAX>(in, a, addend, n, padded, sink);
    }
}

}  // namespace fm::FM_ISA
