// Bits to bools, the reverse of pack_bits.
#include <cstring>

#include "kernels.hpp"

namespace fm::FM_ISA {

int64_t unpack_bits(const Args &a, int64_t begin, int64_t n, double *, int64_t *) {
    const uint8_t *from = a.masks + begin / 8;
    uint8_t *to = static_cast<uint8_t *>(a.out.data) + begin;
    for (int64_t i = 0; i < n; i += 8) {
        // Copies the byte into all eight, then leaves in each the bit of its own.
        uint64_t bits = (uint64_t(from[i / 8]) * 0x0101010101010101) & 0x8040201008040201;
        bits = ((bits + 0x7f7f7f7f7f7f7f7f) | bits) >> 7 & 0x0101010101010101;
        memcpy(to + i, &bits, n - i < 8 ? n - i : 8);
    }
    return 0;
}

}  // namespace fm::FM_ISA
