// Cuts tensors between rows, where a byte of the masks ends.
#include "ranks.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>

#include "isa.hpp"
#include "parallel.hpp"

namespace fm {
namespace {

constexpr int64_t PART = 8192;      // elements that are worked on together, unless a row is longer: what the cache holds
constexpr int64_t SPACE = 1 << 27;  // bytes that all threads may work in, unless one alone needs more

RankDrop describe(uint64_t key, const int64_t *thresholds, int64_t columns) {
    const auto [least, most] = std::minmax_element(thresholds, thresholds + columns);
    const bool monotone = std::is_sorted(thresholds, thresholds + columns) ||
                          std::is_sorted(thresholds, thresholds + columns, std::greater<>());
    return {key, thresholds, uint64_t(*least), uint64_t(*most), monotone};
}

}  // namespace

void drop_by_rank(const Args &args, int64_t n, int64_t columns, const std::vector<uint64_t> &keys,
                  const std::vector<const int64_t *> &thresholds, int64_t start, int64_t stop, uint8_t *masks) {
    if (start == stop) return;
    std::vector<RankDrop> drops;
    for (size_t k = 0; k < keys.size(); ++k) drops.push_back(describe(keys[k], thresholds[k], columns));
    // Rows of which so many end on a whole byte.
    const int64_t rows = 8 / std::gcd(columns, int64_t(8)), together = rows * columns;
    const int64_t part = together * std::max(int64_t(1), PART / together);
    const int64_t first = start / part, parts = (stop + part - 1) / part - first, stride = (stop - start + 7) / 8;
    const int64_t space = (std::min(part, n) + 64) * (args.wide ? RANK_BYTES_WIDE : RANK_BYTES) + RANK_TABLES;
    const int64_t abreast = std::min(parts, std::max(int64_t(1), SPACE / space));
    Workspaces<std::unique_ptr<char[]>> workspaces(abreast, [&] { return std::unique_ptr<char[]>(new char[space]); });
    const auto drop = [&](int64_t i) {
        const int64_t begin = (first + i) * part, size = std::min(part, n - begin);
        const int64_t from = std::max(start - begin, int64_t(0)), to = std::min(stop - begin, size);
        workspaces.with([&](const std::unique_ptr<char[]> &memory) {
            Args one = args;
            for (int k = 0; k < args.models_count; ++k) {
                one.models = args.models + k, one.models_count = 1;
                uint8_t *bits = masks + k * stride + (begin + from - start) / 8;
                FM_KERNEL(rank_drop)(one, drops[k], columns, begin, size, from, to, memory.get(), bits);
            }
        });
    };
    std::atomic<int64_t> next = 0;
    parallel_for(abreast, [&](int64_t) {
        for (int64_t i; (i = next++) < parts;) drop(i);
    });
}

}  // namespace fm
