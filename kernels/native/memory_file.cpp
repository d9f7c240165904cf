#include "memory_file.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace fm {

bool write_mapped(char *to, const char *from, int64_t n) {
    // A huge page at a time: what the system has just cleared is in the cache when it is filled.
    constexpr uintptr_t STEP = 2 << 20;
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
    for (uintptr_t at = uintptr_t(to), end = at + uintptr_t(n); at < end;) {
        const uintptr_t first = at / page * page, stop = std::min(end, (at / STEP + 1) * STEP);
        if (madvise(reinterpret_cast<void *>(first), stop - first, MADV_POPULATE_WRITE)) return false;
        memcpy(reinterpret_cast<void *>(at), from, stop - at);
        from += stop - at, at = stop;
    }
    return true;
}

}  // namespace fm
