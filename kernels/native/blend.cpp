// A sum of task vectors whose weights differ between the rows, or the columns, of a tensor.
#include "finish.hpp"

namespace fm::FM_ISA {

// A model's weights of the elements from `first` on, an index in the tensor.
template <class W> static void expand(const Args &a, int k, int64_t first, int n, W *to) {
    const float *own = a.group_weights + k * a.groups;
    int64_t group = first / a.inner % a.groups, left = a.inner - first % a.inner;
    for (int i = 0; i < n;) {
        const int64_t groups = a.inner == 1 ? a.groups - group : 1;  // columns are copied, rows filled
        const int64_t most = left > groups ? left : groups;
        const int run = int(most < n - i ? most : n - i);
        for (int j = 0; j < run; ++j) to[i + j] = W(own[a.inner == 1 ? group + j : group]);
        i += run, left = a.inner, group = group + groups == a.groups ? 0 : group + groups;
    }
}

template <class T>
static int64_t blend_strip(const T *const *in, const Args &a, const Wide<T> (*weights)[STRIP], int n, int padded,
                           Sink<T> &sink) {
    using V = typename Working<T>::V;
    const Finish<T> finish(a);
    const bool base = a.base.data;
    int64_t nonfinite = 0;
    for (int i = 0; i < padded; i += PAIR) {
        V b0 = V::set(0), b1 = b0, d0 = b0, d1 = b0;
        if (base) load_ahead(in[0] + i, b0, b1);
        for (int k = 0; k < a.models_count; ++k) {
            V x, y, w0, w1;
            load_ahead(in[base + k] + i, x, y);
            load_lanes<T>(weights[k] + i, w0, w1);
            if (base) x = x - b0, y = y - b1;
            x = w0 * x, y = w1 * y;
            d0 = k ? d0 + x : x, d1 = k ? d1 + y : y;
        }
        d0 = finish.complete(d0, b0), d1 = finish.complete(d1, b1);
        nonfinite += finish.nonfinite(d0, d1, 0, n - i);
        sink.put(i, d0, d1);
    }
    return nonfinite;
}

int64_t blend(const Args &a, int64_t begin, int64_t n, double *, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        Sink<T> sink(a);
        alignas(64) Wide<T> weights[MAX_MODELS][STRIP];
        const T *in[MAX_INPUTS];
        int64_t nonfinite = 0;
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            for (int k = 0; k < a.models_count; ++k) expand(a, k, a.offset + begin + at, padded, weights[k]);
            sink.at(begin + at, m);
            nonfinite += blend_strip<T>(in, a, weights, m, padded, sink);
            sink.flush();
        }
        fence();
        return nonfinite;
    });
}

}  // namespace fm::FM_ISA
