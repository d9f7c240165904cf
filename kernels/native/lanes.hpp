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

// The two by two blocks of `size` lanes of vectors i and i + size change places across the diagonal.
template <int size, class W, int... J>
static inline void exchange(Vector<W> &a, Vector<W> &b, std::integer_sequence<int, J...>) {
    constexpr int n = LANES<W>;
    const Vector<W> first = __builtin_shufflevector(a, b, (J & size ? n + J - size : J)...);
    b = __builtin_shufflevector(a, b, (J & size ? n + J : J + size)...);
    a = first;
}
template <class W, int size = 1> static inline void transpose(Vector<W> *x) {
    for (int i = 0; i < LANES<W>; ++i)
        if (!(i & size)) exchange<size, W>(x[i], x[i + size], std::make_integer_sequence<int, LANES<W>>());
    if constexpr (2 * size < LANES<W>) transpose<W, 2 * size>(x);
}

}  // namespace fm::FM_ISA
