// Bools to bits: bit i of byte j is element 8j + i. `base` is the mask (a byte an element), `masks` the packed bits.
#include <cstring>

#include "kernels.hpp"

namespace fm::FM_ISA {

int64_t pack_bits(const Args &a, int64_t begin, int64_t n, double *, int64_t *) {
    const uint8_t *from = static_cast<const uint8_t *>(a.base.data) + begin;
    uint8_t *to = a.masks + begin / 8;
    for (int64_t i = 0; i < n; i += 8) {
        uint64_t bytes = 0;
        memcpy(&bytes, from + i, n - i < 8 ? n - i : 8);
        // The multiplication gathers the low bit of every byte in the top one.
        to[i / 8] = uint8_t(bytes * 0x0102040810204080 >> 56);
    }
    return 0;
}

}  // namespace fm::FM_ISA
