// What words and bins of magnitudes decide about 32 elements.
#pragma once
#include "keys.hpp"

namespace fm::FM_ISA {

// Bits of those that are kept whatever else is known, and of those that only their ranks decide.
struct Verdict {
    uint32_t kept, open;
};

// Words above `last` keep; of those that lie at most `span` below it, bins below an interval's lower cut drop, and those from
// its upper cut on keep. A cut pair is lower + (upper << 16).
class Verdicts {
  public:
#if defined(FM_ISA_v4)
    Verdicts(const RankDrop &drop, const uint32_t *cuts)
        : last_(_mm512_set1_epi32(int(drop.most - 1))), span_(_mm512_set1_epi32(int(drop.most - 1 - drop.least))),
          shift_(_mm_cvtsi32_si128(drop.shift)) {
        const __m512i x = _mm512_loadu_si512(cuts), y = _mm512_loadu_si512(cuts + 16);
        lower_ = joined(x, y), upper_ = joined(_mm512_srli_epi32(x, 16), _mm512_srli_epi32(y, 16));
    }
    Verdict of(const uint32_t *words, const uint16_t *bins) const {
        const __m512i x = _mm512_loadu_si512(words), y = _mm512_loadu_si512(words + 16), bin = _mm512_loadu_si512(bins);
        const __m512i p = _mm512_sub_epi32(last_, x), q = _mm512_sub_epi32(last_, y);
        const __m512i interval = joined(_mm512_srl_epi32(p, shift_), _mm512_srl_epi32(q, shift_));
        const __mmask32 within = both(_mm512_cmple_epu32_mask(p, span_), _mm512_cmple_epu32_mask(q, span_));
        const __mmask32 above = both(_mm512_cmpgt_epu32_mask(x, last_), _mm512_cmpgt_epu32_mask(y, last_));
        const __mmask32 kept = _mm512_mask_cmpge_epu16_mask(within, bin, _mm512_permutexvar_epi16(interval, upper_));
        const __mmask32 open = _mm512_mask_cmpge_epu16_mask(within, bin, _mm512_permutexvar_epi16(interval, lower_));
        return {above | kept, open & ~kept};
    }

  private:
    static __m512i joined(__m512i x, __m512i y) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(x)), _mm512_cvtepi32_epi16(y), 1);
    }
    static __mmask32 both(__mmask16 x, __mmask16 y) { return _mm512_kunpackw(y, x); }
    __m512i last_, span_, lower_, upper_;
    __m128i shift_;
#elif defined(FM_ISA_v3)
    Verdicts(const RankDrop &drop, const uint32_t *cuts)
        : last_(_mm256_set1_epi32(int(drop.most - 1))), span_(_mm256_set1_epi32(int(drop.most - 1 - drop.least))),
          shift_(_mm_cvtsi32_si128(drop.shift)) {
        for (int i = 0; i < 4; ++i) cuts_[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(cuts + 8 * i));
    }
    Verdict of(const uint32_t *words, const uint16_t *bins) const {
        Verdict all = {0, 0};
        for (int i = 0; i < PAIR; i += 8) {
            const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(words + i)), p = _mm256_sub_epi32(last_, x);
            const __m256i bin = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(bins + i)));
            const __m256i pair = cuts_of(_mm256_srl_epi32(p, shift_));
            const __m256i lower = _mm256_blend_epi16(pair, _mm256_setzero_si256(), 0xaa), upper = _mm256_srli_epi32(pair, 16);
            const uint32_t within = bits(_mm256_cmpeq_epi32(_mm256_min_epu32(p, span_), p));
            const uint32_t below = bits(_mm256_cmpeq_epi32(_mm256_min_epu32(x, last_), x));
            const uint32_t dropped = bits(_mm256_cmpgt_epi32(lower, bin)), unsure = bits(_mm256_cmpgt_epi32(upper, bin));
            all.kept |= ((below ^ 0xff) | (within & ~unsure)) << i, all.open |= (within & unsure & ~dropped) << i;
        }
        return all;
    }

  private:
    static uint32_t bits(__m256i x) { return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(x))); }
    __m256i cuts_of(__m256i interval) const {
        const auto chosen = [&](__m256i x, __m256i y, int bit) {  // y where the bit of the interval is on
            const __m256 sign = _mm256_castsi256_ps(_mm256_slli_epi32(interval, 31 - bit));
            return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(y), sign));
        };
        const auto of = [&](int i) { return _mm256_permutevar8x32_epi32(cuts_[i], interval); };
        return chosen(chosen(of(0), of(1), 3), chosen(of(2), of(3), 3), 4);
    }
    __m256i last_, span_, cuts_[4];
    __m128i shift_;
#else
    Verdicts(const RankDrop &drop, const uint32_t *cuts)
        : last_(uint32_t(drop.most - 1)), span_(uint32_t(drop.most - 1 - drop.least)), shift_(drop.shift) {
        memcpy(cuts_, cuts, sizeof cuts_);
    }
    Verdict of(const uint32_t *words, const uint16_t *bins) const {
        Verdict all = {0, 0};
        uint32_t within = 0;
        for (int half = 0; half < PAIR; half += 16) {
            VF::Mask above, near;
            for_each<VF::PARTS>([&](auto p) FM_INLINE {
                const Words x = load_register<Words>(words + half + p * VF::LANES);
                above.m[p] = x > last_, near.m[p] = last_ - x <= span_;
            });
            all.kept |= above.bits() << half, within |= near.bits() << half;
        }
        for (; within; within &= within - 1) {
            const int i = std::countr_zero(within);
            const uint32_t pair = cuts_[(last_ - words[i]) >> shift_], kept = bins[i] >= pair >> 16;
            all.kept |= kept << i, all.open |= ((kept ^ 1) & (bins[i] >= (pair & 0xffff))) << i;
        }
        return all;
    }

  private:
    uint32_t last_, span_;
    int shift_;
    uint32_t cuts_[INTERVALS];
#endif
};

// Which of 32 bins are that one, as bits.
static inline uint32_t equal_bits(const uint16_t *bins, uint16_t bin) {
#if defined(FM_ISA_v4)
    return _mm512_cmpeq_epi16_mask(_mm512_loadu_si512(bins), _mm512_set1_epi16(int16_t(bin)));
#elif defined(FM_ISA_v3)
    const auto equal = [&](int i) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(bins + i));
        return _mm256_cmpeq_epi16(x, _mm256_set1_epi16(int16_t(bin)));
    };
    return uint32_t(_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(equal(0), equal(16)), 0xd8)));
#else
    using R = Register<uint16_t>;
    uint32_t bits = 0;
    for (int half = 0; half < PAIR; half += 16) {
        const R low = R(load_register<R>(bins + half) == bin) & R{1, 2, 4, 8, 16, 32, 64, 128};
        const R high = R(load_register<R>(bins + half + 8) == bin) & R{1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
        const uint32_t both = any_bits(low | high);
        bits |= ((both | both >> 16) & 0xffff) << half;
    }
    return bits;
#endif
}

}  // namespace fm::FM_ISA
