// Scalar conversions, exact and rounded once to nearest even, for any instruction set and any alignment.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels.hpp"

namespace fm::FM_ISA {

struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};

template <class T> constexpr int dtype_of = -1;
template <> constexpr int dtype_of<bf16> = BF16;
template <> constexpr int dtype_of<fp16> = F16;
template <> constexpr int dtype_of<float> = F32;
template <> constexpr int dtype_of<double> = F64;

static inline int64_t item_size(int dtype) { return dtype == F64 ? 8 : dtype == F32 ? 4 : 2; }

static inline float widen(bf16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }
static inline float widen(float x) { return x; }
static inline double widen(double x) { return x; }
static inline float widen(fp16 x) {
    uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
    if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    // Subnormals included: the exponent is rebased by a multiplication that is exact.
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f));
}

static inline void narrow(float x, float &to) { to = x; }
static inline void narrow(float x, double &to) { to = x; }
static inline void narrow(double x, double &to) { to = x; }
static inline void narrow(double x, float &to) { to = float(x); }
static inline void narrow(float x, bf16 &to) {
    uint32_t u = std::bit_cast<uint32_t>(x);
    to.bits = (u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static inline void narrow(float x, fp16 &to) {
    uint32_t u = std::bit_cast<uint32_t>(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        to.bits = 0x7e00;
    } else if (magnitude >= 0x477ff000) {  // rounds to 65 536 or beyond
        to.bits = uint16_t(sign | 0x7c00);
    } else if (magnitude < 0x38800000) {  // subnormal: let the addition round at the last place of 2^-24
        float shifted = std::bit_cast<float>(magnitude) + 0.5f;
        to.bits = uint16_t(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000));
    } else {
        to.bits = uint16_t(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
    }
}

// float64 to 16 bits by way of float32 would round twice; rounding the first step to odd makes the second exact.
static inline float round_to_odd(double x) {
    float near = float(x);
    double exact = near;
    if (exact == x || x != x) return near;
    uint32_t bits = std::bit_cast<uint32_t>(near);
    if ((exact < 0 ? -exact : exact) > (x < 0 ? -x : x)) bits -= 1;
    return std::bit_cast<float>(bits | 1);
}
static inline void narrow(double x, bf16 &to) { narrow(round_to_odd(x), to); }
static inline void narrow(double x, fp16 &to) { narrow(round_to_odd(x), to); }

// n elements of any dtype into a strip of the working type, and back.
template <class T, class W> static inline void widen_as(const char *from, W *to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        T x;
        memcpy(&x, from + i * sizeof(T), sizeof(T));
        to[i] = widen(x);
    }
}
template <class W> static inline void widen_strip(const In &in, int64_t begin, int64_t n, W *to) {
    const char *from = static_cast<const char *>(in.data) + begin * item_size(in.dtype);
    if (in.dtype == BF16) widen_as<bf16>(from, to, n);
    else if (in.dtype == F16) widen_as<fp16>(from, to, n);
    else if (in.dtype == F32) widen_as<float>(from, to, n);
    else if constexpr (sizeof(W) == 8) widen_as<double>(from, to, n);
}
template <class T, class W> static inline void narrow_as(const W *from, char *to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        T x;
        narrow(from[i], x);
        memcpy(to + i * sizeof(T), &x, sizeof(T));
    }
}
template <class W> static inline void narrow_strip(const W *from, const Out &out, int64_t begin, int64_t n) {
    char *to = static_cast<char *>(out.data) + begin * item_size(out.dtype);
    if (out.dtype == BF16) narrow_as<bf16>(from, to, n);
    else if (out.dtype == F16) narrow_as<fp16>(from, to, n);
    else if (out.dtype == F32) narrow_as<float>(from, to, n);
    else narrow_as<double>(from, to, n);
}

}  // namespace fm::FM_ISA
