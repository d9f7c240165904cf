// Exponentials by additions and multiplications alone, whose bits are those of kernels/reference/exponential.py.
#pragma once
#include <cstdint>
#include <cstring>

namespace fm::FM_ISA {

// A register of AVX-512, or what stands for one: operators work on all lanes.
template <class W> struct ManyOf { typedef W type __attribute__((vector_size(64))); };
template <class W> using Many = typename ManyOf<W>::type;
template <class W> constexpr int MANY = 64 / sizeof(W);

template <class W> static inline Many<W> all(W x) { return Many<W>{} + x; }
template <class W> static inline Many<W> load_many(const W *p) {
    Many<W> x;
    memcpy(&x, p, sizeof x);
    return x;
}
template <class W> static inline void store_many(W *p, const Many<W> &x) { memcpy(p, &x, sizeof x); }

template <class W> struct Exponential;
template <> struct Exponential<float> {
    using Bits = uint32_t;
    static constexpr float ROUNDING = 0x1.8p23f;  // what is added to it loses its fraction
    static constexpr int BIAS = 127, MANTISSA = 23, DEGREE = 7;
};
template <> struct Exponential<double> {
    using Bits = uint64_t;
    static constexpr double ROUNDING = 0x1.8p52;
    static constexpr int BIAS = 1023, MANTISSA = 52, DEGREE = 13;
};

// 1 / j!
template <class W> struct Inverses { W of[Exponential<W>::DEGREE + 1]; };
template <class W> constexpr Inverses<W> inverses() {
    Inverses<W> found{};
    double factorial = 1;
    for (int j = 1; j <= Exponential<W>::DEGREE; ++j) found.of[j] = W(1 / (factorial *= j));
    return found;
}

// eˣ = power · (1 + rest), power being a whole power of two.
template <class W> struct Powers { Many<W> power, rest; };

template <class W> [[gnu::always_inline]] static inline Powers<W> powers(Many<W> x) {
    using E = Exponential<W>;
    using Bits = Many<typename E::Bits>;
    const Many<W> shifted = x * W(1.44269504088896340736) + E::ROUNDING, m = shifted - E::ROUNDING;
    const Many<W> r = (x - m * W(0x1.62e4p-1)) - m * W(1.42860682030941723212e-6);
    constexpr Inverses<W> factorial = inverses<W>();
    Many<W> q = all(factorial.of[E::DEGREE]);
#pragma GCC unroll 16
    for (int j = E::DEGREE - 1; j > 1; --j) q = q * r + factorial.of[j];
    Bits bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + E::BIAS) << E::MANTISSA;  // m stands in its lowest bits
    Many<W> power;
    memcpy(&power, &bits, sizeof power);
    return {power, r * r * q + r};
}

}  // namespace fm::FM_ISA
