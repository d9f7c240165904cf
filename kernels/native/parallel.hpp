// A pool of threads that take fixed blocks from a counter. Not OpenMP: torch brings a runtime of its own, and two of
// them in one process cost milliseconds a region.
#pragma once
#include <cstdint>
#include <functional>

namespace fm {

// Calls body(block) for every block below `blocks`, on as many threads as set; the caller works too. A call made while
// another is running works alone. body must not throw.
void parallel_for(int64_t blocks, const std::function<void(int64_t)> &body);
// From here on the calling thread uses no others: it is one of several that work side by side.
void work_alone();
void set_threads(int threads);
int threads();

}  // namespace fm
