// Bytes of where they are worked on, written to files: device → staging memory → file.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "worksite.hpp"

namespace fm {

// Bytes from an address of the device that go to `offset` of a file: through a map of it, where `map` is the address of
// that place, else those from `first` to `last` by the descriptor `direct`, and the others by `cached`.
struct Extent {
    uintptr_t from;
    int64_t nbytes, offset;
    int cached, direct;
    int64_t first, last;
    uintptr_t map;
};

// Staging memory is small enough to stay in a processor's cache: a thread writes out of one part of its share while the
// next bytes come into the other.
class Unloader {
  public:
    static constexpr int PARTS = 2;  // of a thread's share

    Unloader(uintptr_t staging, int64_t nbytes, int threads, int device, uintptr_t stream);

    // Writes, by the thread that calls, as up to `threads` may at a time. Returns 0, the errno of what failed, or -1 where
    // the pages of a map cannot be had. Throws what the device says.
    int write(const std::vector<Extent> &extents);

  private:
    char *const staging_;
    const int64_t part_;
    const std::unique_ptr<Worksite> worksite_;
    std::mutex mutex_;
    std::condition_variable given_back_;
    std::vector<int> free_;  // shares that no thread has
};

}  // namespace fm
