// Drops by rank. Thresholds lie close together, so that most words decide whatever the rank; of the others, called open, most
// are decided by the ranks that a bin of similar magnitudes takes. Few ranks remain to be counted; only a row of which much
// remains, since its magnitudes are nearly all alike, is sorted.
#include <algorithm>

#include "keys.hpp"
#include "philox.hpp"

namespace fm::FM_ISA {

constexpr int SHORT = 64;  // columns of rows that need no bins
constexpr int FEW = 64;    // ranks that are counted
constexpr int DIGIT = 11;  // bits that are sorted by at a time

// Bins cover so many octaves below the row's largest magnitude, and the next two what is smaller, and zero. They come in
// pairs: of magnitudes with no bits beyond those the bin is chosen by, which all are equal, and of the others.
constexpr int OCTAVES = 16, BIN_BITS = 8, MAX_BINS = 2 * (OCTAVES << BIN_BITS);

template <class Key> struct Entry {
    Key key;
    uint32_t index;
};

// Memory for the elements of some rows and the bins of one row.
template <class Key> struct Space {
    Entry<Key> *entries, *sorted;
    Key *keys;
    uint32_t *words, *open, *before, *starts;
    uint16_t *bins;
    uint8_t *keep;  // a bit for each element

    Space(char *memory, int64_t elements) {
        const int64_t n = elements + PHILOX_GROUP;
        const auto take = [&]<class X>(X *&p, int64_t count) {
            p = reinterpret_cast<X *>(memory);
            memory += count * sizeof(X);
        };
        take(entries, n), take(sorted, n), take(keys, n), take(words, n), take(open, n), take(before, n);
        take(starts, MAX_BINS + 1), take(bins, n), take(keep, n / 8);
    }
    void decide(int64_t i, const RankDrop &drop, int64_t rank) const {
        keep[i / 8] |= uint8_t((words[i] >= uint64_t(drop.thresholds[rank])) << i % 8);
    }
};

// The rank of element i of a row.
template <class Key> static int count_rank(const Key *keys, int columns, int i) {
    using Signed = std::conditional_t<sizeof(Key) == 8, int64_t, int32_t>;
    const Signed x = Signed(keys[i]);
    Signed rank = 0;
    for (int j = 0; j < i; ++j) rank += Signed(keys[j]) <= x;
    for (int j = i; j < columns; ++j) rank += Signed(keys[j]) < x;
    return int(rank);
}

// Decides for all elements of a row, by sorting it.
template <class Key> static void decide_sorted(const Space<Key> &s, int64_t first, int columns, const RankDrop &drop) {
    const Key *keys = s.keys + first;
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
    for (int rank = 0; rank < columns; ++rank) s.decide(first + from[rank].index, drop, rank);
}

// The bin of each element, how many of the row stand before it in its bin, and the rank that each bin starts with.
template <class Key> static void fill_bins(const Space<Key> &s, const Key *keys, int columns) {
    const int wanted = std::bit_width(unsigned(columns)) - 7, bits = wanted < BIN_BITS ? wanted : BIN_BITS;
    const int shift = (sizeof(Key) == 4 ? 23 : 52) - bits, bins = 2 * (OCTAVES << bits);
    const Key rest = (Key(1) << shift) - 1;
    Key largest = 0;
    for (int i = 0; i < columns; ++i) largest = keys[i] > largest ? keys[i] : largest;
    const int32_t lowest = 2 * int32_t(largest >> shift) - (bins - 2);
    for (int i = 0; i < columns; ++i) {
        const int32_t bin = 2 * int32_t(keys[i] >> shift) + ((keys[i] & rest) != 0) - lowest, least = keys[i] != 0;
        s.bins[i] = uint16_t(bin > least ? bin : least);
    }
    memset(s.starts, 0, (bins + 1) * sizeof(uint32_t));
    for (int i = 0; i < columns; ++i) s.before[i] = s.starts[s.bins[i]]++;
    uint32_t total = 0;
    for (int bin = 0; bin <= bins; ++bin) {
        const uint32_t count = s.starts[bin];
        s.starts[bin] = total, total += count;
    }
}

// Decides for those open elements of a row whose bins tell enough; the others are moved to the front. Returns their end.
template <class Key>
static uint32_t *decide_by_bins(const Space<Key> &s, int64_t first, int columns, uint32_t *open, const uint32_t *end, const RankDrop &drop) {
    fill_bins(s, s.keys + first, columns);
    const uint32_t *words = s.words + first, *starts = s.starts, *before = s.before;
    const uint16_t *bins = s.bins;
    const int64_t *thresholds = drop.thresholds;
    const bool monotone = drop.monotone;
    uint32_t *left = open;
    for (; open < end; ++open) {
        const uint32_t element = *open, i = uint32_t(element - first), bin = bins[i], various = bin % 2;
        const uint32_t low = starts[bin] + (before[i] & (various - 1)), high = various ? starts[bin + 1] - 1 : low;
        const bool kept = words[i] >= uint64_t(thresholds[low]), other = words[i] >= uint64_t(thresholds[high]);
        const uint32_t stays = various & (uint32_t(!monotone) | (kept != other));
        s.keep[element / 8] |= uint8_t((kept & (stays ^ 1)) << element % 8);
        *left = element, left += stays;
    }
    return left;
}

template <class Key>
static void decide_row(const Space<Key> &s, int64_t first, int columns, uint32_t *open, uint32_t *end, const RankDrop &drop) {
    if (columns > SHORT) end = decide_by_bins(s, first, columns, open, end, drop);
    if (end - open > FEW) return decide_sorted(s, first, columns, drop);
    for (; open < end; ++open) s.decide(*open, drop, count_rank(s.keys + first, columns, int(*open - first)));
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

void rank_drop(const Args &a, const RankDrop &drop, int64_t columns, int64_t begin, int64_t n, int64_t from, int64_t to,
               char *memory, uint8_t *bits) {
    const Inputs inputs(a);
    by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        const Space<Key<T>> s(memory, n);
        for (int64_t i = 0, m; i < n; i += m) {
            const int64_t rest = BLOCK - (begin + i) % BLOCK;
            m = n - i < rest ? n - i : rest;
            philox(begin + i, int(m), drop.key, s.words + i);
        }
        keep_from(s.words, n, drop.most, s.keep);
        const int64_t count = list_within(s.words, n, drop.least, drop.most, s.open);
        if (count) {
            Reader<T> reader(inputs, direct);
            const T *in[MAX_INPUTS];
            for (int64_t at = 0; at < n; at += STRIP) {
                const int m = int(n - at < STRIP ? n - at : STRIP);
                reader.at(begin + at, m, in);
                strip_keys(in[0], in[1], m, s.keys + at);
            }
        }
        uint32_t *open = s.open, *const last = s.open + count;
        for (int64_t row = 0; row < n && open < last; row += columns) {
            uint32_t *end = std::lower_bound(open, last, uint32_t(row + columns));
            if (end > open) decide_row(s, row, int(columns), open, end, drop);
            open = end;
        }
        const int64_t whole = (to - from) / 8;
        memcpy(bits, s.keep + from / 8, whole);
        if (const int rest = int(to % 8)) bits[whole] = s.keep[to / 8] & uint8_t((1 << rest) - 1);
        return 0;
    });
}

}  // namespace fm::FM_ISA
