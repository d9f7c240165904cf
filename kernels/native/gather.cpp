// What a block has at an expert's elements.
#include <cstring>

#include "selection.hpp"

namespace fm::FM_ISA {

template <class T> static void read(const char *theta, const char *offsets, int64_t n, char *values) {
    for (int64_t i = 0; i < n; ++i) {
        uint16_t offset;
        memcpy(&offset, offsets + i * sizeof offset, sizeof offset);
        memcpy(values + i * sizeof(T), theta + offset * sizeof(T), sizeof(T));
    }
}

void gather(const char *theta, int64_t item_size, const char *offsets, int64_t n, char *values) {
    (item_size == 8 ? read<uint64_t> : item_size == 4 ? read<uint32_t> : read<uint16_t>)(theta, offsets, n, values);
}

}  // namespace fm::FM_ISA
