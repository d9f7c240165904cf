// Writing to files of memory (tmpfs) through a map of them, by as many threads as like to.
#pragma once

#include <cstdint>

namespace fm {

// Copies n bytes to a place in a map of a whole file. False where its pages cannot be had, as where the system is older
// than Linux 5.14 or the file system is full; to touch them would end the process by a signal.
bool write_mapped(char *to, const char *from, int64_t n);

}  // namespace fm
