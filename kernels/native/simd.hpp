// Sixteen lanes of the working type, in the widest registers of the instruction set.
//
// Work goes in pairs of vectors, 32 elements. Each register of bfloat16 is split into its even and its odd elements (a shift
// and a mask widen them in place, no shuffle), other types stay in order; a pair's mask bits and sums know which.
#pragma once
#include <utility>

#include "numeric.hpp"
#if defined(__SSE__)
#include <immintrin.h>
#else
#include <cfenv>
#endif

namespace fm::FM_ISA {

constexpr int PAIR = 32;

// The lane of a pair that has its element i.
#if defined(FM_ISA_v3)
constexpr int REGISTER = 16;  // of bfloat16
#else
constexpr int REGISTER = 32;
#endif
template <class T, class I> constexpr I lane(I i) {
    return dtype_of<T> == BF16 ? i / REGISTER * REGISTER + i % 2 * (REGISTER / 2) + i % REGISTER / 2 : i;
}
// The element in it.
template <class T, class I> constexpr I element(I lane) {
    constexpr int half = REGISTER / 2;
    return dtype_of<T> == BF16 ? lane / REGISTER * REGISTER + lane % half * 2 + lane % REGISTER / half : lane;
}

// f(k) for every model; KN of them are unrolled, so that what is indexed by k stays in registers.
template <int KN, class F> static inline void each(int models, F f) {
    if constexpr (KN == 0)
        for (int k = 0; k < models; ++k) f(k);
    else
        [&]<int... K>(std::integer_sequence<int, K...>) { (f(std::integral_constant<int, K>()), ...); }(std::make_integer_sequence<int, KN>());
}

// Whether an operation of this thread rounded since the flag was cleared. Compilers do not know of the flag: what is
// between the two calls must be a function that is not inlined.
#if defined(__SSE__)
static inline void clear_inexact() { _mm_setcsr(_mm_getcsr() & ~unsigned(_MM_EXCEPT_INEXACT)); }
static inline bool inexact() { return _mm_getcsr() & _MM_EXCEPT_INEXACT; }
#else
static inline void clear_inexact() { std::feclearexcept(FE_INEXACT); }
static inline bool inexact() { return std::fetestexcept(FE_INEXACT); }
#endif

template <class W> struct Lanes;  // of mask words
template <> struct Lanes<float> { using type = int32_t; };
template <> struct Lanes<double> { using type = int64_t; };

// The portable form: loops over arrays, which compilers vectorise.
template <class W> struct Vec {
    W v[16];
    struct Mask {
        typename Lanes<W>::type m[16];
        uint32_t bits() const {
            uint32_t b = 0;
            for (int i = 0; i < 16; ++i) b |= uint32_t(m[i] & 1) << i;
            return b;
        }
        Mask operator&(const Mask &o) const {
            Mask r;
            for (int i = 0; i < 16; ++i) r.m[i] = m[i] & o.m[i];
            return r;
        }
        Mask operator|(const Mask &o) const {
            Mask r;
            for (int i = 0; i < 16; ++i) r.m[i] = m[i] | o.m[i];
            return r;
        }
        static Mask from(uint32_t b) {
            Mask r;
            for (int i = 0; i < 16; ++i) r.m[i] = -int(b >> i & 1);
            return r;
        }
        static Mask at_least(const uint32_t *p, uint32_t x) {
            Mask r;
            for (int i = 0; i < 16; ++i) r.m[i] = p[i] >= x ? -1 : 0;
            return r;
        }
    };
#define FM_EACH(expression) \
    Vec r;                  \
    for (int i = 0; i < 16; ++i) r.v[i] = (expression); \
    return r
    static Vec set(W x) { FM_EACH(x); }
    static Vec load(const W *p) { FM_EACH(p[i]); }
    void store(W *p) const {
        for (int i = 0; i < 16; ++i) p[i] = v[i];
    }
    Vec operator+(const Vec &o) const { FM_EACH(v[i] + o.v[i]); }
    Vec operator-(const Vec &o) const { FM_EACH(v[i] - o.v[i]); }
    Vec operator*(const Vec &o) const { FM_EACH(v[i] * o.v[i]); }
    Vec operator/(const Vec &o) const { FM_EACH(v[i] / o.v[i]); }
    Vec abs() const { FM_EACH(v[i] < 0 ? -v[i] : v[i] == 0 ? W(0) : v[i]); }
    Mask operator>(const Vec &o) const {
        Mask r;
        for (int i = 0; i < 16; ++i) r.m[i] = v[i] > o.v[i] ? -1 : 0;
        return r;
    }
    Mask operator>=(const Vec &o) const {
        Mask r;
        for (int i = 0; i < 16; ++i) r.m[i] = v[i] >= o.v[i] ? -1 : 0;
        return r;
    }
    Mask is_nan() const {
        Mask r;
        for (int i = 0; i < 16; ++i) r.m[i] = v[i] == v[i] ? 0 : -1;
        return r;
    }
    Mask not_above(const Vec &o) const {
        Mask r;
        for (int i = 0; i < 16; ++i) r.m[i] = v[i] > o.v[i] ? 0 : -1;
        return r;
    }
    Mask above_or_nan(const Vec &o) const {
        Mask r;
        for (int i = 0; i < 16; ++i) r.m[i] = v[i] <= o.v[i] ? 0 : -1;
        return r;
    }
    Mask nonzero() const {
        Mask r;
        for (int i = 0; i < 16; ++i) r.m[i] = v[i] == 0 ? 0 : -1;
        return r;
    }
    Vec plus_where(const Mask &m, const Vec &o) const { FM_EACH(m.m[i] ? v[i] + o.v[i] : v[i]); }
    Vec divided_where(const Mask &m, const Vec &o) const { FM_EACH(m.m[i] ? v[i] / o.v[i] : v[i]); }
    Vec or_larger(const Vec &o) const { FM_EACH(o.v[i] > v[i] ? o.v[i] : v[i]); }
    // NaN where x is not finite, else the same number, of either sign if zero.
    Vec spoilt_by(const Vec &x) const { FM_EACH(v[i] + x.v[i] * 0); }
    static Vec select(const Mask &m, const Vec &a, const Vec &b) { FM_EACH(m.m[i] ? a.v[i] : b.v[i]); }
    Vec only(const Mask &m) const { FM_EACH(m.m[i] ? v[i] : W(0)); }
    Vec negate_where(const Mask &m) const { FM_EACH(m.m[i] ? -v[i] : v[i]); }
#undef FM_EACH
    // Sixteen sums: what either half of a pair adds to them, or adds where a mask is on.
    template <int HALF> void take(const Vec &x) { *this = *this + x; }
    template <int HALF> void take_where(const Mask &m, const Vec &x) {
        for (int i = 0; i < 16; ++i) v[i] = m.m[i] ? v[i] + x.v[i] : v[i];
    }
};

// Whether a vector is registers, so that unrolling over models pays: of arrays it makes nothing faster and compiles for minutes,
// as it does with sanitizers.
#ifdef FM_SANITIZED
template <class V> constexpr bool in_registers = false;
#else
template <class V> constexpr bool in_registers = true;
#endif
template <class W> constexpr bool in_registers<Vec<W>> = false;

// Sixteen float64 sums, one a lane.
template <class V> struct Sums {
    double s[16] = {};
    void add(const V &a) {
        for (int i = 0; i < 16; ++i) s[i] += a.v[i];
    }
    template <class W> void add_stored(const W *p) {
        for (int i = 0; i < 16; ++i) s[i] += p[i];
    }
    void store(double *p) const { memcpy(p, s, sizeof s); }
    void load(const double *p) { memcpy(s, p, sizeof s); }
};

// A register of float64, or what stands for one: COUNT lanes of eight.
template <class V> struct Doubles {
    static constexpr int COUNT = 8;
    double v[8];
    template <class W> static Doubles of(const W *p) {
        W x[8];
        memcpy(x, p, sizeof x);
        Doubles r;
        for (int i = 0; i < 8; ++i) r.v[i] = x[i];
        return r;
    }
    void store(double *p) const { memcpy(p, v, sizeof v); }
    Doubles abs() const {
        Doubles r;
        for (int i = 0; i < 8; ++i) r.v[i] = v[i] < 0 ? -v[i] : v[i];
        return r;
    }
    void add(const Doubles &a) {
        for (int i = 0; i < 8; ++i) v[i] += a.v[i];
    }
    // Of float32 products are exact, so that fused or not makes no difference.
    void add_product(const Doubles &a, const Doubles &b) {
        for (int i = 0; i < 8; ++i) v[i] += a.v[i] * b.v[i];
    }
};

// Eight sums in as many registers as they take.
template <class V> struct Eight {
    static constexpr int COUNT = Doubles<V>::COUNT, PARTS = 8 / COUNT;
    Doubles<V> part[PARTS];
    void load(const double *p) {
        for (int h = 0; h < PARTS; ++h) part[h] = Doubles<V>::of(p + h * COUNT);
    }
    void store(double *p) const {
        for (int h = 0; h < PARTS; ++h) part[h].store(p + h * COUNT);
    }
};

// Where in a pair the eights stand that sums take first, second, …: the same elements for every instruction set.
template <class T> constexpr int eights[] = {0, 8, 16, 24};
template <> constexpr int eights<bf16>[] = {0, REGISTER / 2, REGISTER == 16 ? 16 : 8, 24};

// Compilers would rather take what was just stored from the registers that it is still in than convert it from memory, which
// takes no shuffle.
template <class A> static inline void in_memory(A &a) { asm("" : "+m"(a)); }

template <class T, class V, class W> static inline void load_pair_generic(const T *p, V &a, V &b) {
    W x[PAIR];
    for (int i = 0; i < PAIR; ++i) {
        T t;
        memcpy(&t, reinterpret_cast<const char *>(p) + i * sizeof(T), sizeof(T));
        x[lane<T>(i)] = widen(t);
    }
    a = V::load(x), b = V::load(x + 16);
}
template <class T, class V, class W> static inline void store_pair_generic(T *p, const V &a, const V &b) {
    W x[PAIR];
    a.store(x), b.store(x + 16);
    for (int i = 0; i < PAIR; ++i) {
        T t;
        narrow(x[lane<T>(i)], t);
        memcpy(reinterpret_cast<char *>(p) + i * sizeof(T), &t, sizeof(T));
    }
}

}  // namespace fm::FM_ISA

#if defined(FM_ISA_v4)
#include "simd_v4.hpp"
#elif defined(FM_ISA_v3)
#include "simd_v3.hpp"
#else
namespace fm::FM_ISA {
using VF = Vec<float>;
static inline void prefetch(const void *p) { __builtin_prefetch(p); }
static inline void fence() {}
template <class T> static inline void load_pair(const T *p, VF &a, VF &b) { load_pair_generic<T, VF, float>(p, a, b); }
static inline void load_even_odd(const float *p, VF &a, VF &b) {
    float x[PAIR];
    memcpy(x, p, sizeof x);
    for (int i = 0; i < 16; ++i) a.v[i] = x[2 * i], b.v[i] = x[2 * i + 1];
}
static inline void store_even_odd(float *p, const VF &a, const VF &b) {
    for (int i = 0; i < 16; ++i) p[2 * i] = a.v[i], p[2 * i + 1] = b.v[i];
}
template <class T> static inline void store_pair(T *p, const VF &a, const VF &b, bool) {
    store_pair_generic<T, VF, float>(p, a, b);
}
}  // namespace fm::FM_ISA
#endif

namespace fm::FM_ISA {
using VD = Vec<double>;
static inline void load_pair(const double *p, VD &a, VD &b) { load_pair_generic<double, VD, double>(p, a, b); }
static inline void store_pair(double *p, const VD &a, const VD &b, bool) { store_pair_generic<double, VD, double>(p, a, b); }

template <class T> struct Working { using V = VF; using W = float; };
template <> struct Working<double> { using V = VD; using W = double; };

#if !defined(FM_ISA_v3)
// 16 bits to the even places of 32, and back.
#if defined(FM_ISA_v4)
static inline uint32_t spread(uint32_t x) { return _pdep_u32(x, 0x55555555); }
static inline uint32_t gather(uint32_t x) { return _pext_u32(x, 0x55555555); }
#else
static inline uint32_t spread(uint32_t x) {
    x = (x | x << 8) & 0x00ff00ff, x = (x | x << 4) & 0x0f0f0f0f;
    x = (x | x << 2) & 0x33333333;
    return (x | x << 1) & 0x55555555;
}
static inline uint32_t gather(uint32_t x) {
    x &= 0x55555555, x = (x | x >> 1) & 0x33333333;
    x = (x | x >> 2) & 0x0f0f0f0f, x = (x | x >> 4) & 0x00ff00ff;
    return (x | x >> 8) & 0xffff;
}
#endif

// The bits of a pair of bfloat16 in element order, and back.
template <class M> static inline uint32_t interleaved(const M &a, const M &b) { return spread(a.bits()) | spread(b.bits()) << 1; }
template <class M> static inline void split(uint32_t x, M &a, M &b) { a = M::from(gather(x)), b = M::from(gather(x >> 1)); }
#endif

// The 32 mask bits of a pair in element order, and back.
template <class T, class M> static inline uint32_t pair_bits(const M &a, const M &b) {
    if constexpr (dtype_of<T> == BF16) return interleaved(a, b);
    else return a.bits() | b.bits() << 16;
}
template <class T, class M> static inline void split_bits(uint32_t x, M &a, M &b) {
    if constexpr (dtype_of<T> == BF16) split(x, a, b);
    else a = M::from(x & 0xffff), b = M::from(x >> 16);
}

// A block's total: the sums of a pair's lanes in element order, added as a tree.
template <class T> static inline double total(const double *lanes) {
    double s[PAIR];
    for (int i = 0; i < PAIR; ++i) s[i] = lanes[lane<T>(i)];
    for (int width = PAIR / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) s[i] += s[i + width];
    return s[0];
}
static inline double total(const double (&lanes)[8]) {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}
}  // namespace fm::FM_ISA
