// The filter's sweeps over rows, strip by strip of a block: v = Σ_k w_k · τ_k is formed, and turned so that a vector is a
// column; or what came back is turned, and joins v, which is formed again, and base.
#include "plain.hpp"
#include "rows.hpp"

namespace fm::FM_ISA {

constexpr int GAP = 32;  // between the strips of two rows, so that these do not share cache sets

// Takes results as they are, in the order of the lanes of pairs.
template <class T> struct Raw {
    Wide<T> *to;
    void put(int i, const typename Working<T>::V &a, const typename Working<T>::V &b) { a.store(to + i), b.store(to + i + 16); }
};

// A strip of each row of the block, results in the order of lanes.
template <class T> struct Strips {
    using W = Wide<T>;
    static constexpr int rows = LANES<W>;
    alignas(64) W at[rows][STRIP + GAP];

    // To columns x … x + n of the block, as vectors that `place` has of them.
    template <class Place> void turn_into(Vector<W> *columns, int64_t x, int n, Place place) const {
        each_tile(n, [&](int begin) {
            Vector<W> tile[rows];
            for (int r = 0; r < rows; ++r) tile[r] = load(at[r] + begin);
            transpose(tile);
            for (int i = 0; i < rows; ++i)
                if (const int j = element<T>(begin + i); j < n) columns[place(x + j)] = tile[i];
        });
    }
    template <class Place> void turn_from(const Vector<W> *columns, int64_t x, int n, Place place) {
        each_tile(n, [&](int begin) {
            Vector<W> tile[rows];
            for (int i = 0; i < rows; ++i) {
                const int j = element<T>(begin + i);
                tile[i] = j < n ? columns[place(x + j)] : Vector<W>{};
            }
            transpose(tile);
            for (int r = 0; r < rows; ++r) store(at[r] + begin, tile[r]);
        });
    }

  private:
    template <class Body> static void each_tile(int n, Body body) {
        for (int begin = 0, end = (n + PAIR - 1) / PAIR * PAIR; begin < end; begin += rows) body(begin);
    }
};

// Calls body(x, n) for the strips of a row.
template <class Body> static void each_strip(int64_t w, Body body) {
    for (int64_t x = 0; x < w; x += STRIP) body(x, int(w - x < STRIP ? w - x : STRIP));
}

void filter_forward(const Args &a, const Spectrum &s, int64_t block, void *work) {
    const Inputs inputs(a);
    by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        using W = Wide<T>;
        const Rows<W> rows(s, work);
        const auto strip = a.base.data ? plain_strip<T, true, false, Raw<T>> : plain_strip<T, false, false, Raw<T>>;
        Reader<T> reader(inputs, direct);
        Strips<T> v;
        const T *in[MAX_INPUTS];
        if (s.w % 2) memset(static_cast<void *>(rows.columns), 0, 2 * s.w * sizeof *rows.columns);
        each_strip(s.w, [&](int64_t x, int n) {
            for (int r = 0; r < v.rows; ++r) {
                const int64_t y = block * v.rows + r;
                if (y >= s.h) {
                    memset(v.at[r], 0, sizeof v.at[r]);
                    continue;
                }
                const int padded = reader.at(y * s.w + x, n, in);
                Raw<T> raw{v.at[r]};
                strip(in, a, nullptr, n, padded, raw);
            }
            v.turn_into(rows.columns, x, n, [&](int64_t column) { return going(s, column); });
        });
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
    // Σ|G(v)| of n elements from `begin` on.
    double magnitude(int64_t begin, int n, const W *filtered) {
        const T *in[MAX_INPUTS];
        const int padded = reader_.at(begin, n, in);
        Raw<T> raw{moved_};
        const auto strip = a_.base.data ? plain_strip<T, true, false, Raw<T>> : plain_strip<T, false, false, Raw<T>>;
        strip(in, a_, filtered, n, padded, raw);
        Sums<typename Working<T>::V> sums;
        for (int i = 0; i < padded; i += 16) sums.add(Working<T>::V::load(moved_ + i).abs());
        double lanes[16], sum = 0;
        sums.store(lanes);
        for (double lane : lanes) sum += lane;
        return sum;
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

int64_t filter_back(const Args &a, const Spectrum &s, int64_t block, int64_t start, int64_t stop, void *work,
                    double *magnitude) {
    const Inputs inputs(a);
    return by_type(inputs, a.wide, [&]<class T>(T, bool direct) -> int64_t {
        const Rows<Wide<T>> rows(s, work);
        if (s.columns) panel_to_rows(s, block, rows);
        Merger<T> merger(a, inputs, direct, start, stop);
        Strips<T> low;
        int64_t nonfinite = 0;
        each_strip(s.w, [&](int64_t x, int n) {
            if (s.columns) low.turn_from(rows.columns, x, n, [&](int64_t column) { return coming(s, column); });
            for (int64_t r = 0, y = block * low.rows; r < low.rows && y < s.h; ++r, ++y) {
                const int64_t begin = y * s.w + x;
                const auto *filtered = s.columns ? low.at[r] : nullptr;
                if (magnitude) *magnitude += merger.magnitude(begin, n, filtered);
                else nonfinite += merger.merge(begin, n, filtered);
            }
        });
        fence();
        return nonfinite;
    });
}

}  // namespace fm::FM_ISA
