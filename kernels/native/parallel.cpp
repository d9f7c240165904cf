#include "parallel.hpp"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

namespace fm {
namespace {

int default_threads() {
    if (const char *text = std::getenv("FASTMERGE_THREADS"))
        if (int n = std::atoi(text); n > 0) return n;
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return int(std::max(1u, std::thread::hardware_concurrency()));
}

class Pool {
  public:
    explicit Pool(int workers) {
        for (int i = 0; i < workers; ++i) workers_.emplace_back([this] { work(); });
    }
    ~Pool() {
        {
            std::lock_guard lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (auto &worker : workers_) worker.join();
    }
    void run(int64_t blocks, const std::function<void(int64_t)> &body) {
        {
            std::lock_guard lock(mutex_);
            body_ = &body, blocks_ = blocks, next_ = 0, busy_ = int(workers_.size()), ++round_;
        }
        wake_.notify_all();
        take(body, blocks);
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
    }

  private:
    void take(const std::function<void(int64_t)> &body, int64_t blocks) {
        for (int64_t i; (i = next_.fetch_add(1)) < blocks;) body(i);
    }
    void work() {
        uint64_t seen = 0;
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return stop_ || round_ != seen; });
            if (stop_) return;
            seen = round_;
            const auto *body = body_;
            const int64_t blocks = blocks_;
            lock.unlock();
            take(*body, blocks);
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int64_t)> *body_ = nullptr;
    int64_t blocks_ = 0;
    std::atomic<int64_t> next_{0};
    int busy_ = 0;
    uint64_t round_ = 0;
    bool stop_ = false;
};

std::mutex *use = new std::mutex;  // held by the call that has the pool
Pool *pool = nullptr;
int wanted = default_threads();

// Threads do not survive a fork: the child makes a pool of its own and leaks the parent's.
const int registered = pthread_atfork(nullptr, nullptr, [] {
    use = new std::mutex;
    pool = nullptr;
});

}  // namespace

void parallel_for(int64_t blocks, const std::function<void(int64_t)> &body) {
    std::unique_lock lock(*use, std::defer_lock);
    if (blocks < 2 || wanted < 2 || !lock.try_lock()) {
        for (int64_t i = 0; i < blocks; ++i) body(i);
        return;
    }
    if (!pool) pool = new Pool(wanted - 1);
    pool->run(blocks, body);
}

void set_threads(int threads) {
    std::lock_guard lock(*use);
    delete pool;
    pool = nullptr;
    wanted = std::max(1, threads);
}

int threads() { return wanted; }

}  // namespace fm
