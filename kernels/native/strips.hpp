// Blocks are worked through in strips that stay in the first-level cache. A strip is read in place where all inputs have
// one dtype, and else widened into a buffer; the last, odd one is padded with zeros to whole pairs.
#pragma once
#include <type_traits>

#include "simd.hpp"

namespace fm::FM_ISA {

constexpr int STRIP = 512;
constexpr int MAX_INPUTS = MAX_MODELS + 2;

// The op's inputs in order: base (if any), merged (if any), models.
struct Inputs {
    In in[MAX_INPUTS];
    int count = 0;
    int dtype = -1;  // of all of them, or -1
    explicit Inputs(const Args &a) {
        if (a.base.data) add(a.base);
        if (a.merged.data) add(a.merged);
        for (int k = 0; k < a.models_count; ++k) add(a.models[k]);
    }
    void add(const In &x) {
        dtype = count == 0 || dtype == x.dtype ? x.dtype : -1;
        in[count++] = x;
    }
};

// Calls body(T(), direct) with the type that strips have: the inputs' own, or the working type.
template <class Body> static inline int64_t by_type(const Inputs &inputs, bool wide, Body body) {
    if (wide && inputs.dtype != F64) return body(double(), false);  // a call's other models may make it wide
    switch (inputs.dtype) {
        case BF16: return body(bf16(), true);
        case F16: return body(fp16(), true);
        case F32: return body(float(), true);
        case F64: return body(double(), true);
        default: return body(float(), false);
    }
}

template <class T> class Reader {
  public:
    Reader(const Inputs &inputs, bool direct) : inputs_(inputs), direct_(direct) {}
    // Points p[j] to elements begin … begin + n of every input; returns n rounded up to whole pairs.
    int at(int64_t begin, int n, const T **p) {
        int padded = (n + PAIR - 1) / PAIR * PAIR;
        for (int j = 0; j < inputs_.count; ++j) {
            const In &in = inputs_.in[j];
            T *copy = buffer_ + j * STRIP;
            p[j] = copy;
            if (direct_ && n == padded) p[j] = static_cast<const T *>(in.data) + begin;
            else if (direct_) memcpy(copy, static_cast<const char *>(in.data) + begin * sizeof(T), n * sizeof(T));
            else if constexpr (dtype_of<T> == F32 || dtype_of<T> == F64) widen_strip(in, begin, n, copy);
            if (p[j] == copy) memset(static_cast<void *>(copy + n), 0, (padded - n) * sizeof(T));
        }
        return padded;
    }

  private:
    const Inputs &inputs_;
    bool direct_;
    alignas(64) T buffer_[MAX_INPUTS * STRIP];
};

template <class T> using Wide = typename Working<T>::W;

// 32 elements of the working type, in the lanes that a pair of T has.
template <class T> static inline void load_lanes(const Wide<T> *p, typename Working<T>::V &a, typename Working<T>::V &b) {
    if constexpr (dtype_of<T> == BF16) load_even_odd(p, a, b);
    else load_pair(p, a, b);
}

// Takes a strip's results pair by pair; rounds them into the output at once or, where types differ or `late`, when flushed.
template <class T> class Sink {
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;

  public:
    explicit Sink(const Args &a, bool late = false) : out_(a.out), streaming_(a.streaming), late_(late) {}
    void at(int64_t begin, int n) {
        begin_ = begin, n_ = n;
        direct_ = out_.dtype == dtype_of<T> && n % PAIR == 0;
        to_ = static_cast<T *>(out_.data) + begin;
    }
    [[gnu::always_inline]] void put(int i, const V &a, const V &b) {
        if (direct_ && !late_) [[likely]] return store_pair(to_ + i, a, b, streaming_);
        if constexpr (dtype_of<T> == BF16) {
            store_even_odd(strip_ + i, a, b);
        } else {
            a.store(strip_ + i), b.store(strip_ + i + 16);
        }
    }
    void flush() {
        if (direct_ && late_) store_strip(to_);
        else if (!direct_ && out_.dtype == dtype_of<W> && n_ % PAIR == 0) store_strip(static_cast<W *>(out_.data) + begin_);
        else if (!direct_) narrow_strip(strip_, out_, begin_, n_);
    }

  private:
    template <class To> void store_strip(To *to) {
        for (int i = 0; i < n_; i += PAIR) store_pair(to + i, V::load(strip_ + i), V::load(strip_ + i + 16), streaming_);
    }

    const Out &out_;
    bool streaming_, late_, direct_ = false;
    int64_t begin_ = 0;
    int n_ = 0;
    T *to_ = nullptr;
    alignas(64) W strip_[STRIP];
};

template <class T> static inline void prefetch_ahead(const T *p) {
    const char *next = reinterpret_cast<const char *>(p) + ahead;
    for (unsigned i = 0; i < PAIR * sizeof(T); i += 64) prefetch(next + i);
}
// Prefetches two strips ahead, where a strip is read at once and then worked on for long.
template <class T> static inline void load_next(const T *p, typename Working<T>::V &a, typename Working<T>::V &b) {
    for (unsigned i = 0; i < PAIR * sizeof(T); i += 64) prefetch(reinterpret_cast<const char *>(p + 2 * STRIP) + i);
    load_pair(p, a, b);
}
template <class T> static inline void load_ahead(const T *p, typename Working<T>::V &a, typename Working<T>::V &b) {
    prefetch_ahead(p);
    load_pair(p, a, b);
}
// The same where so many models are read one after the other, a strip of each: what follows the strip is wanted when the
// others have been read, and what lies less than a strip ahead is wanted too soon. One model is read straight on.
template <class T>
static inline void load_in_turn(int models, const T *p, typename Working<T>::V &a, typename Working<T>::V &b) {
    prefetch_ahead(p + (models > 2 && ahead < int(STRIP * sizeof(T)) ? STRIP : 0));
    load_pair(p, a, b);
}

// body(k, Models<KN>()) for the models k … k + KN of groups of about as many each, up to MOST, whose sums fit into registers.
template <int KN> using Models = std::integral_constant<int, KN>;
template <int MOST, class Body> static inline void in_groups(int models, Body body) {
    for (int k = 0, groups = (models + MOST - 1) / MOST; k < models; --groups) {
        const int count = (models - k + groups - 1) / groups;
        if (MOST >= 3 && count == 3) body(k, Models<3>());
        else if (MOST >= 2 && count == 2) body(k, Models<2>());
        else body(k, Models<1>());
        k += count;
    }
}

// τ_k (without a base θ_k) of the pair at i. base, which comes before the models, is read again from the first-level cache.
template <class T>
static inline void load_delta(const T *const *in, const Args &a, int k, int i, typename Working<T>::V (&tau)[2]) {
    if (!a.base.data) return load_in_turn(a.models_count, in[k] + i, tau[0], tau[1]);
    typename Working<T>::V base[2];
    load_in_turn(a.models_count, in[0] + i, base[0], base[1]);
    load_in_turn(a.models_count, in[1 + k] + i, tau[0], tau[1]);
    tau[0] = tau[0] - base[0], tau[1] = tau[1] - base[1];
}

// A strip's mask bits of one model, to their place in the packed row.
static inline void store_bits(const Args &a, int k, int64_t at, int n, const uint32_t *bits) {
    memcpy(a.masks + k * a.mask_stride + at / 8, bits, (n + 7) / 8);
}

// Per model Σ|τ_k| and Σ mask_k·|merged| in float64: the lanes of every strip, added to those of the block.
//
// Widening each term costs more than all the rest of the op. Differences of 16-bit weights are multiples of the last place
// of the smallest weight, so that a strip's sums are nearly always exact in float32, and then they are the float64 sums.
// The processor itself says whether it rounded; where it did, the strip is done again with wide sums.
template <class T> class PairedSums {
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;

  public:
    // `rounds`: the strip rounds for another reason than its sums, so that the flag tells nothing.
    PairedSums(const Args &a, const Inputs &inputs, bool rounds = false) : models_(a.models_count) {
        memset(total_, 0, sizeof total_[0] * models_);
        quick_ = sizeof(T) == 2 && !rounds;
        // An output in the place of an input would leave nothing to do a strip again from.
        for (int j = 0; j < inputs.count; ++j) quick_ &= inputs.in[j].data != a.out.data;
    }
    // Calls strip(quick), a function of its own that goes over n elements: when quick it hands over sixteen sums of
    // each model's terms (put_lanes), else every term (put_term).
    template <class Strip> void over(int n, Strip strip) {
        if constexpr (sizeof(T) == 2) {
            if (quick_) {
                clear_inexact();
                strip(std::true_type());
                if (!inexact()) return add(16);
            }
        }
        strip(std::false_type());
        add(n);
    }
    void put_term(int k, int i, const V &magnitude, const V &kept) {
        magnitude.store(terms_[k][0] + i), kept.store(terms_[k][1] + i);
    }
    void put_lanes(int k, const V (&sums)[2]) { put_term(k, 0, sums[0], sums[1]); }
    void total_into(double *sums) {
        for (int k = 0; k < models_; ++k)
            for (int j = 0; j < 2; ++j) sums[j * models_ + k] = total<T>(total_[k][j]);
    }

  private:
    void add(int n) {
        for (int k = 0; k < models_; ++k)
            for (int j = 0; j < 2; ++j)
                for (int half = 0; half < n && half < PAIR; half += 16) {
                    Sums<V> s;
                    double lanes[16];
                    for (int i = half; i < n; i += PAIR) s.add_stored(terms_[k][j] + i);
                    s.store(lanes);
                    for (int i = 0; i < 16; ++i) total_[k][j][half + i] += lanes[i];
                }
    }

    int models_;
    bool quick_;
    alignas(64) W terms_[MAX_MODELS][2][STRIP];
    alignas(64) double total_[MAX_MODELS][2][PAIR];
};

}  // namespace fm::FM_ISA
