// Binds the ops that select by magnitude.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <vector>

#include "cuts.hpp"
#include "experts.hpp"
#include "ranks.hpp"

namespace nb = nanobind;

namespace fm {
namespace {

using Addresses = std::vector<uintptr_t>;
using Dtypes = std::vector<int>;

struct Models {
    Args args{};
    std::vector<In> models;

    Models(uintptr_t base, int base_dtype, const Addresses &addresses, const Dtypes &dtypes) {
        args.base = {reinterpret_cast<const void *>(base), base_dtype};
        args.wide = base_dtype == F64;
        for (size_t k = 0; k < addresses.size(); ++k) {
            models.push_back({reinterpret_cast<const void *>(addresses[k]), dtypes[k]});
            args.wide |= dtypes[k] == F64;
        }
        args.models = models.data();
        args.models_count = int(models.size());
    }
};

template <class T> T *pointer(uintptr_t address) { return reinterpret_cast<T *>(address); }

void magnitude_histogram(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes,
                         int shift, int bits, const std::vector<uint64_t> &prefixes, bool wide, uintptr_t counts) {
    const Models all(base, base_dtype, models, dtypes);
    nb::gil_scoped_release release;
    count_magnitudes(all.args, {shift, bits, prefixes.empty() ? nullptr : prefixes.data(), wide}, n, pointer<int64_t>(counts));
}

void kth_magnitude(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes,
                   const std::vector<std::vector<int64_t>> &ranks, uintptr_t magnitudes, uintptr_t indices) {
    const Models all(base, base_dtype, models, dtypes);
    nb::gil_scoped_release release;
    find_cuts(all.args, n, ranks, pointer<double>(magnitudes), pointer<int64_t>(indices));
}

void rank_drop(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes, int64_t columns,
               const std::vector<uint64_t> &keys, const Addresses &thresholds, int64_t start, int64_t stop, uintptr_t masks) {
    const Models all(base, base_dtype, models, dtypes);
    std::vector<const int64_t *> limits;
    for (const uintptr_t address : thresholds) limits.push_back(pointer<const int64_t>(address));
    nb::gil_scoped_release release;
    drop_by_rank(all.args, n, columns, keys, limits, start, stop, pointer<uint8_t>(masks));
}

int64_t extract_topk(int64_t n, uintptr_t base, int base_dtype, uintptr_t model, int dtype, double magnitude, int64_t index,
                     uintptr_t counts, uintptr_t offsets, uintptr_t values, int values_dtype, int64_t room) {
    const Models all(base, base_dtype, {model}, {dtype});
    nb::gil_scoped_release release;
    return extract(all.args, n, magnitude, index, pointer<int32_t>(counts), pointer<uint16_t>(offsets),
                   {pointer<void>(values), values_dtype}, room);
}

// k, room, counts, offsets, values
using Room = std::tuple<int64_t, int64_t, uintptr_t, uintptr_t, uintptr_t>;

std::vector<int> largest(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes,
                          const std::vector<Room> &rooms) {
    const Models all(base, base_dtype, models, dtypes);
    std::vector<Largest> to;
    for (const auto &[k, room, counts, offsets, values] : rooms)
        to.push_back({k, room, pointer<int32_t>(counts), pointer<uint16_t>(offsets), pointer<void>(values)});
    nb::gil_scoped_release release;
    return extract_largest(all.args, n, to);
}

using Expert = std::tuple<uintptr_t, int64_t, uintptr_t, int64_t, uintptr_t>;  // counts, blocks, offsets, k, values

Valued valued(const Expert &expert) {
    const auto &[counts, blocks, offsets, k, values] = expert;
    return {{pointer<const char>(counts), blocks, pointer<const char>(offsets), k}, pointer<char>(values)};
}

bool scatter_add(int64_t n, uintptr_t theta, int theta_dtype, const Expert &expert, int values_dtype, double scale) {
    const Valued own = valued(expert);
    nb::gil_scoped_release release;
    return add({pointer<void>(theta), theta_dtype}, n, own.elements, {own.values, values_dtype}, scale);
}

bool gather_from(int64_t n, uintptr_t theta, int theta_dtype, const Expert &expert) {
    nb::gil_scoped_release release;
    return gather({pointer<const void>(theta), theta_dtype}, n, valued(expert));
}

bool scatter_into(int64_t n, uintptr_t theta, int theta_dtype, const std::vector<Expert> &experts) {
    std::vector<Valued> all;
    for (const Expert &expert : experts) all.push_back(valued(expert));
    nb::gil_scoped_release release;
    return scatter({pointer<void>(theta), theta_dtype}, n, all);
}

}  // namespace

void bind_selection(nb::module_ &m) {
    m.def("magnitude_histogram", &magnitude_histogram);
    m.def("kth_magnitude", &kth_magnitude);
    m.def("rank_drop", &rank_drop);
    m.def("extract_topk", &extract_topk);
    m.def("extract_largest", &largest);
    m.def("scatter_add", &scatter_add);
    m.def("gather", &gather_from);
    m.def("scatter", &scatter_into);
}

}  // namespace fm
