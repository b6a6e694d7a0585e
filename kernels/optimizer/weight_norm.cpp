#include "nacre/ops/weight_norm.h"

#include <cfloat>
#include <cmath>
#include <string>

#include "runtime/host.h"

// Weight normalisation on the CPU (formulas and contract: nacre/ops/weight_norm.h; twin: weight_norm.cu). A row is a
// direction v of `length` elements with a gain g; rows are independent, and run in parallel eight at a time.
namespace nacre {
namespace cuda {
template <class T>
void weight_norm_forward(Context&, const WeightNormForward<T>&);
void weight_norm_backward(Context&, const WeightNormBackward&);
}  // namespace cuda

namespace {

constexpr int64_t lanes = 64;          // partial sums of a row: fixed, so that bits do not depend on the vector width
constexpr int64_t rows_at_a_time = 8;  // rows per part of the parallel loop

/// sums[l] = sum of a[l + 64 k] b[l + 64 k].
NACRE_CLONES void products(const float* __restrict a, const float* __restrict b, int64_t n, float* __restrict sums) {
  for (int64_t l = 0; l < lanes; ++l) sums[l] = 0;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int64_t l = 0; l < lanes; ++l) sums[l] += a[i + l] * b[i + l];
  for (int64_t l = 0; l < n - i; ++l) sums[l] += a[i + l] * b[i + l];
}
/// Sum of a[i] b[i]: 64 sums in float, added in double.
double dot(const float* a, const float* b, int64_t n) {
  float sums[lanes];
  products(a, b, n, sums);
  double total = 0;
  for (const float s : sums) total += s;
  return total;
}

// w = factor v, rounded to the type of w.
NACRE_CLONES void scale(const float* __restrict v, float factor, int64_t n, float* __restrict w) {
  for (int64_t i = 0; i < n; ++i) w[i] = factor * v[i];
}
void scale(const float* v, float factor, int64_t n, bf16* w) {
  for (int64_t i = 0; i < n; ++i) w[i] = to_bf16(factor * v[i]);
}
// dv += of_dw dw - of_v v
NACRE_CLONES void add_gradient(const float* __restrict dw, float of_dw, const float* __restrict v, float of_v,
                               int64_t n, float* __restrict dv) {
  for (int64_t i = 0; i < n; ++i) dv[i] += of_dw * dw[i] - of_v * v[i];
}

void check(const char* op, View<const float> v, View<const float> g, View<const WeightRow> rows) {
  expect_shape(op, "v", v, v.shape);
  expect_shape(op, "g", g, g.shape);
  expect_shape(op, "rows", rows, rows.shape);
}
/// Only for the CPU: on CUDA the rows are in device memory.
void check_rows(const char* op, int64_t v, int64_t g, View<const WeightRow> rows) {
  for (const WeightRow& row : rows)
    if (row.offset < 0 || row.length < 0 || row.offset > v - row.length || row.gain < WeightRow::no_gain ||
        row.gain >= g) [[unlikely]]
      throw_usage(op, "rows has a row of " + std::to_string(row.length) + " from " + std::to_string(row.offset) +
                          ", gain " + std::to_string(row.gain) + "; v has " + std::to_string(v) + " elements, g " +
                          std::to_string(g));
}

// f(row) for all rows, in parallel. Rows do not overlap or share a gain, so f may write to both.
template <class F>
void each_row(Context& ctx, View<const WeightRow> rows, F&& f) {
  const int64_t n = rows.elements();
  parallel_parts(ctx, (n + rows_at_a_time - 1) / rows_at_a_time, [&](int64_t part) {
    for (int64_t r = part * rows_at_a_time; r < std::min(n, (part + 1) * rows_at_a_time); ++r) f(rows[r]);
  });
}

/// 1 / |v|, or 0 for a row without a direction.
double inverse_norm(const float* v, int64_t n) {
  const double square = dot(v, v, n);
  return square < static_cast<double>(FLT_MIN) ? 0 : 1 / std::sqrt(square);
}

}  // namespace

template <class T>
void weight_norm_forward(Context& ctx, const WeightNormForward<T>& a) {
  const char* const op = "weight_norm_forward";
  check(op, a.v, a.g, a.rows);
  expect_shape(op, "w", a.w, a.v.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::weight_norm_forward(ctx, a);
  check_rows(op, a.v.elements(), a.g.elements(), a.rows);
  each_row(ctx, a.rows, [&](const WeightRow& row) {
    const float* const v = a.v.data + row.offset;
    // A factor of exactly 1 keeps the bits of v.
    const double factor = row.gain == WeightRow::no_gain ? 1 : a.g[row.gain] * inverse_norm(v, row.length);
    scale(v, static_cast<float>(factor), row.length, a.w.data + row.offset);
  });
}

void weight_norm_backward(Context& ctx, const WeightNormBackward& a) {
  const char* const op = "weight_norm_backward";
  check(op, a.v, a.g, a.rows);
  expect_shape(op, "dw", a.dw, a.v.shape);
  expect_shape(op, "dv", a.dv, a.v.shape);
  expect_shape(op, "dg", a.dg, a.g.shape);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::weight_norm_backward(ctx, a);
  check_rows(op, a.v.elements(), a.g.elements(), a.rows);
  each_row(ctx, a.rows, [&](const WeightRow& row) {
    const float *const v = a.v.data + row.offset, *const dw = a.dw.data + row.offset;
    float* const dv = a.dv.data + row.offset;
    if (row.gain == WeightRow::no_gain) return add_gradient(dw, 1, v, 0, row.length, dv);
    const double inverse = inverse_norm(v, row.length);
    // A row without a direction: dv and dg do not change.
    if (inverse == 0) return;
    // dv += g / |v| (dw - (dg / |v|) v): the part of dw along v changes the gain alone.
    const double dg = dot(dw, v, row.length) * inverse, factor = a.g[row.gain] * inverse;
    a.dg[row.gain] += static_cast<float>(dg);
    add_gradient(dw, static_cast<float>(factor), v, static_cast<float>(factor * dg * inverse), row.length, dv);
  });
}

template void weight_norm_forward<float>(Context&, const WeightNormForward<float>&);
template void weight_norm_forward<bf16>(Context&, const WeightNormForward<bf16>&);

}  // namespace nacre
