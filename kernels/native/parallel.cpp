#include "parallel.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
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

// Blocks of one call, taken one after the other by the caller and by threads of the pool.
struct Job {
    const std::function<void(int64_t)> &body;
    const int64_t blocks;
    std::atomic<int64_t> next{0};
    int helpers = 0;  // threads of the pool that are at it

    bool open() const { return next < blocks; }
    bool take() {
        const int64_t i = next.fetch_add(1);
        if (i < blocks) body(i);
        return i < blocks;
    }
};

// Its threads help callers, but only while no more than `threads` are at work in all: calls at the same time share them.
class Pool {
  public:
    explicit Pool(int threads) : threads_(threads) {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
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
        Job job{body, blocks};
        int64_t wanted;
        {
            std::lock_guard lock(mutex_);
            jobs_.push_back(&job);
            wanted = std::min<int64_t>(blocks - 1, threads_ - ++running_);
        }
        for (; wanted > 0; --wanted) wake_.notify_one();
        while (job.take()) continue;
        std::unique_lock lock(mutex_);
        jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
        --running_;
        if (wanting()) wake_.notify_one();
        done_.wait(lock, [&] { return job.helpers == 0; });
    }

  private:
    // Of the calls with blocks left the one with the fewest helpers.
    Job *wanting() const {
        Job *least = nullptr;
        for (Job *job : jobs_)
            if (job->open() && (!least || job->helpers < least->helpers)) least = job;
        return least;
    }
    void work() {
        std::unique_lock lock(mutex_);
        while (true) {
            Job *job = nullptr;
            wake_.wait(lock, [&] { return stop_ || (running_ < threads_ && (job = wanting())); });
            if (stop_) return;
            ++job->helpers, ++running_;
            lock.unlock();
            while (running_ <= threads_ && job->take()) continue;
            lock.lock();
            --running_;
            if (--job->helpers == 0) done_.notify_all();
        }
    }
    const int threads_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::vector<Job *> jobs_;
    std::atomic<int> running_{0};  // callers and helpers
    bool stop_ = false;
};

struct Shared {
    std::mutex mutex;
    std::shared_ptr<Pool> pool;  // held by calls too, so that none loses it
};

Shared *shared = new Shared;
std::atomic<int> wanted = default_threads();

// Threads do not survive a fork: the child makes a pool of its own and leaks the parent's.
const int registered = pthread_atfork(nullptr, nullptr, [] { shared = new Shared; });

}  // namespace

void parallel_for(int64_t blocks, const std::function<void(int64_t)> &body) {
    if (blocks < 2 || wanted < 2) {
        for (int64_t i = 0; i < blocks; ++i) body(i);
        return;
    }
    std::shared_ptr<Pool> pool;
    {
        std::lock_guard lock(shared->mutex);
        if (!shared->pool) shared->pool = std::make_shared<Pool>(wanted);
        pool = shared->pool;
    }
    pool->run(blocks, body);
}

void set_threads(int threads) {
    std::shared_ptr<Pool> before;  // taken down when the lock is gone
    std::lock_guard lock(shared->mutex);
    before.swap(shared->pool);
    wanted = std::max(1, threads);
}

int threads() { return wanted; }

}  // namespace fm
