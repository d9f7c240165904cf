// Neighbouring weights resemble each other (a row or a head may be larger than others), so the error of a sample of lines is
// taken from how much the lines differ, not from the number of their elements.
#include "brackets.hpp"

#include <algorithm>
#include <cmath>

#include "isa.hpp"
#include "parallel.hpp"

namespace fm {
namespace {

constexpr int64_t LINES = 1 << 11;  // of a sample, or as many as are worth it in a larger tensor
constexpr int64_t GROUP = 64;       // lines that a thread takes at a time
constexpr int DIGIT_BITS = 16;      // of a key that its place in the sample is told by
constexpr int64_t BINS = 1 << DIGIT_BITS;
constexpr int64_t LEAST = 1 << 20;  // elements of a tensor of which a sample saves work
constexpr double ERRORS = 4;        // standard errors to both sides: a miss in ten thousand

// A finer sample takes longer, and makes brackets narrower, of which every rank has one.
int64_t lines_of(int64_t n, int64_t ranks) {
    return std::max(LINES, (n >> 12) * std::clamp<int64_t>(ranks, 2, 16)) / GROUP * GROUP;
}

// One of so many lines in every n / lines elements, wherever in them: a fixed distance could fall into step with the rows.
int64_t place(int64_t line, int64_t lines, int64_t n) {
    const int64_t stride = n / lines / SAMPLE * SAMPLE;
    const uint64_t mixed = uint64_t(line + 1) * 0x9e3779b97f4a7c15;
    return line * stride + int64_t((mixed >> 32) % uint64_t(stride / SAMPLE)) * SAMPLE;
}

// Lines lie far apart, so that processors do not foresee the next one.
void expect(const Args &args, int64_t begin) {
    const auto fetch = [&](const In &in) {
        const int64_t size = in.dtype == F64 ? 8 : in.dtype == F32 ? 4 : 2;
        if (const char *from = static_cast<const char *>(in.data))
            for (int64_t i = 0; i < SAMPLE * size; i += 64) __builtin_prefetch(from + begin * size + i);
    };
    fetch(args.base);
    for (int k = 0; k < args.models_count; ++k) fetch(args.models[k]);
}

// The highest bits of the keys of one model's sample, line by line, and how many are at least each.
class Sample {
  public:
    explicit Sample(std::vector<uint32_t> digits) : digits_(std::move(digits)), from_(BINS + 1) {
        for (const uint32_t digit : digits_) ++from_[digit];
        for (int64_t bin = BINS; bin-- > 0;) from_[bin] += from_[bin + 1];
    }

    std::optional<Bracket> around(int model, int64_t rank, int64_t n, int shift) const {
        const double size = double(digits_.size()), middle = double(rank) / double(n) * size;
        const double margin = ERRORS * error(digit_at(middle)) + 4;
        const uint64_t most = digit_at(middle - margin), least = digit_at(middle + margin);
        const int64_t within = from_[least] - from_[most + 1];
        if (within > int64_t(size) / 8) return {};
        const uint64_t first = least << shift, end = (most + 1) << shift;
        return Bracket{{model, first, end - first - 1}, int64_t(1.5 * double(within) / size * double(n))};
    }

  private:
    // That of the key which so many are larger than.
    uint64_t digit_at(double larger) const {
        if (larger < 0) return BINS - 1;
        const auto few = [&](uint32_t count) { return double(count) > larger; };
        return uint64_t(std::max<int64_t>(0, std::partition_point(from_.begin(), from_.end(), few) - from_.begin() - 1));
    }
    // The standard error of how many of the sample have larger digits than that.
    double error(uint64_t digit) const {
        double squares = 0;
        for (size_t at = 0; at < digits_.size(); at += SAMPLE) {
            int larger = 0;
            for (size_t i = at; i < at + SAMPLE; ++i) larger += digits_[i] > digit;
            squares += double(larger) * larger;
        }
        const double sum = double(from_[digit + 1]);
        return std::sqrt(std::max(0.0, squares - sum * sum * SAMPLE / double(digits_.size())));
    }

    std::vector<uint32_t> digits_, from_;
};

}  // namespace

std::vector<std::vector<std::optional<Bracket>>> brackets(const Args &args, int64_t n, const std::vector<std::vector<int64_t>> &ranks) {
    const int models = args.models_count, shift = (args.wide ? 63 : 31) - DIGIT_BITS;
    std::vector<std::vector<std::optional<Bracket>>> found;
    for (const auto &own : ranks) found.emplace_back(own.size());
    if (n < LEAST) return found;
    size_t most = 1;
    for (const auto &own : ranks) most = std::max(most, own.size());
    const int64_t lines = lines_of(n, int64_t(most));
    std::vector<std::vector<uint32_t>> digits(models, std::vector<uint32_t>(lines * SAMPLE));
    parallel_for(lines / GROUP, [&](int64_t group) {
        std::vector<uint64_t> keys(size_t(models) * SAMPLE);
        for (int64_t line = group * GROUP; line < (group + 1) * GROUP; ++line) {
            expect(args, place(line + 4, lines, n));
            FM_KERNEL(sample_keys)(args, place(line, lines, n), keys.data());
            for (int k = 0; k < models; ++k)
                for (int i = 0; i < SAMPLE; ++i) digits[k][line * SAMPLE + i] = uint32_t(keys[k * SAMPLE + i] >> shift);
        }
    });
    parallel_for(models, [&](int64_t k) {
        const Sample sample(std::move(digits[k]));
        for (size_t i = 0; i < ranks[k].size(); ++i)
            if (ranks[k][i]) found[k][i] = sample.around(int(k), ranks[k][i], n, shift);
    });
    return found;
}

}  // namespace fm
