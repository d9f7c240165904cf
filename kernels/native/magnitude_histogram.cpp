// Counts of magnitudes by a digit of their keys.
#include "keys.hpp"
#if defined(FM_ISA_v4)
#include "pairs.hpp"
#endif

namespace fm::FM_ISA {

// Bins are computed for the whole strip first, since compilers else take them from registers one by one, which is slower.
template <class Key> static void count(Key *keys, int n, const Digit &digit, int k, uint32_t *counts) {
    alignas(64) uint16_t bins[STRIP];
    if (digit.prefixes) {
        const int below = digit.shift + digit.bits;
        int64_t others = 0;
        const Key least = Key(digit.prefixes[k] << below), last = Key(least + ((Key(1) << below) - 1));
        n = select(keys, (n + PAIR - 1) / PAIR * PAIR, Key(least - 1), last, keys, others, others);
    }
    const Key mask = (Key(1) << digit.bits) - 1;
    for (int i = 0; i < n; ++i) bins[i] = uint16_t((keys[i] >> digit.shift & mask) * COUNTERS);
    int i = 0;
    for (; i + COUNTERS <= n; i += COUNTERS)
        for (int j = 0; j < COUNTERS; ++j) ++counts[size_t(bins[i + j]) + size_t(j)];
    for (; i < n; ++i) ++counts[bins[i]];
}

#if defined(FM_ISA_v4)
// Counts whole strips of a block by pairs; returns how many elements these are.
template <class T>
[[gnu::noinline]] static int64_t count_by_pairs(const Inputs &inputs, const Digit &digit, int64_t begin, int64_t n, uint32_t *counts) {
    const auto start = [&](int j) { return static_cast<const T *>(inputs.in[j].data) + begin; };
    n -= n % STRIP;
    Pairs pairs(digit);
    for (int k = 0; n && k + 1 < inputs.count; ++k) {
        const T *base = start(0), *model = start(1 + k);
        uint32_t *to = counts + (int64_t(k) << digit.bits) * COUNTERS;
        pairs.start(base, model);
        for (int64_t at = 0; at < n; at += STRIP) {
            if (pairs.count(base + at, model + at)) [[likely]] continue;
            alignas(64) uint32_t keys[STRIP];
            strip_keys(base + at, model + at, STRIP, keys);
            count(keys, STRIP, digit, k, to);
        }
        pairs.finish(to);
    }
    return n;
}
#endif

void magnitude_histogram(const Args &a, const Digit &digit, int64_t begin, int64_t n, uint32_t *counts) {
    const Inputs inputs(a);
    by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        Reader<T> reader(inputs, direct);
        const T *in[MAX_INPUTS];
        alignas(64) Key<T> keys[STRIP + ROOM];
        alignas(64) uint64_t wide[STRIP + ROOM];
        int64_t counted = 0;
#if defined(FM_ISA_v4)
        if constexpr (sizeof(Key<T>) == 4)
            if (direct && !digit.prefixes && !digit.wide) counted = count_by_pairs<T>(inputs, digit, begin, n, counts);
#endif
        for (int64_t at = counted; at < n; at += STRIP) {
            const int m = int(n - at < STRIP ? n - at : STRIP);
            reader.at(begin + at, m, in);
            for (int k = 0; k < a.models_count; ++k) {
                uint32_t *to = counts + (int64_t(k) << digit.bits) * COUNTERS;
                strip_keys(in[0], in[1 + k], m, keys);
                if constexpr (sizeof(Key<T>) == 4) {
                    if (digit.wide) {
                        for (int i = 0; i < m; ++i) wide[i] = std::bit_cast<uint64_t>(double(std::bit_cast<float>(keys[i])));
                        for (int i = m; i % PAIR; ++i) wide[i] = ~uint64_t(0);
                        count(wide, m, digit, k, to);
                        continue;
                    }
                }
                count(keys, m, digit, k, to);
            }
        }
        return 0;
    });
}

}  // namespace fm::FM_ISA
