// What ops that merge do with the sum of task vectors: divide, scale, add base, and count what is not finite.
#pragma once
#include <bit>
#include <limits>

#include "strips.hpp"

namespace fm::FM_ISA {

// The least magnitude that rounds to infinity.
template <class W> static W rounds_to_infinity(int dtype) {
    switch (dtype) {
        case BF16: return W(0x1.ffp127);
        case F16: return W(65520);
        case F32:
            if constexpr (sizeof(W) == 8) return 0x1.ffffffp127;
            [[fallthrough]];
        default: return std::numeric_limits<W>::infinity();
    }
}

// What comes after the consensus. Multiplying by 1 changes nothing and costs less than to ask; and what asks in every turn of
// a loop, as compilers make it, compares integers, which vectors leave ports for.
template <class T> struct Finish {
    using V = typename Working<T>::V;
    using W = typename Working<T>::W;
    const V divisor, scale, limit;
    const bool divides, adds_base;

    explicit Finish(const Args &a)
        : divisor(V::set(W(a.divisor))), scale(V::set(W(a.scale))), limit(V::set(rounds_to_infinity<W>(a.out.dtype))),
          divides(std::bit_cast<int64_t>(a.divisor) != std::bit_cast<int64_t>(1.0)), adds_base(a.base.data && !a.as_delta) {}
    [[gnu::always_inline]] V complete(V d, const V &base) const {
        if (divides) [[unlikely]] d = d / divisor;
        d = scale * d;
        return adds_base ? base + d : d;
    }
    // Of the first n elements of a pair, how many are not finite in the output, or marked.
    [[gnu::always_inline]] int64_t nonfinite(const V &d0, const V &d1, uint32_t marked, int n) const {
        const auto finite0 = limit > d0.abs(), finite1 = limit > d1.abs();
        if ((finite0 & finite1).bits() == 0xffff && !marked) [[likely]] return 0;
        const uint32_t bad = ~pair_bits<T>(finite0, finite1) | marked;
        return std::popcount(n >= PAIR ? bad : bad & ((1u << n) - 1));
    }
};

}  // namespace fm::FM_ISA
