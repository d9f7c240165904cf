// Registers of 16 bytes by the compilers' vectors: SSE2, NEON and others. Of bfloat16 each is split into even and odd elements.
#pragma once

namespace fm::FM_ISA {

using VF = Vec<float>;
using Floats = Register<float>;
using Words = Register<uint32_t>;
using Halves = Register<uint16_t, 8>;  // as many as there are Words

static inline void prefetch(const void *p) { __builtin_prefetch(p); }
static inline void fence() {}

FM_INLINE static inline Words chosen(const Words &mask, const Words &x, const Words &otherwise) { return (mask & x) | (~mask & otherwise); }

// numeric.hpp has these conversions of one number, with the reasons.
FM_INLINE static inline Floats widened(const Halves &halves) {
    const Words x = __builtin_convertvector(halves, Words), sign = (x & 0x8000) << 16, magnitude = (x & 0x7fff) << 13;
    const Words number = Words(Floats(magnitude) * 0x1p112f), special = magnitude | 0x7f800000;
    return Floats(sign | chosen(Words(magnitude >= 0x7c00u << 13), special, number));
}
FM_INLINE static inline Halves narrowed(const Floats &x) {
    const Words u = Words(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    const Words tiny = Words(Floats(magnitude) + 0.5f) - 0x3f000000;
    Words r = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    r = chosen(Words(magnitude < 0x38800000), tiny, r);
    r = sign | chosen(Words(magnitude >= 0x477ff000), splat<Words>(0x7c00u), r);
    return __builtin_convertvector(chosen(Words(magnitude > 0x7f800000), splat<Words>(0x7e00u), r), Halves);
}
FM_INLINE static inline Words rounded_bf16(const Floats &x) {  // the result stands in the upper halves
    const Words u = Words(x);
    return chosen(Words(x != x), splat<Words>(0x7fc00000u), u + 0x7fff + (u >> 16 & 1));
}

FM_INLINE static inline void load_pair(const bf16 *p, VF &a, VF &b) {
    for_each<VF::PARTS>([&](auto i) FM_INLINE {
        const Words x = load_register<Words>(p + 8 * i);
        a.v[i] = Floats(x << 16), b.v[i] = Floats(x & 0xffff0000);
    });
}
FM_INLINE static inline void load_pair(const fp16 *p, VF &a, VF &b) {
    for_each<VF::PARTS>([&](auto i) FM_INLINE {
        a.v[i] = widened(load_register<Halves>(p + 4 * i)), b.v[i] = widened(load_register<Halves>(p + 16 + 4 * i));
    });
}
FM_INLINE static inline void load_pair(const float *p, VF &a, VF &b) { a = VF::load(p), b = VF::load(p + 16); }
// float32 in the lanes that bfloat16 has.
FM_INLINE static inline void load_even_odd(const float *p, VF &a, VF &b) {
    for_each<VF::PARTS>([&](auto i) FM_INLINE {
        const Floats x = load_register<Floats>(p + 8 * i), y = load_register<Floats>(p + 8 * i + 4);
        a.v[i] = unzipped<0>(x, y), b.v[i] = unzipped<1>(x, y);
    });
}
FM_INLINE static inline void store_even_odd(float *p, const VF &a, const VF &b) {
    for_each<VF::PARTS>([&](auto i) FM_INLINE {
        store_register(p + 8 * i, zipped_low(a.v[i], b.v[i])), store_register(p + 8 * i + 4, zipped_high(a.v[i], b.v[i]));
    });
}
FM_INLINE static inline void store_pair(bf16 *p, const VF &a, const VF &b, bool) {
    for_each<VF::PARTS>([&](auto i) FM_INLINE { store_register(p + 8 * i, (rounded_bf16(a.v[i]) >> 16) | (rounded_bf16(b.v[i]) & 0xffff0000)); });
}
FM_INLINE static inline void store_pair(fp16 *p, const VF &a, const VF &b, bool) {
    for_each<VF::PARTS>([&](auto i) FM_INLINE {
        store_register(p + 4 * i, narrowed(a.v[i])), store_register(p + 16 + 4 * i, narrowed(b.v[i]));
    });
}
FM_INLINE static inline void store_pair(float *p, const VF &a, const VF &b, bool) { a.store(p), b.store(p + 16); }

// The bits of a pair of bfloat16 in element order, and back.
FM_INLINE static inline uint32_t interleaved(const VF::Mask &a, const VF::Mask &b) { return any_bits(a.placed<2, 0>() | b.placed<2, 1>()); }
FM_INLINE static inline void split(uint32_t bits, VF::Mask &a, VF::Mask &b) { a = VF::Mask::from<2, 0>(bits), b = VF::Mask::from<2, 1>(bits); }

}  // namespace fm::FM_ISA
