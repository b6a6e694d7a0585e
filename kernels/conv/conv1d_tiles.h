#pragma once
// The two inner loops of conv1d_direct.cpp, chosen by instruction set at run time.
#include <cstdint>

namespace nacre::direct {

/// sums[i][j] += sum over rows r of b[r b_step + i] v[r v_step + j], i < nb, j < width (a multiple of 16).
/// Each call sums its own rows first and then adds the result to `sums`.
using OuterProducts = void (*)(const float* b, int64_t b_step, int64_t nb, const float* v, int64_t v_step,
                               int64_t width, int64_t rows, float* sums, int64_t sums_step);
OuterProducts outer_products();

/// y[r] = sum over k < taps, j < width of x[r x_step + k tap_step + j] w[k width + j].
using WindowDots = void (*)(const float* x, int64_t x_step, int64_t taps, int64_t tap_step, int64_t width,
                            const float* w, int64_t rows, float* y);
WindowDots window_dots();

}  // namespace nacre::direct
