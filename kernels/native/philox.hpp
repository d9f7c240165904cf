// Random words that depend on nothing but a key and an element's index: Philox4x32-10 (Salmon et al. 2011).
#pragma once
#include "simd.hpp"

namespace fm::FM_ISA {

constexpr int ROUNDS = 10;
constexpr uint32_t MULTIPLIERS[2] = {0xD2511F53, 0xCD9E8D57};
constexpr uint32_t STEPS[2] = {0x9E3779B9, 0xBB67AE85};  // of the key, from round to round

// The word of element i.
static inline uint32_t philox(uint64_t i, uint64_t key) {
    uint32_t c[4] = {uint32_t(i >> 2), uint32_t(i >> 34), 0, 0}, k[2] = {uint32_t(key), uint32_t(key >> 32)};
    for (int round = 0; round < ROUNDS; ++round) {
        const uint64_t p = uint64_t(c[0]) * MULTIPLIERS[0], q = uint64_t(c[2]) * MULTIPLIERS[1];
        c[0] = uint32_t(q >> 32) ^ c[1] ^ k[0], c[1] = uint32_t(q);
        c[2] = uint32_t(p >> 32) ^ c[3] ^ k[1], c[3] = uint32_t(p);
        k[0] += STEPS[0], k[1] += STEPS[1];
    }
    return c[i & 3];
}

// One word of several counters, each in the low half of a 64-bit lane whatever stands in the upper one: this is what a
// widening multiplication takes and gives. Lanes are in the order that `store` undoes without crossing registers' parts.
#if defined(FM_ISA_v4)
struct Counters {
    static constexpr int COUNT = 8, INTERLEAVED = 2;
    __m512i v;
    static Counters set(uint32_t x) { return {_mm512_set1_epi32(int(x))}; }
    static Counters from(uint32_t x) { return {_mm512_add_epi32(set(x).v, _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7))}; }
    Counters times(Counters o) const { return {_mm512_mul_epu32(v, o.v)}; }
    Counters high() const { return {_mm512_srli_epi64(v, 32)}; }
    Counters operator^(Counters o) const { return {_mm512_xor_si512(v, o.v)}; }
    static __m512i both(Counters a, Counters b) { return _mm512_mask_blend_epi32(0xaaaa, a.v, _mm512_slli_epi64(b.v, 32)); }
    static void store(Counters a, Counters b, Counters c, Counters d, uint32_t *p) {
        const __m512i x = both(a, b), y = both(c, d);
        _mm512_storeu_si512(p, _mm512_unpacklo_epi64(x, y)), _mm512_storeu_si512(p + 16, _mm512_unpackhi_epi64(x, y));
    }
};
#elif defined(FM_ISA_v3)
struct Counters {
    static constexpr int COUNT = 4, INTERLEAVED = 4;
    __m256i v;
    static Counters set(uint32_t x) { return {_mm256_set1_epi32(int(x))}; }
    static Counters from(uint32_t x) { return {_mm256_add_epi32(set(x).v, _mm256_setr_epi64x(0, 2, 1, 3))}; }
    Counters times(Counters o) const { return {_mm256_mul_epu32(v, o.v)}; }
    Counters high() const { return {_mm256_srli_epi64(v, 32)}; }
    Counters operator^(Counters o) const { return {_mm256_xor_si256(v, o.v)}; }
    static __m256i both(Counters a, Counters b) { return _mm256_blend_epi32(a.v, _mm256_slli_epi64(b.v, 32), 0xaa); }
    static void store(Counters a, Counters b, Counters c, Counters d, uint32_t *p) {
        const __m256i x = both(a, b), y = both(c, d);
        __m256i *to = reinterpret_cast<__m256i *>(p);
        _mm256_storeu_si256(to, _mm256_unpacklo_epi64(x, y)), _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi64(x, y));
    }
};
#else
struct Counters {
    static constexpr int COUNT = 4, INTERLEAVED = 1;
    uint64_t v[COUNT];
#define FM_EACH(expression)                                    \
    Counters r;                                                \
    for (int i = 0; i < COUNT; ++i) r.v[i] = (expression);     \
    return r
    static Counters set(uint32_t x) { FM_EACH(x); }
    static Counters from(uint32_t x) { FM_EACH(x + i); }
    Counters times(const Counters &o) const { FM_EACH((v[i] & 0xffffffff) * (o.v[i] & 0xffffffff)); }
    Counters high() const { FM_EACH(v[i] >> 32); }
    Counters operator^(const Counters &o) const { FM_EACH(v[i] ^ o.v[i]); }
#undef FM_EACH
    static void store(const Counters &a, const Counters &b, const Counters &c, const Counters &d, uint32_t *p) {
        for (int i = 0; i < COUNT; ++i, p += 4)
            p[0] = uint32_t(a.v[i]), p[1] = uint32_t(b.v[i]), p[2] = uint32_t(c.v[i]), p[3] = uint32_t(d.v[i]);
    }
};
#endif

constexpr int PHILOX_GROUP = 64;

// The words of elements begin … begin + n, all within one block of 65 536, `begin` a multiple of 4. Whole groups are
// written: `words` has room for n rounded up to them.
static inline void philox(uint64_t begin, int n, uint64_t key, uint32_t *words) {
    // A block's counters share their upper word, and have two of zero: after the first round one word is the same in all
    // of them, and so is its product in the second. What is known of a round goes into its key.
    uint32_t k0[ROUNDS], k1[ROUNDS];
    for (int r = 0; r < ROUNDS; ++r) k0[r] = uint32_t(key) + r * STEPS[0], k1[r] = uint32_t(key >> 32) + r * STEPS[1];
    const uint64_t known = uint64_t(uint32_t(begin >> 34) ^ k0[0]) * MULTIPLIERS[0];
    k1[1] ^= uint32_t(known >> 32), k1[2] ^= uint32_t(known);
    Counters a[ROUNDS], b[ROUNDS];
    for (int r = 0; r < ROUNDS; ++r) a[r] = Counters::set(k0[r]), b[r] = Counters::set(k1[r]);
    const Counters m0 = Counters::set(MULTIPLIERS[0]), m1 = Counters::set(MULTIPLIERS[1]);
    constexpr int G = Counters::INTERLEAVED, SIZE = 4 * Counters::COUNT;  // a round waits for its product: so do several
    for (int i = 0; i < n; i += G * SIZE) {
        Counters c0[G], c1[G], c2[G], c3[G];
        for (int g = 0; g < G; ++g) {
            c3[g] = Counters::from(uint32_t((begin + i + g * SIZE) >> 2)).times(m0), c2[g] = c3[g].high() ^ b[0];
            c1[g] = c2[g].times(m1), c0[g] = c1[g].high() ^ a[1];
            c2[g] = c3[g] ^ b[1], c3[g] = Counters::set(0);
        }
        for (int r = 2; r < ROUNDS; ++r)
            for (int g = 0; g < G; ++g) {
                const Counters p = c0[g].times(m0), q = c2[g].times(m1);
                c0[g] = q.high() ^ (c1[g] ^ a[r]), c1[g] = q;
                c2[g] = p.high() ^ (c3[g] ^ b[r]), c3[g] = p;
            }
        for (int g = 0; g < G; ++g) Counters::store(c0[g], c1[g], c2[g], c3[g], words + i + g * SIZE);
    }
}

}  // namespace fm::FM_ISA
