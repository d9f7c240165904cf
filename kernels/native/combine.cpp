// The generalised task arithmetic, with a count of non-finite results.
#include <limits>

#include "strips.hpp"

namespace fm::FM_ISA {

// The least magnitude that rounds to infinity.
template <class W> static W rounds_to_infinity(int dtype) {
    switch (dtype) {
        case BF16: return W(0x1.ffp127);
        case F16: return W(65520);
        case F32:
            if constexpr (sizeof(W) == 8) return 0x1.ffffffp127;
            [[fallthrough]];
        default: return std::numeric_limits<W>::infinity();
    }
}

template <class T, int KN, bool BASE, bool MAX>
static int64_t combine_strip(const T *const *in, const Args &a, const Wide<T> *addend, int n, int padded, Sink<T> &sink) {
    using V = typename Working<T>::V;
    using W = Wide<T>;
    const int K = KN ? KN : a.models_count;
    const V zero = V::set(0), divisor = V::set(W(a.divisor)), scale = V::set(W(a.scale));
    const V limit = V::set(rounds_to_infinity<W>(a.out.dtype));
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
            if (MAX) {
                d0 = V::select((x.abs() > d0.abs()) | x.is_nan(), x, d0);
                d1 = V::select((y.abs() > d1.abs()) | y.is_nan(), y, d1);
            }
            if (!MAX) d0 = k ? d0 + x : x, d1 = k ? d1 + y : y;
        }
        if (addend) {
            V x, y;
            load_lanes<T>(addend + i, x, y);
            d0 = K ? d0 + x : x, d1 = K ? d1 + y : y;
        }
        if (a.divisor != 1) d0 = d0 / divisor, d1 = d1 / divisor;
        if (a.scale != 1) d0 = scale * d0, d1 = scale * d1;
        if (BASE && !a.as_delta) d0 = b0 + d0, d1 = b1 + d1;
        const uint32_t finite = pair_bits<T>(limit > d0.abs(), limit > d1.abs());
        if (finite != 0xffffffff) [[unlikely]]
            nonfinite += std::popcount(~finite & (n - i >= PAIR ? 0xffffffff : (1u << (n - i)) - 1));
        sink.put(i, d0, d1);
    }
    return nonfinite;
}

template <class T, bool BASE, bool MAX>
static int64_t combine_strip(const T *const *in, const Args &a, const Wide<T> *addend, int n, int padded, Sink<T> &sink) {
    switch (in_registers<typename Working<T>::V> ? a.models_count : 0) {
        case 2: return combine_strip<T, 2, BASE, MAX>(in, a, addend, n, padded, sink);
        case 3: return combine_strip<T, 3, BASE, MAX>(in, a, addend, n, padded, sink);
        case 4: return combine_strip<T, 4, BASE, MAX>(in, a, addend, n, padded, sink);
        default: return combine_strip<T, 0, BASE, MAX>(in, a, addend, n, padded, sink);
    }
}

int64_t combine(const Args &a, int64_t begin, int64_t n, double *, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        Addend<T> addend(a);
        Sink<T> sink(a);
        const T *in[MAX_INPUTS];
        int64_t nonfinite = 0;
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            const Wide<T> *more = addend.at(begin + at, m, padded);
            sink.at(begin + at, m);
            if (a.base.data)
                nonfinite += a.consensus_max ? combine_strip<T, true, true>(in, a, more, m, padded, sink)
                                             : combine_strip<T, true, false>(in, a, more, m, padded, sink);
            else
                nonfinite += a.consensus_max ? combine_strip<T, false, true>(in, a, more, m, padded, sink)
                                             : combine_strip<T, false, false>(in, a, more, m, padded, sink);
            sink.flush();
        }
        fence();
        return nonfinite;
    });
}

}  // namespace fm::FM_ISA
