// Cuts tensors into blocks; each block's elements stand behind those of the blocks before.
#include "experts.hpp"

#include <atomic>
#include <cstring>
#include <memory>

#include "isa.hpp"
#include "parallel.hpp"

namespace fm {
namespace {

int64_t item_size(int dtype) { return dtype == F64 ? 8 : dtype == F32 ? 4 : 2; }

struct Extracted {
    std::unique_ptr<uint16_t[]> offsets;
    std::unique_ptr<char[]> values;
};

template <class T> T at(const char *from, int64_t i) {
    T x;
    std::memcpy(&x, from + i * sizeof x, sizeof x);
    return x;
}

// Which of the k elements each block begins with; empty where they are no elements of a tensor of n.
std::vector<int64_t> begins_of(const Elements &elements, int64_t n) {
    const int64_t blocks = blocks_of(n);
    if (elements.blocks != blocks) return {};
    std::vector<int64_t> begins(blocks + 1);
    for (int64_t block = 0; block < blocks; ++block) {
        const int32_t count = at<int32_t>(elements.counts, block);
        if (count < 0) return {};
        begins[block + 1] = begins[block] + count;
    }
    if (begins[blocks] != elements.k) return {};
    for (int64_t i = blocks ? begins[blocks - 1] : 0; i < elements.k; ++i)  // no offset leads out of an earlier block
        if (at<uint16_t>(elements.offsets, i) >= block_size(blocks - 1, n)) return {};
    return begins;
}

}  // namespace

int64_t extract(const Args &args, int64_t n, double magnitude, int64_t index, int32_t *counts, uint16_t *offsets,
                const Out &values, int64_t room) {
    const int64_t blocks = blocks_of(n), most = std::min(n, BLOCK), size = item_size(values.dtype);
    Workspaces<Extracted> workspaces(blocks, [&] {
        return Extracted{std::unique_ptr<uint16_t[]>(new uint16_t[most]), std::unique_ptr<char[]>(new char[most * size])};
    });
    std::vector<std::atomic<int64_t>> ends(blocks + 1);  // of the blocks before each one, once it is known
    for (int64_t block = 1; block <= blocks; ++block) ends[block] = -1;
    parallel_for(blocks, [&](int64_t block) {
        workspaces.with([&](Extracted &found) {
            const int64_t count = FM_KERNEL(extract_topk)(args, magnitude, index, block * BLOCK, block_size(block, n),
                                                          found.offsets.get(), {found.values.get(), values.dtype});
            ends[block].wait(-1);  // blocks are begun in order: the one before is under way
            const int64_t begin = ends[block], written = std::clamp<int64_t>(room - begin, 0, count);
            ends[block + 1] = begin + count;
            ends[block + 1].notify_all();
            counts[block] = int32_t(count);
            if (!written) return;  // where there is no room at all, its addresses may be null
            std::memcpy(offsets + begin, found.offsets.get(), written * sizeof(uint16_t));
            std::memcpy(static_cast<char *>(values.data) + begin * size, found.values.get(), written * size);
        });
    });
    return ends[blocks];
}

bool add(const Out &theta, int64_t n, const Elements &elements, const In &values, double scale) {
    const auto begins = begins_of(elements, n);
    if (begins.empty()) return false;
    const auto *offsets = reinterpret_cast<const uint16_t *>(elements.offsets);
    parallel_for(blocks_of(n), [&](int64_t block) {
        char *to = static_cast<char *>(theta.data) + block * BLOCK * item_size(theta.dtype);
        const int64_t begin = begins[block], count = begins[block + 1] - begin;
        FM_KERNEL(scatter_add)({to, theta.dtype}, offsets + begin, values, begin, count, scale);
    });
    return true;
}

bool gather(const In &theta, int64_t n, const Valued &expert) {
    const auto begins = begins_of(expert.elements, n);
    if (begins.empty()) return false;
    const int64_t size = item_size(theta.dtype);
    parallel_for(blocks_of(n), [&](int64_t block) {
        const char *from = static_cast<const char *>(theta.data) + block * BLOCK * size;
        const int64_t begin = begins[block], count = begins[block + 1] - begin;
        FM_KERNEL(gather)(from, size, expert.elements.offsets + begin * 2, count, expert.values + begin * size);
    });
    return true;
}

// All experts' shares of a block while it is in the cache.
bool scatter(const Out &theta, int64_t n, const std::vector<Valued> &experts) {
    std::vector<std::vector<int64_t>> begins;
    for (const Valued &expert : experts) {
        begins.push_back(begins_of(expert.elements, n));
        if (begins.back().empty()) return false;
    }
    const int64_t size = item_size(theta.dtype);
    parallel_for(blocks_of(n), [&](int64_t block) {
        char *to = static_cast<char *>(theta.data) + block * BLOCK * size;
        for (size_t e = 0; e < experts.size(); ++e) {
            const int64_t begin = begins[e][block], count = begins[e][block + 1] - begin;
            FM_KERNEL(scatter)(to, size, experts[e].elements.offsets + begin * 2, count, experts[e].values + begin * size);
        }
    });
    return true;
}

}  // namespace fm
