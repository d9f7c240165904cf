#include "loader.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>

namespace fm {
namespace {

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

Loader::Loader(uintptr_t staging, int64_t nbytes, int threads, int device, uintptr_t stream)
    : staging_(reinterpret_cast<char *>(staging)),
      part_(nbytes / (threads * PARTS) / 64 * 64),
      worksite_(worksite(device, stream, threads * PARTS)) {
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
        worksite_->finish();
    } catch (const std::runtime_error &) {  // whoever uses the stream next is told as well
    }
}

void Loader::run(int thread) {
    std::string problem;
    try {
        worksite_->enter();
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
            if (problem.empty()) worksite_->wait(turn);
            error = read_whole(step.span, part);
            if (!error && problem.empty()) worksite_->bring(step.span.to, part, step.span.nbytes, turn);
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
