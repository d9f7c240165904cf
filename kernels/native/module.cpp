// Binds the ops: chooses the instruction set, cuts tensors into blocks for the thread pool, adds block sums in order.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "isa.hpp"
#include "kernels.hpp"
#include "parallel.hpp"

namespace nb = nanobind;

namespace fm {

Isa isa = BASE;

namespace {

constexpr int64_t STREAMING_MIN = 1 << 20;  // bytes of output beyond which it would only push inputs out of the cache

const char *const ISA_NAMES[] = {"base", "v3", "v4"};

bool supported(Isa isa) {
#if defined(FM_HAS_v4)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("f16c");
    if (isa == V3) return v3;
    if (isa == V4)
        return v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return isa == BASE;
}

// Measured on Zen 4 (AMD) and Sapphire Rapids; other vendors' are taken to be like the latter.
bool amd() {
#if defined(FM_HAS_v4)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd");
#else
    return false;
#endif
}

void set_isa(const std::string &name) {
    for (Isa named : {BASE, V3, V4})
        if (name == ISA_NAMES[named]) {
            if (!supported(named)) throw std::invalid_argument("instruction set " + name + ": this processor does not have it");
            isa = named;
            return;
        }
    throw std::invalid_argument("instruction set " + name + ": expected base, v3 or v4");
}

void choose_isa() {
    isa = supported(V4) ? V4 : supported(V3) ? V3 : BASE;
    const char *wanted = std::getenv("FASTMERGE_ISA");
    if (wanted == nullptr) return;
    try {
        set_isa(wanted);
    } catch (const std::invalid_argument &error) {
        throw std::runtime_error(std::string("FASTMERGE_ISA: ") + error.what());
    }
}

// Windows (top magnitude and index, bottom magnitude and index), drops (key, threshold), the address of packed masks and
// the bytes from one to the next; empty and null where they do not select.
using Kept = std::tuple<std::vector<std::tuple<double, int64_t, double, int64_t>>,
                        std::vector<std::tuple<uint64_t, uint64_t>>, uintptr_t, int64_t>;

In input(uintptr_t address, int dtype) { return {reinterpret_cast<const void *>(address), dtype}; }

// The arguments that most ops share, with their models.
struct Call {
    Args args{};
    std::vector<In> models;
    std::vector<Window> windows;
    std::vector<Drop> drops;

    Call(uintptr_t base, int base_dtype, const std::vector<uintptr_t> &addresses, const std::vector<int> &dtypes) {
        args.base = input(base, base_dtype);
        args.wide = base && base_dtype == F64;
        for (size_t k = 0; k < addresses.size(); ++k) {
            models.push_back(input(addresses[k], dtypes[k]));
            args.wide |= dtypes[k] == F64;
        }
        args.models = models.data();
        args.models_count = int(models.size());
        args.divisor = args.scale = 1;
    }
    void write(uintptr_t out, int dtype, int64_t n) {
        args.out = {reinterpret_cast<void *>(out), dtype};
        args.streaming = out % 64 == 0 && n * (dtype == F64 ? 8 : dtype == F32 ? 4 : 2) >= STREAMING_MIN;
    }
    void masks(uintptr_t address, int64_t n) {
        args.masks = reinterpret_cast<uint8_t *>(address);
        args.mask_stride = (n + 7) / 8;
    }
    void select(const Kept &kept, int64_t offset) {
        const auto &[trim, drop, keep, stride] = kept;
        for (const auto &[top, top_index, bottom, bottom_index] : trim)
            windows.push_back({top, top_index, bottom, bottom_index});
        for (const auto &[key, threshold] : drop) drops.push_back({key, threshold});
        if (!windows.empty()) args.trim = windows.data();
        if (!drops.empty()) args.drop = drops.data();
        args.offset = offset;
        args.masks = reinterpret_cast<uint8_t *>(keep);
        args.mask_stride = stride;
    }
};

// Runs a kernel over all blocks with `width` sums each; `fold(block's sums, counts)` is called in block order.
template <class Fold>
int64_t run(BlockFn kernel, const Args &args, int64_t n, int width, int counted, Fold fold) {
    nb::gil_scoped_release release;
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
    std::vector<double> sums(blocks * width);
    std::vector<int64_t> counts(blocks * counted), results(blocks);
    parallel_for(blocks, [&](int64_t i) {
        const int64_t begin = i * BLOCK, size = n - begin < BLOCK ? n - begin : BLOCK;
        results[i] = kernel(args, begin, size, sums.data() + i * width, counts.data() + i * counted);
    });
    int64_t result = 0;
    for (int64_t i = 0; i < blocks; ++i) {
        fold(sums.data() + i * width, counts.data() + i * counted);
        result += results[i];
    }
    return result;
}
void no_fold(const double *, const int64_t *) {}

auto add_to(uintptr_t sums, int width) {
    return [to = reinterpret_cast<double *>(sums), width](const double *block, const int64_t *) {
        for (int j = 0; j < width; ++j) to[j] += block[j];
    };
}

using Addresses = std::vector<uintptr_t>;
using Dtypes = std::vector<int>;

void elect(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes, uintptr_t unified,
           int unified_dtype, uintptr_t masks, uintptr_t sums) {
    Call call(base, base_dtype, models, dtypes);
    call.write(unified, unified_dtype, n);
    call.masks(masks, n);
    const int width = 2 * int(models.size());
    run(FM_KERNEL(elect), call.args, n, width, 0, add_to(sums, width));
}

void mask_against(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes,
                  uintptr_t merged, int merged_dtype, const std::vector<double> &tall, uintptr_t masks, uintptr_t sums) {
    Call call(base, base_dtype, models, dtypes);
    call.args.merged = input(merged, merged_dtype);
    call.args.wide |= merged_dtype == F64;
    if (!tall.empty()) call.args.weights = tall.data();
    call.masks(masks, n);
    const int width = 2 * int(models.size());
    run(FM_KERNEL(mask_against), call.args, n, width, 0, add_to(sums, width));
}

void modulate(int64_t n, uintptr_t base, int base_dtype, uintptr_t unified, int unified_dtype, uintptr_t mask,
              double scale, uintptr_t out, int out_dtype) {
    Call call(base, base_dtype, {}, {});
    call.args.merged = input(unified, unified_dtype);
    call.args.wide |= unified_dtype == F64;
    call.args.scale = scale;
    call.masks(mask, n);
    call.write(out, out_dtype, n);
    run(FM_KERNEL(modulate), call.args, n, 0, 0, no_fold);
}

void low_rank(int64_t n, uintptr_t base, int base_dtype, uintptr_t up, uintptr_t down, bool wide, int64_t rank,
              int64_t columns, double scale, int64_t column, uintptr_t out, int out_dtype) {
    Call call(base, base_dtype, {}, {});
    call.args.wide |= wide;
    call.args.up = reinterpret_cast<const void *>(up);
    call.args.down = reinterpret_cast<const void *>(down);
    call.args.rank = rank;
    call.args.columns = columns;
    call.args.scale = scale;
    call.args.offset = column;
    call.write(out, out_dtype, n);
    run(FM_KERNEL(low_rank), call.args, n, 0, 0, no_fold);
}

int64_t combine(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes,
                const std::vector<double> &weights, const std::vector<double> &shares, double divisor, double scale, int consensus,
                bool as_delta, const Kept &kept, int64_t offset, uintptr_t out, int out_dtype) {
    Call call(base, base_dtype, models, dtypes);
    call.args.weights = weights.data();
    call.args.divisor = divisor, call.args.scale = scale;
    call.args.shares = shares.empty() ? nullptr : shares.data();
    call.args.consensus = Consensus(consensus);
    call.args.as_delta = as_delta;
    call.select(kept, offset);
    call.write(out, out_dtype, n);
    return run(FM_KERNEL(combine), call.args, n, 0, 0, no_fold);
}

int64_t blend(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes,
              uintptr_t weights, int64_t groups, int64_t inner, int64_t offset, uintptr_t out, int out_dtype) {
    Call call(base, base_dtype, models, dtypes);
    call.args.group_weights = reinterpret_cast<const float *>(weights);
    call.args.groups = groups, call.args.inner = inner, call.args.offset = offset;
    call.write(out, out_dtype, n);
    return run(FM_KERNEL(blend), call.args, n, 0, 0, no_fold);
}

void kept_sums(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes,
               const Kept &kept, int64_t offset, uintptr_t sums) {
    Call call(base, base_dtype, models, dtypes);
    call.select(kept, offset);
    const int width = 2 * int(models.size());
    run(FM_KERNEL(kept_sums), call.args, n, width, 0, add_to(sums, width));
}

void delta_sum(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes,
               const std::vector<double> &weights, uintptr_t out, int out_dtype) {
    Call call(base, base_dtype, models, dtypes);
    call.args.weights = weights.data();
    call.args.as_delta = true;
    call.write(out, out_dtype, n);
    run(FM_KERNEL(delta_sum), call.args, n, 0, 0, no_fold);
}

void moments(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes, uintptr_t sums,
             uintptr_t nonfinite) {
    Call call(base, base_dtype, models, dtypes);
    const int k = int(models.size());
    auto *to = reinterpret_cast<double *>(sums);
    auto *bad = reinterpret_cast<int64_t *>(nonfinite);
    run(FM_KERNEL(moments), call.args, n, 4 * k, k, [=](const double *block, const int64_t *counts) {
        for (int j = 0; j < 3 * k; ++j) to[j] += block[j];
        for (int j = 3 * k; j < 4 * k; ++j) to[j] = block[j] > to[j] ? block[j] : to[j];
        for (int j = 0; j < k; ++j) bad[j] += counts[j];
    });
}

void inner_products(int64_t n, uintptr_t g, int g_dtype, const Addresses &models, const Dtypes &dtypes,
                    uintptr_t sums) {
    Call call(g, g_dtype, models, dtypes);
    const int width = 2 * int(models.size()) + 1;
    run(FM_KERNEL(inner_products), call.args, n, width, 0, add_to(sums, width));
}

void gram(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes, uintptr_t sums) {
    Call call(base, base_dtype, models, dtypes);
    const int k = int(models.size());
    auto *to = reinterpret_cast<double *>(sums);
    run(FM_KERNEL(gram), call.args, n, k * (k + 1) / 2, 0, [=](const double *block, const int64_t *) {
        for (int i = 0; i < k; ++i)
            for (int j = i; j < k; ++j) {
                const double product = *block++;
                to[i * k + j] += product;
                if (j > i) to[j * k + i] += product;
            }
    });
}

// Calls body(row) for every row; a thread takes as many as make a block at a time.
template <class Body> void over_rows(int64_t n, int64_t columns, Body body) {
    const int64_t rows = n / columns, together = std::max(int64_t(1), BLOCK / columns);
    parallel_for((rows + together - 1) / together, [&](int64_t i) {
        for (int64_t row = i * together; row < std::min(rows, (i + 1) * together); ++row) body(row);
    });
}

void row_gram(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes, int64_t columns,
              uintptr_t products) {
    Call call(base, base_dtype, models, dtypes);
    const int k = int(models.size());
    const int64_t rows = n / columns;
    auto *to = reinterpret_cast<double *>(products);
    nb::gil_scoped_release release;
    over_rows(n, columns, [&](int64_t row) {
        double sums[MAX_MODELS * (MAX_MODELS + 1) / 2], *next = sums;
        FM_KERNEL(row_gram)(call.args, row * columns, columns, sums, nullptr);
        for (int i = 0; i < k; ++i)
            for (int j = i; j < k; ++j) to[(i * k + j) * rows + row] = to[(j * k + i) * rows + row] = *next++;
    });
}

void row_divergence(int64_t n, uintptr_t base, int base_dtype, uintptr_t model, int dtype, int64_t columns, double added,
                    uintptr_t found) {
    Call call(base, base_dtype, {model}, {dtype});
    auto *to = reinterpret_cast<double *>(found);
    nb::gil_scoped_release release;
    Workspaces<std::unique_ptr<double[]>> workspaces(n / columns, [&] {
        return std::unique_ptr<double[]>(new double[2 * ((columns + 31) / 32 * 32)]);  // whole pairs
    });
    over_rows(n, columns, [&](int64_t row) {
        workspaces.with([&](const std::unique_ptr<double[]> &memory) {
            to[row] = FM_KERNEL(row_divergence)(call.args, row * columns, columns, added, memory.get());
        });
    });
}

int64_t variance(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes, uintptr_t out,
                 int out_dtype) {
    Call call(base, base_dtype, models, dtypes);
    call.write(out, out_dtype, n);
    return run(FM_KERNEL(variance), call.args, n, 0, 0, no_fold);
}

using Limits = std::tuple<double, double, double, double>;

void compete(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes, int own, double least,
             double most, uintptr_t out, int out_dtype) {
    Call call(base, base_dtype, models, dtypes);
    const Bounds bounds{least, most, 0, 0};
    call.args.bounds = &bounds, call.args.own = own;
    call.write(out, out_dtype, n);
    run(FM_KERNEL(compete), call.args, n, 0, 0, no_fold);
}

int64_t balance(int64_t n, uintptr_t base, int base_dtype, const Addresses &models, const Dtypes &dtypes,
                const std::vector<Limits> &limits, double scale, uintptr_t out, int out_dtype) {
    Call call(base, base_dtype, models, dtypes);
    std::vector<Bounds> bounds;
    for (const auto &[least, most, low, high] : limits) bounds.push_back({least, most, low, high});
    call.args.bounds = bounds.data(), call.args.scale = scale;
    call.write(out, out_dtype, n);
    return run(FM_KERNEL(balance), call.args, n, 0, 0, no_fold);
}

void pack_bits(int64_t n, uintptr_t mask, uintptr_t out) {
    Call call(mask, BF16, {}, {});
    call.masks(out, n);
    run(FM_KERNEL(pack_bits), call.args, n, 0, 0, no_fold);
}

void unpack_bits(int64_t n, uintptr_t packed, uintptr_t out) {
    Call call(0, BF16, {}, {});
    call.masks(packed, n);
    call.args.out = {reinterpret_cast<void *>(out), BF16};
    run(FM_KERNEL(unpack_bits), call.args, n, 0, 0, no_fold);
}

}  // namespace

const int ahead = amd() ? 512 : 2048;
const bool slow_stores = amd();

void bind_selection(nb::module_ &m);
void bind_filter(nb::module_ &m);
void bind_files(nb::module_ &m);

}  // namespace fm

NB_MODULE(_native, m) {
    fm::choose_isa();
    m.def("elect", &fm::elect);
    m.def("mask_against", &fm::mask_against);
    m.def("modulate", &fm::modulate);
    m.def("low_rank", &fm::low_rank);
    m.def("combine", &fm::combine);
    m.def("blend", &fm::blend);
    m.def("kept_sums", &fm::kept_sums);
    m.def("delta_sum", &fm::delta_sum);
    m.def("moments", &fm::moments);
    m.def("inner_products", &fm::inner_products);
    m.def("gram", &fm::gram);
    m.def("row_gram", &fm::row_gram);
    m.def("row_divergence", &fm::row_divergence);
    m.def("variance", &fm::variance);
    m.def("compete", &fm::compete);
    m.def("balance", &fm::balance);
    m.def("pack_bits", &fm::pack_bits);
    m.def("unpack_bits", &fm::unpack_bits);
    fm::bind_selection(m);
    fm::bind_filter(m);
    fm::bind_files(m);
    m.def("isa", [] { return std::string(fm::ISA_NAMES[fm::isa]); });
    m.def("set_isa", &fm::set_isa);
    m.def("set_threads", &fm::set_threads);
    m.def("threads", &fm::threads);
}
