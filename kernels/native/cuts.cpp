// Cuts are found by radix: the histogram of the highest bits tells each rank's bucket; one more reading of the tensor lists
// the keys in those buckets, of which the rest is found; a last one, of a single block, finds the index among equal keys.
//
// Whatever the tensor, a list is at most a quarter of its length. Where a bucket holds more, it is mostly one value many
// times over, which tends to be the bucket's first (zero, or few units in the last place of a 16-bit weight) and is only
// counted; else further histograms divide the bucket.
#include "cuts.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <memory>
#include <stdexcept>

#include "isa.hpp"
#include "parallel.hpp"

namespace fm {
namespace {

constexpr int64_t CHUNK = 1 << 15;  // blocks that 32-bit counters hold

// A call's arguments with some of its models only.
Args only(Args args, int first, int last) {
    args.models += first, args.models_count = last - first + 1;
    return args;
}

// The rank-th largest key of a bucket, the first being 1, and where its cut is to be written.
struct Wanted {
    Bucket bucket;
    int64_t rank, population;
    double *magnitude;
    int64_t *index;
};

bool same(const Bucket &a, const Bucket &b) {
    return a.model == b.model && a.low_bits == b.low_bits && a.first == b.first;
}

// Into which of the buckets that `bits` more bits divide this one into.
void descend(Wanted &w, const int64_t *counts, int bits) {
    int64_t bin = (int64_t(1) << bits) - 1;
    for (; bin > 0 && w.rank > counts[bin]; --bin) w.rank -= counts[bin];
    w.population = counts[bin];
    w.bucket.low_bits -= bits, w.bucket.first |= uint64_t(bin) << w.bucket.low_bits;
}

// How many bits to count by next, so that the rest divides evenly.
int next_bits(int low_bits) {
    const int passes = (low_bits + MAX_BIN_BITS - 1) / MAX_BIN_BITS;
    return (low_bits + passes - 1) / passes;
}

// A bucket's keys, block by block in the order in which the blocks came.
template <class Key> struct Listed {
    struct Part {
        int64_t begin, size, firsts;
    };
    Bucket bucket;
    int64_t population, room;
    std::unique_ptr<Key[]> keys;
    std::vector<Part> parts;
    std::atomic<int64_t> size{0};
    std::atomic<bool> dense{false};

    Listed(const Wanted &w, int64_t limit, int64_t blocks)
        : bucket(w.bucket), population(w.population), room(std::min(population, limit)), keys(new Key[room]), parts(blocks) {}

    void add(int64_t block, int64_t elements, const Found &found) {
        if (population > room && found.size > elements / 4) dense = true;
        if (dense) return;
        const int64_t begin = size.fetch_add(found.size);
        parts[block] = {begin, found.size, found.firsts};
        if (begin + found.size > room) dense = true;
        else std::copy_n(static_cast<const Key *>(found.keys), found.size, keys.get() + begin);
    }
    void check() const {
        int64_t total = size;
        for (const Part &part : parts) total += part.firsts;
        if (dense ? population <= room : total != population)
            throw std::invalid_argument("kth_magnitude: the histogram is not that of these tensors");
    }
};

template <class Key> class Search {
  public:
    Search(const Args &args, int64_t n) : args_(args), n_(n), blocks_(blocks_of(n)), limit_(std::max(n / 4, BLOCK)) {}

    // Finds some of the cuts, and divides buckets that are too large; returns what is left.
    std::vector<Wanted> round(std::vector<Wanted> wanted) {
        std::stable_sort(wanted.begin(), wanted.end(), [](const Wanted &a, const Wanted &b) {
            return a.bucket.model != b.bucket.model ? a.bucket.model < b.bucket.model : a.bucket.first < b.bucket.first;
        });
        std::vector<std::unique_ptr<Listed<Key>>> lists;
        std::vector<std::pair<Wanted, const Listed<Key> *>> ready;
        std::vector<Wanted> left;
        int64_t room = 0;
        for (const Wanted &w : wanted) {
            if (lists.empty() || !same(lists.back()->bucket, w.bucket)) {
                room += std::min(w.population, limit_);
                if (lists.empty() || room <= limit_) lists.push_back(std::make_unique<Listed<Key>>(w, limit_, blocks_));
            }
            if (same(lists.back()->bucket, w.bucket)) ready.emplace_back(w, lists.back().get());
            else left.push_back(w);
        }
        read(lists);
        for (const auto &list : lists) list->check();
        const auto dense = std::stable_partition(ready.begin(), ready.end(), [](const auto &r) { return !r.second->dense; });
        parallel_for(dense - ready.begin(), [&](int64_t i) { finish(ready[i].first, *ready[i].second); });
        for (auto it = dense; it != ready.end(); ++it) left.push_back(it->first);
        divide(left.end() - (ready.end() - dense), left.end());
        return left;
    }

  private:
    void read(std::vector<std::unique_ptr<Listed<Key>>> &lists) {
        const int count = int(lists.size()), first = lists.front()->bucket.model;
        const Args args = only(args_, first, lists.back()->bucket.model);
        std::vector<Bucket> buckets;
        for (const auto &list : lists) buckets.push_back({list->bucket.model - first, list->bucket.low_bits, list->bucket.first});
        struct Workspace {
            std::unique_ptr<Key[]> keys;
            std::vector<Found> found;
        };
        const int64_t room = std::min(n_, BLOCK) + ROOM;
        Workspaces<Workspace> workspaces(blocks_, [&] {
            Workspace w{std::unique_ptr<Key[]>(new Key[room * count]), {}};
            for (int j = 0; j < count; ++j) w.found.push_back({w.keys.get() + room * j, 0, 0});
            return w;
        });
        parallel_for(blocks_, [&](int64_t block) {
            workspaces.with([&](Workspace &w) {
                const int64_t size = block_size(block, n_);
                FM_KERNEL(kth_magnitude)(args, buckets.data(), count, block * BLOCK, size, w.found.data());
                for (int j = 0; j < count; ++j) lists[j]->add(block, size, w.found[j]);
            });
        });
    }

    // Among the listed keys, and then among the blocks that have the one found.
    void finish(Wanted w, const Listed<Key> &list) const {
        const Key *keys = list.keys.get();
        const bool among = w.rank <= list.size;
        if (among) {
            while (w.bucket.low_bits) {
                const int bits = next_bits(w.bucket.low_bits), shift = w.bucket.low_bits - bits;
                std::vector<int64_t> counts(int64_t(1) << bits);
                for (int64_t i = 0; i < list.size; ++i)
                    if ((keys[i] ^ Key(w.bucket.first)) >> w.bucket.low_bits == 0)
                        ++counts[(keys[i] >> shift) & (counts.size() - 1)];
                descend(w, counts.data(), bits);
            }
        } else {
            w.rank -= list.size;
        }
        const Key key = Key(w.bucket.first);
        for (int64_t block = 0; block < blocks_; ++block) {
            const auto &part = list.parts[block];
            const Key *begin = keys + part.begin;
            const int64_t equal = among ? std::count(begin, begin + part.size, key) : part.firsts;
            if (w.rank <= equal) {
                const Args args = only(args_, w.bucket.model, w.bucket.model);
                const int64_t at = block * BLOCK;
                *w.index = at + FM_KERNEL(nth_equal)(args, 0, key, w.rank - 1, at, block_size(block, n_)) + 1;
                break;
            }
            w.rank -= equal;
        }
        if constexpr (sizeof(Key) == 4) *w.magnitude = std::bit_cast<float>(key);
        else *w.magnitude = std::bit_cast<double>(key);
    }

    void divide(typename std::vector<Wanted>::iterator begin, typename std::vector<Wanted>::iterator end) {
        while (begin != end) {
            const Bucket bucket = begin->bucket;
            const int bits = next_bits(bucket.low_bits);
            const uint64_t prefix = bucket.first >> bucket.low_bits;
            std::vector<int64_t> counts(int64_t(1) << bits);
            count_magnitudes(only(args_, bucket.model, bucket.model), {bucket.low_bits - bits, bits, &prefix, false}, n_, counts.data());
            for (; begin != end && same(begin->bucket, bucket); ++begin) descend(*begin, counts.data(), bits);
        }
    }

    const Args &args_;
    int64_t n_, blocks_, limit_;
};

}  // namespace

void count_magnitudes(const Args &args, const Digit &digit, int64_t n, int64_t *counts) {
    const int64_t blocks = blocks_of(n), bins = int64_t(args.models_count) << digit.bits;
    for (int64_t begin = 0; begin < blocks; begin += CHUNK) {
        const int64_t chunk = std::min(CHUNK, blocks - begin);
        Workspaces<std::vector<uint32_t>> workspaces(chunk, [&] { return std::vector<uint32_t>(bins * COUNTERS); });
        parallel_for(chunk, [&](int64_t i) {
            workspaces.with([&](std::vector<uint32_t> &to) {
                FM_KERNEL(magnitude_histogram)(args, digit, (begin + i) * BLOCK, block_size(begin + i, n), to.data());
            });
        });
        for (const auto &piece : workspaces.all())
            for (int64_t bin = 0; bin < bins; ++bin)
                for (int j = 0; j < COUNTERS; ++j) counts[bin] += piece[bin * COUNTERS + j];
    }
}

void find_cuts(const Args &args, int64_t n, const std::vector<std::vector<int64_t>> &ranks, const int64_t *histogram,
               double *magnitudes, int64_t *indices) {
    std::vector<Wanted> wanted;
    for (int k = 0; k < args.models_count; ++k)
        for (const int64_t rank : ranks[k]) {
            *magnitudes = std::numeric_limits<double>::infinity(), *indices = 0;
            Wanted w{{k, args.wide ? 63 : 31, 0}, rank, n, magnitudes++, indices++};
            descend(w, histogram + (int64_t(k) << TOP_BITS), TOP_BITS);
            if (rank) wanted.push_back(w);
        }
    while (!wanted.empty())
        wanted = args.wide ? Search<uint64_t>(args, n).round(wanted) : Search<uint32_t>(args, n).round(wanted);
}

}  // namespace fm
