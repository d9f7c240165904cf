// What the elements of one model score in PCB-Merging.
#include "competition.hpp"

namespace fm::FM_ISA {

template <class T>
[[gnu::noinline]] static void compete_strip(Competitors<T> &strip, const Scoring<Wide<T>> &scoring, int own, int n) {
    using W = Wide<T>;
    for (int i = 0; i < n; i += MANY<W>) {
        const auto x = scoring.clamped(load_many(strip.tau[own] + i));
        store_many(strip.total + i, scoring.score(x, load_many(strip.total + i)));
    }
}

int64_t compete(const Args &a, int64_t begin, int64_t n, double *, int64_t *) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        using V = typename Working<T>::V;
        Reader<T> reader(inputs, direct);
        Sink<T> sink(a);
        Competitors<T> strip;
        const Scoring<Wide<T>> scoring(*a.bounds, a.models_count);
        const T *in[MAX_INPUTS];
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            strip.form(in, a.models_count, padded);
            compete_strip<T>(strip, scoring, a.own, padded);
            sink.at(begin + at, m);
            for (int i = 0; i < padded; i += PAIR) sink.put(i, V::load(strip.total + i), V::load(strip.total + i + 16));
            sink.flush();
        }
        fence();
        return 0;
    });
}

}  // namespace fm::FM_ISA
