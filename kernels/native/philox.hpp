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
// widening multiplication takes and gives. What comes out are two words in the halves of a lane; `words` puts those of one
// counter together, `at_least` compares them.
#if defined(FM_ISA_v4)
struct Counters {
    static constexpr int COUNT = 8, INTERLEAVED = 4;
    static constexpr bool RELOADS = true;  // whether taking upper halves by way of memory is worth a form of its own
    __m512i v;
    static Counters set(uint32_t x) { return {_mm512_set1_epi32(int(x))}; }
    static Counters from(uint32_t x) { return {_mm512_add_epi32(set(x).v, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7))}; }
    Counters plus(uint64_t x) const { return {_mm512_add_epi64(v, _mm512_set1_epi64(int64_t(x)))}; }
    Counters times(Counters o) const { return {_mm512_mul_epu32(v, o.v)}; }
    Counters high() const { return {_mm512_castps_si512(_mm512_movehdup_ps(_mm512_castsi512_ps(v)))}; }
    // The same by way of `room`: a load that doubles the upper halves takes no port from arithmetic.
    Counters reloaded(Counters &room) const {
        room = *this;
        asm("" : "+m"(room.v));
        return {_mm512_castps_si512(_mm512_movehdup_ps(_mm512_castsi512_ps(room.v)))};
    }
    Counters operator^(Counters o) const { return {_mm512_xor_si512(v, o.v)}; }
    Counters swapped() const { return {_mm512_ror_epi64(v, 32)}; }
    Counters xor_low(Counters a, Counters b) const { return {_mm512_mask_ternarylogic_epi32(v, 0x5555, a.v, b.v, 0x96)}; }
    static void words(Counters a, Counters b, uint32_t *p) {
        const __m512i order = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), four = _mm512_set1_epi64(4);
        _mm512_storeu_si512(p, _mm512_permutex2var_epi64(a.v, order, b.v));
        _mm512_storeu_si512(p + 16, _mm512_permutex2var_epi64(a.v, _mm512_add_epi64(order, four), b.v));
    }
    static uint32_t at_least(Counters a, Counters b, uint32_t x) {
        const __m512i least = set(x).v;
        uint32_t bits = _pdep_u32(_mm512_cmp_epu32_mask(a.v, least, _MM_CMPINT_NLT), 0x33333333) |
                        _pdep_u32(_mm512_cmp_epu32_mask(b.v, least, _MM_CMPINT_NLT), 0xcccccccc);
        asm("" : "+r"(bits));  // compilers would gather the bits of several groups in a vector, which keeps ports busy
        return bits;
    }
};
#elif defined(FM_ISA_v3)
struct Counters {
    static constexpr int COUNT = 4, INTERLEAVED = 4;
    static constexpr bool RELOADS = false;
    __m256i v;
    static Counters set(uint32_t x) { return {_mm256_set1_epi32(int(x))}; }
    static Counters from(uint32_t x) { return {_mm256_add_epi32(set(x).v, _mm256_setr_epi64x(0, 2, 1, 3))}; }
    Counters plus(uint64_t x) const { return {_mm256_add_epi64(v, _mm256_set1_epi64x(int64_t(x)))}; }
    Counters times(Counters o) const { return {_mm256_mul_epu32(v, o.v)}; }
    Counters high() const { return {_mm256_srli_epi64(v, 32)}; }
    Counters reloaded(Counters &) const { return high(); }
    Counters operator^(Counters o) const { return {_mm256_xor_si256(v, o.v)}; }
    Counters swapped() const { return {_mm256_shuffle_epi32(v, 0xb1)}; }
    Counters xor_low(Counters a, Counters b) const { return {_mm256_blend_epi32(v, (*this ^ (a ^ b)).v, 0x55)}; }
    static void words(Counters a, Counters b, uint32_t *p) {
        __m256i *to = reinterpret_cast<__m256i *>(p);
        _mm256_storeu_si256(to, _mm256_unpacklo_epi64(a.v, b.v)), _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi64(a.v, b.v));
    }
    static uint16_t at_least(Counters a, Counters b, uint32_t x) {
        const auto bits = [&](__m256i words) {
            const __m256i in = _mm256_cmpeq_epi32(_mm256_max_epu32(words, set(x).v), words);
            return unsigned(_mm256_movemask_ps(_mm256_castsi256_ps(in)));
        };
        return uint16_t(bits(_mm256_unpacklo_epi64(a.v, b.v)) | bits(_mm256_unpackhi_epi64(a.v, b.v)) << 8);
    }
};
#else
struct Counters {
    using R = Register<uint64_t>;
    static constexpr int COUNT = 2, INTERLEAVED = 4;
    static constexpr bool RELOADS = false;
    R v;
    static Counters set(uint32_t x) { return {splat<R>(uint64_t(x))}; }
    static Counters from(uint32_t x) { return {R{x, uint64_t(x) + 1}}; }
    Counters plus(uint64_t x) const { return {v + x}; }
    Counters times(Counters o) const {
#if defined(__SSE2__)
        return {R(_mm_mul_epu32(__m128i(v), __m128i(o.v)))};
#elif defined(__ARM_NEON)
        return {R(vmull_u32(vmovn_u64(uint64x2_t(v)), vmovn_u64(uint64x2_t(o.v))))};
#else
        return {(v & 0xffffffff) * (o.v & 0xffffffff)};
#endif
    }
    Counters high() const { return {v >> 32}; }
    Counters reloaded(Counters &) const { return high(); }
    Counters operator^(Counters o) const { return {v ^ o.v}; }
    Counters swapped() const { return {v >> 32 | v << 32}; }
    Counters xor_low(Counters a, Counters b) const { return {v ^ ((a.v ^ b.v) & 0xffffffff)}; }
    static void words(Counters a, Counters b, uint32_t *p) {
        store_register(p, zipped_low(a.v, b.v)), store_register(p + 4, zipped_high(a.v, b.v));
    }
    static uint8_t at_least(Counters a, Counters b, uint32_t x) {
        using Four = Register<uint32_t>;
        const Four low = Four(zipped_low(a.v, b.v)), high = Four(zipped_high(a.v, b.v));
        return uint8_t(any_bits((Four(low >= x) & Four{1, 2, 4, 8}) | (Four(high >= x) & Four{16, 32, 64, 128})));
    }
};
#endif

constexpr int PHILOX_GROUP = 128;

// take(i, a, b) with words 0 and 1, and words 2 and 3, of the counters of elements begin + i …: all those of elements
// begin … begin + n, within one block of 65 536, `begin` a multiple of 4, and of what is missing to a whole PHILOX_GROUP.
template <bool RELOADS, class Take> static inline void philox_each(uint64_t begin, int n, uint64_t key, Take take) {
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
    static_assert(PHILOX_GROUP % (G * SIZE) == 0);
    Counters first = Counters::from(uint32_t(begin >> 2)).times(m0);  // product of the first round
    for (int i = 0; i < n; i += G * SIZE) {
        Counters c0[G], c1[G], c2[G], c3[G], rooms[2][G];
        const auto high = [](const Counters &x, Counters &room) { return RELOADS ? x.reloaded(room) : x.high(); };
        for (int g = 0; g < G; ++g) {
            c3[g] = first, first = first.plus(uint64_t(Counters::COUNT) * MULTIPLIERS[0]);
            c1[g] = (c3[g].high() ^ b[0]).times(m1), c0[g] = c1[g].high() ^ a[1];
            c2[g] = c3[g] ^ b[1], c3[g] = Counters::set(0);
        }
#pragma GCC unroll 8
        for (int r = 2; r < ROUNDS - 1; ++r)
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) {
                const Counters p = c0[g].times(m0), q = c2[g].times(m1);
                c0[g] = high(q, rooms[0][g]) ^ (c1[g] ^ a[r]), c1[g] = q;
                c2[g] = high(p, rooms[1][g]) ^ (c3[g] ^ b[r]), c3[g] = p;
            }
        for (int g = 0; g < G; ++g) {
            const Counters p = c0[g].times(m0), q = c2[g].times(m1);
            take(i + g * SIZE, q.swapped().xor_low(c1[g], a[ROUNDS - 1]), p.swapped().xor_low(c3[g], b[ROUNDS - 1]));
        }
    }
}

template <class Take> static inline void philox_each(uint64_t begin, int n, uint64_t key, Take take) {
    if (Counters::RELOADS && !slow_stores) philox_each<Counters::RELOADS>(begin, n, key, take);
    else philox_each<false>(begin, n, key, take);
}

// The words of elements begin … begin + n; `words` has room for n rounded up to whole groups.
static inline void philox(uint64_t begin, int n, uint64_t key, uint32_t *words) {
    philox_each(begin, n, key, [&](int i, const Counters &a, const Counters &b) { Counters::words(a, b, words + i); });
}
// Whether they are at least so much, as bits.
static inline void philox_bits(uint64_t begin, int n, uint64_t key, uint32_t least, uint32_t *bits) {
    philox_each(begin, n, key, [&](int i, const Counters &a, const Counters &b) {
        const auto in = Counters::at_least(a, b, least);
        memcpy(reinterpret_cast<char *>(bits) + i / 8, &in, sizeof in);
    });
}

}  // namespace fm::FM_ISA
