// Rounding up, for tiles and blocks.
#pragma once

#include <cstdint>

namespace cosegflow {

constexpr int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

constexpr int64_t round_up(int64_t n, int64_t step) { return ceil_div(n, step) * step; }

}  // namespace cosegflow
