// Sixteen lanes of any working type by the compilers' own vectors: what instruction sets without a form of their own have,
// NEON among them, and all have of float64.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#if defined(__ARM_NEON)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <immintrin.h>
#endif

// Compilers count what a vector of several registers does, and would rather call it.
#define FM_INLINE __attribute__((always_inline))

namespace fm::FM_ISA {

#if defined(FM_ISA_v4)
constexpr int REGISTER_BYTES = 64;
#elif defined(FM_ISA_v3)
constexpr int REGISTER_BYTES = 32;
#else
constexpr int REGISTER_BYTES = 16;
#endif
template <class W, int BYTES = REGISTER_BYTES> struct RegisterOf { typedef W type __attribute__((vector_size(BYTES))); };
template <class W, int BYTES = REGISTER_BYTES> using Register = typename RegisterOf<W, BYTES>::type;
template <class W> constexpr int IN_REGISTER = REGISTER_BYTES / sizeof(W);

template <class R> FM_INLINE static inline R load_register(const void *p) {
    R r;
    memcpy(&r, p, sizeof r);
    return r;
}
template <class R> FM_INLINE static inline void store_register(void *p, const R &r) { memcpy(p, &r, sizeof r); }

// f(0), f(1), … as constants: compilers keep in memory what loops index.
template <int N, class F> FM_INLINE static inline void for_each(F f) {
    [&]<int... I>(std::integer_sequence<int, I...>) FM_INLINE { (f(std::integral_constant<int, I>()), ...); }
    (std::make_integer_sequence<int, N>());
}
// {f(0), f(1), …}
template <class R> using LaneOf = std::remove_cvref_t<decltype(std::declval<R>()[0])>;
template <class R> constexpr int LANES_OF = sizeof(R) / sizeof(LaneOf<R>);
template <class R, class F> FM_INLINE static inline R lane_by_lane(F f) {
    return [&]<int... I>(std::integer_sequence<int, I...>) FM_INLINE { return R{f(I)...}; }
    (std::make_integer_sequence<int, LANES_OF<R>>());
}
template <class R, class W> FM_INLINE static inline R splat(W x) {
    return lane_by_lane<R>([&](int) FM_INLINE { return LaneOf<R>(x); });
}
// The lanes of both registers in turn, those of their lower and of their upper halves; and back.
template <int FIRST, class R, int... I> FM_INLINE static inline R zipped(const R &x, const R &y, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(x, y, (FIRST + I / 2 + I % 2 * LANES_OF<R>)...);
}
template <class R> FM_INLINE static inline R zipped_low(const R &x, const R &y) {
    return zipped<0>(x, y, std::make_integer_sequence<int, LANES_OF<R>>());
}
template <class R> FM_INLINE static inline R zipped_high(const R &x, const R &y) {
    return zipped<LANES_OF<R> / 2>(x, y, std::make_integer_sequence<int, LANES_OF<R>>());
}
template <int ODD, class R, int... I> FM_INLINE static inline R unzipped(const R &x, const R &y, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(x, y, (2 * I + ODD)...);
}
template <int ODD, class R> FM_INLINE static inline R unzipped(const R &x, const R &y) {
    return unzipped<ODD>(x, y, std::make_integer_sequence<int, LANES_OF<R>>());
}
// The bits that any lane has.
template <class R> FM_INLINE static inline uint32_t any_bits(const R &x) {
    const auto words = (Register<uint64_t>)x;
    uint64_t bits = words[0];
    for_each<IN_REGISTER<uint64_t> - 1>([&](auto i) FM_INLINE { bits |= words[i + 1]; });
    return uint32_t(sizeof(x[0]) == 8 ? bits : bits | bits >> 32);
}

template <class W> using Word = std::conditional_t<sizeof(W) == 8, int64_t, int32_t>;

template <class W> struct Vec {
    using R = Register<W>;
    using M = Register<Word<W>>;
    static constexpr int LANES = IN_REGISTER<W>, PARTS = 16 / LANES;
    R v[PARTS];

    // Registers of ones and zeros.
    struct Mask {
        M m[PARTS];
        // The bit of each lane of a register: lane i of all sixteen has bit FIRST + i · STEP.
        template <int PART, int STEP, int FIRST> FM_INLINE static M places() {
            return lane_by_lane<M>([](int i) FM_INLINE { return Word<W>(uint32_t(1) << (FIRST + (PART * LANES + i) * STEP)); });
        }
        template <int STEP = 1, int FIRST = 0> FM_INLINE M placed() const {
            M all = m[0] & places<0, STEP, FIRST>();
            for_each<PARTS - 1>([&](auto p) FM_INLINE { all |= m[p + 1] & places<p + 1, STEP, FIRST>(); });
            return all;
        }
        FM_INLINE uint32_t bits() const { return any_bits(placed()); }
        template <int STEP = 1, int FIRST = 0> FM_INLINE static Mask from(uint32_t b) {
            const M all = splat<M>(Word<W>(b));
            Mask r;
            for_each<PARTS>([&](auto p) FM_INLINE { r.m[p] = (all & places<p, STEP, FIRST>()) != 0; });
            return r;
        }
        FM_INLINE static Mask at_least(const uint32_t *from, uint32_t x) {
            using Words = Register<uint32_t, LANES * sizeof(uint32_t)>;
            Mask r;
            for_each<PARTS>([&](auto p) FM_INLINE { r.m[p] = __builtin_convertvector(load_register<Words>(from + p * LANES) >= x, M); });
            return r;
        }
        FM_INLINE Mask operator&(const Mask &o) const {
            Mask r;
            for_each<PARTS>([&](auto p) FM_INLINE { r.m[p] = m[p] & o.m[p]; });
            return r;
        }
        FM_INLINE Mask operator|(const Mask &o) const {
            Mask r;
            for_each<PARTS>([&](auto p) FM_INLINE { r.m[p] = m[p] | o.m[p]; });
            return r;
        }
    };

#define FM_EACH(expression)                                  \
    Vec r;                                                   \
    for_each<PARTS>([&](auto p) FM_INLINE { r.v[p] = (expression); }); \
    return r
#define FM_MASK(expression)                                  \
    Mask r;                                                  \
    for_each<PARTS>([&](auto p) FM_INLINE { r.m[p] = (expression); }); \
    return r
    FM_INLINE static Vec set(W x) { FM_EACH(splat<R>(x)); }
    FM_INLINE static Vec load(const W *from) { FM_EACH(load_register<R>(from + p * LANES)); }
    FM_INLINE void store(W *to) const {
        for_each<PARTS>([&](auto p) FM_INLINE { store_register(to + p * LANES, v[p]); });
    }
    FM_INLINE Vec operator+(const Vec &o) const { FM_EACH(v[p] + o.v[p]); }
    FM_INLINE Vec operator-(const Vec &o) const { FM_EACH(v[p] - o.v[p]); }
    FM_INLINE Vec operator*(const Vec &o) const { FM_EACH(v[p] * o.v[p]); }
    FM_INLINE Vec operator/(const Vec &o) const { FM_EACH(v[p] / o.v[p]); }
    static constexpr Word<W> SIGN = std::numeric_limits<Word<W>>::min();
    FM_INLINE Vec abs() const { FM_EACH(R(M(v[p]) & ~SIGN)); }
    FM_INLINE Mask operator>(const Vec &o) const { FM_MASK(v[p] > o.v[p]); }
    FM_INLINE Mask operator>=(const Vec &o) const { FM_MASK(v[p] >= o.v[p]); }
    FM_INLINE Mask is_nan() const { FM_MASK(v[p] != v[p]); }
    FM_INLINE Mask not_above(const Vec &o) const { FM_MASK(~(v[p] > o.v[p])); }
    FM_INLINE Mask above_or_nan(const Vec &o) const { FM_MASK(~(v[p] <= o.v[p])); }
    FM_INLINE Mask nonzero() const { FM_MASK(v[p] != 0); }
    FM_INLINE Vec plus_where(const Mask &m, const Vec &o) const { return select(m, *this + o, *this); }
    FM_INLINE Vec divided_where(const Mask &m, const Vec &o) const { return select(m, *this / o, *this); }
    FM_INLINE Vec or_larger(const Vec &o) const { return select(o > *this, o, *this); }
    // NaN where x is not finite, else the same number, of either sign if zero.
    FM_INLINE Vec spoilt_by(const Vec &x) const { FM_EACH(v[p] + x.v[p] * 0); }
    FM_INLINE static Vec select(const Mask &m, const Vec &a, const Vec &b) { FM_EACH(R((m.m[p] & M(a.v[p])) | (~m.m[p] & M(b.v[p])))); }
    FM_INLINE Vec only(const Mask &m) const { FM_EACH(R(m.m[p] & M(v[p]))); }  // +0 elsewhere
    FM_INLINE Vec negate_where(const Mask &m) const { FM_EACH(R(M(v[p]) ^ (m.m[p] & SIGN))); }
#undef FM_EACH
#undef FM_MASK
    // Sixteen sums: what either half of a pair adds to them, or adds where a mask is on.
    template <int HALF> FM_INLINE void take(const Vec &x) { *this = *this + x; }
    template <int HALF> FM_INLINE void take_where(const Mask &m, const Vec &x) { *this = *this + x.only(m); }
};

// Of a register's worth of float32: compilers convert two numbers one by one.
FM_INLINE static inline Register<double> doubles(const float *p) {
#if defined(FM_ISA_base) && defined(__ARM_NEON)
    return Register<double>(vcvt_f64_f32(vld1_f32(p)));
#elif defined(FM_ISA_base) && defined(__SSE2__)
    return Register<double>(_mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)))));
#else
    return __builtin_convertvector(load_register<Register<float, REGISTER_BYTES / 2>>(p), Register<double>);
#endif
}

// A register of float64.
template <class V> struct Doubles {
    using R = Register<double>;
    static constexpr int COUNT = IN_REGISTER<double>;
    R v;
    template <class W> FM_INLINE static Doubles of(const W *p) {
        if constexpr (sizeof(W) == sizeof(double)) return {load_register<R>(p)};
        else return {doubles(p)};
    }
    FM_INLINE void store(double *p) const { store_register(p, v); }
    FM_INLINE Doubles abs() const { return {R((Register<int64_t>)v & std::numeric_limits<int64_t>::max())}; }
    FM_INLINE void add(Doubles a) { v += a.v; }
    // Of float32 products are exact, so that fused or not makes no difference.
    FM_INLINE void add_product(Doubles a, Doubles b) { v += a.v * b.v; }
};

// Sixteen float64 sums, one a lane.
template <class V> struct Sums {
    static constexpr int COUNT = Doubles<V>::COUNT;
    Doubles<V> s[16 / COUNT] = {};
    FM_INLINE void add(const V &a) {
        std::remove_cvref_t<decltype(a.v[0][0])> stored[16];
        a.store(stored), add_stored(stored);
    }
    template <class W> FM_INLINE void add_stored(const W *p) {
        for_each<16 / COUNT>([&](auto i) FM_INLINE { s[i].add(Doubles<V>::of(p + i * COUNT)); });
    }
    FM_INLINE void store(double *p) const {
        for_each<16 / COUNT>([&](auto i) FM_INLINE { s[i].store(p + i * COUNT); });
    }
    FM_INLINE void load(const double *p) {
        for_each<16 / COUNT>([&](auto i) FM_INLINE { s[i] = Doubles<V>::of(p + i * COUNT); });
    }
};

}  // namespace fm::FM_ISA
