// Counts of bins two at a time, for AVX-512, where finding the bins takes less than counting them: a core stores one counter
// in a cycle, so one counter is that of the pair of bins which two elements have.
#pragma once
#include <algorithm>

#include "keys.hpp"

namespace fm::FM_ISA {

// Nearly all magnitudes of a block are within some octaves, or zero. Its pairs are of the bins from `low` on and of bin 0; a
// strip with others is not counted here.
class Pairs {
    static constexpr int BINS = 128;    // bin 0 is told by 0, bin low by 1, and so on
    static constexpr int STRIDE = 160;  // of rows: were it a power of two, they would share few sets of the cache
    static constexpr int TABLES = 2;    // taken in turn, so that one need not wait for its last increment

  public:
    Pairs(const Digit &digit)
        : turn_{_mm512_set1_epi32(digit.shift), _mm512_set1_epi32((digit.shift - 16) & 31)},
          digit_(_mm512_set1_epi16(short((1 << digit.bits) - 1))) {}

    // A block comes next, of which this strip is part.
    template <class T> void start(const T *base, const T *model) {
        uint16_t bins[STRIP];
        for (int i = 0; i < STRIP; i += PAIR) _mm512_storeu_si512(bins + i, bins_of(base + i, model + i));
        const int above = BINS / 8, top = *std::max_element(bins, bins + STRIP);
        low_ = std::max(1, top + above - (BINS - 2));
        memset(counts_, 0, sizeof counts_);
    }

    // Counts a strip; returns whether it could.
    template <class T> bool count(const T *base, const T *model) {
        const __m512i below = _mm512_set1_epi16(short(low_ - 1)), factors = _mm512_set1_epi32(1 << 16 | STRIDE);
        __m512i least = _mm512_set1_epi16(-1), most = _mm512_setzero_si512();
        alignas(64) uint32_t pairs[STRIP / 2];
        for (int i = 0; i < STRIP; i += PAIR) {
            const __m512i bins = bins_of(base + i, model + i), places = _mm512_subs_epu16(bins, below);
            least = _mm512_min_epu16(least, _mm512_sub_epi16(bins, _mm512_set1_epi16(1)));  // bin 0 is not below
            most = _mm512_max_epu16(most, places);
            _mm512_store_si512(pairs + i / 2, _mm512_madd_epi16(places, factors));
        }
        if (_mm512_cmplt_epu16_mask(least, below) | _mm512_cmpge_epu16_mask(most, _mm512_set1_epi16(BINS))) return false;
        uint16_t *counts = counts_[0];
        for (int i = 0; i < STRIP / 2; i += 8) {
            if (2 * i * sizeof(T) % 64 == 0) prefetch(base + 2 * STRIP + 2 * i), prefetch(model + 2 * STRIP + 2 * i);
            for (int j = 0; j < 8; ++j) ++counts[j % TABLES * BINS * STRIDE + size_t(pairs[i + j])];
        }
        return true;
    }

    // Adds each bin's to its first counter.
    void finish(uint32_t *to) const {
        uint32_t seconds[BINS] = {};
        for (int i = 0; i < BINS; ++i) {
            uint32_t firsts = 0;
            for (const auto &table : counts_)
                for (int j = 0; j < BINS; ++j) firsts += table[i * STRIDE + j], seconds[j] += table[i * STRIDE + j];
            if (firsts) to[bin(i)] += firsts;
        }
        for (int j = 0; j < BINS; ++j)
            if (seconds[j]) to[bin(j)] += seconds[j];
    }

  private:
    size_t bin(int place) const { return size_t(place ? low_ - 1 + place : 0) * COUNTERS; }
    // Those of 32 elements, in any order: of each half of a pair in one half of 32 bits.
    template <class T> __m512i bins_of(const T *base, const T *model) const {
        VF a, b, x, y;
        load_pair(base, a, b), load_pair(model, x, y);
        const __m512i low = _mm512_rorv_epi32(key(x - a), turn_[0]), high = _mm512_rorv_epi32(key(y - b), turn_[1]);
        return _mm512_and_si512(_mm512_mask_mov_epi16(low, 0xaaaaaaaa, high), digit_);
    }

    const __m512i turn_[2], digit_;
    int low_ = 1;
    uint16_t counts_[TABLES][BINS * STRIDE];  // a block has fewer pairs than 2^16
};

}  // namespace fm::FM_ISA
