// A pool of threads that take fixed blocks from a counter. Not OpenMP: torch brings a runtime of its own, and two of
// them in one process cost milliseconds a region.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "kernels.hpp"

namespace fm {

inline int64_t blocks_of(int64_t n) { return (n + BLOCK - 1) / BLOCK; }
inline int64_t block_size(int64_t block, int64_t n) { return std::min(BLOCK, n - block * BLOCK); }

// Calls body(block) for every block below `blocks`, taken in order, on as many threads as set; the caller works too. Calls
// at the same time share the threads. body must not throw.
void parallel_for(int64_t blocks, const std::function<void(int64_t)> &body);
void set_threads(int threads);
int threads();

// What blocks work with: each borrows a piece and gives it back, so that there are no more than threads.
template <class T> class Workspaces {
  public:
    template <class Make> Workspaces(int64_t blocks, Make make) {
        for (int64_t i = std::min<int64_t>(blocks, threads()); i > 0; --i) all_.push_back(make());
        for (T &piece : all_) idle_.push_back(&piece);
    }
    template <class Body> void with(Body body) {
        T *piece;
        {
            std::lock_guard lock(mutex_);
            piece = idle_.back();
            idle_.pop_back();
        }
        body(*piece);
        std::lock_guard lock(mutex_);
        idle_.push_back(piece);
    }
    const std::vector<T> &all() const { return all_; }

  private:
    std::vector<T> all_;
    std::vector<T *> idle_;
    std::mutex mutex_;
};

}  // namespace fm
