// Magnitudes as integers of the same order: the bits of |τ|, every NaN the quiet one, which stands above infinity.
#pragma once
#include "selection.hpp"
#include "strips.hpp"

namespace fm::FM_ISA {

template <class W> struct KeyOf;
template <> struct KeyOf<float> {
    using type = uint32_t;
    static constexpr type MAGNITUDE = 0x7fffffff, QUIET = 0x7fc00000;
};
template <> struct KeyOf<double> {
    using type = uint64_t;
    static constexpr type MAGNITUDE = 0x7fffffffffffffff, QUIET = 0x7ff8000000000000;
};
template <class T> using Key = typename KeyOf<typename Working<T>::W>::type;

#if defined(FM_ISA_v4)
static inline __m512i key(const VF &x) {
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff));
    return _mm512_min_epu32(magnitude, _mm512_set1_epi32(0x7fc00000));
}
template <class T> static inline void store_keys(const VF &a, const VF &b, uint32_t *p) {
    __m512i x = key(a), y = key(b);
    if constexpr (dtype_of<T> == BF16) {
        const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const __m512i even = x, high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        x = _mm512_permutex2var_epi32(even, low, y), y = _mm512_permutex2var_epi32(even, high, y);
    }
    _mm512_storeu_si512(p, x), _mm512_storeu_si512(p + 16, y);
}
// Those of sixteen words that a mask chooses, in order; all sixteen places are written.
static inline void compress(__m512i x, __mmask16 mask, uint32_t *to) { _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(mask, x)); }
// Those of n keys that are first + 1 … last, in order; those that equal `first`, and those above `last`, are counted. Returns
// how many it wrote. What is no key is below all. Whole registers are written, so that `to` has ROOM for more (and may be `keys`).
static inline int select(const uint32_t *keys, int n, uint32_t first, uint32_t last, uint32_t *to, int64_t &equal, int64_t &above) {
    const __m512i least = _mm512_set1_epi32(int(first)), most = _mm512_set1_epi32(int(last));
    int written = 0, equals = 0, aboves = 0;
    for (int i = 0; i < n; i += 16) {
        const __m512i x = _mm512_loadu_si512(keys + i);
        const __mmask16 higher = _mm512_cmpgt_epi32_mask(x, most);
        const __mmask16 in = _mm512_mask_cmple_epi32_mask(_mm512_cmpgt_epi32_mask(x, least), x, most);
        compress(x, in, to + written);
        written += std::popcount(uint32_t(in)), aboves += std::popcount(uint32_t(higher));
        equals += std::popcount(uint32_t(_mm512_cmpeq_epi32_mask(x, least)));
    }
    equal += equals, above += aboves;
    return written;
}
#elif defined(FM_ISA_v3)
static inline __m256i key(__m256 x) {
    const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
    return _mm256_min_epu32(magnitude, _mm256_set1_epi32(0x7fc00000));
}
template <class T> static inline void store_keys(const VF &a, const VF &b, uint32_t *p) {
    __m256i *to = reinterpret_cast<__m256i *>(p);
    const auto four = [&](__m256i x, __m256i y, __m256i z, __m256i w) {
        _mm256_storeu_si256(to, x), _mm256_storeu_si256(to + 1, y), _mm256_storeu_si256(to + 2, z), _mm256_storeu_si256(to + 3, w);
    };
    const __m256i x = key(a.v), y = key(a.w), z = key(b.v), w = key(b.w);
    if constexpr (dtype_of<T> != BF16) return four(x, y, z, w);
    const __m256i xl = _mm256_unpacklo_epi32(x, y), xh = _mm256_unpackhi_epi32(x, y);
    const __m256i yl = _mm256_unpacklo_epi32(z, w), yh = _mm256_unpackhi_epi32(z, w);
    four(_mm256_permute2x128_si256(xl, xh, 0x20), _mm256_permute2x128_si256(xl, xh, 0x31),
         _mm256_permute2x128_si256(yl, yh, 0x20), _mm256_permute2x128_si256(yl, yh, 0x31));
}
static inline void compress(__m256i x, unsigned mask, uint32_t *to) {
    const uint64_t bytes = _pdep_u64(mask, 0x0101010101010101) * 0xff;
    const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(_pext_u64(0x0706050403020100, bytes))));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm256_permutevar8x32_epi32(x, order));
}
static inline int64_t sum_of(__m256i x) {
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i *>(lanes), x);
    int64_t sum = 0;
    for (const int32_t lane : lanes) sum += lane;
    return sum;
}
static inline int select(const uint32_t *keys, int n, uint32_t first, uint32_t last, uint32_t *to, int64_t &equal, int64_t &above) {
    const __m256i least = _mm256_set1_epi32(int(first)), most = _mm256_set1_epi32(int(last));
    __m256i equals = _mm256_setzero_si256(), aboves = _mm256_setzero_si256();
    int written = 0;
    for (int i = 0; i < n; i += 8) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(keys + i)), higher = _mm256_cmpgt_epi32(x, most);
        const __m256i in = _mm256_xor_si256(_mm256_cmpgt_epi32(x, least), higher);
        equals = _mm256_sub_epi32(equals, _mm256_cmpeq_epi32(x, least)), aboves = _mm256_sub_epi32(aboves, higher);
        const unsigned bits = unsigned(_mm256_movemask_ps(_mm256_castsi256_ps(in)));
        if (!bits) continue;
        compress(x, bits, to + written);
        written += std::popcount(bits);
    }
    equal += sum_of(equals), above += sum_of(aboves);
    return written;
}
#endif
template <class T, class W> static inline void store_keys(const Vec<W> &a, const Vec<W> &b, typename KeyOf<W>::type *p) {
    using V = Vec<W>;
    using Keys = Register<typename KeyOf<W>::type>;
    const auto key = [](const typename V::R &x) FM_INLINE {
        const Keys magnitude = Keys(x) & KeyOf<W>::MAGNITUDE, quiet = splat<Keys>(KeyOf<W>::QUIET), above = Keys(magnitude > quiet);
        return (above & quiet) | (~above & magnitude);
    };
    for_each<V::PARTS>([&](auto i) FM_INLINE {
        const Keys x = key(a.v[i]), y = key(b.v[i]);
        if constexpr (dtype_of<T> == BF16) {
            store_register(p + 2 * i * V::LANES, zipped_low(x, y)), store_register(p + (2 * i + 1) * V::LANES, zipped_high(x, y));
        } else {
            store_register(p + i * V::LANES, x), store_register(p + 16 + i * V::LANES, y);
        }
    });
}
template <class Key>
static inline int select(const Key *keys, int n, Key first, Key last, Key *to, int64_t &equal, int64_t &above) {
    using R = Register<std::make_signed_t<Key>>;
    const R least = splat<R>(first), most = splat<R>(last);
    R equals{}, aboves{};
    int written = 0;
    for (int i = 0; i < n; i += LANES_OF<R>) {
        const R x = load_register<R>(keys + i), higher = x > most, in = (x > least) & ~higher;
        equals -= x == least, aboves -= higher;
        if (!any_bits(in)) continue;
        for (int lane = 0; lane < LANES_OF<R>; ++lane) to[written] = Key(x[lane]), written += in[lane] & 1;
    }
    for (int lane = 0; lane < LANES_OF<R>; ++lane) equal += equals[lane], above += aboves[lane];
    return written;
}

// The keys of a strip's task vector, in order; behind n of them, to whole pairs, what is no key.
template <class T> static inline void strip_keys(const T *base, const T *model, int n, Key<T> *keys) {
    for (int i = 0; i < n; i += PAIR) {
        typename Working<T>::V a, b, x, y;
        load_next(base + i, a, b), load_next(model + i, x, y);
        store_keys<T>(x - a, y - b, keys + i);
    }
    for (int i = n; i % PAIR; ++i) keys[i] = ~Key<T>(0);
}

}  // namespace fm::FM_ISA
