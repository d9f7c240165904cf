// What finding a cut reads of a block: which keys fall into a bucket, and where the nth of equal ones is; and of a sample.
#include "keys.hpp"

namespace fm::FM_ISA {

void kth_magnitude(const Args &a, const Bucket *buckets, int count, int64_t begin, int64_t n, Found *found) {
    const Inputs inputs(a);
    for (int j = 0; j < count; ++j) found[j].size = found[j].firsts = found[j].above = 0;
    by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        const T *in[MAX_INPUTS];
        alignas(64) Key<T> keys[STRIP];
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP), padded = reader.at(begin + at, m, in);
            for (int j = 0, model = -1; j < count; ++j) {
                if (buckets[j].model != model) strip_keys(in[0], in[1 + (model = buckets[j].model)], m, keys);
                const Key<T> first = Key<T>(buckets[j].first), last = Key<T>(first + buckets[j].span);
                Key<T> *to = static_cast<Key<T> *>(found[j].keys) + found[j].size;
                found[j].size += select(keys, padded, first, last, to, found[j].firsts, found[j].above);
            }
        }
        return 0;
    });
}

void sample_keys(const Args &a, int64_t begin, uint64_t *to) {
    const Inputs inputs(a);
    by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        const T *in[MAX_INPUTS];
        alignas(64) Key<T> keys[SAMPLE];
        reader.at(begin, SAMPLE, in);
        for (int k = 0; k < a.models_count; ++k) {
            strip_keys(in[0], in[1 + k], SAMPLE, keys);
            for (const Key<T> key : keys) *to++ = key;
        }
        return 0;
    });
}

int64_t nth_equal(const Args &a, int model, uint64_t key, int64_t nth, int64_t begin, int64_t n) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        const T *in[MAX_INPUTS];
        alignas(64) Key<T> keys[STRIP];
        for (int64_t at = 0; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP);
            reader.at(begin + at, m, in);
            strip_keys(in[0], in[1 + model], m, keys);
            int64_t equal = 0;
            for (int i = 0; i < m; ++i) equal += keys[i] == Key<T>(key);
            for (int i = 0; nth < equal; ++i)
                if (keys[i] == Key<T>(key) && nth-- == 0) return at + i;
            nth -= equal;
        }
        return n;
    });
}

}  // namespace fm::FM_ISA
