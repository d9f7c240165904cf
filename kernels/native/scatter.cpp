// An expert's values put in the place of a block's. Stores of single elements are not waited for: nothing is prefetched.
#include <cstring>

#include "selection.hpp"

namespace fm::FM_ISA {

template <class T> static void write(char *theta, const char *offsets, int64_t n, const char *values) {
    for (int64_t i = 0; i < n; ++i) {
        uint16_t offset;
        memcpy(&offset, offsets + i * sizeof offset, sizeof offset);
        memcpy(theta + offset * sizeof(T), values + i * sizeof(T), sizeof(T));
    }
}

void scatter(char *theta, int64_t item_size, const char *offsets, int64_t n, const char *values) {
    (item_size == 8 ? write<uint64_t> : item_size == 4 ? write<uint32_t> : write<uint16_t>)(theta, offsets, n, values);
}

}  // namespace fm::FM_ISA
