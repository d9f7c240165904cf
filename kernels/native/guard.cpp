#include "guard.hpp"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <mutex>

namespace fm {
namespace {

constexpr int GUARDS = 1 << 14;  // as many files as are open at once anywhere

// `start` is 0 where there is no map. What a handler looks at must not need a lock.
struct Guard {
    std::atomic<uintptr_t> start, stop;
    std::atomic<int64_t> lost;
};

Guard guards[GUARDS];
std::atomic<int> used;  // none is guarded from here on
std::mutex changing;
struct sigaction before;
uintptr_t page;

// Gives a page of zeros for the one that is not there, and lets what has touched it go on.
bool replace(uintptr_t address) {
    for (int i = 1; i < used.load(); ++i) {
        const uintptr_t start = guards[i].start.load();
        if (!start || address < start || address >= guards[i].stop.load()) continue;
        const uintptr_t first = address / page * page;
        void *const zeros = mmap(reinterpret_cast<void *>(first), page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (zeros == MAP_FAILED) return false;
        int64_t none = -1;
        guards[i].lost.compare_exchange_strong(none, int64_t(address - start));
        return true;
    }
    return false;
}

void handle(int number, siginfo_t *info, void *context) {
    if (info->si_code == BUS_ADRERR && replace(uintptr_t(info->si_addr))) return;
    if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(number, info, context);
    if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(number);
    signal(number, SIG_DFL);  // which it meets as soon as this returns
}

void install() {
    page = uintptr_t(sysconf(_SC_PAGESIZE));
    used = 1;
    struct sigaction action {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &before);
}

}  // namespace

int guard(uintptr_t start, uint64_t n) {
    const std::lock_guard lock(changing);
    if (!used) install();
    int free = 1;
    while (free < used && guards[free].start) ++free;
    if (free == GUARDS) return 0;
    guards[free].lost = -1, guards[free].stop = start + n, guards[free].start = start;
    if (free == used) ++used;
    return free;
}

int64_t lost(int guard) { return guards[guard].lost; }

void unguard(int guard) {
    const std::lock_guard lock(changing);
    guards[guard].start = 0;
}

}  // namespace fm
