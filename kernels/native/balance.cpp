// PCB-Merging's weighted mean of task vectors, with a count of non-finite results.
#include "competition.hpp"
#include "finish.hpp"

namespace fm::FM_ISA {

template <class T>
[[gnu::noinline]] static void balance_strip(const Competitors<T> &strip, const Args &a, int n, Wide<T> *to) {
    using W = Wide<T>;
    alignas(64) W weights[STRIP] = {};
    memset(to, 0, sizeof weights);
    for (int k = 0; k < a.models_count; ++k) {
        const Scoring<W> scoring(a.bounds[k], a.models_count);
        for (int i = 0; i < n; i += MANY<W>) {
            const auto x = scoring.clamped(load_many(strip.tau[k] + i));
            const Many<W> share = scoring.share(scoring.score(x, load_many(strip.total + i)));
            store_many(to + i, load_many(to + i) + share * x.tau);
            store_many(weights + i, load_many(weights + i) + share);
        }
    }
    for (int i = 0; i < n; i += MANY<W>) {
        const Many<W> weight = load_many(weights + i);
        store_many(to + i, weight > 0 ? load_many(to + i) / weight : Many<W>{});
    }
}

int64_t balance(const Args &a, int64_t begin, int64_t n, double *, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        using V = typename Working<T>::V;
        Reader<T> reader(inputs, direct);
        Sink<T> sink(a);
        Competitors<T> strip;
        const Finish<T> finish(a);
        const T *in[MAX_INPUTS];
        alignas(64) Wide<T> delta[STRIP];
        int64_t nonfinite = 0;
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            strip.form(in, a.models_count, padded);
            balance_strip<T>(strip, a, padded, delta);
            sink.at(begin + at, m);
            for (int i = 0; i < padded; i += PAIR) {
                V d[2], base[2], checked[2];
                load_pair(in[0] + i, base[0], base[1]);
                each<2>(2, [&](auto h) {
                    d[h] = finish.complete(V::load(delta + i + 16 * h), base[h]);
                    checked[h] = d[h].spoilt_by(V::load(strip.total + i + 16 * h));
                });
                nonfinite += finish.nonfinite(checked[0], checked[1], 0, m - i);
                sink.put(i, d[0], d[1]);
            }
            sink.flush();
        }
        fence();
        return nonfinite;
    });
}

}  // namespace fm::FM_ISA
