// Which elements of each model take part: not trimmed by magnitude, not dropped at random, not masked out.
#pragma once
#include <limits>

#include "philox.hpp"
#include "strips.hpp"

namespace fm::FM_ISA {

// The largest number below a magnitude, so that "above or equal" is "above" of another number.
template <class W> static inline W below(W x) {
    using Bits = std::conditional_t<sizeof(W) == 8, int64_t, int32_t>;
    return x > 0 ? std::bit_cast<W>(std::bit_cast<Bits>(x) - 1) : W(-1);
}

// A cut as what magnitudes above it exceed: one number for the elements before its index, of which those of equal magnitude
// are above, and another from there on.
template <class T> class Bound {
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;

  public:
    // A NaN divides nothing: `otherwise` is exceeded by all magnitudes or by none.
    void set(double magnitude, int64_t index, W otherwise) {
        const bool divides = magnitude == magnitude;
        from_ = divides ? W(magnitude) : otherwise, before_ = divides ? below(from_) : otherwise, index_ = index;
    }
    bool within(int64_t first) const { return first < index_ && index_ < first + STRIP; }
    // For a half of the pair of elements first … first + 31 of the tensor.
    template <int HALF> V at(int64_t first) const {
        const int64_t early = index_ - first;
        if (early > 0 && early < PAIR) [[unlikely]] {
            typename V::Mask before[2];
            split_bits<T>((1u << early) - 1, before[0], before[1]);
            return V::select(before[HALF], V::set(before_), V::set(from_));
        }
        return V::set(early > 0 ? before_ : from_);
    }

  private:
    W before_, from_;
    int64_t index_;
};

// What decides, where it is one thing.
enum class By { MASKS, BOTTOM, WINDOW, SEVERAL };

template <class T> class Kept {
    static_assert(STRIP % PHILOX_GROUP == 0);
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;
    using Mask = typename V::Mask;

  public:
    explicit Kept(const Args &a) : args_(a), packed_(a.drop || a.masks) {
        constexpr double none = std::numeric_limits<double>::quiet_NaN();
        constexpr W infinity = std::numeric_limits<W>::infinity();
        for (int k = 0; k < a.models_count; ++k) {
            const Window w = a.trim ? a.trim[k] : Window{none, 0, none, 0};
            // A bottom that nothing is above hides what is infinite, as tops do.
            top_ |= w.top < infinity || w.top_index || W(w.bottom) == infinity, bottom_ |= w.bottom >= 0;
            tops_[k].set(w.top, w.top_index, infinity);
            bottoms_[k].set(w.bottom, w.bottom_index, -1);
        }
    }
    // The strip of elements begin … begin + n of the call comes next.
    void at(int64_t begin, int n) {
        first_ = args_.offset + begin;
        for (int k = 0; packed_ && k < args_.models_count; ++k) {
            if (args_.drop) draw(args_.drop[k], n, bits_[k]);
            else memset(bits_[k], 0xff, sizeof bits_[k]);
            if (!args_.masks) continue;
            uint32_t row[STRIP / PAIR] = {};
            memcpy(row, args_.masks + k * args_.mask_stride + begin / 8, (n + 7) / 8);
            for (int j = 0; j < STRIP / PAIR; ++j) bits_[k][j] &= row[j];
        }
    }
    By by() const { return !packed_ ? top_ ? By::WINDOW : By::BOTTOM : top_ || bottom_ ? By::SEVERAL : By::MASKS; }
    // Whether some model's cut has its index in the strip.
    bool mixed() const {
        bool any = false;
        for (int k = 0; k < args_.models_count; ++k) any |= mixed(k);
        return any;
    }
    // The selection from one model, for one strip.
    struct Filter {
        const Bound<T> &top_bound, &bottom_bound;
        const uint32_t *bits;
        int64_t first;
        bool mixed, above, below;
        V top, bottom;
        // What masks leave of a half of the strip's pair at i.
        template <int HALF> [[gnu::always_inline]] Mask unmasked(int i) const {
            Mask on[2];
            split_bits<T>(bits[i / PAIR], on[0], on[1]);
            return on[HALF];
        }
        // What takes part in it, whose magnitudes are `size`. NaN is not trimmed.
        template <int HALF> [[gnu::always_inline]] Mask half(int i, const V &size) const {
            Mask on = bits ? unmasked<HALF>(i) : Mask::from(0xffff);
            if (above) on = on & size.not_above(mixed ? top_bound.template at<HALF>(first + i) : top);
            if (below) on = on & size.above_or_nan(mixed ? bottom_bound.template at<HALF>(first + i) : bottom);
            return on;
        }
    };
    Filter of(int k) const {
        const Bound<T> &t = tops_[k], &b = bottoms_[k];
        return {t, b, packed_ ? bits_[k] : nullptr, first_, mixed(k), top_, bottom_, t.template at<0>(first_), b.template at<0>(first_)};
    }

  private:
    bool mixed(int k) const { return tops_[k].within(first_) || bottoms_[k].within(first_); }
    void draw(const Drop &drop, int n, uint32_t *bits) {
        const bool all = drop.threshold >> 32, none = drop.threshold == 0;
        if (all || none) return void(memset(bits, all ? 0 : 0xff, sizeof bits_[0]));
        philox_bits(first_, n, drop.key, uint32_t(drop.threshold), bits);
    }

    const Args &args_;
    bool packed_, top_ = false, bottom_ = false;  // whether bits_, tops_ and bottoms_ decide anything
    int64_t first_ = 0;
    Bound<T> tops_[MAX_MODELS], bottoms_[MAX_MODELS];
    uint32_t bits_[MAX_MODELS][STRIP / PAIR];
};

}  // namespace fm::FM_ISA
