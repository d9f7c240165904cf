// Where bytes are worked on, and the copies between there and memory of the host.
#pragma once

#include <cstdint>
#include <memory>

namespace fm {

// A GPU, or the host's memory.
class Worksite {
  public:
    virtual ~Worksite() = default;
    virtual void enter() = 0;  // each thread calls it before it copies or waits
    // Copies there or back, perhaps later; `turn` is the place of the host's memory among `places`.
    virtual void bring(uintptr_t to, const void *from, int64_t n, int turn) = 0;
    virtual void fetch(void *to, uintptr_t from, int64_t n, int turn) = 0;
    virtual void wait(int turn) = 0;  // until the last copy of that place is done
    virtual void finish() = 0;        // until every copy is done
};

// device: the number of a GPU, or -1; stream: CUDA's, for its copies, each of which is behind those before.
std::unique_ptr<Worksite> worksite(int device, uintptr_t stream, int places);

}  // namespace fm
