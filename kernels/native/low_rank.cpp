// LoRA merged into its base: base + scale · up · down, the sum over the rank in order.
#include "strips.hpp"

namespace fm::FM_ISA {

// n elements of one row of up · down into `sum`; `down` points to the first column, its rows are `columns` apart.
template <class V, class W>
static inline void row(const W *up, const W *down, int64_t rank, int64_t columns, int n, W *sum) {
    constexpr int TILE = 4;  // vectors, which stay in registers
    int i = 0;
    for (; i + 16 * TILE <= n; i += 16 * TILE) {
        V s[TILE];
        const V first = V::set(up[0]);
        for (int t = 0; t < TILE; ++t) s[t] = first * V::load(down + i + 16 * t);
        for (int64_t j = 1; j < rank; ++j) {
            const V u = V::set(up[j]);
            const W *d = down + j * columns + i;
            for (int t = 0; t < TILE; ++t) s[t] = s[t] + u * V::load(d + 16 * t);
        }
        for (int t = 0; t < TILE; ++t) s[t].store(sum + i + 16 * t);
    }
    for (; i < n; ++i) {
        W s = up[0] * down[i];
        for (int64_t j = 1; j < rank; ++j) s = s + up[j] * down[j * columns + i];
        sum[i] = s;
    }
}

int64_t low_rank(const Args &a, int64_t begin, int64_t n, double *, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        using V = typename Working<T>::V;
        using W = typename Working<T>::W;
        Reader<T> reader(inputs, direct);
        Sink<T> sink(a);
        const W *up = static_cast<const W *>(a.up), *down = static_cast<const W *>(a.down);
        const V scale = V::set(W(a.scale));
        alignas(64) W sum[STRIP] = {};
        const T *in[MAX_INPUTS];
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            for (int done = 0; done < m;) {
                const int64_t element = a.offset + begin + at + done, column = element % a.columns;
                const int length = int(a.columns - column < m - done ? a.columns - column : m - done);
                row<V>(up + element / a.columns * a.rank, down + column, a.rank, a.columns, length, sum + done);
                done += length;
            }
            sink.at(begin + at, m);
            for (int i = 0; i < padded; i += PAIR) {
                V b0, b1, s0, s1;
                load_ahead(in[0] + i, b0, b1);
                load_lanes<T>(sum + i, s0, s1);
                sink.put(i, b0 + scale * s0, b1 + scale * s1);
            }
            sink.flush();
        }
        fence();
        return 0;
    });
}

}  // namespace fm::FM_ISA
