#include "worksite.hpp"

#include <dlfcn.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace fm {
namespace {

class Host final : public Worksite {
  public:
    void enter() override {}
    void bring(uintptr_t to, const void *from, int64_t n, int) override { memcpy(reinterpret_cast<void *>(to), from, size_t(n)); }
    void fetch(void *to, uintptr_t from, int64_t n, int) override { memcpy(to, reinterpret_cast<const void *>(from), size_t(n)); }
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
    int (*cuMemcpyDtoHAsync_v2)(void *, uintptr_t, size_t, Handle);
    int (*cuEventCreate)(Handle *, unsigned);
    int (*cuEventDestroy_v2)(Handle);
    int (*cuEventRecord)(Handle, Handle);
    int (*cuEventQuery)(Handle);
    int (*cuStreamSynchronize)(Handle);
    int (*cuGetErrorString)(int, const char **);

    Driver() {
        library_ = dlopen("libcuda.so.1", RTLD_NOW);
        if (!library_) throw std::runtime_error("NVIDIA's driver (libcuda.so.1) does not load");
#define FM_FIND(name) find(#name, name)
        FM_FIND(cuDeviceGet), FM_FIND(cuDevicePrimaryCtxRetain), FM_FIND(cuDevicePrimaryCtxRelease_v2);
        FM_FIND(cuCtxSetCurrent), FM_FIND(cuMemcpyHtoDAsync_v2), FM_FIND(cuMemcpyDtoHAsync_v2);
        FM_FIND(cuEventCreate), FM_FIND(cuEventDestroy_v2), FM_FIND(cuEventRecord), FM_FIND(cuEventQuery);
        FM_FIND(cuStreamSynchronize), FM_FIND(cuGetErrorString);
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

class Gpu final : public Worksite {
  public:
    Gpu(int device, uintptr_t stream, int places)
        : cuda_(driver()), stream_(reinterpret_cast<void *>(stream)), used_(size_t(places)) {
        cuda_.check(cuda_.cuDeviceGet(&device_, device), "finding the GPU");
        cuda_.check(cuda_.cuDevicePrimaryCtxRetain(&context_, device_), "taking the GPU's context");
    }
    ~Gpu() override {
        for (void *event : used_)
            if (event) cuda_.cuEventDestroy_v2(event);
        cuda_.cuDevicePrimaryCtxRelease_v2(device_);
    }
    void enter() override {
        take_context();
#ifdef __linux__
        prctl(PR_SET_TIMERSLACK, 1);  // nanoseconds that naps may be longer; else they are three times as long
#endif
    }
    void bring(uintptr_t to, const void *from, int64_t n, int turn) override {
        cuda_.check(cuda_.cuMemcpyHtoDAsync_v2(to, from, size_t(n), stream_), "copying to the GPU");
        begun(turn);
    }
    void fetch(void *to, uintptr_t from, int64_t n, int turn) override {
        cuda_.check(cuda_.cuMemcpyDtoHAsync_v2(to, from, size_t(n), stream_), "copying from the GPU");
        begun(turn);
    }
    // By looking again and again. To be woken instead, the GPU would interrupt the host after every copy, and one thread
    // of the driver's would pass that on to all who wait: a merge takes 1.2 times as long.
    void wait(int turn) override {
        void *used = used_[size_t(turn)];
        if (!used) return;
        for (int status; (status = cuda_.cuEventQuery(used)) != 0; std::this_thread::sleep_for(NAP))
            if (status != NOT_READY) cuda_.check(status, "waiting for the GPU");
    }
    void finish() override {
        take_context();
        cuda_.check(cuda_.cuStreamSynchronize(stream_), "waiting for the GPU");
    }

  private:
    static constexpr int NOT_READY = 600;
    static constexpr std::chrono::microseconds NAP{20};  // about what a copy takes

    void take_context() { cuda_.check(cuda_.cuCtxSetCurrent(context_), "taking the GPU's context"); }
    void begun(int turn) {
        constexpr unsigned UNTIMED = 2;
        void *&used = used_[size_t(turn)];
        if (!used) cuda_.check(cuda_.cuEventCreate(&used, UNTIMED), "making an event");
        cuda_.check(cuda_.cuEventRecord(used, stream_), "recording an event");
    }

    const Driver &cuda_;
    void *context_ = nullptr, *stream_;
    int device_ = 0;
    std::vector<void *> used_;  // events, each of one thread
};

}  // namespace

std::unique_ptr<Worksite> worksite(int device, uintptr_t stream, int places) {
    if (device < 0) return std::make_unique<Host>();
    return std::make_unique<Gpu>(device, stream, places);
}

}  // namespace fm
