// Cuts tensors between rows, where a byte of the masks ends.
#include "ranks.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <memory>
#include <numeric>

#include "isa.hpp"
#include "parallel.hpp"

namespace fm {
namespace {

constexpr int64_t PART = 8192;      // elements that are worked on together, unless a row is longer: what the cache holds
constexpr int64_t SPACE = 1 << 27;  // bytes that all threads may work in, unless one alone needs more

using Needs = std::array<int64_t, INTERVALS + 1>;

RankDrop describe(uint64_t key, const int64_t *thresholds, int64_t columns, Needs &needs) {
    const int64_t *const end = thresholds + columns;
    const auto [lowest, highest] = std::minmax_element(thresholds, end);
    const int64_t least = *lowest, most = *highest;
    const int shift = std::max(0, int(std::bit_width(uint64_t(most - least))) - std::countr_zero(unsigned(INTERVALS)));
    const bool falling = std::is_sorted(thresholds, end, std::greater<>());
    for (int i = 0; falling && i <= INTERVALS; ++i) {
        const int64_t word = most - 1 - (int64_t(i) << shift);
        needs[i] = std::partition_point(thresholds, end, [word](int64_t threshold) { return threshold > word; }) - thresholds;
    }
    return {key, thresholds, uint64_t(least), uint64_t(most), shift, falling ? needs.data() : nullptr};
}

}  // namespace

void drop_by_rank(const Args &args, int64_t n, int64_t columns, const std::vector<uint64_t> &keys,
                  const std::vector<const int64_t *> &thresholds, int64_t start, int64_t stop, uint8_t *masks) {
    if (start == stop) return;
    std::vector<Needs> needs(keys.size());
    std::vector<RankDrop> drops;
    for (size_t k = 0; k < keys.size(); ++k) drops.push_back(describe(keys[k], thresholds[k], columns, needs[k]));
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
