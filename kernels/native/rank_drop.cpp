// Drops by rank. Most words decide whatever the rank. Each of the others needs a rank, and words near each other need ranks
// near each other: bins of similar magnitudes, counted in each row, tell which magnitudes have less than the words of an
// interval need, and which have enough. Few elements remain, whose ranks are counted; only a row of which much remains, since
// its magnitudes are nearly all alike, is sorted.
#include "intervals.hpp"
#include "philox.hpp"

namespace fm::FM_ISA {

constexpr int SHORT = 128;  // columns of rows that need no bins
constexpr int FEW = 256;    // ranks that are counted
constexpr int DIGIT = 11;   // bits that are sorted by at a time
constexpr int WAYS = 2;     // counters of a bin, taken in turn, so that one need not wait for its last increment
constexpr int LANES = 16;   // sums that ranks are counted in

// The first bins are of zeros, which may be many, and whose ranks are in order: one for each segment of the row. The others
// cover so many octaves below the largest magnitude, and the lowest what is smaller, too. They come in pairs: of magnitudes
// with no bits beyond those the bin is chosen by, which all are equal, and of the others.
constexpr int OCTAVES = 12, BIN_BITS = 8, ZERO_BITS = 6, MAX_BINS = (1 << ZERO_BITS) + 2 * (OCTAVES << BIN_BITS);

// What the length of rows makes of that: the shorter they are, the fewer bins and cuts are worth it.
struct Layout {
    int bits;    // of bins within an octave
    int zeros;   // bins of zeros
    int bins;    // in all
    int shift;   // from an element's index to its segment
    int abreast; // intervals that have one pair of cuts

    explicit Layout(int columns) {
        const int width = std::bit_width(unsigned(columns));  // 8 at least
        const int zero_bits = width - 6 < ZERO_BITS ? width - 6 : ZERO_BITS;
        bits = width - 8 < BIN_BITS ? width - 8 : BIN_BITS;
        zeros = 1 << zero_bits, bins = zeros + 2 * (OCTAVES << bits), shift = width - zero_bits, abreast = width < 10 ? 4 : 1;
    }
    bool equal(int bin) const { return bin < zeros || bin % 2 == 0; }
};

template <class Key> struct Entry {
    Key key;
    uint32_t index;
};

// How many of a row's first elements are in a bin.
struct Done {
    uint32_t elements, count;
};

// Memory for the elements of some rows, and for the bins of one row.
template <class Key> struct Space {
    Entry<Key> *entries, *sorted;
    Key *keys;
    uint32_t *words, *opens, *open, *ranks, *counts, *starts;
    Done *done;
    uint16_t *bins;
    uint8_t *keep;  // a bit for each element

    Space(char *memory, int64_t elements) {
        const int64_t n = elements + PHILOX_GROUP;
        const auto take = [&]<class X>(X *&p, int64_t count) {
            p = reinterpret_cast<X *>(memory);
            memory += count * sizeof(X);
        };
        take(entries, n), take(sorted, n), take(keys, n), take(words, n), take(opens, n / PAIR), take(open, n), take(ranks, n);
        take(counts, WAYS * MAX_BINS), take(starts, MAX_BINS + 1), take(done, MAX_BINS), take(bins, n), take(keep, n / 8);
    }
};

// The rank of element i of a row. Up to LANES keys behind the row are read.
template <class Key> static uint32_t count_rank(const Key *keys, int columns, int i) {
    using Signed = std::conditional_t<sizeof(Key) == 8, int64_t, int32_t>;
    const Signed x = Signed(keys[i]);
    Signed counts[LANES] = {}, rank = 0;
    const auto count_some = [&](int j) {  // before and behind i, or behind the row
        for (int lane = 0; lane < LANES; ++lane)
            counts[lane] += (Signed(keys[j + lane]) < x + (j + lane < i)) & (j + lane < columns);
    };
    const int own = i / LANES * LANES, whole = columns / LANES * LANES;
    for (int j = 0; j < own; j += LANES)
        for (int lane = 0; lane < LANES; ++lane) counts[lane] += Signed(keys[j + lane]) <= x;
    count_some(own);
    for (int j = own + LANES; j < whole; j += LANES)
        for (int lane = 0; lane < LANES; ++lane) counts[lane] += Signed(keys[j + lane]) < x;
    if (own < whole && whole < columns) count_some(whole);
    for (const Signed count : counts) rank += count;
    return uint32_t(rank);
}

// The bins of a row's elements.
template <class Key> static void find_bins(const Key *keys, int columns, const Layout layout, uint16_t *bins) {
    const int shift = (sizeof(Key) == 4 ? 23 : 52) - layout.bits;
    const Key rest = (Key(1) << shift) - 1;
    Key largest = 0;
    for (int i = 0; i < columns; ++i) largest = keys[i] > largest ? keys[i] : largest;
    const int32_t below = 2 * int32_t(largest >> shift) - (layout.bins - 2), lowest = layout.zeros + 1;
    for (int i = 0; i < columns; ++i) {
        const int32_t bin = int32_t(keys[i] >> shift) + int32_t((keys[i] + rest) >> shift) - below;  // one more with a rest
        bins[i] = uint16_t(keys[i] ? bin > lowest ? bin : lowest : i >> layout.shift);
    }
}

// How many of a row's elements are in each bin.
static void count_bins(uint32_t *counts, int bins, const uint16_t *row, int columns) {
    memset(counts, 0, WAYS * bins * sizeof *counts);
    int i = 0;
    for (; columns - i >= WAYS; i += WAYS)
        for (int way = 0; way < WAYS; ++way) ++counts[way * bins + row[i + way]];
    for (; i < columns; ++i) ++counts[row[i]];
    for (int way = 1; way < WAYS; ++way)
        for (int bin = 0; bin < bins; ++bin) counts[bin] += counts[way * bins + bin];
}

// The last of the bins, or their end, that starts with that rank at most.
static uint32_t last_from(const uint32_t *starts, int bins, int64_t rank) {
    const uint32_t *first = starts;
    for (int n = bins + 1, half; n > 1; n -= half) half = n / 2, first += first[half] <= rank ? half : 0;
    return uint32_t(first - starts);
}

// The rank that each bin starts with, and each interval's pair of cuts.
static void find_cuts(const uint32_t *counts, const Layout layout, const int64_t *needs, uint32_t *starts, uint32_t *cuts) {
    const int bins = layout.bins, abreast = layout.abreast;
    uint32_t total = 0;
    for (int bin = 0; bin < bins; ++bin) starts[bin] = total, total += counts[bin];
    starts[bins] = total;
    uint32_t lower = last_from(starts, bins, needs[0]);
    for (int i = 0; i < INTERVALS; i += abreast) {
        const int64_t need = needs[i + abreast];
        const uint32_t last = last_from(starts, bins, need);
        const uint32_t pair = lower | (last + (starts[last] < need)) << 16;
        for (int j = 0; j < abreast; ++j) cuts[i + j] = pair;
        lower = last;
    }
}

// Decides for those elements of a row of which words and bins tell enough; lists the others, and returns how many.
template <class Key> static int64_t decide(const Space<Key> &s, const Verdicts verdicts, int64_t begin, int64_t end) {
    const int64_t first = begin & ~int64_t(PAIR - 1);
    for (int64_t i = first; i < end; i += PAIR) {
        const Verdict verdict = verdicts.of(s.words + i, s.bins + i);
        uint32_t row = ~0u, keep;
        if (i < begin) row <<= begin - i;
        if (end - i < PAIR) row &= (1u << (end - i)) - 1;
        memcpy(&keep, s.keep + i / 8, sizeof keep), keep |= verdict.kept & row, memcpy(s.keep + i / 8, &keep, sizeof keep);
        s.opens[i / PAIR] = verdict.open & row;
    }
    int64_t count = 0;  // by a loop of its own: what its branches wait for is there
    for (int64_t i = first; i < end; i += PAIR)
        for (uint32_t open = s.opens[i / PAIR]; open; open &= open - 1) s.open[count++] = uint32_t(i + std::countr_zero(open));
    return count;
}

// Decides for those listed elements of a row that the ranks of their bin tell enough of, or that equal all others of their bin;
// what is left is moved to the front of the list. Returns how many.
template <class Key>
static int64_t decide_by_bins(const Space<Key> &s, int64_t first, const Layout layout, int64_t count, const RankDrop &drop) {
    memset(s.done, 0, layout.bins * sizeof *s.done);
    const uint16_t *row = s.bins + first;
    int64_t left = 0;
    for (int64_t j = 0; j < count; ++j) {
        const uint32_t element = s.open[j], i = uint32_t(element - first);
        const uint16_t bin = row[i];
        const uint64_t word = s.words[element];
        const uint32_t low = s.starts[bin], high = s.starts[bin + 1] - 1;
        bool kept = word >= uint64_t(drop.thresholds[low]);
        if (kept != (word >= uint64_t(drop.thresholds[high]))) {
            if (!layout.equal(bin)) {
                s.open[left++] = element;
                continue;
            }
            auto [at, before] = s.done[bin];
            for (; at + PAIR <= i; at += PAIR) before += std::popcount(equal_bits(row + at, bin));
            s.done[bin] = {at, before};
            before += std::popcount(equal_bits(row + at, bin) & ((1u << (i - at)) - 1));
            kept = word >= uint64_t(drop.thresholds[low + before]);
        }
        s.keep[element / 8] |= uint8_t(kept << element % 8);
    }
    return left;
}

// Writes the rank of each element of a row, by sorting it.
template <class Key> static void sort_row(const Space<Key> &s, const Key *keys, int columns, uint32_t *ranks) {
    Key different = 0;
    for (int i = 0; i < columns; ++i) s.entries[i] = {keys[i], uint32_t(i)}, different |= keys[i] ^ keys[0];
    Entry<Key> *from = s.entries, *to = s.sorted;
    for (int shift = 0; shift < int(8 * sizeof(Key)); shift += DIGIT) {
        constexpr Key mask = (1 << DIGIT) - 1;
        if (!(different >> shift & mask)) continue;
        uint32_t place[1 << DIGIT] = {}, total = 0;
        for (int i = 0; i < columns; ++i) ++place[from[i].key >> shift & mask];
        for (uint32_t &p : place) {
            const uint32_t count = p;
            p = total, total += count;
        }
        for (int i = 0; i < columns; ++i) to[place[from[i].key >> shift & mask]++] = from[i];
        Entry<Key> *const sorted = to;
        to = from, from = sorted;
    }
    for (int rank = 0; rank < columns; ++rank) ranks[from[rank].index] = uint32_t(rank);
}

// Decides for the listed elements, of one row unless rows are short, by their ranks, which are counted, or of many sorted.
template <class Key> static void decide_by_rank(const Space<Key> &s, uint32_t columns, int64_t count, const RankDrop &drop) {
    const bool sorts = columns > SHORT && count > FEW;
    if (sorts) sort_row(s, s.keys + s.open[0] / columns * columns, int(columns), s.ranks);
    for (int64_t j = 0; j < count; ++j) {
        const uint32_t element = s.open[j], i = element % columns;
        const uint32_t rank = sorts ? s.ranks[i] : count_rank(s.keys + (element - i), int(columns), int(i));
        s.keep[element / 8] |= uint8_t((s.words[element] >= uint64_t(drop.thresholds[rank])) << element % 8);
    }
}

// What is kept whatever the rank, as bits.
static void keep_from(const uint32_t *words, int64_t n, uint64_t most, uint8_t *keep) {
    if (most >> 32) return void(memset(keep, 0, (n + 7) / 8));
    for (int64_t i = 0; i < n; i += PAIR) {
        const uint32_t bits = VF::Mask::at_least(words + i, uint32_t(most)).bits() |
                              VF::Mask::at_least(words + i + PAIR / 2, uint32_t(most)).bits() << PAIR / 2;
        memcpy(keep + i / 8, &bits, sizeof bits);
    }
}

// The words of elements begin … begin + n, while their inputs are on their way to the cache.
static void draw(const Inputs &inputs, int64_t begin, int64_t n, uint64_t key, uint32_t *words) {
    for (int64_t i = 0, m; i < n; i += m) {
        const int64_t rest = BLOCK - (begin + i) % BLOCK;
        m = n - i < rest ? n - i : rest, m = m < STRIP ? m : STRIP;
        for (int j = 0; j < inputs.count; ++j) {
            const int64_t size = item_size(inputs.in[j].dtype);
            const char *p = static_cast<const char *>(inputs.in[j].data) + (begin + i) * size;
            for (int64_t byte = 0; byte < m * size; byte += 64) prefetch(p + byte);
        }
        philox(begin + i, int(m), key, words + i);
    }
}

// The keys of elements begin … begin + n.
template <class T> static void find_keys(const Inputs &inputs, bool direct, int64_t begin, int64_t n, Key<T> *keys) {
    Reader<T> reader(inputs, direct);
    const T *in[MAX_INPUTS];
    for (int64_t at = 0; at < n; at += STRIP) {
        const int m = int(n - at < STRIP ? n - at : STRIP);
        reader.at(begin + at, m, in);
        strip_keys(in[0], in[1], m, keys + at);
    }
}

// Decides for all n elements, whose words and keys are there.
template <class Key> static void decide_rows(const Space<Key> &s, int64_t n, int columns, const RankDrop &drop) {
    uint32_t cuts[INTERVALS];
    memset(s.keep, 0, n / 8 + sizeof(uint32_t));
    if (columns <= SHORT || !drop.needs) {  // words decide, or ranks
        memset(s.bins, 0, n * sizeof *s.bins);
        for (uint32_t &pair : cuts) pair = 0xffff0000;
        const int64_t together = columns <= SHORT ? n : columns;
        for (int64_t row = 0; row < n; row += together)
            if (const int64_t count = decide(s, Verdicts(drop, cuts), row, row + together)) decide_by_rank(s, columns, count, drop);
        return;
    }
    const Layout layout(columns);
    for (int64_t row = 0; row < n; row += columns) find_bins(s.keys + row, columns, layout, s.bins + row);
    for (int64_t row = 0; row < n; row += columns) {
        count_bins(s.counts, layout.bins, s.bins + row, columns);
        find_cuts(s.counts, layout, drop.needs, s.starts, cuts);
        int64_t count = decide(s, Verdicts(drop, cuts), row, row + columns);
        if (count) count = decide_by_bins(s, row, layout, count, drop);
        if (count) decide_by_rank(s, columns, count, drop);
    }
}

void rank_drop(const Args &a, const RankDrop &drop, int64_t columns, int64_t begin, int64_t n, int64_t from, int64_t to,
               char *memory, uint8_t *bits) {
    const Inputs inputs(a);
    by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        const Space<Key<T>> s(memory, n);
        draw(inputs, begin, n, drop.key, s.words);
        if (drop.least == drop.most) {
            keep_from(s.words, n, drop.most, s.keep);
        } else {
            find_keys<T>(inputs, direct, begin, n, s.keys);
            decide_rows(s, n, int(columns), drop);
        }
        const int64_t whole = (to - from) / 8;
        memcpy(bits, s.keep + from / 8, whole);
        if (const int rest = int(to % 8)) bits[whole] = s.keep[to / 8] & uint8_t((1 << rest) - 1);
        return 0;
    });
}

}  // namespace fm::FM_ISA
