// Cuts are found in one reading of the tensor where a sample tells about where they are: it lists the keys in a bracket and
// counts those above. Where the bracket turns out not to hold the cut, and in small tensors, they are found by radix: a
// histogram of the highest bits tells each rank's bucket, and one more reading lists the keys in it. A last reading, of a
// single block, finds the index among equal keys.
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

#include "brackets.hpp"
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

bool same(const Bucket &a, const Bucket &b) { return a.model == b.model && a.span == b.span && a.first == b.first; }

// Into which of the buckets that `bits` more bits divide this one into.
void descend(Wanted &w, const int64_t *counts, int bits) {
    const int low_bits = int(std::bit_width(w.bucket.span)) - bits;
    int64_t bin = (int64_t(1) << bits) - 1;
    for (; bin > 0 && w.rank > counts[bin]; --bin) w.rank -= counts[bin];
    w.population = counts[bin];
    w.bucket.first += uint64_t(bin) << low_bits, w.bucket.span = (uint64_t(1) << low_bits) - 1;
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
    int64_t room;
    std::unique_ptr<Key[]> keys;
    std::vector<Part> parts;
    std::atomic<int64_t> size{0}, firsts{0}, above{0};
    std::atomic<bool> overflowed{false};

    Listed(const Bucket &bucket, int64_t room, int64_t blocks)
        : bucket(bucket), room(room), keys(new Key[room]), parts(blocks) {}

    void add(int64_t block, const Found &found) {
        above += found.above, firsts += found.firsts;
        const int64_t begin = size.fetch_add(found.size);
        parts[block] = {begin, found.size, found.firsts};
        if (begin + found.size > room) overflowed = true;
        else std::copy_n(static_cast<const Key *>(found.keys), found.size, keys.get() + begin);
    }
};

template <class Key> class Search {
    using Lists = std::vector<std::unique_ptr<Listed<Key>>>;

  public:
    Search(const Args &args, int64_t n) : args_(args), n_(n), blocks_(blocks_of(n)), limit_(std::max(n / 4, BLOCK)) {}

    // Finds the cuts that are where the sample says, by as many readings as their lists need. Those wanted have no bucket
    // yet; returns those not found.
    std::vector<Wanted> by_sample(const std::vector<Wanted> &wanted, const std::vector<std::optional<Bracket>> &guesses) {
        std::vector<Wanted> left;
        for (size_t i = 0; i < wanted.size();) {
            Lists lists;
            std::vector<Wanted> listed;
            int64_t room = 0;
            for (; i < wanted.size(); ++i) {
                const int64_t more = guesses[i] ? std::max(guesses[i]->population, BLOCK) : limit_ + 1;
                if (more > limit_) {
                    left.push_back(wanted[i]);
                    continue;
                }
                if (room + more > limit_) break;
                room += more;
                lists.push_back(std::make_unique<Listed<Key>>(guesses[i]->bucket, more, blocks_));
                listed.push_back(wanted[i]);
            }
            if (lists.empty()) break;
            read(lists);
            std::vector<std::pair<Wanted, const Listed<Key> *>> found;
            for (size_t j = 0; j < lists.size(); ++j) {
                const Listed<Key> &list = *lists[j];
                Wanted w = listed[j];
                const int64_t within = w.rank - list.above;
                if (list.overflowed || within < 1 || within > list.size + list.firsts) {
                    left.push_back(w);
                    continue;
                }
                w.bucket = list.bucket, w.rank = within;
                found.emplace_back(w, &list);
            }
            parallel_for(int64_t(found.size()), [&](int64_t j) { finish(found[j].first, *found[j].second); });
        }
        return left;
    }

    // Finds some of the cuts, and divides buckets that are too large; returns what is left.
    std::vector<Wanted> round(std::vector<Wanted> wanted) {
        std::stable_sort(wanted.begin(), wanted.end(), [](const Wanted &a, const Wanted &b) {
            return a.bucket.model != b.bucket.model ? a.bucket.model < b.bucket.model : a.bucket.first < b.bucket.first;
        });
        Lists lists;
        std::vector<std::pair<Wanted, const Listed<Key> *>> ready;
        std::vector<Wanted> left;
        int64_t room = 0;
        for (const Wanted &w : wanted) {
            if (lists.empty() || !same(lists.back()->bucket, w.bucket)) {
                const int64_t more = std::min(w.population, limit_);
                room += more;
                if (lists.empty() || room <= limit_) lists.push_back(std::make_unique<Listed<Key>>(w.bucket, more, blocks_));
            }
            if (same(lists.back()->bucket, w.bucket)) ready.emplace_back(w, lists.back().get());
            else left.push_back(w);
        }
        read(lists);
        const auto dense = std::stable_partition(ready.begin(), ready.end(), [](const auto &r) { return !r.second->overflowed; });
        parallel_for(dense - ready.begin(), [&](int64_t i) { finish(ready[i].first, *ready[i].second); });
        for (auto it = dense; it != ready.end(); ++it) left.push_back(it->first);
        divide(left.end() - (ready.end() - dense), left.end());
        return left;
    }

  private:
    void read(Lists &lists) {
        const int count = int(lists.size()), first = lists.front()->bucket.model;
        const Args args = only(args_, first, lists.back()->bucket.model);
        std::vector<Bucket> buckets;
        for (const auto &list : lists) buckets.push_back({list->bucket.model - first, list->bucket.first, list->bucket.span});
        struct Workspace {
            std::unique_ptr<Key[]> keys;
            std::vector<Found> found;
        };
        const int64_t room = std::min(n_, BLOCK) + ROOM;
        Workspaces<Workspace> workspaces(blocks_, [&] {
            Workspace w{std::unique_ptr<Key[]>(new Key[room * count]), {}};
            for (int j = 0; j < count; ++j) w.found.push_back({w.keys.get() + room * j, 0, 0, 0});
            return w;
        });
        parallel_for(blocks_, [&](int64_t block) {
            workspaces.with([&](Workspace &w) {
                const int64_t size = block_size(block, n_);
                FM_KERNEL(kth_magnitude)(args, buckets.data(), count, block * BLOCK, size, w.found.data());
                for (int j = 0; j < count; ++j) lists[j]->add(block, w.found[j]);
            });
        });
    }

    // Among the listed keys, and then among the blocks that have the one found.
    void finish(Wanted w, const Listed<Key> &list) const {
        const Key *keys = list.keys.get();
        const bool among = w.rank <= list.size;
        if (among) {
            while (w.bucket.span) {
                const int low_bits = int(std::bit_width(w.bucket.span)), bits = next_bits(low_bits), shift = low_bits - bits;
                std::vector<int64_t> counts(int64_t(1) << bits);
                for (int64_t i = 0; i < list.size; ++i)
                    if (const Key offset = keys[i] - Key(w.bucket.first); offset <= Key(w.bucket.span)) ++counts[offset >> shift];
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
            const int low_bits = int(std::bit_width(bucket.span)), bits = next_bits(low_bits);
            const uint64_t prefix = bucket.first >> low_bits;
            std::vector<int64_t> counts(int64_t(1) << bits);
            count_magnitudes(only(args_, bucket.model, bucket.model), {low_bits - bits, bits, &prefix, false}, n_, counts.data());
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

template <class Key>
static void find(const Args &args, int64_t n, std::vector<Wanted> wanted, const std::vector<std::optional<Bracket>> &guesses) {
    Search<Key> search(args, n);
    wanted = search.by_sample(wanted, guesses);
    if (wanted.empty()) return;
    std::vector<int64_t> counts(size_t(args.models_count) << TOP_BITS);
    count_magnitudes(args, {(args.wide ? 63 : 31) - TOP_BITS, TOP_BITS, nullptr, false}, n, counts.data());
    for (Wanted &w : wanted) descend(w, &counts[size_t(w.bucket.model) << TOP_BITS], TOP_BITS);
    while (!wanted.empty()) wanted = search.round(wanted);
}

void find_cuts(const Args &args, int64_t n, const std::vector<std::vector<int64_t>> &ranks, double *magnitudes, int64_t *indices) {
    std::vector<Wanted> wanted;
    std::vector<std::optional<Bracket>> guesses;
    const auto sampled = brackets(args, n, ranks);
    for (int k = 0; k < args.models_count; ++k)
        for (size_t i = 0; i < ranks[k].size(); ++i, ++magnitudes, ++indices) {
            *magnitudes = std::numeric_limits<double>::infinity(), *indices = 0;
            if (!ranks[k][i]) continue;
            wanted.push_back({{k, 0, args.wide ? ~uint64_t(0) >> 1 : ~uint32_t(0) >> 1}, ranks[k][i], n, magnitudes, indices});
            guesses.push_back(sampled[k][i]);
        }
    if (args.wide) find<uint64_t>(args, n, std::move(wanted), guesses);
    else find<uint32_t>(args, n, std::move(wanted), guesses);
}

}  // namespace fm
