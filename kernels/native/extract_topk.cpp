// The elements of a task vector above a cut, block by block.
#include "selection.hpp"
#include "strips.hpp"

namespace fm::FM_ISA {

template <class T> static inline auto element(const T *p, int i) {
    T x;
    memcpy(&x, reinterpret_cast<const char *>(p) + i * sizeof(T), sizeof(T));
    return widen(x);
}

// The largest number below a magnitude: what exceeds it is the magnitude or exceeds that. Nothing exceeds a NaN.
template <class W> static inline W below(W x) {
    using Bits = std::conditional_t<sizeof(W) == 8, int64_t, int32_t>;
    return x > 0 ? std::bit_cast<W>(std::bit_cast<Bits>(x) - 1) : x == 0 ? W(-1) : x;
}

int64_t extract_topk(const Args &a, double magnitude, int64_t index, int64_t begin, int64_t n, uint16_t *offsets,
                     const Out &values) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        using V = typename Working<T>::V;
        using W = typename Working<T>::W;
        Reader<T> reader(inputs, direct);
        const T *in[MAX_INPUTS];
        W taus[STRIP];
        const V after = V::set(W(magnitude)), before = V::set(below(W(magnitude)));  // what must be exceeded there
        int64_t found = 0;
        for (int64_t at = 0; at < n; at += STRIP) {
            const int size = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, size, in);
            int taken = 0;
            for (int i = 0; i < padded; i += PAIR) {
                V b0, b1, x, y;
                load_ahead(in[0] + i, b0, b1), load_ahead(in[1] + i, x, y);
                x = (x - b0).abs(), y = (y - b1).abs();
                const int64_t early = index - (begin + at + i);  // elements of the pair that stand before the index
                const V &bound = early >= PAIR ? before : after;
                uint32_t bits = pair_bits<T>(x > bound, y > bound);
                if (early > 0 && early < PAIR) bits |= pair_bits<T>(x > before, y > before) & ((1u << early) - 1);
                if (i + PAIR > size) bits &= (1u << (size - i)) - 1;
                for (; bits; bits &= bits - 1) {
                    const int j = i + std::countr_zero(bits);
                    offsets[found + taken] = uint16_t(at + j);
                    taus[taken++] = element(in[1], j) - W(element(in[0], j));
                }
            }
            narrow_strip(taus, values, found, taken);
            found += taken;
        }
        return found;
    });
}

}  // namespace fm::FM_ISA
