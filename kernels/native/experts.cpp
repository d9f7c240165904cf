// Cuts tensors into blocks; each block's elements stand behind those of the blocks before.
#include "experts.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <functional>
#include <memory>

#include "brackets.hpp"
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

namespace {

// What lies above cuts of one model each, block after block.
class Extraction {
  public:
    Extraction(const Args &args, int64_t n, double magnitude, int64_t index, int32_t *counts, uint16_t *offsets, const Out &values,
               int64_t room)
        : args_(args), n_(n), magnitude_(magnitude), index_(index), counts_(counts), offsets_(offsets), values_(values),
          room_(room), ends_(blocks_of(n) + 1) {
        for (size_t block = 1; block < ends_.size(); ++block) ends_[block] = -1;
    }
    static Extracted workspace(int64_t n, const Out &values) {
        const int64_t most = std::min(n, BLOCK);
        return {std::unique_ptr<uint16_t[]>(new uint16_t[most]), std::unique_ptr<char[]>(new char[most * item_size(values.dtype)])};
    }
    void take(int64_t block, Extracted &found) {
        const int64_t size = item_size(values_.dtype);
        const int64_t count = FM_KERNEL(extract_topk)(args_, magnitude_, index_, block * BLOCK, block_size(block, n_),
                                                      found.offsets.get(), {found.values.get(), values_.dtype});
        ends_[block].wait(-1);  // blocks are begun in order: the one before is under way
        const int64_t begin = ends_[block], written = std::clamp<int64_t>(room_ - begin, 0, count);
        ends_[block + 1] = begin + count;
        ends_[block + 1].notify_all();
        counts_[block] = int32_t(count);
        if (!written) return;  // where there is no room at all, its addresses may be null
        std::memcpy(offsets_ + begin, found.offsets.get(), written * sizeof(uint16_t));
        std::memcpy(static_cast<char *>(values_.data) + begin * size, found.values.get(), written * size);
    }
    int64_t found() const { return ends_.back(); }

  private:
    const Args args_;
    int64_t n_;
    double magnitude_;
    int64_t index_;
    int32_t *counts_;
    uint16_t *offsets_;
    Out values_;
    int64_t room_;
    std::vector<std::atomic<int64_t>> ends_;  // of the blocks before each one, once it is known
};

// Leaves the k largest of `found` elements, some of which are above a bracket, and the others in it.
template <class Key> bool keep_largest(const Largest &to, int64_t found, int64_t blocks, const Bucket &bracket) {
    constexpr Key magnitude = ~Key(0) >> 1;
    const Key top = Key(bracket.first + bracket.span);
    if (found < to.k || found > to.room) return false;
    Key *values = static_cast<Key *>(to.values);
    std::vector<Key> within;
    for (int64_t i = 0; i < found; ++i)
        if (const Key key = values[i] & magnitude; key <= top) within.push_back(key);
    const int64_t nth = to.k - (found - int64_t(within.size()));  // of those in the bracket, from 1
    if (nth < 1) return false;
    std::nth_element(within.begin(), within.begin() + (nth - 1), within.end(), std::greater());
    const Key least = within[nth - 1];
    int64_t equal = nth - std::count_if(within.begin(), within.begin() + nth, [&](Key key) { return key > least; });
    int64_t kept = 0;
    for (int64_t block = 0, i = 0; block < blocks; ++block) {
        const int64_t before = kept;
        for (const int64_t end = i + to.counts[block]; i < end; ++i) {
            const Key key = values[i] & magnitude;
            if (key < least || (key == least && equal-- <= 0)) continue;
            to.offsets[kept] = to.offsets[i], values[kept++] = values[i];
        }
        to.counts[block] = int32_t(kept - before);
    }
    return true;
}

}  // namespace

int64_t extract(const Args &args, int64_t n, double magnitude, int64_t index, int32_t *counts, uint16_t *offsets,
                const Out &values, int64_t room) {
    const int64_t blocks = blocks_of(n);
    Workspaces<Extracted> workspaces(blocks, [&] { return Extraction::workspace(n, values); });
    Extraction extraction(args, n, magnitude, index, counts, offsets, values, room);
    parallel_for(blocks, [&](int64_t block) {
        workspaces.with([&](Extracted &found) { extraction.take(block, found); });
    });
    return extraction.found();
}

std::vector<int> extract_largest(const Args &args, int64_t n, const std::vector<Largest> &models) {
    const int64_t blocks = blocks_of(n);
    std::vector<std::vector<int64_t>> ranks;
    for (const Largest &own : models) ranks.push_back({own.k});
    const auto guesses = brackets(args, n, ranks);
    std::vector<std::unique_ptr<Extraction>> all;
    Out values{nullptr, args.wide ? F64 : F32};
    for (size_t k = 0; k < models.size(); ++k) {
        all.push_back(nullptr);
        if (!guesses[k][0]) continue;
        Args own = args;
        own.models += k, own.models_count = 1;
        values.data = models[k].values;
        const uint64_t first = guesses[k][0]->bucket.first;
        const double from = args.wide ? std::bit_cast<double>(first) : double(std::bit_cast<float>(uint32_t(first)));
        all[k] = std::make_unique<Extraction>(own, n, from, n, models[k].counts, models[k].offsets, values, models[k].room);
    }
    Workspaces<Extracted> workspaces(blocks, [&] { return Extraction::workspace(n, values); });
    parallel_for(blocks, [&](int64_t block) {
        workspaces.with([&](Extracted &found) {
            for (const auto &own : all)
                if (own) own->take(block, found);
        });
    });
    std::vector<int> done(models.size());
    parallel_for(int64_t(models.size()), [&](int64_t k) {
        if (!all[k]) return;
        const auto keep = args.wide ? keep_largest<uint64_t> : keep_largest<uint32_t>;
        done[k] = keep(models[k], all[k]->found(), blocks, guesses[k][0]->bucket);
    });
    return done;
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
