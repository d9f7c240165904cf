// Experts' values put in the place of a tensor's, all experts of a block while it is in the cache.
//
// Stores of single elements need no prefetching: they are not waited for.
#include <cstring>

#include "kernels.hpp"

namespace fm::FM_ISA {

template <class T> static void write(const Sparse &e, int64_t block, char *to) {
    for (int64_t j = e.starts[block]; j < e.starts[block + 1]; ++j) {
        uint16_t offset;
        memcpy(&offset, e.offsets + j * sizeof offset, sizeof offset);
        memcpy(to + offset * sizeof(T), e.values + j * sizeof(T), sizeof(T));
    }
}

int64_t scatter(const Args &a, int64_t begin, int64_t, double *, int64_t *) {
    const int size = a.out.dtype == F64 ? 8 : a.out.dtype == F32 ? 4 : 2;
    char *to = static_cast<char *>(a.out.data) + begin * size;
    for (int k = 0; k < a.models_count; ++k)
        (size == 8 ? write<uint64_t> : size == 4 ? write<uint32_t> : write<uint16_t>)(a.sparse[k], begin / BLOCK, to);
    return 0;
}

}  // namespace fm::FM_ISA
