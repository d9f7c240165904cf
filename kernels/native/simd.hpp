// Sixteen lanes of the working type, in the widest registers of the instruction set.
//
// Work goes in pairs of vectors, 32 elements. Each register of bfloat16 is split into its even and its odd elements (a shift
// and a mask widen them in place, no shuffle), other types stay in order; a pair's mask bits and sums know which.
#pragma once
#include <utility>

#include "numeric.hpp"
#include "vec.hpp"
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

// Whether unrolling over models pays: of float64, which takes many registers, it compiles for minutes, as with sanitizers.
#ifdef FM_SANITIZED
template <class V> constexpr bool in_registers = false;
#else
template <class V> constexpr bool in_registers = true;
#endif
template <> constexpr bool in_registers<Vec<double>> = false;

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

}  // namespace fm::FM_ISA

#if defined(FM_ISA_v4)
#include "simd_v4.hpp"
#elif defined(FM_ISA_v3)
#include "simd_v3.hpp"
#else
#include "simd_base.hpp"
#endif

namespace fm::FM_ISA {
using VD = Vec<double>;
static inline void load_pair(const double *p, VD &a, VD &b) { a = VD::load(p), b = VD::load(p + 16); }
static inline void store_pair(double *p, const VD &a, const VD &b, bool) { a.store(p), b.store(p + 16); }

template <class T> struct Working { using V = VF; using W = float; };
template <> struct Working<double> { using V = VD; using W = double; };

// The 32 mask bits of a pair in element order, and back.
template <class T, class M> [[gnu::always_inline]] static inline uint32_t pair_bits(const M &a, const M &b) {
    if constexpr (dtype_of<T> == BF16) return interleaved(a, b);
    else return a.bits() | b.bits() << 16;
}
template <class T, class M> [[gnu::always_inline]] static inline void split_bits(uint32_t x, M &a, M &b) {
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
