// What a tensor has at an expert's elements.
#include <cstring>

#include "kernels.hpp"

namespace fm::FM_ISA {

template <class T> static void read(const Sparse &e, int64_t block, const char *from) {
    for (int64_t j = e.starts[block]; j < e.starts[block + 1]; ++j) {
        uint16_t offset;
        memcpy(&offset, e.offsets + j * sizeof offset, sizeof offset);
        memcpy(e.values + j * sizeof(T), from + offset * sizeof(T), sizeof(T));
    }
}

int64_t gather(const Args &a, int64_t begin, int64_t, double *, int64_t *) {
    const int size = a.base.dtype == F64 ? 8 : a.base.dtype == F32 ? 4 : 2;
    const char *from = static_cast<const char *>(a.base.data) + begin * size;
    (size == 8 ? read<uint64_t> : size == 4 ? read<uint32_t> : read<uint16_t>)(a.sparse[0], begin / BLOCK, from);
    return 0;
}

}  // namespace fm::FM_ISA
