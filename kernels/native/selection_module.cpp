// Binds the ops that select by magnitude.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "cuts.hpp"

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
                   const std::vector<std::vector<int64_t>> &ranks, uintptr_t histogram, uintptr_t magnitudes,
                   uintptr_t indices) {
    const Models all(base, base_dtype, models, dtypes);
    nb::gil_scoped_release release;
    find_cuts(all.args, n, ranks, pointer<const int64_t>(histogram), pointer<double>(magnitudes), pointer<int64_t>(indices));
}

}  // namespace

void bind_selection(nb::module_ &m) {
    m.def("magnitude_histogram", &magnitude_histogram);
    m.def("kth_magnitude", &kth_magnitude);
}

}  // namespace fm
