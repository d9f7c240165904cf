#include "unloader.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>

#include "memory_file.hpp"

namespace fm {
namespace {

constexpr int64_t PAGE = 4096;

// A stretch of an extent that has room in a part.
struct Step {
    const Extent *extent;
    int64_t start, stop;
};

// The largest power of two up to n, or 0: parts that begin at its multiples have whole pages, and whole huge ones.
int64_t floor_to_power(int64_t n) {
    int64_t power = n > 0 ? 1 : 0;
    while (power && power <= n / 2) power *= 2;
    return power;
}

int write_whole(int file, const char *from, int64_t n, int64_t offset) {
    while (n > 0) {
        const ssize_t written = pwrite(file, from, size_t(n), off_t(offset));
        if (written < 0 && errno != EINTR) return errno;
        if (written > 0) from += written, offset += written, n -= written;
    }
    return 0;
}

int write_step(const Step &step, const char *from) {
    const Extent &extent = *step.extent;
    if (extent.map)
        return write_mapped(reinterpret_cast<char *>(extent.map) + step.start, from, step.stop - step.start) ? 0 : -1;
    const int64_t first = std::clamp(extent.first, step.start, step.stop), last = std::clamp(extent.last, first, step.stop);
    const auto between = [&](int file, int64_t a, int64_t b) { return write_whole(file, from + (a - step.start), b - a, extent.offset + a); };
    if (const int error = between(extent.cached, step.start, first)) return error;
    int error = between(extent.direct, first, last);
    // Of a file system that wants other alignment, or memory that a driver does not let be written from past the cache.
    if (error == EINVAL || error == EFAULT) error = between(extent.cached, first, last);
    return error ? error : between(extent.cached, last, step.stop);
}

}  // namespace

Unloader::Unloader(uintptr_t staging, int64_t nbytes, int threads, int device, uintptr_t stream)
    : staging_(reinterpret_cast<char *>(staging)),
      part_(floor_to_power(nbytes / (threads * PARTS))),
      worksite_(worksite(device, stream, threads * PARTS)) {
    if (part_ < PAGE) throw std::invalid_argument("too little staging memory for so many threads");
    for (int i = 0; i < threads; ++i) free_.push_back(i);
}

int Unloader::write(const std::vector<Extent> &extents) {
    std::vector<Step> steps;
    for (const Extent &extent : extents)
        for (int64_t at = 0; at < extent.nbytes;) {
            const int64_t stop = std::min(extent.nbytes, at + part_ - (extent.offset + at) % part_);
            steps.push_back({&extent, at, stop}), at = stop;
        }
    int share;
    {
        std::unique_lock lock(mutex_);
        given_back_.wait(lock, [&] { return !free_.empty(); });
        share = free_.back(), free_.pop_back();
    }
    const auto turn = [&](size_t i) { return share * PARTS + int(i % PARTS); };
    // As far beyond the start of a page as in the file, which what is written directly needs.
    const auto place = [&](size_t i) {
        return staging_ + turn(i) * part_ + (steps[i].extent->offset + steps[i].start) % PAGE;
    };
    const auto fetch = [&](size_t i) {
        const Step &step = steps[i];
        worksite_->fetch(place(i), step.extent->from + uintptr_t(step.start), step.stop - step.start, turn(i));
    };
    const auto give_back = [&] {
        const std::lock_guard lock(mutex_);
        free_.push_back(share);
        given_back_.notify_one();
    };
    int error = 0;
    size_t fetched = 0;
    try {
        worksite_->enter();
        for (size_t i = 0; i < steps.size() && !error; ++i) {
            for (; fetched < steps.size() && fetched < i + PARTS; ++fetched) fetch(fetched);
            worksite_->wait(turn(i));
            error = write_step(steps[i], place(i));
        }
        if (error) worksite_->finish();  // what is still on its way goes to memory that may be let go of next
    } catch (...) {
        try {
            worksite_->finish();
        } catch (const std::runtime_error &) {  // the first problem is told
        }
        give_back();
        throw;
    }
    give_back();
    return error;
}

}  // namespace fm
