// Bytes of files, brought to where they are worked on by threads of its own: file → staging memory → device.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "worksite.hpp"

namespace fm {

struct Span {
    int file;  // its descriptor
    int64_t offset, nbytes;
    uintptr_t to;
};

// Staging memory is small enough to stay in a processor's cache: a thread reads into one part of its share while others
// are on their way.
class Loader {
  public:
    static constexpr int PARTS = 3;  // of a thread's share

    Loader(uintptr_t staging, int64_t nbytes, int threads, int device, uintptr_t stream);
    ~Loader() { close(); }

    // Lets the threads bring spans in, after those of earlier loads. Returns the load's number.
    int64_t begin(std::vector<Span> spans);
    // Waits until all copies of a load are in the stream. Returns which span could not be read, or -1, and its errno, 0
    // where the file ends before. Throws what the device says.
    std::tuple<int64_t, int> wait(int64_t load);
    // Drops what has not begun, and waits for what has.
    void close();

  private:
    struct Step {
        int64_t load, number;
        Span span;
    };
    struct Load {
        int64_t left, failed = -1;
        int error = 0;
    };

    void run(int thread);

    char *staging_;
    const int64_t part_;
    const std::unique_ptr<Worksite> worksite_;
    std::mutex mutex_;
    std::condition_variable work_, done_;
    std::deque<Step> steps_;
    std::map<int64_t, Load> loads_;
    int64_t next_ = 0;
    bool stop_ = false;
    std::string problem_;  // of the device
    std::vector<std::thread> threads_;
};

}  // namespace fm
