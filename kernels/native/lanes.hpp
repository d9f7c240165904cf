// Vectors of 32 bytes for any instruction set, and their transposition.
#pragma once
#include <cstring>
#include <utility>

#include "transform.hpp"

namespace fm::FM_ISA {

template <class W> struct VectorOf { typedef W type __attribute__((vector_size(VECTOR))); };
template <class W> using Vector = typename VectorOf<W>::type;
template <class W> constexpr int LANES = VECTOR / sizeof(W);

template <class W> static inline Vector<W> load(const W *p) {
    Vector<W> x;
    memcpy(&x, p, sizeof x);
    return x;
}
template <class W> static inline void store(W *p, const Vector<W> &x) { memcpy(p, &x, sizeof x); }

// Of vectors a and b, each second lane of a and the lane of b before it change places.
template <class W, int... J> static inline void exchange(Vector<W> &a, Vector<W> &b, std::integer_sequence<int, J...>) {
    constexpr int n = LANES<W>;
    const Vector<W> first = __builtin_shufflevector(a, b, (J % 2 ? n + J - 1 : J)...);
    b = __builtin_shufflevector(a, b, (J % 2 ? n + J : J + 1)...);
    a = first;
}
// The same of pairs of floats or of doubles, which compilers know the instructions of as those of doubles; and of halves.
template <class W> static inline void exchange_doubles(Vector<W> &a, Vector<W> &b) {
    Vector<double> x = (Vector<double>)a, y = (Vector<double>)b;
    exchange<double>(x, y, std::make_integer_sequence<int, 4>());
    a = (Vector<W>)x, b = (Vector<W>)y;
}
template <class W> static inline void exchange_halves(Vector<W> &a, Vector<W> &b) {
    const Vector<double> x = (Vector<double>)a, y = (Vector<double>)b;
    a = (Vector<W>)__builtin_shufflevector(x, y, 0, 1, 4, 5), b = (Vector<W>)__builtin_shufflevector(x, y, 2, 3, 6, 7);
}
// As many vectors as they have lanes. Loops over such tiles are unrolled, or they would be kept in memory.
[[gnu::always_inline]] static inline void transpose(Vector<float> *x) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) exchange<float>(x[i], x[i + 1], std::make_integer_sequence<int, 8>());
#pragma GCC unroll 8
    for (int i = 0; i < 4; ++i) exchange_doubles<float>(x[i / 2 * 4 + i % 2], x[i / 2 * 4 + i % 2 + 2]);
#pragma GCC unroll 8
    for (int i = 0; i < 4; ++i) exchange_halves<float>(x[i], x[i + 4]);
}
[[gnu::always_inline]] static inline void transpose(Vector<double> *x) {
#pragma GCC unroll 8
    for (int i = 0; i < 4; i += 2) exchange_doubles<double>(x[i], x[i + 1]);
#pragma GCC unroll 8
    for (int i = 0; i < 2; ++i) exchange_halves<double>(x[i], x[i + 2]);
}

}  // namespace fm::FM_ISA
