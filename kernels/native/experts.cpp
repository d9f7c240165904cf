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

struct Elements {
    std::unique_ptr<uint16_t[]> offsets;
    std::unique_ptr<char[]> values;
};

}  // namespace

int64_t extract(const Args &args, int64_t n, double magnitude, int64_t index, int32_t *counts, uint16_t *offsets,
                const Out &values, int64_t room) {
    const int64_t blocks = blocks_of(n), most = std::min(n, BLOCK), size = item_size(values.dtype);
    Workspaces<Elements> workspaces(blocks, [&] {
        return Elements{std::unique_ptr<uint16_t[]>(new uint16_t[most]), std::unique_ptr<char[]>(new char[most * size])};
    });
    std::vector<std::atomic<int64_t>> ends(blocks + 1);  // of the blocks before each one, once it is known
    for (int64_t block = 1; block <= blocks; ++block) ends[block] = -1;
    parallel_for(blocks, [&](int64_t block) {
        workspaces.with([&](Elements &found) {
            const int64_t count = FM_KERNEL(extract_topk)(args, magnitude, index, block * BLOCK, block_size(block, n),
                                                          found.offsets.get(), {found.values.get(), values.dtype});
            ends[block].wait(-1);  // blocks are begun in order: the one before is under way
            const int64_t begin = ends[block], written = std::clamp<int64_t>(room - begin, 0, count);
            ends[block + 1] = begin + count;
            ends[block + 1].notify_all();
            counts[block] = int32_t(count);
            std::memcpy(offsets + begin, found.offsets.get(), written * sizeof(uint16_t));
            std::memcpy(static_cast<char *>(values.data) + begin * size, found.values.get(), written * size);
        });
    });
    return ends[blocks];
}

void scatter(const Out &theta, int64_t n, const int32_t *counts, const uint16_t *offsets, const In &values, double scale) {
    const int64_t blocks = blocks_of(n);
    std::vector<int64_t> begins(blocks + 1);
    for (int64_t block = 0; block < blocks; ++block) begins[block + 1] = begins[block] + counts[block];
    parallel_for(blocks, [&](int64_t block) {
        char *to = static_cast<char *>(theta.data) + block * BLOCK * item_size(theta.dtype);
        FM_KERNEL(scatter_add)({to, theta.dtype}, offsets + begins[block], values, begins[block], counts[block], scale);
    });
}

}  // namespace fm
