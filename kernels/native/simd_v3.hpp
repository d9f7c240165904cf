// AVX2: a vector is two registers, a mask two more. Of bfloat16 they are the even and the odd elements of one register.
#pragma once

namespace fm::FM_ISA {

struct VF {
    __m256 v, w;
    struct Mask {
        __m256 m, n;
        uint32_t bits() const { return uint32_t(_mm256_movemask_ps(m)) | uint32_t(_mm256_movemask_ps(n)) << 8; }
        Mask operator&(const Mask &o) const { return {_mm256_and_ps(m, o.m), _mm256_and_ps(n, o.n)}; }
        Mask operator|(const Mask &o) const { return {_mm256_or_ps(m, o.m), _mm256_or_ps(n, o.n)}; }
        static __m256 lanes(uint32_t b) {
            const __m256i place = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(b)), place), place));
        }
        static Mask from(uint32_t b) { return {lanes(b & 0xff), lanes(b >> 8)}; }
        static __m256 at_least(__m256i word, __m256i x) {
            return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(word, x), word));
        }
        static Mask at_least(const uint32_t *p, uint32_t x) {
            const __m256i *q = reinterpret_cast<const __m256i *>(p), least = _mm256_set1_epi32(int(x));
            return {at_least(_mm256_loadu_si256(q), least), at_least(_mm256_loadu_si256(q + 1), least)};
        }
    };
    static VF set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static VF load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    void store(float *p) const { _mm256_storeu_ps(p, v), _mm256_storeu_ps(p + 8, w); }
    VF operator+(const VF &o) const { return {_mm256_add_ps(v, o.v), _mm256_add_ps(w, o.w)}; }
    VF operator-(const VF &o) const { return {_mm256_sub_ps(v, o.v), _mm256_sub_ps(w, o.w)}; }
    VF operator*(const VF &o) const { return {_mm256_mul_ps(v, o.v), _mm256_mul_ps(w, o.w)}; }
    VF operator/(const VF &o) const { return {_mm256_div_ps(v, o.v), _mm256_div_ps(w, o.w)}; }
    VF abs() const {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_andnot_ps(sign, v), _mm256_andnot_ps(sign, w)};
    }
    Mask operator>(const VF &o) const {
        return {_mm256_cmp_ps(v, o.v, _CMP_GT_OQ), _mm256_cmp_ps(w, o.w, _CMP_GT_OQ)};
    }
    Mask operator>=(const VF &o) const {
        return {_mm256_cmp_ps(v, o.v, _CMP_GE_OQ), _mm256_cmp_ps(w, o.w, _CMP_GE_OQ)};
    }
    Mask is_nan() const { return {_mm256_cmp_ps(v, v, _CMP_UNORD_Q), _mm256_cmp_ps(w, w, _CMP_UNORD_Q)}; }
    Mask not_above(const VF &o) const {
        return {_mm256_cmp_ps(v, o.v, _CMP_NGT_UQ), _mm256_cmp_ps(w, o.w, _CMP_NGT_UQ)};
    }
    Mask above_or_nan(const VF &o) const {
        return {_mm256_cmp_ps(v, o.v, _CMP_NLE_UQ), _mm256_cmp_ps(w, o.w, _CMP_NLE_UQ)};
    }
    Mask nonzero() const {
        const __m256 zero = _mm256_setzero_ps();
        return {_mm256_cmp_ps(v, zero, _CMP_NEQ_UQ), _mm256_cmp_ps(w, zero, _CMP_NEQ_UQ)};
    }
    VF plus_where(const Mask &m, const VF &o) const { return *this + o.only(m); }  // where neither is -0
    VF divided_where(const Mask &m, const VF &o) const { return select(m, *this / o, *this); }
    VF or_larger(const VF &o) const {  // o > *this ? o : *this, as the instruction is defined
        return {_mm256_max_ps(o.v, v), _mm256_max_ps(o.w, w)};
    }
    VF spoilt_by(const VF &x) const {
        return {_mm256_fmadd_ps(x.v, _mm256_setzero_ps(), v), _mm256_fmadd_ps(x.w, _mm256_setzero_ps(), w)};
    }
    static VF select(const Mask &m, const VF &a, const VF &b) {
        return {_mm256_blendv_ps(b.v, a.v, m.m), _mm256_blendv_ps(b.w, a.w, m.n)};
    }
    VF only(const Mask &m) const { return {_mm256_and_ps(m.m, v), _mm256_and_ps(m.n, w)}; }  // +0 elsewhere
    VF negate_where(const Mask &m) const {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_xor_ps(v, _mm256_and_ps(m.m, sign)), _mm256_xor_ps(w, _mm256_and_ps(m.n, sign))};
    }
    // Sixteen sums: each half of a pair adds both of its registers to one, so that half as many sums are loaded and stored.
    template <int HALF> void take(const VF &x) { (HALF ? w : v) = _mm256_add_ps(HALF ? w : v, _mm256_add_ps(x.v, x.w)); }
    template <int HALF> void take_where(const Mask &m, const VF &x) { take<HALF>(x.only(m)); }
};

template <> struct Sums<VF> {
    __m256d s[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
    static __m256d part(const VF &x, int i) {
        __m256 half = i < 2 ? x.v : x.w;
        return _mm256_cvtps_pd(i & 1 ? _mm256_extractf128_ps(half, 1) : _mm256_castps256_ps128(half));
    }
    void add(const VF &a) {
        for (int i = 0; i < 4; ++i) s[i] = _mm256_add_pd(s[i], part(a, i));
    }
    void add_stored(const float *p) {
        for (int i = 0; i < 4; ++i) s[i] = _mm256_add_pd(s[i], _mm256_cvtps_pd(_mm_loadu_ps(p + 4 * i)));
    }
    void store(double *p) const {
        for (int i = 0; i < 4; ++i) _mm256_storeu_pd(p + 4 * i, s[i]);
    }
    void load(const double *p) {
        for (int i = 0; i < 4; ++i) s[i] = _mm256_loadu_pd(p + 4 * i);
    }
};

template <> struct Doubles<VF> {
    static constexpr int COUNT = 4;
    __m256d v;
    static Doubles of(const float *p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
    static Doubles of(const double *p) { return {_mm256_loadu_pd(p)}; }
    void store(double *p) const { _mm256_storeu_pd(p, v); }
    Doubles abs() const { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), v)}; }
    void add(Doubles a) { v = _mm256_add_pd(v, a.v); }
    void add_product(Doubles a, Doubles b) { v = _mm256_fmadd_pd(a.v, b.v, v); }
};

static inline void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }
static inline void fence() { _mm_sfence(); }

static inline void put(void *p, __m256i x, bool streaming) {
    if (streaming) _mm256_stream_si256(static_cast<__m256i *>(p), x);
    else _mm256_storeu_si256(static_cast<__m256i *>(p), x);
}

static inline void load_pair(const bf16 *p, VF &a, VF &b) {
    const __m256i *q = reinterpret_cast<const __m256i *>(p);
    const __m256i upper = _mm256_set1_epi32(int(0xffff0000));
    __m256i x = _mm256_loadu_si256(q), y = _mm256_loadu_si256(q + 1);
    a = {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), _mm256_castsi256_ps(_mm256_and_si256(x, upper))};
    b = {_mm256_castsi256_ps(_mm256_slli_epi32(y, 16)), _mm256_castsi256_ps(_mm256_and_si256(y, upper))};
}
static inline void load_pair(const fp16 *p, VF &a, VF &b) {
    const __m128i *q = reinterpret_cast<const __m128i *>(p);
    a = {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
    b = {_mm256_cvtph_ps(_mm_loadu_si128(q + 2)), _mm256_cvtph_ps(_mm_loadu_si128(q + 3))};
}
static inline void load_pair(const float *p, VF &a, VF &b) { a = VF::load(p), b = VF::load(p + 16); }
// float32 in the lanes that bfloat16 has.
static inline VF even_odd(VF x) {
    const auto joined = [&](__m256 y) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(y), 0xd8)); };
    return {joined(_mm256_shuffle_ps(x.v, x.w, 0x88)), joined(_mm256_shuffle_ps(x.v, x.w, 0xdd))};
}
static inline void load_even_odd(const float *p, VF &a, VF &b) { a = even_odd(VF::load(p)), b = even_odd(VF::load(p + 16)); }
static inline void store_even_odd(float *p, const VF &a) {
    const __m256 x = _mm256_unpacklo_ps(a.v, a.w), y = _mm256_unpackhi_ps(a.v, a.w);
    _mm256_storeu_ps(p, _mm256_permute2f128_ps(x, y, 0x20)), _mm256_storeu_ps(p + 8, _mm256_permute2f128_ps(x, y, 0x31));
}
static inline void store_even_odd(float *p, const VF &a, const VF &b) { store_even_odd(p, a), store_even_odd(p + 16, b); }

static inline __m256i rounded_bf16(__m256 x) {  // the result stands in the upper halves
    __m256i u = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256 r = _mm256_castsi256_ps(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))));
    __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    return _mm256_castps_si256(_mm256_blendv_ps(r, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
static inline void store_pair(bf16 *p, const VF &a, const VF &b, bool streaming) {
    __m256i x = _mm256_blend_epi16(_mm256_srli_epi32(rounded_bf16(a.v), 16), rounded_bf16(a.w), 0xaa);
    __m256i y = _mm256_blend_epi16(_mm256_srli_epi32(rounded_bf16(b.v), 16), rounded_bf16(b.w), 0xaa);
    put(p, x, streaming), put(p + 16, y, streaming);
}
// The bits of a pair of bfloat16 in element order, and back.
static inline uint32_t interleaved(const VF::Mask &a, const VF::Mask &b) {
    const __m256i x = _mm256_blend_epi16(_mm256_castps_si256(a.m), _mm256_castps_si256(a.n), 0xaa);
    const __m256i y = _mm256_blend_epi16(_mm256_castps_si256(b.m), _mm256_castps_si256(b.n), 0xaa);
    return uint32_t(_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(x, y), 0xd8)));
}
static inline void split(uint32_t bits, VF::Mask &a, VF::Mask &b) {
    const __m256i x = _mm256_set1_epi32(int(bits)), y = _mm256_srli_epi32(x, 16);
    const __m256i even = _mm256_setr_epi32(1, 1 << 2, 1 << 4, 1 << 6, 1 << 8, 1 << 10, 1 << 12, 1 << 14), odd = _mm256_slli_epi32(even, 1);
    const auto on = [](__m256i bits, __m256i place) { return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(bits, place), place)); };
    a = {on(x, even), on(x, odd)}, b = {on(y, even), on(y, odd)};
}
static inline __m256i rounded_fp16(const VF &x) {
    return _mm256_set_m128i(_mm256_cvtps_ph(x.w, _MM_FROUND_TO_NEAREST_INT), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
static inline void store_pair(fp16 *p, const VF &a, const VF &b, bool streaming) {
    put(p, rounded_fp16(a), streaming), put(p + 16, rounded_fp16(b), streaming);
}
static inline void store_pair(float *p, const VF &a, const VF &b, bool streaming) {
    put(p, _mm256_castps_si256(a.v), streaming), put(p + 8, _mm256_castps_si256(a.w), streaming);
    put(p + 16, _mm256_castps_si256(b.v), streaming), put(p + 24, _mm256_castps_si256(b.w), streaming);
}

}  // namespace fm::FM_ISA
