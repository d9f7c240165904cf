// The weighted sum of task vectors: combine, left unrounded in the working type. module.cpp sets the arguments so.
#include "kernels.hpp"

namespace fm::FM_ISA {

int64_t delta_sum(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *counts) {
    return combine(a, begin, n, sums, counts);
}

}  // namespace fm::FM_ISA
