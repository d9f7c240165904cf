#include "loader.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace fm {
namespace {

class Host final : public Destination {
  public:
    void enter() override {}
    void copy(uintptr_t to, const void *from, int64_t n, int) override { memcpy(reinterpret_cast<void *>(to), from, size_t(n)); }
    void wait(int) override {}
    void finish() override {}
};

// CUDA's driver, which is there where torch sees a GPU; nothing of CUDA is needed to build this.
struct Driver {
    using Handle = void *;
    int (*cuDeviceGet)(int *, int);
    int (*cuDevicePrimaryCtxRetain)(Handle *, int);
    int (*cuDevicePrimaryCtxRelease_v2)(int);
    int (*cuCtxSetCurrent)(Handle);
    int (*cuMemcpyHtoDAsync_v2)(uintptr_t, const void *, size_t, Handle);
    int (*cuEventCreate)(Handle *, unsigned);
    int (*cuEventDestroy_v2)(Handle);
    int (*cuEventRecord)(Handle, Handle);
    int (*cuEventSynchronize)(Handle);
    int (*cuStreamSynchronize)(Handle);
    int (*cuGetErrorString)(int, const char **);

    Driver() {
        library_ = dlopen("libcuda.so.1", RTLD_NOW);
        if (!library_) throw std::runtime_error("NVIDIA's driver (libcuda.so.1) does not load");
#define FM_FIND(name) find(#name, name)
        FM_FIND(cuDeviceGet), FM_FIND(cuDevicePrimaryCtxRetain), FM_FIND(cuDevicePrimaryCtxRelease_v2);
        FM_FIND(cuCtxSetCurrent), FM_FIND(cuMemcpyHtoDAsync_v2), FM_FIND(cuEventCreate), FM_FIND(cuEventDestroy_v2);
        FM_FIND(cuEventRecord), FM_FIND(cuEventSynchronize), FM_FIND(cuStreamSynchronize), FM_FIND(cuGetErrorString);
#undef FM_FIND
    }
    void check(int status, const char *doing) const {
        if (status == 0) return;
        const char *text = nullptr;
        cuGetErrorString(status, &text);
        throw std::runtime_error(std::string(doing) + ": " + (text ? text : "error " + std::to_string(status)));
    }

  private:
    template <class Function> void find(const char *name, Function &function) {
        function = reinterpret_cast<Function>(dlsym(library_, name));
        if (!function) throw std::runtime_error(std::string("NVIDIA's driver is too old: it has no ") + name);
    }

    void *library_;  // stays loaded
};

const Driver &driver() {
    static const Driver found;
    return found;
}

class Gpu final : public Destination {
  public:
    Gpu(int device, uintptr_t stream, int places) : cuda_(driver()), stream_(reinterpret_cast<void *>(stream)), used_(size_t(places)) {
        cuda_.check(cuda_.cuDeviceGet(&device_, device), "finding the GPU");
        cuda_.check(cuda_.cuDevicePrimaryCtxRetain(&context_, device_), "taking the GPU's context");
    }
    ~Gpu() override {
        for (void *event : used_)
            if (event) cuda_.cuEventDestroy_v2(event);
        cuda_.cuDevicePrimaryCtxRelease_v2(device_);
    }
    void enter() override { cuda_.check(cuda_.cuCtxSetCurrent(context_), "taking the GPU's context"); }
    void copy(uintptr_t to, const void *from, int64_t n, int turn) override {
        constexpr unsigned SLEEPING = 1, UNTIMED = 2;  // who waits leaves its core
        void *&used = used_[size_t(turn)];
        if (!used) cuda_.check(cuda_.cuEventCreate(&used, SLEEPING | UNTIMED), "making an event");
        cuda_.check(cuda_.cuMemcpyHtoDAsync_v2(to, from, size_t(n), stream_), "copying to the GPU");
        cuda_.check(cuda_.cuEventRecord(used, stream_), "recording an event");
    }
    void wait(int turn) override {
        if (used_[size_t(turn)]) cuda_.check(cuda_.cuEventSynchronize(used_[size_t(turn)]), "waiting for the GPU");
    }
    void finish() override {
        enter();
        cuda_.check(cuda_.cuStreamSynchronize(stream_), "waiting for the GPU");
    }

  private:
    const Driver &cuda_;
    void *context_ = nullptr, *stream_;
    int device_ = 0;
    std::vector<void *> used_;  // events, each of one thread
};

// 0, or what went wrong: an errno, or -1 where the file ends before.
int read_whole(const Span &span, char *to) {
    for (int64_t at = 0; at < span.nbytes;) {
        const ssize_t n = pread(span.file, to + at, size_t(span.nbytes - at), off_t(span.offset + at));
        if (n > 0) at += n;
        else if (n == 0) return -1;
        else if (errno != EINTR) return errno;
    }
    return 0;
}

}  // namespace

std::unique_ptr<Destination> destination(int device, uintptr_t stream, int places) {
    if (device < 0) return std::make_unique<Host>();
    return std::make_unique<Gpu>(device, stream, places);
}

Loader::Loader(uintptr_t staging, int64_t nbytes, int threads, int device, uintptr_t stream)
    : staging_(reinterpret_cast<char *>(staging)),
      part_(nbytes / (threads * PARTS) / 64 * 64),
      destination_(destination(device, stream, threads * PARTS)) {
    if (part_ <= 0) throw std::invalid_argument("too little staging memory for so many threads");
    try {
        for (int i = 0; i < threads; ++i) threads_.emplace_back([this, i] { run(i); });
    } catch (...) {  // where the system has no more threads, those that run must end first
        close();
        throw;
    }
}

int64_t Loader::begin(std::vector<Span> spans) {
    const std::lock_guard lock(mutex_);
    Load &load = loads_[next_];
    load.left = 0;
    for (size_t i = 0; i < spans.size(); ++i) {
        const Span &span = spans[i];
        for (int64_t at = 0; at < span.nbytes; at += part_, ++load.left)
            steps_.push_back({next_, int64_t(i), {span.file, span.offset + at, std::min(part_, span.nbytes - at), span.to + uintptr_t(at)}});
    }
    work_.notify_all();
    return next_++;
}

std::tuple<int64_t, int> Loader::wait(int64_t number) {
    std::unique_lock lock(mutex_);
    const auto load = loads_.find(number);
    if (load == loads_.end()) throw std::invalid_argument("no such load");
    done_.wait(lock, [&] { return load->second.left == 0 || stop_; });
    const Load ended = load->second;
    loads_.erase(load);
    if (!problem_.empty()) throw std::runtime_error(problem_);
    if (ended.left) throw std::runtime_error("loading was stopped");
    return {ended.failed, ended.error};
}

void Loader::close() {
    {
        const std::lock_guard lock(mutex_);
        if (stop_) return;
        stop_ = true;
    }
    work_.notify_all(), done_.notify_all();
    for (auto &thread : threads_) thread.join();
    try {
        destination_->finish();
    } catch (const std::runtime_error &) {  // whoever uses the stream next is told as well
    }
}

void Loader::run(int thread) {
    std::string problem;
    try {
        destination_->enter();
    } catch (const std::runtime_error &error) {
        problem = error.what();
    }
    for (int turn = thread * PARTS;; turn = turn + 1 == (thread + 1) * PARTS ? thread * PARTS : turn + 1) {
        Step step;
        {
            std::unique_lock lock(mutex_);
            work_.wait(lock, [&] { return stop_ || !steps_.empty(); });
            if (stop_) return;
            step = steps_.front();
            steps_.pop_front();
        }
        int error = 0;
        try {
            char *part = staging_ + turn * part_;
            if (problem.empty()) destination_->wait(turn);
            error = read_whole(step.span, part);
            if (!error && problem.empty()) destination_->copy(step.span.to, part, step.span.nbytes, turn);
        } catch (const std::runtime_error &caught) {
            problem = caught.what();
        }
        const std::lock_guard lock(mutex_);
        if (problem_.empty()) problem_ = problem;
        const auto load = loads_.find(step.load);
        if (load == loads_.end()) continue;
        if (error && load->second.failed < 0) load->second.failed = step.number, load->second.error = std::max(error, 0);
        if (--load->second.left == 0) done_.notify_all();
    }
}

}  // namespace fm
