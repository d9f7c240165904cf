// Maps of files in which what cannot be read, since the file was cut off or its disk fails, is zeros that are told of, and
// not the end of the process by SIGBUS.
#pragma once

#include <cstdint>

namespace fm {

// Guards a map of n bytes; 0 where there is no room for one more, else what the other two take.
int guard(uintptr_t start, uint64_t n);

// The offset of a byte that could not be read, -1 where all could.
int64_t lost(int guard);

// To be called before the map goes.
void unguard(int guard);

}  // namespace fm
