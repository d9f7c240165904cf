// The filter's sweeps over rows. A block's rows are read one after the other, as they lie in memory: v = Σ_k w_k · τ_k is
// formed, and turned so that a vector is a column; or what came back is turned, and joins v, formed again, and base.
#include "plain.hpp"
#include "rows.hpp"

namespace fm::FM_ISA {

// Takes results as they are, in the order of the lanes of pairs.
template <class T> struct Raw {
    Wide<T> *to;
    void put(int i, const typename Working<T>::V &a, const typename Working<T>::V &b) { a.store(to + i), b.store(to + i + 16); }
};

// Adds up magnitudes, and adds results, times a weight, to a sum in the order of the lanes of pairs.
template <class T> struct Weighed {
    using V = typename Working<T>::V;
    using W = Wide<T>;
    const V weight;
    W *const sum;
    const bool first;  // of the sum
    Sums<V> magnitudes;
    void put(int i, const V &a, const V &b) {
        magnitudes.add(a.abs()), magnitudes.add(b.abs());
        const V x = weight * a, y = weight * b;
        first ? x.store(sum + i) : (V::load(sum + i) + x).store(sum + i);
        first ? y.store(sum + i + 16) : (V::load(sum + i + 16) + y).store(sum + i + 16);
    }
};

// Calls inside(begin, q) for the tiles of whole pairs that begin there, of an even number of columns, q being a constant where
// it is unrolled; and edge(begin) for the other tiles.
template <class W, class Inside, class Edge> [[gnu::always_inline]] static inline void each_tile(const Spectrum &s, Inside inside, Edge edge) {
    const int64_t whole = s.w % 2 ? 0 : s.w / PAIR * PAIR;
    for (int64_t begin = 0; begin < whole; begin += PAIR)
#pragma GCC unroll 8
        for (int q = 0; q < PAIR; q += LANES<W>) inside(begin, q);
    for (int64_t begin = whole; begin < whole_pairs(s.w); begin += LANES<W>) edge(begin);
}

// Rows in the order of lanes to columns, and back.
template <class T, class W = Wide<T>> static void turn_into_columns(const Spectrum &s, const Rows<W> &rows) {
    const W *from = rows.row(s, 0);
    const int64_t stride = rows.offset(s, 1);
    const auto turned = [&](int64_t begin, auto put) __attribute__((always_inline)) {
        Vector<W> tile[LANES<W>];
#pragma GCC unroll 8
        for (int r = 0; r < LANES<W>; ++r) tile[r] = load(from + r * stride + begin);
        transpose(tile);
#pragma GCC unroll 8
        for (int i = 0; i < LANES<W>; ++i) put(i, tile[i]);
    };
    each_tile<W>(
        s,
        [&](int64_t begin, int q) __attribute__((always_inline)) {
            turned(begin + q, [&](int i, const Vector<W> &x) __attribute__((always_inline)) { rows.columns[begin + element<T>(q + i)] = x; });
        },
        [&](int64_t begin) {
            turned(begin, [&](int i, const Vector<W> &value) {
                if (const int64_t x = element<T>(begin + i); x < s.w) rows.columns[going(s, x)] = value;
            });
        });
}
template <class T, class W = Wide<T>> static void turn_into_rows(const Spectrum &s, const Rows<W> &rows) {
    W *to = rows.row(s, 0);
    const int64_t stride = rows.offset(s, 1);
    const auto turned = [&](int64_t begin, auto column) __attribute__((always_inline)) {
        Vector<W> tile[LANES<W>];
#pragma GCC unroll 8
        for (int i = 0; i < LANES<W>; ++i) tile[i] = column(i);
        transpose(tile);
#pragma GCC unroll 8
        for (int r = 0; r < LANES<W>; ++r) store(to + r * stride + begin, tile[r]);
    };
    each_tile<W>(
        s,
        [&](int64_t begin, int q) __attribute__((always_inline)) {
            turned(begin + q, [&](int i) __attribute__((always_inline)) { return rows.columns[begin + (element<T>(q + i) ^ 1)]; });
        },
        [&](int64_t begin) {
            turned(begin, [&](int i) {
                const int64_t x = element<T>(begin + i);
                return x < s.w ? rows.columns[coming(s, x)] : Vector<W>{};
            });
        });
}

// Calls body(r, x, n, begin) for the strips of the block's rows: n elements from column x of row r on, which is element
// `begin` of the matrix.
template <class W, class Body> static void each_strip(const Spectrum &s, int64_t block, Body body) {
    for (int64_t r = 0, y = block * LANES<W>; r < LANES<W> && y < s.h; ++r, ++y)
        for (int64_t x = 0; x < s.w; x += STRIP) body(int(r), x, int(s.w - x < STRIP ? s.w - x : STRIP), y * s.w + x);
}

void filter_forward(const Args &a, const Spectrum &s, int64_t block, void *work) {
    const Inputs inputs(a);
    by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        using W = Wide<T>;
        const Rows<W> rows(s, work);
        const auto strip = a.base.data ? plain_strip<T, true, false, Raw<T>> : plain_strip<T, false, false, Raw<T>>;
        Reader<T> reader(inputs, direct);
        const T *in[MAX_INPUTS];
        each_strip<W>(s, block, [&](int r, int64_t x, int n, int64_t begin) {
            const int padded = reader.at(begin, n, in);
            Raw<T> raw{rows.row(s, r) + x};
            strip(in, a, nullptr, n, padded, raw);
        });
        for (int64_t r = s.h - block * LANES<W>; r < LANES<W>; ++r)  // of the last block, beyond the matrix
            memset(rows.row(s, int(r)), 0, whole_pairs(s.w) * sizeof(W));
        if (s.w % 2) memset(static_cast<void *>(rows.columns), 0, 2 * s.w * sizeof *rows.columns);
        turn_into_columns<T>(s, rows);
        rows_to_panel(s, block, rows);
        return 0;
    });
}

// Merges strips of rows: a part of the matrix's elements, of which out's first is number `start`.
template <class T> class Merger {
    using W = Wide<T>;

  public:
    Merger(const Args &a, const Inputs &inputs, bool direct, int64_t start, int64_t stop)
        : a_(a), strip_(a.base.data ? plain_strip<T, true, false, Sink<T>> : plain_strip<T, false, false, Sink<T>>),
          reader_(inputs, direct), start_(start), stop_(stop) {}

    // Elements begin … begin + n, as far as they are asked for.
    int64_t merge(int64_t begin, int n, const W *filtered) {
        const int64_t first = begin > start_ ? begin : start_, last = begin + n < stop_ ? begin + n : stop_;
        if (first >= last) return 0;
        const int skipped = int(first - begin);
        if (filtered && skipped % PAIR) {  // lanes lie otherwise in pairs that begin elsewhere
            for (int i = 0; i < last - first; ++i) moved_[lane<T>(i)] = filtered[lane<T>(skipped + i)];
            filtered = moved_;
        } else if (filtered) {
            filtered += skipped;
        }
        return write(first, int(last - first), filtered);
    }
    // Adds G(v), times a weight, of n elements from `begin` on to a sum, which the first begins; returns Σ|G(v)|.
    double weigh(int64_t begin, int n, const W *filtered, W weight, W *sum, bool first) {
        using V = typename Working<T>::V;
        const T *in[MAX_INPUTS];
        const int padded = reader_.at(begin, n, in);
        Weighed<T> weighed{V::set(weight), sum, first, {}};
        const auto strip = a_.base.data ? plain_strip<T, true, false, Weighed<T>> : plain_strip<T, false, false, Weighed<T>>;
        strip(in, a_, filtered, n, padded, weighed);
        double lanes[16], all = 0;
        weighed.magnitudes.store(lanes);
        for (double lane : lanes) all += lane;
        return all;
    }

  private:
    int64_t write(int64_t first, int n, const W *filtered) {
        const T *in[MAX_INPUTS];
        const int padded = reader_.at(first, n, in);
        const int64_t at = first - start_;
        Args a = a_;
        a.streaming = a.streaming && reinterpret_cast<uintptr_t>(a.out.data) % 64 == 0 && at * item_size(a.out.dtype) % 64 == 0;
        Sink<T> sink(a);
        sink.at(at, n);
        const int64_t nonfinite = strip_(in, a, filtered, n, padded, sink);
        sink.flush();
        return nonfinite;
    }

    const Args &a_;
    int64_t (*strip_)(const T *const *, const Args &, const W *, int, int, Sink<T> &);
    Reader<T> reader_;
    int64_t start_, stop_;
    alignas(64) W moved_[STRIP];
};

// What came back of a block, row by row.
template <class T> static void come_back(const Spectrum &s, int64_t block, const Rows<Wide<T>> &rows) {
    if (s.columns) panel_to_rows(s, block, rows), turn_into_rows<T>(s, rows);
}

int64_t filter_back(const Args &a, const Spectrum &s, int64_t block, int64_t start, int64_t stop, void *work) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        const Rows<Wide<T>> rows(s, work);
        come_back<T>(s, block, rows);
        Merger<T> merger(a, inputs, direct, start, stop);
        int64_t nonfinite = 0;
        each_strip<Wide<T>>(s, block, [&](int r, int64_t x, int n, int64_t begin) {
            nonfinite += merger.merge(begin, n, s.columns ? rows.row(s, r) + x : nullptr);
        });
        fence();
        return nonfinite;
    });
}

int64_t filter_back_each(const Args &a, const Filtering *each, int count, int64_t block, int64_t start, int64_t stop,
                         void *work, double *magnitudes) {
    const Spectrum &s = *each[0].spectrum;
    Args all = a;
    all.models_count = count;
    const Inputs inputs(all);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        using W = Wide<T>;
        const Rows<W> rows(s, work);
        for (int k = 0; k < count; ++k) {
            come_back<T>(*each[k].spectrum, block, rows);
            const Inputs own(*each[k].args);
            Merger<T> merger(*each[k].args, own, direct, 0, s.h * s.w);
            magnitudes[k] = 0;
            const W weight = W(all.weights[k]);
            each_strip<W>(s, block, [&](int r, int64_t x, int n, int64_t begin) {
                const W *filtered = s.columns ? rows.row(s, r) + x : nullptr;
                magnitudes[k] += merger.weigh(begin, n, filtered, weight, rows.sum_row(s, r) + x, k == 0);
            });
        }
        if (!a.out.data) return 0;
        const Inputs merged(a);
        Merger<T> merger(a, merged, direct, start, stop);
        int64_t nonfinite = 0;
        each_strip<W>(s, block, [&](int r, int64_t x, int n, int64_t begin) {
            nonfinite += merger.merge(begin, n, rows.sum_row(s, r) + x);
        });
        fence();
        return nonfinite;
    });
}

}  // namespace fm::FM_ISA
