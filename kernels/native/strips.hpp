// Blocks are worked through in strips that stay in the first-level cache. A strip is read in place where all inputs have
// one dtype, and else widened into a buffer; the last, odd one is padded with zeros to whole pairs.
#pragma once
#include "simd.hpp"

namespace fm::FM_ISA {

constexpr int STRIP = 512;
constexpr int MAX_INPUTS = MAX_MODELS + 2;
constexpr int AHEAD = 2048;  // bytes that prefetching runs ahead of every stream

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
    switch (inputs.dtype) {
        case BF16: return body(bf16(), true);
        case F16: return body(fp16(), true);
        case F32: return body(float(), true);
        case F64: return body(double(), true);
        default: return wide ? body(double(), false) : body(float(), false);
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

// Takes a strip's results pair by pair; rounds them into the output at once, or by way of the working type.
template <class T> class Sink {
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;

  public:
    explicit Sink(const Args &a) : out_(a.out), streaming_(a.streaming) {}
    void at(int64_t begin, int n) {
        begin_ = begin, n_ = n;
        direct_ = out_.dtype == dtype_of<T> && n % PAIR == 0;
        to_ = static_cast<T *>(out_.data) + begin;
    }
    void put(int i, const V &a, const V &b) {
        if (direct_) return store_pair(to_ + i, a, b, streaming_);
        if constexpr (dtype_of<T> == BF16) {
            W x[PAIR];
            a.store(x), b.store(x + 16);
            for (int j = 0; j < 16; ++j) strip_[i + 2 * j] = x[j], strip_[i + 2 * j + 1] = x[16 + j];
        } else {
            a.store(strip_ + i), b.store(strip_ + i + 16);
        }
    }
    void flush() {
        if (!direct_) narrow_strip(strip_, out_, begin_, n_);
    }

  private:
    const Out &out_;
    bool streaming_, direct_ = false;
    int64_t begin_ = 0;
    int n_ = 0;
    T *to_ = nullptr;
    alignas(64) W strip_[STRIP];
};

template <class T> static inline void load_ahead(const T *p, typename Working<T>::V &a, typename Working<T>::V &b) {
    const char *next = reinterpret_cast<const char *>(p) + AHEAD;
    for (unsigned i = 0; i < PAIR * sizeof(T); i += 64) prefetch(next + i);
    load_pair(p, a, b);
}

// A strip's mask bits of one model, to their place in the packed row.
static inline void store_bits(const Args &a, int k, int64_t at, int n, const uint32_t *bits) {
    memcpy(a.masks + k * a.mask_stride + at / 8, bits, (n + 7) / 8);
}

// Per model two strips of terms, Σ|τ_k| and Σ mask_k·|merged|, added to the block's sums.
template <class T> class PairedSums {
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;

  public:
    alignas(64) W magnitude[MAX_MODELS * STRIP];
    alignas(64) W kept[MAX_MODELS * STRIP];

    explicit PairedSums(int models) : models_(models) { memset(sums_, 0, sizeof(double) * 2 * models * PAIR); }
    void add(int n) {
        for (int k = 0; k < models_; ++k) {
            Sums<V> s, t;
            s.load(sums_ + 2 * k * PAIR), t.load(sums_ + (2 * k + 1) * PAIR);
            for (int i = 0; i < n; i += PAIR) s.add_stored(magnitude + k * STRIP + i), t.add_stored(kept + k * STRIP + i);
            s.store(sums_ + 2 * k * PAIR), t.store(sums_ + (2 * k + 1) * PAIR);
        }
    }
    void total_into(double *sums) {
        for (int k = 0; k < models_; ++k) {
            Sums<V> s, t;
            s.load(sums_ + 2 * k * PAIR), t.load(sums_ + (2 * k + 1) * PAIR);
            sums[k] = total<T>(s), sums[models_ + k] = total<T>(t);
        }
    }

  private:
    int models_;
    alignas(64) double sums_[2 * MAX_MODELS * PAIR];
};

}  // namespace fm::FM_ISA
