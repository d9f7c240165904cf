// AVX-512: a vector is one register, a mask a mask register.
#pragma once

namespace fm::FM_ISA {

struct VF {
    __m512 v;
    struct Mask {
        __mmask16 m;
        // By an instruction of its own: GCC 12 may write the mask to memory as two bytes, and read it as four.
        uint32_t bits() const {
            uint32_t bits;
            asm("kmovw %1, %0" : "=r"(bits) : "k"(m));
            return bits;
        }
        Mask operator&(Mask o) const { return {__mmask16(m & o.m)}; }
        Mask operator|(Mask o) const { return {__mmask16(m | o.m)}; }
        static Mask from(uint32_t b) { return {__mmask16(b)}; }
        static Mask at_least(const uint32_t *p, uint32_t x) {
            return {_mm512_cmp_epu32_mask(_mm512_loadu_si512(p), _mm512_set1_epi32(int(x)), _MM_CMPINT_NLT)};
        }
    };
    static VF set(float x) { return {_mm512_set1_ps(x)}; }
    static VF load(const float *p) { return {_mm512_loadu_ps(p)}; }
    void store(float *p) const { _mm512_storeu_ps(p, v); }
    VF operator+(VF o) const { return {_mm512_add_ps(v, o.v)}; }
    VF operator-(VF o) const { return {_mm512_sub_ps(v, o.v)}; }
    VF operator*(VF o) const { return {_mm512_mul_ps(v, o.v)}; }
    VF operator/(VF o) const { return {_mm512_div_ps(v, o.v)}; }
    VF abs() const { return {_mm512_abs_ps(v)}; }
    Mask operator>(VF o) const { return {_mm512_cmp_ps_mask(v, o.v, _CMP_GT_OQ)}; }
    Mask operator>=(VF o) const { return {_mm512_cmp_ps_mask(v, o.v, _CMP_GE_OQ)}; }
    Mask is_nan() const { return {_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q)}; }
    Mask not_above(VF o) const { return {_mm512_cmp_ps_mask(v, o.v, _CMP_NGT_UQ)}; }
    Mask above_or_nan(VF o) const { return {_mm512_cmp_ps_mask(v, o.v, _CMP_NLE_UQ)}; }
    Mask nonzero() const { return {_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ)}; }
    VF plus_where(Mask m, VF o) const { return {_mm512_mask_add_ps(v, m.m, v, o.v)}; }
    VF divided_where(Mask m, VF o) const { return {_mm512_mask_div_ps(v, m.m, v, o.v)}; }
    VF or_larger(VF o) const { return {_mm512_max_ps(o.v, v)}; }  // o > *this ? o : *this, as the instruction is defined
    VF spoilt_by(VF x) const { return {_mm512_fmadd_ps(x.v, _mm512_setzero_ps(), v)}; }
    static VF select(Mask m, VF a, VF b) { return {_mm512_mask_mov_ps(b.v, m.m, a.v)}; }
    VF only(Mask m) const { return {_mm512_maskz_mov_ps(m.m, v)}; }  // +0 elsewhere
    VF negate_where(Mask m) const { return {_mm512_mask_xor_ps(v, m.m, v, _mm512_set1_ps(-0.0f))}; }
    template <int HALF> void take(VF x) { v = _mm512_add_ps(v, x.v); }
    template <int HALF> void take_where(Mask m, VF x) { v = _mm512_mask_add_ps(v, m.m, v, x.v); }
};

template <> struct Sums<VF> {
    __m512d s[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
    static __m512d low(VF x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x.v)); }
    static __m512d high(VF x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1)); }
    void add(VF a) { s[0] = _mm512_add_pd(s[0], low(a)), s[1] = _mm512_add_pd(s[1], high(a)); }
    void add_stored(const float *p) {  // converting from memory spares the shuffle port
        for (int i = 0; i < 2; ++i) s[i] = _mm512_add_pd(s[i], _mm512_cvtps_pd(_mm256_loadu_ps(p + 8 * i)));
    }
    void store(double *p) const { _mm512_storeu_pd(p, s[0]), _mm512_storeu_pd(p + 8, s[1]); }
    void load(const double *p) { s[0] = _mm512_loadu_pd(p), s[1] = _mm512_loadu_pd(p + 8); }
};

template <> struct Doubles<VF> {
    static constexpr int COUNT = 8;
    __m512d v;
    static Doubles of(const float *p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
    static Doubles of(const double *p) { return {_mm512_loadu_pd(p)}; }
    void store(double *p) const { _mm512_storeu_pd(p, v); }
    Doubles abs() const { return {_mm512_abs_pd(v)}; }
    void add(Doubles a) { v = _mm512_add_pd(v, a.v); }
    void add_product(Doubles a, Doubles b) { v = _mm512_fmadd_pd(a.v, b.v, v); }
};

static inline void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }
static inline void fence() { _mm_sfence(); }

static inline void put(void *p, __m512i x, bool streaming) {
    if (streaming) _mm512_stream_si512(static_cast<__m512i *>(p), x);
    else _mm512_storeu_si512(p, x);
}

static inline void load_pair(const bf16 *p, VF &a, VF &b) {
    __m512i x = _mm512_loadu_si512(p);
    a.v = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    b.v = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(int(0xffff0000))));
}
static inline void load_pair(const fp16 *p, VF &a, VF &b) {
    const __m256i *q = reinterpret_cast<const __m256i *>(p);
    a.v = _mm512_cvtph_ps(_mm256_loadu_si256(q)), b.v = _mm512_cvtph_ps(_mm256_loadu_si256(q + 1));
}
static inline void load_pair(const float *p, VF &a, VF &b) { a = VF::load(p), b = VF::load(p + 16); }
// float32 in the lanes that bfloat16 has.
static inline void load_even_odd(const float *p, VF &a, VF &b) {
    const VF x = VF::load(p), y = VF::load(p + 16);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    a.v = _mm512_permutex2var_ps(x.v, even, y.v);
    b.v = _mm512_permutex2var_ps(x.v, _mm512_add_epi32(even, _mm512_set1_epi32(1)), y.v);
}
static inline void store_even_odd(float *p, const VF &a, const VF &b) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    _mm512_storeu_ps(p, _mm512_permutex2var_ps(a.v, first, b.v));
    _mm512_storeu_ps(p + 16, _mm512_permutex2var_ps(a.v, _mm512_add_epi32(first, _mm512_set1_epi32(8)), b.v));
}

// In a register from before a loop on: compilers would rather make it anew in every turn.
static inline __m512i constant(int x) {
    __m512i v = _mm512_set1_epi32(x);
    asm("" : "+v"(v));
    return v;
}
static inline __m512i rounded_bf16(__m512 x) {  // the result stands in the upper halves
    const __m512i u = _mm512_castps_si512(x);
    const __mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), odd = _mm512_test_epi32_mask(u, constant(0x10000));
    const __m512i half = _mm512_mask_add_epi32(constant(0x7fc00000), number, u, constant(0x7fff));
    return _mm512_mask_add_epi32(half, odd, half, constant(1));
}
static inline void store_pair(bf16 *p, VF a, VF b, bool streaming) {
    __m512i even = _mm512_srli_epi32(rounded_bf16(a.v), 16);
    put(p, _mm512_mask_mov_epi16(even, 0xaaaaaaaa, rounded_bf16(b.v)), streaming);
}
static inline void store_pair(fp16 *p, VF a, VF b, bool streaming) {
    __m256i low = _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256i high = _mm512_cvtps_ph(b.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    put(p, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), streaming);
}
static inline void store_pair(float *p, VF a, VF b, bool streaming) {
    put(p, _mm512_castps_si512(a.v), streaming), put(p + 16, _mm512_castps_si512(b.v), streaming);
}


// The bits of a pair of bfloat16 in element order, and back.
static inline uint32_t interleaved(const VF::Mask &a, const VF::Mask &b) {
    return _pdep_u32(a.bits(), 0x55555555) | _pdep_u32(b.bits(), 0xaaaaaaaa);
}
static inline void split(uint32_t bits, VF::Mask &a, VF::Mask &b) {
    a = VF::Mask::from(_pext_u32(bits, 0x55555555)), b = VF::Mask::from(_pext_u32(bits, 0xaaaaaaaa));
}

}  // namespace fm::FM_ISA
