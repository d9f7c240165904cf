// One task's model: base + scale · mask ⊙ unified.
#include "strips.hpp"

namespace fm::FM_ISA {

int64_t modulate(const Args &a, int64_t begin, int64_t n, double *, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        using V = typename Working<T>::V;
        using W = typename Working<T>::W;
        Reader<T> reader(inputs, direct);
        Sink<T> sink(a);
        const T *in[MAX_INPUTS];
        const V zero = V::set(0), scale = V::set(W(a.scale));
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            uint32_t bits[STRIP / PAIR] = {};
            memcpy(bits, a.masks + (begin + at) / 8, (m + 7) / 8);
            sink.at(begin + at, m);
            for (int i = 0; i < padded; i += PAIR) {
                V b0, b1, u0, u1;
                load_ahead(in[0] + i, b0, b1);
                load_ahead(in[1] + i, u0, u1);
                decltype(u0 > u1) on0, on1;
                split_bits<T>(bits[i / PAIR], on0, on1);
                sink.put(i, b0 + scale * V::select(on0, u0, zero), b1 + scale * V::select(on1, u1, zero));
            }
            sink.flush();
        }
        fence();
        return 0;
    });
}

}  // namespace fm::FM_ISA
