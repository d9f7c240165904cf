// gram of a row, which module.cpp gives as a block.
#include "kernels.hpp"

namespace fm::FM_ISA {

int64_t row_gram(const Args &a, int64_t begin, int64_t n, double *sums, int64_t *counts) { return gram(a, begin, n, sums, counts); }

}  // namespace fm::FM_ISA
