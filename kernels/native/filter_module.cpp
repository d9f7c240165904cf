// Binds the filter of a matrix.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "isa.hpp"
#include "parallel.hpp"
#include "transform.hpp"

namespace nb = nanobind;

namespace fm {

int Spectrum::lanes() const { return VECTOR / (wide ? 8 : 4); }
int64_t Spectrum::groups() const { return (columns + lanes() - 1) / lanes(); }
int64_t Spectrum::blocks() const { return (h + lanes() - 1) / lanes(); }
int64_t Spectrum::block_vectors() const { return 2 * along.n + 64; }

namespace {

using Addresses = std::vector<uintptr_t>;
using Dtypes = std::vector<int>;
using Weights = std::vector<double>;
// n, radices, tables
using Direct = std::tuple<int64_t, std::vector<int>, uintptr_t>;
// and what it is convolved with, if it is
using Described = std::tuple<int64_t, std::vector<int>, uintptr_t, std::optional<Direct>>;
using Ways = std::pair<Described, Described>;  // there and back

template <class T> T *pointer(uintptr_t address) { return reinterpret_cast<T *>(address); }

Transform transform(int64_t n, const std::vector<int> &radices, uintptr_t tables) {
    Transform t{};
    t.n = n, t.levels = int(radices.size()), t.tables = pointer<const void>(tables);
    int64_t offset = 0, m = n;
    for (int i = 0; i < t.levels; ++i) {
        const int r = t.radix[i] = radices[i];
        m /= r;
        t.offset[i] = offset;
        offset += 2 * ((r % 2 ? r : 0) + (m > 1 ? m * (r - 1) : 0));
    }
    return t;
}

// What a block or a group of columns is worked on with.
struct Scratch {
    explicit Scratch(size_t bytes) : memory(operator new(bytes, std::align_val_t(64))) {}
    struct Free {
        void operator()(void *p) const { operator delete(p, std::align_val_t(64)); }
    };
    std::unique_ptr<void, Free> memory;
};

class Filter;
using Filters = std::vector<Filter *>;

class Filter {
  public:
    Filter(int64_t h, int64_t w, bool wide, int64_t first, int64_t columns, bool subtract, int64_t middle, uintptr_t reaches,
           uintptr_t mirrored, uintptr_t units, const Ways &along, const Ways &across, uintptr_t panel) {
        s_.h = h, s_.w = w, s_.wide = wide;
        s_.first = first, s_.columns = columns, s_.subtract = subtract;
        s_.middle = middle, s_.reaches = pointer<const void>(reaches), s_.mirrored = pointer<const void>(mirrored);
        s_.units = pointer<const void>(units), s_.panel = pointer<void>(panel);
        s_.along = described(along.first, inner_[0]), s_.across = described(across.first, inner_[1]);
        s_.along_back = described(along.second, inner_[2]), s_.across_back = described(across.second, inner_[3]);
    }

    void forward(uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes, const Weights &weights) {
        const Call call(*this, base, base_dtype, models, dtypes, weights);
        transform_all({this}, {&call.args});
    }
    int64_t back(uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes, const Weights &weights,
                 double scale, bool as_delta, int64_t start, int64_t stop, uintptr_t out, int out_dtype, bool streaming) {
        Call call(*this, base, base_dtype, models, dtypes, weights);
        call.come_back(*this);
        call.writes(scale, as_delta, out, out_dtype, streaming);
        return blocks(start, stop, [&](int64_t block, void *work) {
            return FM_KERNEL(filter_back)(call.args, s_, block, start, stop, work);
        });
    }
    // Given as many filters as models, each filters its own. They take a block by turns, while it is in the cache.
    static void forward_each(const Filters &filters, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes) {
        Calls(filters, base, base_dtype, models, dtypes).transform(filters);
    }
    // The same, and Σ|G(τ_k)| of each.
    static std::vector<double> magnitudes(const Filters &filters, uintptr_t base, int base_dtype, const Addresses &models,
                                          const Dtypes &dtypes) {
        Calls calls(filters, base, base_dtype, models, dtypes);
        calls.transform(filters);
        calls.come_back(filters);
        const Spectrum &s = filters[0]->s_;
        const size_t count = filters.size();
        const Weights weights(count, 1.0);
        Call call(*filters[0], base, base_dtype, models, dtypes, weights);
        std::vector<double> sums(s.blocks() * count), all(count);
        calls.back(filters, call, 0, s.h * s.w, sums.data());
        for (size_t i = 0; i < sums.size(); ++i) all[i % count] += sums[i];
        return all;
    }
    // After forward_each: back of the weighted sum, and `magnitudes` [blocks, models] of the blocks that it goes over.
    static int64_t back_each(const Filters &filters, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes,
                             const Weights &weights, double scale, bool as_delta, int64_t start, int64_t stop, uintptr_t out,
                             int out_dtype, bool streaming, uintptr_t magnitudes) {
        Calls calls(filters, base, base_dtype, models, dtypes);
        calls.come_back(filters);
        Call call(*filters[0], base, base_dtype, models, dtypes, weights);
        call.args.models_count = 0;  // their sum is that of what came back
        call.writes(scale, as_delta, out, out_dtype, streaming);
        return calls.back(filters, call, start, stop, pointer<double>(magnitudes));
    }

    // After forward_each: each G(τ_k) to an out of its own, of the working type.
    static void back_apart(const Filters &filters, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes,
                              const Addresses &outs, bool streaming) {
        Calls calls(filters, base, base_dtype, models, dtypes);
        calls.come_back(filters);
        const Spectrum &s = filters[0]->s_;
        for (size_t k = 0; k < outs.size(); ++k) calls.calls[k].writes(1, true, outs[k], s.wide ? F64 : F32, streaming);
        filters[0]->each(s.blocks(), [&](int64_t block, void *work) {
            for (size_t k = 0; k < outs.size(); ++k)
                FM_KERNEL(filter_back)(calls.calls[k].args, filters[k]->s_, block, 0, s.h * s.w, work);
        });
    }

  private:
    struct Call {
        Args args{};
        std::vector<In> models;
        Weights weights;

        Call(const Filter &filter, uintptr_t base, int base_dtype, const Addresses &addresses, const Dtypes &dtypes,
             Weights given)
            : weights(std::move(given)) {
            args.base = {pointer<const void>(base), base_dtype};
            for (size_t k = 0; k < addresses.size(); ++k) models.push_back({pointer<const void>(addresses[k]), dtypes[k]});
            args.models = models.data(), args.models_count = int(models.size());
            args.weights = weights.data();
            args.divisor = args.scale = 1, args.as_delta = true;
            args.wide = filter.s_.wide;
            args.out.dtype = args.wide ? F64 : F32;
        }
        void writes(double scale, bool as_delta, uintptr_t out, int out_dtype, bool streaming) {
            args.scale = scale, args.as_delta = as_delta;
            args.out = {pointer<void>(out), out_dtype}, args.streaming = streaming;
        }
        // Where all that is kept comes back, v takes no part; where nothing is kept, times zero, so that what is not
        // finite is seen.
        void come_back(const Filter &filter) {
            if (filter.s_.subtract) return;
            if (filter.s_.columns) args.models_count = 0;
            else weights.assign(weights.size(), 0), args.weights = weights.data();
        }
    };

    // Of one model each.
    struct Calls {
        std::vector<Call> calls;

        Calls(const Filters &filters, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes) {
            calls.reserve(filters.size());
            for (size_t k = 0; k < filters.size(); ++k)
                calls.emplace_back(*filters[k], base, base_dtype, Addresses{models[k]}, Dtypes{dtypes[k]}, Weights{1.0});
        }
        void transform(const Filters &filters) const {
            std::vector<const Args *> args;
            for (const Call &call : calls) args.push_back(&call.args);
            transform_all(filters, args);
        }
        void come_back(const Filters &filters) {
            for (size_t k = 0; k < calls.size(); ++k) calls[k].come_back(*filters[k]);
        }
        int64_t back(const Filters &filters, const Call &merged, int64_t start, int64_t stop, double *magnitudes) const {
            std::vector<Filtering> each;
            for (size_t k = 0; k < calls.size(); ++k) each.push_back({&filters[k]->s_, &calls[k].args});
            return filters[0]->blocks(start, stop, [&](int64_t block, void *work) {
                return FM_KERNEL(filter_back_each)(merged.args, each.data(), int(each.size()), block, start, stop, work,
                                                   magnitudes + block * each.size());
            });
        }
    };

    static void transform_all(const Filters &filters, const std::vector<const Args *> &args) {
        const Spectrum &s = filters[0]->s_;
        const int64_t count = int64_t(filters.size());
        if (!s.columns) return;
        filters[0]->each(s.blocks(), [&](int64_t block, void *work) {
            for (int64_t k = 0; k < count; ++k) FM_KERNEL(filter_forward)(*args[k], filters[k]->s_, block, work);
        });
        filters[0]->each(s.groups() * count, [&](int64_t i, void *work) {
            FM_KERNEL(filter_across)(filters[i % count]->s_, i / count, work);
        });
    }
    static Transform described(const Described &given, std::unique_ptr<Transform> &inner) {
        const auto &[n, radices, tables, convolution] = given;
        Transform t = transform(n, radices, tables);
        if (convolution) {
            const auto &[size, factors, addresses] = *convolution;
            inner = std::make_unique<Transform>(transform(size, factors, addresses));
            t.inner = inner.get();
        }
        return t;
    }
    // The sum of body(block, work) for the blocks that elements start … stop are in.
    template <class Body> int64_t blocks(int64_t start, int64_t stop, Body body) {
        const int64_t size = s_.lanes() * s_.w, first = start / size;
        std::vector<int64_t> found((stop + size - 1) / size - first);
        each(int64_t(found.size()), [&](int64_t i, void *work) { found[i] = body(first + i, work); });
        int64_t all = 0;
        for (int64_t own : found) all += own;
        return all;
    }
    // Calls body(i, work) for i = 0 … count − 1, on all threads.
    template <class Body> void each(int64_t count, Body body) {
        nb::gil_scoped_release release;
        const auto convolution = [](const Transform &t) { return t.inner ? 2 * t.inner->n : 0; };
        const int64_t numbers = std::max(3 * s_.block_vectors() / 2 + convolution(s_.along), s_.h + convolution(s_.across));
        Workspaces<Scratch> all(count, [&] { return Scratch(2 * VECTOR * numbers); });
        parallel_for(count, [&](int64_t i) { all.with([&](Scratch &scratch) { body(i, scratch.memory.get()); }); });
    }

    Spectrum s_{};
    std::unique_ptr<Transform> inner_[4];
};

}  // namespace

void bind_filter(nb::module_ &m) {
    nb::class_<Filter>(m, "Filter")
        .def(nb::init<int64_t, int64_t, bool, int64_t, int64_t, bool, int64_t, uintptr_t, uintptr_t, uintptr_t, const Ways &,
                      const Ways &, uintptr_t>())
        .def("forward", &Filter::forward)
        .def("back", &Filter::back)
        .def_static("forward_each", &Filter::forward_each)
        .def_static("back_each", &Filter::back_each)
        .def_static("back_apart", &Filter::back_apart)
        .def_static("magnitudes", &Filter::magnitudes);
}

}  // namespace fm
