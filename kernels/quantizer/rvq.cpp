#include "nacre/ops/rvq.h"

#include <limits>

#include "quantizer/rvq_algebra.h"
#include "quantizer/rvq_beam.h"
#include "quantizer/vq_search.h"
#include "runtime/sums.h"

// Residual vector quantisation on the CPU; rvq.cu and rvq_backward.cu are the same on CUDA. nacre/ops/rvq.h gives the
// formulas. Calls with products are in rvq_algebra.cpp, the codes of a beam in rvq_beam.cpp; this file has the
// arguments' checks of all of them, the forward pass by residuals, the backward pass and decoding.
//
// Rows are independent of each other but for sums of losses and gradients. Rows of factorised codes go in groups of
// four, which share the loads of the projections.
namespace nacre {
namespace cuda {
void rvq_forward(Context&, const RvqForward&);
void rvq_backward(Context&, const RvqBackward&);
void rvq_decode(Context&, const RvqDecode&);
Shape rvq_forward_scratch(Context&, Shape z, Shape codebooks, bool factorised, int64_t beam, bool products);
Shape rvq_backward_scratch(Shape z, Shape codebooks, bool factorised);
}  // namespace cuda

using namespace vq_search;
using rvq_algebra::transpose_out;

namespace {

constexpr int64_t max_parts = 8;  ///< partials of the parameter gradients
// Factors that make add_rows_4 a plain sum of a group.
constexpr float ones[] = {1, 1, 1, 1};
constexpr int64_t group = 4;  ///< rows that share each load of a weight; divides vq_search::tile

/// stages, codes per stage, channels of a code (dim) and of z (latent). dim = latent unless factorised.
struct Sizes {
  int64_t rows, stages, codes, dim, latent;
  bool factorised;
};

Sizes check(const char* op, Shape z, View<const float> codebooks, const RvqProjections& p) {
  const Shape e = codebooks.shape;
  const Sizes n{z.rows(), e.batch, e.time, e.channels, z.channels, static_cast<bool>(p.in_weight)};
  if (e.batch < 1 || e.time < 1 || e.width != 1 || e.channels < 1) [[unlikely]]
    throw_shape(op, "codebooks", e, {std::max<int64_t>(e.batch, 1), std::max<int64_t>(e.time, 1), 1, n.latent});
  expect_shape(op, "codebooks", codebooks, {n.stages, n.codes, 1, n.factorised ? n.dim : n.latent});
  if (!n.factorised) {
    if (p.in_bias || p.out_weight || p.out_bias) [[unlikely]]
      throw_usage(op, "projections.in_weight has no data, expected all four projections or none");
    return n;
  }
  expect_shape(op, "projections.in_weight", p.in_weight, {n.stages, n.dim, 1, n.latent});
  expect_shape(op, "projections.in_bias", p.in_bias, {n.stages, 1, 1, n.dim});
  expect_shape(op, "projections.out_weight", p.out_weight, {n.stages, n.latent, 1, n.dim});
  expect_shape(op, "projections.out_bias", p.out_bias, {n.stages, 1, 1, n.latent});
  return n;
}
rvq_algebra::Sizes small(const Sizes& n) {
  return {.rows = n.rows, .stages = n.stages, .codes = n.codes, .dim = n.dim, .latent = n.latent};
}

// ---- loops over one row

NACRE_CLONES void subtract_from(float* __restrict a, const float* __restrict b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) a[i] -= b[i];
}
NACRE_CLONES void add_to(float* __restrict a, const float* __restrict b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) a[i] += b[i];
}
NACRE_CLONES void add_scaled(float* __restrict a, const float* __restrict b, float scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) a[i] += scale * b[i];
}
NACRE_CLONES void add_scaled_difference(float* __restrict out, const float* __restrict a, const float* __restrict b,
                                        float scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] += scale * (a[i] - b[i]);
}
/// error.error and gradient.error, where the error is chosen - quantised.
struct ErrorSums {
  double squares = 0, products = 0;
};
/// In double, because the products may cancel and the quotient of the two sums scales a gradient. The order is that of
/// the vector lanes, fixed by n and the instruction set.
NACRE_CLONES ErrorSums error_sums(const float* __restrict quantised, const float* __restrict chosen,
                                  const float* __restrict gradient, int64_t n) {
  double squares = 0, products = 0;
#pragma omp simd reduction(+ : squares, products)
  for (int64_t i = 0; i < n; ++i) {
    const double error = static_cast<double>(chosen[i] - quantised[i]);
    squares += error * error;
    products += error * static_cast<double>(gradient[i]);
  }
  return {squares, products};
}
// In float, because a row has few elements. Sums over rows are in double.
NACRE_CLONES float squared_difference(const float* __restrict a, const float* __restrict b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}
// out[i] += sum over r of s[r] w[r][i], for four rows w[r] of n floats. Each out[i] is loaded and stored once.
NACRE_CLONES void add_rows_4(float* __restrict out, const float* __restrict s, const float* __restrict w, int64_t n) {
  const float s0 = s[0], s1 = s[1], s2 = s[2], s3 = s[3];
  const float* __restrict w0 = w, * __restrict w1 = w + n, * __restrict w2 = w + 2 * n, * __restrict w3 = w + 3 * n;
  for (int64_t i = 0; i < n; ++i) out[i] = out[i] + s0 * w0[i] + s1 * w1[i] + s2 * w2[i] + s3 * w3[i];
}
/// out[r] = sum over i of x[i] w[r][i], for four rows of w.
NACRE_CLONES void dot_4(const float* __restrict x, const float* __restrict w, int64_t n, float* __restrict out) {
  const float* __restrict w0 = w, * __restrict w1 = w + n, * __restrict w2 = w + 2 * n, * __restrict w3 = w + 3 * n;
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t i = 0; i < n; ++i) {
    s0 += x[i] * w0[i];
    s1 += x[i] * w1[i];
    s2 += x[i] * w2[i];
    s3 += x[i] * w3[i];
  }
  out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
}
// The functions below work on groups of four rows, [group][n], so that each weight is loaded once for four rows.
// Factors of a group are stored as [dim][group].

// out[r][i] += sum over j of s[j][r] w[j][i], for w [dim][n].
void add_products(float* out, const float* s, const float* w, int64_t dim, int64_t n) {
  for (int64_t j = 0; j < dim; j += group)
    for (int64_t r = 0; r < group; ++r) {
      if (j + group > dim) {
        for (int64_t k = j; k < dim; ++k) add_scaled(out + r * n, w + k * n, s[k * group + r], n);
        continue;
      }
      const float four[group] = {s[j * group + r], s[(j + 1) * group + r], s[(j + 2) * group + r],
                                 s[(j + 3) * group + r]};
      add_rows_4(out + r * n, four, w + j * n, n);
    }
}
// out[j][r] = sum over i of w[j][i] x[r][i].
void dots(const float* x, const float* w, int64_t dim, int64_t n, float* out) {
  for (int64_t j = 0; j < dim; ++j) dot_4(w + j * n, x, n, out + j * group);
}
// w[j][i] += sum over r of s[j][r] x[r][i].
void add_outer(float* w, const float* s, const float* x, int64_t dim, int64_t n) {
  for (int64_t j = 0; j < dim; ++j) add_rows_4(w + j * n, s + j * group, x, n);
}

// q[r] = W_out E[code of row r] + b_out, with the chosen codebook rows in `codes` as [dim][group].
void project_out(const float* codes, const float* transposed, const float* bias, const Sizes& n, float* q) {
  for (int64_t r = 0; r < group; ++r) std::copy(bias, bias + n.latent, q + r * n.latent);
  add_products(q, codes, transposed, n.dim, n.latent);
}
// The chosen rows of one codebook as [dim][group]; zeros for rows beyond `count`.
void gather_codes(const float* codebook, const int32_t* codes, int64_t count, const Sizes& n, float* out) {
  std::fill(out, out + n.dim * group, 0.0f);
  for (int64_t r = 0; r < count; ++r) {
    const float* code = codebook + clamp_code(codes[r * n.stages], n.codes) * n.dim;
    for (int64_t d = 0; d < n.dim; ++d) out[d * group + r] = code[d];
  }
}

constexpr int64_t error_part = 256;  ///< rows per partial sum of error_factor
int64_t error_parts(int64_t rows) { return (rows + error_part - 1) / error_part; }
int64_t gradient_parts(int64_t rows) { return std::clamp<int64_t>(rows / 64, 1, max_parts); }
// Floats of a group's work space: residual, q, dresidual and dq, then de and codes.
int64_t group_size(const Sizes& n) { return 4 * group * n.latent + 2 * group * n.dim; }
// Floats of one stage of a partial: in_weight and out_weight as [dim][latent], then in_bias, then out_bias.
int64_t partial_size(const Sizes& n) { return 2 * n.dim * n.latent + n.dim + n.latent; }

Sizes sizes_of(Shape z, Shape codebooks, bool factorised) {
  return {z.rows(), codebooks.batch, codebooks.time, codebooks.channels, z.channels, factorised};
}

}  // namespace

// ---- forward

namespace {

// Tiles of rows are divided into as many parts as threads can run; each part has its own beam storage.
// The number of threads may decide here: rows are independent, and no sum crosses a part.
int64_t forward_parts(const Context& ctx, int64_t rows) {
  return std::clamp<int64_t>(round_up(rows, tile) / tile, 1, ctx.threads());
}
/// Whether codebooks are searched in place. Otherwise they are packed first, all stages at once.
bool in_place(int64_t rows) { return rows <= few_rows; }
rvq_beam::Sizes beam_sizes(const Sizes& n, int64_t beam) {
  return {.stages = n.stages, .codes = n.codes, .dim = n.dim, .beam = beam};
}

void check_beam_range(int64_t beam) {
  if (beam < 1 || beam > max_rvq_beam) [[unlikely]]
    throw_usage("rvq_forward", "beam is " + std::to_string(beam) + ", expected 1 to " + std::to_string(max_rvq_beam));
}
void check_beam(const RvqForward& a, const Sizes& n) {
  check_beam_range(a.beam);
  if (a.beam == 1) return;
  if (n.factorised || a.metric != VqMetric::euclidean) [[unlikely]]
    throw_usage("rvq_forward", "beam is " + std::to_string(a.beam) + ", expected 1 with " +
                                   (n.factorised ? "projections" : "the cosine metric") +
                                   ": a beam needs euclidean codes of the latent itself");
  // A candidate's id, hypothesis * codes + code, is stored in 32 bits.
  if (n.codes > std::numeric_limits<int32_t>::max() / a.beam) [[unlikely]]
    throw_usage("rvq_forward", "beam times codes is " + std::to_string(a.beam) + " times " + std::to_string(n.codes) +
                                   ", expected less than 2^31");
}
/// Products may be those of more stages: their shape must then be that of some number of stages, [1 + S dim][S dim].
void check_products(View<const float> products, const Sizes& n) {
  if (!n.factorised) [[unlikely]]
    throw_usage("rvq_forward", "projections.products is given, expected none without projections");
  const Shape p = products.shape, least = rvq_products_shape(n.stages, n.dim);
  const bool more = p.channels > least.channels && p.channels % n.dim == 0 && p.time == p.channels + 1;
  if (!more) expect_shape("rvq_forward", "projections.products", products, least);
}

void add_losses(const RvqForward& a, const Sizes& n, const RowMask& mask, const float* row_losses) {
  // In the order of rows, so that the sum does not depend on parts and threads.
  double sum = 0;
  for (int64_t r = 0; r < n.rows; ++r) sum += static_cast<double>(row_losses[r]);
  const int64_t elements = mask.loss_elements(a.z.shape.batch, n.dim);
  // The two losses have the same value; only their gradients differ.
  a.losses[0] = a.losses[1] = elements > 0 ? static_cast<float>(sum / static_cast<double>(elements)) : 0.0f;
}

}  // namespace

Shape rvq_forward_scratch(Context& ctx, Shape z, Shape codebooks, bool factorised, int64_t beam, bool products) {
  check_beam_range(beam);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::rvq_forward_scratch(ctx, z, codebooks, factorised, beam, products);
  const Sizes n = sizes_of(z, codebooks, factorised);
  if (products) return {.channels = n.rows + rvq_algebra::forward_size(small(n))};
  // Packed codebooks and the search's buffer, or the buffer of a search in place; one loss per row, the residual; then,
  // with a beam, its storage; with projections, e, e in groups, q and the transposed out_weight.
  const int64_t rows = round_up(n.rows, tile);
  int64_t size = (in_place(n.rows) ? in_place_buffer_size(n.dim)
                                   : n.stages * packed_size(n.codes, n.dim) + buffer_size(n.rows, n.dim)) +
                 rows + rows * n.latent;
  if (beam > 1) size += forward_parts(ctx, n.rows) * rvq_beam::slot_size(beam_sizes(n, beam), in_place(n.rows));
  if (factorised) size += 2 * rows * n.dim + rows * n.latent + n.stages * n.latent * n.dim;
  return {.channels = size};
}

void rvq_forward(Context& ctx, const RvqForward& a) {
  const Shape z = a.z.shape;
  expect_shape("rvq_forward", "z", a.z, {z.batch, z.time, 1, z.channels});
  const Sizes n = check("rvq_forward", z, a.codebooks, a.projections);
  const View<const float> products = a.projections.products;
  if (products) check_products(products, n);
  if (a.y || !products) expect_shape("rvq_forward", "y", a.y, z);
  expect_shape("rvq_forward", "codes", a.codes, {z.batch, z.time, 1, n.stages});
  expect_elements_or_empty("rvq_forward", "stages", a.stages, z.batch);
  expect_elements_or_empty("rvq_forward", "frames", a.frames, z.batch);
  expect_shape_or_empty("rvq_forward", "quantised", a.quantised, {n.stages, n.rows, 1, n.dim});
  expect_elements_or_empty("rvq_forward", "losses", a.losses, 2);
  check_beam(a, n);
  expect_scratch("rvq_forward", a.scratch,
                 rvq_forward_scratch(ctx, z, a.codebooks.shape, n.factorised, a.beam, static_cast<bool>(products)));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::rvq_forward(ctx, a);
  const RowMask mask{.frames = a.frames, .stages = a.stages, .time = z.time, .mean_of = a.mean ? n.stages : 0};
  if (products) {
    float* const losses = a.losses ? a.scratch.data : nullptr;
    rvq_algebra::forward(ctx, a, small(n), mask, a.scratch.data + n.rows, losses);
    if (a.losses) add_losses(a, n, mask, losses);
    return;
  }

  // Work space, in this order: packed codebooks, search buffer, row losses, residual; then, with projections, e
  // (`projected`), e in groups, q (`product`) and the transposed out_weight. Every array has `padded` rows, so a row
  // has its place at all thread counts.
  const bool few = in_place(n.rows);
  const int64_t book_size = packed_size(n.codes, n.dim);
  float* packed = a.scratch.data;
  float* buffer = packed + (few ? 0 : n.stages * book_size);
  float* row_losses = buffer + (few ? in_place_buffer_size(n.dim) : buffer_size(n.rows, n.dim));
  const int64_t padded = round_up(n.rows, tile);
  float* residual = row_losses + padded;
  float* projected = residual + padded * n.latent;
  float* grouped = projected + (n.factorised ? padded * n.dim : 0);
  float* product = grouped + (n.factorised ? padded * n.dim : 0);
  float* transposed = product + (n.factorised ? padded * n.latent : 0);
  if (!few) pack_codebooks(ctx, a.codebooks.data, n.stages, n.codes, n.dim, a.metric, packed);
  if (n.factorised) transpose_out(ctx, a.projections.out_weight.data, n.stages, n.latent, n.dim, transposed);

  const rvq_beam::Sizes beam = beam_sizes(n, a.beam);
  // A beam first finds the codes of all stages; quantise() below then computes y, losses and e from given codes.
  const auto search_beam = [&](int64_t first, int64_t count, float* slot) {
    int64_t used[rvq_beam::max_rows];
    for (int64_t r = 0; r < count; ++r) used[r] = a.stages ? a.stages[(first + r) / z.time] : n.stages;
    rvq_beam::search(a.z.data + first * n.dim, count, beam, a.codebooks.data, few ? nullptr : packed, used, slot,
                     a.codes.data + first * n.stages);
  };
  // A tile of rows passes through all stages while its residual is in cache.
  const auto quantise = [&](int64_t first, int64_t count) {
    // Rows up to a multiple of `group` are zero: the functions of a group always work on four rows.
    const int64_t groups = round_up(count, group);
    std::copy(a.z.data + first * n.latent, a.z.data + (first + count) * n.latent, residual + first * n.latent);
    std::fill(residual + (first + count) * n.latent, residual + (first + groups) * n.latent, 0.0f);
    if (a.losses) std::fill(row_losses + first, row_losses + first + count, 0.0f);
    for (int64_t i = 0; i < n.stages; ++i) {
      // Stage i: e = W_in r + b_in (latent codes: e = r); the nearest code; q = W_out E[code] + b_out; the loss; y += q
      // and r -= q. Residual and search go on in unused stages, so that `codes` has all stages; only y and the loss
      // skip them.
      float* e = (n.factorised ? projected : residual) + first * n.dim;
      for (int64_t r = 0; n.factorised && r < groups; r += group) {
        float* grouped_values = grouped + (first + r) * n.dim;
        const float* bias = a.projections.in_bias.data + i * n.dim;
        dots(residual + (first + r) * n.latent, a.projections.in_weight.data + i * n.dim * n.latent, n.dim, n.latent,
             grouped_values);
        for (int64_t j = 0; j < group; ++j)
          for (int64_t d = 0; d < n.dim; ++d) e[(r + j) * n.dim + d] = grouped_values[d * group + j] + bias[d];
      }
      if (a.quantised) std::copy(e, e + count * n.dim, a.quantised.data + (i * n.rows + first) * n.dim);
      int32_t* codes = a.codes.data + first * n.stages + i;
      if (few && a.beam == 1)
        nearest_in_place(e, count, n.dim, a.codebooks.data + i * n.codes * n.dim, n.codes, a.metric, buffer, codes,
                         n.stages);
      else if (a.beam == 1)
        nearest(e, count, n.dim, packed + i * book_size, n.codes, a.metric, buffer + first * n.dim, codes, n.stages);
      for (int64_t r = 0; n.factorised && r < groups; r += group) {
        float* grouped_values = grouped + (first + r) * n.dim;
        gather_codes(a.codebooks.data + i * n.codes * n.dim, codes + r * n.stages, std::min(group, count - r), n,
                     grouped_values);
        project_out(grouped_values, transposed + i * n.dim * n.latent, a.projections.out_bias.data + i * n.latent, n,
                    product + (first + r) * n.latent);
      }
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row = first + r;
        const bool used = mask.used(row, i);
        const float* code = a.codebooks.data + (i * n.codes + codes[r * n.stages]) * n.dim;
        if (a.losses && used && mask.valid(row)) row_losses[row] += squared_difference(e + r * n.dim, code, n.dim);
        const float* q = n.factorised ? product + row * n.latent : code;
        float* y = a.y.data + row * n.latent;
        if (i == 0 && used) std::copy(q, q + n.latent, y);
        if (i == 0 && !used) std::fill(y, y + n.latent, 0.0f);
        if (i > 0 && used) add_to(y, q, n.latent);
        subtract_from(residual + row * n.latent, q, n.latent);
      }
    }
  };
  float* slots = residual + padded * n.latent;  // shares the place of `projected`: a beam has no projections
  const int64_t tiles = padded / tile, parts = forward_parts(ctx, n.rows);
  parallel_parts(ctx, parts, [&](int64_t part) {
    const int64_t begin = tiles * part / parts * tile, last = std::min(tiles * (part + 1) / parts * tile, n.rows);
    for (int64_t r = begin; a.beam > 1 && r < last; r += rvq_beam::max_rows)
      search_beam(r, std::min(rvq_beam::max_rows, last - r), slots + part * rvq_beam::slot_size(beam, few));
    for (int64_t r = begin; r < last; r += max_rows) quantise(r, std::min(max_rows, last - r));
  });
  if (a.losses) add_losses(a, n, mask, row_losses);
}

// ---- backward

Shape rvq_backward_scratch(Context& ctx, Shape z, Shape codebooks, bool factorised) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::rvq_backward_scratch(z, codebooks, factorised);
  const Sizes n = sizes_of(z, codebooks, factorised);
  if (!factorised) return {.channels = partial_floats(2 * error_parts(n.rows))};
  const int64_t parts = gradient_parts(n.rows);
  return {.channels = n.stages * n.latent * n.dim + parts * (n.stages * partial_size(n) + group_size(n))};
}

namespace {

const float* chosen_row(const RvqBackward& a, const Sizes& n, int64_t row, int64_t stage) {
  return a.codebooks.data + (stage * n.codes + clamp_code(a.codes[row * n.stages + stage], n.codes)) * n.dim;
}
const float* quantised_row(const RvqBackward& a, const Sizes& n, int64_t row, int64_t stage) {
  return a.quantised.data + (stage * n.rows + row) * n.dim;
}

/// b of the contract in rvq.h. The error y - z of a row is chosen - quantised of its last used stage.
float error_factor(const Context& ctx, const RvqBackward& a, const Sizes& n, const RowMask& mask) {
  const int64_t parts = error_parts(n.rows);
  parallel_parts(ctx, parts, [&](int64_t part) {
    ErrorSums sums;
    const int64_t end = std::min((part + 1) * error_part, n.rows);
    for (int64_t row = part * error_part; row < end; ++row) {
      const int64_t last = mask.stages_used(row, n.stages) - 1;
      if (last < 0 || !mask.valid(row)) continue;
      const ErrorSums row_sums =
          error_sums(quantised_row(a, n, row, last), chosen_row(a, n, row, last), a.dy.data + row * n.latent, n.dim);
      sums.squares += row_sums.squares;
      sums.products += row_sums.products;
    }
    put_partial(a.scratch.data, part, sums.squares);
    put_partial(a.scratch.data, parts + part, sums.products);
  });
  const double squares = add_partials(a.scratch.data, parts);
  const double products = add_partials(a.scratch.data + partial_floats(parts), parts);
  // A quotient that is no float (overflow) counts as 0: this step then has the straight-through gradient alone. See
  // docs/decisions/orthogonal-gradient.md.
  const double b = products / squares;
  return squares == 0 || std::abs(b) > double{std::numeric_limits<float>::max()} ? 0.0f : static_cast<float>(b);
}

/// dz = or += dy - b e + scale sum over used stages of (r_i - E[c_i]), with e = y - z = E[c] - r of the last used
/// stage. `scale` is the slope of the commitment loss.
void latent_backward(const Context& ctx, const RvqBackward& a, const Sizes& n, const RowMask& mask, float scale) {
  const float factor = a.orthogonal ? error_factor(ctx, a, n, mask) : 0.0f;
  // A row is independent of the others. Rows beyond an item's frames pass dy through unchanged.
  parallel_ranges(ctx, n.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* dy = a.dy.data + row * n.latent;
      float* dz = a.dz.data + row * n.latent;
      if (a.add_dz)
        add_to(dz, dy, n.latent);
      else
        std::copy(dy, dy + n.latent, dz);
      if (!mask.valid(row)) continue;
      const int64_t used = mask.stages_used(row, n.stages);
      if (factor != 0 && used > 0)
        add_scaled_difference(dz, quantised_row(a, n, row, used - 1), chosen_row(a, n, row, used - 1), factor, n.dim);
      for (int64_t i = 0; scale != 0 && i < used; ++i)
        add_scaled_difference(dz, quantised_row(a, n, row, i), chosen_row(a, n, row, i), scale, n.dim);
    }
  });
}

// The gradient of factorised codes: z's and those of the projections. Runs back through the stages. Residuals are not
// saved: each is the next one plus what the stage subtracted.
void factorised_backward(const Context& ctx, const RvqBackward& a, const Sizes& n, const RowMask& mask, float scale) {
  const RvqProjections& p = a.projections;
  // Scratch: transposed out_weight; then [parts][stages][partial] gradients; then one group's work space per part. The
  // number of parts comes from the rows alone, and the parts are added in order at the end.
  const int64_t parts = gradient_parts(n.rows), partial = partial_size(n), matrix = n.dim * n.latent;
  float* transposed = a.scratch.data;
  float* partials = transposed + n.stages * matrix;
  float* rows = partials + parts * n.stages * partial;
  transpose_out(ctx, p.out_weight.data, n.stages, n.latent, n.dim, transposed);

  parallel_parts(ctx, parts, [&](int64_t part) {
    float* sums = partials + part * n.stages * partial;
    std::fill(sums, sums + n.stages * partial, 0.0f);
    float* residual = rows + part * group_size(n);
    float *q = residual + group * n.latent, *dresidual = q + group * n.latent, *dq = dresidual + group * n.latent;
    float *de = dq + group * n.latent, *codes = de + group * n.dim;
    const int64_t last = n.rows * (part + 1) / parts;
    for (int64_t first = n.rows * part / parts; first < last; first += group) {
      const int64_t count = std::min(group, last - first);
      const auto project = [&](int64_t i) {
        gather_codes(a.codebooks.data + i * n.codes * n.dim, a.codes.data + first * n.stages + i, count, n, codes);
        project_out(codes, transposed + i * matrix, p.out_bias.data + i * n.latent, n, q);
      };
      // Forward once, to the residual after the last stage; then backward. g = dresidual is the gradient of the loss in
      // the residual after stage i.
      std::fill(residual, residual + group * n.latent, 0.0f);
      std::copy(a.z.data + first * n.latent, a.z.data + (first + count) * n.latent, residual);
      for (int64_t i = 0; i < n.stages; ++i) {
        project(i);
        subtract_from(residual, q, group * n.latent);
      }
      std::fill(dresidual, dresidual + group * n.latent, 0.0f);
      for (int64_t i = n.stages - 1; i >= 0; --i) {
        project(i);
        add_to(residual, q, group * n.latent);
        for (int64_t r = 0; r < group; ++r) {
          // dq: y gets q with +, the residual with -. An unused stage adds nothing to y, but its q was subtracted from
          // the residual. Rows beyond `count` have g = 0 and so dq = 0: they add nothing to the sums below.
          const bool used = r < count && mask.used(first + r, i);
          const float *dy = a.dy.data + (first + r) * n.latent, *g = dresidual + r * n.latent;
          for (int64_t c = 0; c < n.latent; ++c) dq[r * n.latent + c] = used ? dy[c] - g[c] : -g[c];
        }
        // With q = W_out E + b_out and e = W_in r + b_in, where the code E passes the gradient straight to e:
        //   de = W_out^T dq, plus scale (e - E) for rows that count: the slope of the commitment loss
        //   dW_in += de r^T,  db_in += de,  dW_out += dq E^T,  db_out += dq,  g += W_in^T de
        // `residual` is r of this stage again. W_out and its gradient are transposed here, so that all loops run along
        // the latent.
        dots(dq, transposed + i * matrix, n.dim, n.latent, de);
        for (int64_t r = 0; r < count; ++r)
          if (mask.used(first + r, i) && mask.valid(first + r))
            for (int64_t d = 0; d < n.dim; ++d)
              de[d * group + r] += scale * (a.quantised[(i * n.rows + first + r) * n.dim + d] - codes[d * group + r]);
        float* sum = sums + i * partial;
        add_outer(sum, de, residual, n.dim, n.latent);
        add_outer(sum + matrix, codes, dq, n.dim, n.latent);
        for (int64_t d = 0; d < n.dim; ++d)
          for (int64_t r = 0; r < count; ++r) sum[2 * matrix + d] += de[d * group + r];
        add_rows_4(sum + 2 * matrix + n.dim, ones, dq, n.latent);
        add_products(dresidual, de, p.in_weight.data + i * matrix, n.dim, n.latent);
      }
      if (!a.dz) continue;
      float* dz = a.dz.data + first * n.latent;
      if (a.add_dz)
        add_to(dz, dresidual, count * n.latent);
      else
        std::copy(dresidual, dresidual + count * n.latent, dz);
    }
  });

  parallel_ranges(ctx, n.stages, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* total = partials + i * partial;
      // Stages in parallel. The parts are added to the first one in order, then to the gradients (always +=).
      for (int64_t part = 1; part < parts; ++part) add_to(total, total + part * n.stages * partial, partial);
      if (a.din_weight) add_to(a.din_weight.data + i * matrix, total, matrix);
      if (a.dout_weight)
        for (int64_t c = 0; c < n.latent; ++c)
          for (int64_t d = 0; d < n.dim; ++d)
            a.dout_weight[i * matrix + c * n.dim + d] += total[matrix + d * n.latent + c];
      if (a.din_bias) add_to(a.din_bias.data + i * n.dim, total + 2 * matrix, n.dim);
      if (a.dout_bias) add_to(a.dout_bias.data + i * n.latent, total + 2 * matrix + n.dim, n.latent);
    }
  });
}

// dE[c] += scale (E[c] - e) of the rows that chose c. Each part handles a range of codes of one stage and adds their
// rows in order, so that no two parts write to one code.
void codebook_gradient(const Context& ctx, const RvqBackward& a, const Sizes& n, const RowMask& mask, float scale) {
  constexpr int64_t slices = 4;
  parallel_parts(ctx, n.stages * slices, [&](int64_t part) {
    const int64_t i = part / slices, low = n.codes * (part % slices) / slices,
                  high = n.codes * (part % slices + 1) / slices;
    for (int64_t row = 0; row < n.rows; ++row) {
      // Every part reads all codes of its stage: that is little beside the rows, and needs neither sorting nor scratch.
      const int64_t k = clamp_code(a.codes[row * n.stages + i], n.codes);
      if (k < low || k >= high || !mask.used(row, i) || !mask.valid(row)) continue;
      add_scaled_difference(a.dcodebooks.data + (i * n.codes + k) * n.dim, a.codebooks.data + (i * n.codes + k) * n.dim,
                            a.quantised.data + (i * n.rows + row) * n.dim, scale, n.dim);
    }
  });
}

}  // namespace

void rvq_backward(Context& ctx, const RvqBackward& a) {
  const Shape z = a.dy.shape;
  expect_shape("rvq_backward", "dy", a.dy, {z.batch, z.time, 1, z.channels});
  const Sizes n = check("rvq_backward", z, a.codebooks, a.projections);
  if (n.factorised) expect_shape("rvq_backward", "z", a.z, z);
  expect_elements("rvq_backward", "codes", a.codes, n.rows * n.stages);
  expect_elements_or_empty("rvq_backward", "stages", a.stages, z.batch);
  expect_elements_or_empty("rvq_backward", "frames", a.frames, z.batch);
  expect_shape("rvq_backward", "quantised", a.quantised, {n.stages, n.rows, 1, n.dim});
  expect_shape_or_empty("rvq_backward", "dz", a.dz, z);
  expect_shape_or_empty("rvq_backward", "dcodebooks", a.dcodebooks, a.codebooks.shape);
  expect_shape_or_empty("rvq_backward", "din_weight", a.din_weight, {n.stages, n.dim, 1, n.latent});
  expect_shape_or_empty("rvq_backward", "din_bias", a.din_bias, {n.stages, 1, 1, n.dim});
  expect_shape_or_empty("rvq_backward", "dout_weight", a.dout_weight, {n.stages, n.latent, 1, n.dim});
  expect_shape_or_empty("rvq_backward", "dout_bias", a.dout_bias, {n.stages, 1, 1, n.latent});
  if (!n.factorised && (a.din_weight || a.din_bias || a.dout_weight || a.dout_bias)) [[unlikely]]
    throw_usage("rvq_backward", "gradients of projections are requested, expected none without projections");
  if (n.factorised && a.orthogonal) [[unlikely]]
    throw_usage("rvq_backward", "orthogonal is true, expected false with projections: it needs codes of the latent");
  expect_scratch("rvq_backward", a.scratch, rvq_backward_scratch(ctx, z, a.codebooks.shape, n.factorised));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::rvq_backward(ctx, a);

  const RowMask mask{.frames = a.frames, .stages = a.stages, .time = z.time, .mean_of = a.mean ? n.stages : 0};
  const int64_t elements = mask.loss_elements(z.batch, n.dim);
  const double slope = elements > 0 ? 2.0 / static_cast<double>(elements) : 0.0;
  const float scale = static_cast<float>(slope * static_cast<double>(a.commitment_weight));
  if (n.factorised)
    factorised_backward(ctx, a, n, mask, scale);
  else if (a.dz)
    latent_backward(ctx, a, n, mask, scale);
  if (a.dcodebooks)
    codebook_gradient(ctx, a, n, mask, static_cast<float>(slope * static_cast<double>(a.codebook_weight)));
}

// ---- decode

Shape rvq_decode_scratch(Context& ctx, Shape codes, Shape y, Shape codebooks, bool factorised) {
  if (!factorised || on_cuda(ctx)) return {.channels = 0};
  return {.channels = codebooks.batch * codebooks.channels * (y.channels + codes.rows())};
}

void rvq_decode(Context& ctx, const RvqDecode& a) {
  const Shape y = a.y.shape;
  const int64_t stages = a.codes.shape.channels;
  expect_shape("rvq_decode", "y", a.y, {y.batch, y.time, 1, y.channels});
  const Sizes n = check("rvq_decode", y, a.codebooks, a.projections);
  if (stages < 1 || stages > n.stages) [[unlikely]]
    throw_shape("rvq_decode", "codes", a.codes.shape, {y.batch, y.time, 1, n.stages});
  expect_shape("rvq_decode", "codes", a.codes, {y.batch, y.time, 1, stages});
  expect_scratch("rvq_decode", a.scratch, rvq_decode_scratch(ctx, a.codes.shape, y, a.codebooks.shape, n.factorised));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::rvq_decode(ctx, a);

  // With projections: W_out as [stages][dim][latent], then the chosen codes of all rows, [row][stages dim], which
  // sum_codes() reads. Without, the codes are added to y directly.
  float* const transposed = a.scratch.data;
  float* const chosen = transposed + n.stages * n.dim * n.latent;
  if (n.factorised) transpose_out(ctx, a.projections.out_weight.data, stages, n.latent, n.dim, transposed);
  rvq_algebra::Sizes used = small(n);
  used.stages = stages;
  const auto code_of = [&](int64_t row, int64_t i) {
    return a.codebooks.data + (i * n.codes + clamp_code(a.codes[row * stages + i], n.codes)) * n.dim;
  };
  // y = the sum of q over the stages in order, the same additions as in rvq_forward.
  parallel_ranges(ctx, n.rows, 4 * group, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t i = 0; i < stages; ++i) {
        float* const sum = a.y.data + row * n.latent;
        if (n.factorised)
          std::copy_n(code_of(row, i), n.dim, chosen + row * used.all() + i * n.dim);
        else if (i == 0)
          std::copy_n(code_of(row, i), n.latent, sum);
        else
          add_to(sum, code_of(row, i), n.latent);
      }
    if (n.factorised)
      rvq_algebra::sum_codes(chosen + begin * used.all(), end - begin, nullptr, transposed, a.projections.out_bias.data,
                             used, a.y.data + begin * n.latent);
  });
}

}  // namespace nacre
