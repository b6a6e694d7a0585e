#include "nacre/ops/rvq.h"

#include "vq_search.h"

namespace nacre {
namespace cuda {
void rvq_forward(Context&, const RvqForward&);
void rvq_backward(Context&, const RvqBackward&);
void rvq_decode(Context&, const RvqDecode&);
}  // namespace cuda

using namespace vq_search;

namespace {

constexpr int64_t max_parts = 8;  ///< partials of the parameter gradients

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

// ---- loops over one row
// ------------------------------------------------------------------------------------------------

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
NACRE_CLONES float squared_difference(const float* __restrict a, const float* __restrict b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}
// out += the four rows of w, each with its factor: four rows at once, so that out is loaded and stored once for four.
NACRE_CLONES void add_rows_4(float* __restrict out, const float* __restrict s, const float* __restrict w, int64_t n) {
  const float s0 = s[0], s1 = s[1], s2 = s[2], s3 = s[3];
  const float* __restrict w0 = w, * __restrict w1 = w + n, * __restrict w2 = w + 2 * n, * __restrict w3 = w + 3 * n;
  for (int64_t i = 0; i < n; ++i) out[i] = out[i] + s0 * w0[i] + s1 * w1[i] + s2 * w2[i] + s3 * w3[i];
}
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
NACRE_CLONES float dot(const float* __restrict x, const float* __restrict w, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * w[i];
  return sum;
}
// out[i] += sum over j of s[j] w[j][i], and out[j] = sum over i of w[j][i] x[i], for w [dim][n].
void add_product(float* out, const float* s, const float* w, int64_t dim, int64_t n) {
  int64_t j = 0;
  for (; j + 4 <= dim; j += 4) add_rows_4(out, s + j, w + j * n, n);
  for (; j < dim; ++j) add_scaled(out, w + j * n, s[j], n);
}
void dots(const float* x, const float* w, int64_t dim, int64_t n, float* out) {
  int64_t j = 0;
  for (; j + 4 <= dim; j += 4) dot_4(x, w + j * n, n, out + j);
  for (; j < dim; ++j) out[j] = dot(x, w + j * n, n);
}
// w += s x', for w [dim][n].
void add_outer(float* w, const float* s, const float* x, int64_t dim, int64_t n) {
  for (int64_t j = 0; j < dim; ++j) add_scaled(w + j * n, x, s[j], n);
}

// out_weight [stages][latent][dim] as [stages][dim][latent], so that every loop runs along the latent.
void transpose_out(const Context& ctx, const float* w, int64_t stages, int64_t latent, int64_t dim, float* to) {
  parallel_ranges(ctx, stages * latent, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t d = 0; d < dim; ++d) to[(i / latent * dim + d) * latent + i % latent] = w[i * dim + d];
  });
}

// q = W_out E[code] + b_out
void project_out(const float* code, const float* transposed, const float* bias, const Sizes& n, float* q) {
  std::copy(bias, bias + n.latent, q);
  add_product(q, code, transposed, n.dim, n.latent);
}

int64_t gradient_parts(int64_t rows) { return std::clamp<int64_t>(rows / 64, 1, max_parts); }
// One stage of a partial: in_weight and out_weight as [dim][latent], then in_bias, then out_bias.
int64_t partial_size(const Sizes& n) { return 2 * n.dim * n.latent + n.dim + n.latent; }

Sizes sizes_of(Shape z, Shape codebooks, bool factorised) {
  return {z.rows(), codebooks.batch, codebooks.time, codebooks.channels, z.channels, factorised};
}

}  // namespace

// ---- forward
// -----------------------------------------------------------------------------------------------------------

Shape rvq_forward_scratch(Context&, Shape z, Shape codebooks, bool factorised) {
  const Sizes n = sizes_of(z, codebooks, factorised);
  // Packed codebooks, the search's rows, one loss per row, the residual; then e, q and the transposed out_weight.
  int64_t size = n.stages * packed_size(n.codes, n.dim) + buffer_size(n.rows, n.dim) + n.rows + n.rows * n.latent;
  if (factorised) size += n.rows * n.dim + n.rows * n.latent + n.stages * n.latent * n.dim;
  return {.channels = size};
}

void rvq_forward(Context& ctx, const RvqForward& a) {
  const Shape z = a.z.shape;
  expect_shape("rvq_forward", "z", a.z, {z.batch, z.time, 1, z.channels});
  const Sizes n = check("rvq_forward", z, a.codebooks, a.projections);
  expect_shape("rvq_forward", "y", a.y, z);
  expect_shape("rvq_forward", "codes", a.codes, {z.batch, z.time, 1, n.stages});
  expect_elements_or_empty("rvq_forward", "stages", a.stages, z.batch);
  expect_elements_or_empty("rvq_forward", "frames", a.frames, z.batch);
  expect_shape_or_empty("rvq_forward", "quantised", a.quantised, {n.stages, n.rows, 1, n.dim});
  expect_elements_or_empty("rvq_forward", "losses", a.losses, 2);
  expect_scratch("rvq_forward", a.scratch, rvq_forward_scratch(ctx, z, a.codebooks.shape, n.factorised));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::rvq_forward(ctx, a);

  const int64_t book = packed_size(n.codes, n.dim);
  float* packed = a.scratch.data;
  float* buffer = packed + n.stages * book;
  float* row_losses = buffer + buffer_size(n.rows, n.dim);
  float* residual = row_losses + n.rows;
  float* projected = residual + n.rows * n.latent;
  float* product = projected + (n.factorised ? n.rows * n.dim : 0);
  float* transposed = product + (n.factorised ? n.rows * n.latent : 0);
  pack_codebooks(ctx, a.codebooks.data, n.stages, n.codes, n.dim, a.metric, packed);
  if (n.factorised) transpose_out(ctx, a.projections.out_weight.data, n.stages, n.latent, n.dim, transposed);

  const RowMask mask{.frames = a.frames, .stages = a.stages, .time = z.time};
  // One tile of rows goes through all stages while its residual is in cache.
  const auto quantise = [&](int64_t first, int64_t count) {
    std::copy(a.z.data + first * n.latent, a.z.data + (first + count) * n.latent, residual + first * n.latent);
    if (a.losses) std::fill(row_losses + first, row_losses + first + count, 0.0f);
    for (int64_t i = 0; i < n.stages; ++i) {
      float* e = residual + first * n.dim;
      if (n.factorised) {
        e = projected + first * n.dim;
        for (int64_t r = 0; r < count; ++r) {
          dots(residual + (first + r) * n.latent, a.projections.in_weight.data + i * n.dim * n.latent, n.dim, n.latent,
               e + r * n.dim);
          add_to(e + r * n.dim, a.projections.in_bias.data + i * n.dim, n.dim);
        }
      }
      if (a.quantised) std::copy(e, e + count * n.dim, a.quantised.data + (i * n.rows + first) * n.dim);
      int32_t* codes = a.codes.data + first * n.stages + i;
      nearest(e, count, n.dim, packed + i * book, n.codes, a.metric, buffer + first * n.dim, codes, n.stages);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row = first + r;
        const bool used = mask.used(row, i);
        const float* code = a.codebooks.data + (i * n.codes + codes[r * n.stages]) * n.dim;
        if (a.losses && used && mask.valid(row)) row_losses[row] += squared_difference(e + r * n.dim, code, n.dim);
        const float* q = code;
        if (n.factorised) {
          float* out = product + row * n.latent;
          project_out(code, transposed + i * n.dim * n.latent, a.projections.out_bias.data + i * n.latent, n, out);
          q = out;
        }
        float* y = a.y.data + row * n.latent;
        if (i == 0 && used) std::copy(q, q + n.latent, y);
        if (i == 0 && !used) std::fill(y, y + n.latent, 0.0f);
        if (i > 0 && used) add_to(y, q, n.latent);
        subtract_from(residual + row * n.latent, q, n.latent);
      }
    }
  };
  parallel_ranges(ctx, round_up(n.rows, tile) / tile, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin * tile, last = std::min(end * tile, n.rows); r < last; r += max_rows)
      quantise(r, std::min(max_rows, last - r));
  });
  if (!a.losses) return;
  double sum = 0;
  for (int64_t r = 0; r < n.rows; ++r) sum += static_cast<double>(row_losses[r]);
  const int64_t elements = mask.valid_rows(z.batch) * n.dim;
  // The two losses differ in what they are differentiated by, not in value.
  a.losses[0] = a.losses[1] = elements > 0 ? static_cast<float>(sum / static_cast<double>(elements)) : 0.0f;
}

// ---- backward
// ----------------------------------------------------------------------------------------------------------

Shape rvq_backward_scratch(Context&, Shape z, Shape codebooks, bool factorised) {
  if (!factorised) return {.channels = 0};
  const Sizes n = sizes_of(z, codebooks, factorised);
  const int64_t parts = gradient_parts(n.rows);
  return {.channels = n.stages * n.latent * n.dim + parts * (n.stages * partial_size(n) + 4 * n.latent + n.dim)};
}

namespace {

void latent_backward(const Context& ctx, const RvqBackward& a, const Sizes& n, const RowMask& mask, float scale) {
  parallel_ranges(ctx, n.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* dy = a.dy.data + row * n.latent;
      float* dz = a.dz.data + row * n.latent;
      if (a.add_dz)
        add_to(dz, dy, n.latent);
      else
        std::copy(dy, dy + n.latent, dz);
      if (scale == 0 || !mask.valid(row)) continue;
      for (int64_t i = 0; i < n.stages; ++i)
        if (mask.used(row, i))
          add_scaled_difference(
              dz, a.quantised.data + (i * n.rows + row) * n.dim,
              a.codebooks.data + (i * n.codes + clamp_code(a.codes[row * n.stages + i], n.codes)) * n.dim, scale,
              n.dim);
    }
  });
}

// The chain runs back through the stages. Residuals are not kept: from the last one they are built up again by adding
// what each stage took away.
void factorised_backward(const Context& ctx, const RvqBackward& a, const Sizes& n, const RowMask& mask, float scale) {
  const RvqProjections& p = a.projections;
  const int64_t parts = gradient_parts(n.rows), partial = partial_size(n), matrix = n.dim * n.latent;
  float* transposed = a.scratch.data;
  float* partials = transposed + n.stages * matrix;
  float* rows = partials + parts * n.stages * partial;
  transpose_out(ctx, p.out_weight.data, n.stages, n.latent, n.dim, transposed);

  parallel_parts(ctx, parts, [&](int64_t part) {
    float* sums = partials + part * n.stages * partial;
    std::fill(sums, sums + n.stages * partial, 0.0f);
    float* residual = rows + part * (4 * n.latent + n.dim);
    float *q = residual + n.latent, *dresidual = q + n.latent, *dq = dresidual + n.latent, *de = dq + n.latent;
    for (int64_t row = n.rows * part / parts; row < n.rows * (part + 1) / parts; ++row) {
      const auto code_of = [&](int64_t i) {
        return a.codebooks.data + (i * n.codes + clamp_code(a.codes[row * n.stages + i], n.codes)) * n.dim;
      };
      std::copy(a.z.data + row * n.latent, a.z.data + (row + 1) * n.latent, residual);
      for (int64_t i = 0; i < n.stages; ++i) {
        project_out(code_of(i), transposed + i * matrix, p.out_bias.data + i * n.latent, n, q);
        subtract_from(residual, q, n.latent);
      }
      const float* dy = a.dy.data + row * n.latent;
      std::fill(dresidual, dresidual + n.latent, 0.0f);
      for (int64_t i = n.stages - 1; i >= 0; --i) {
        const float* code = code_of(i);
        const bool used = mask.used(row, i);
        for (int64_t c = 0; c < n.latent; ++c) dq[c] = (used ? dy[c] : 0.0f) - dresidual[c];
        project_out(code, transposed + i * matrix, p.out_bias.data + i * n.latent, n, q);
        add_to(residual, q, n.latent);
        dots(dq, transposed + i * matrix, n.dim, n.latent, de);
        if (used && mask.valid(row))
          add_scaled_difference(de, a.quantised.data + (i * n.rows + row) * n.dim, code, scale, n.dim);
        float* sum = sums + i * partial;
        add_outer(sum, de, residual, n.dim, n.latent);
        add_outer(sum + matrix, code, dq, n.dim, n.latent);
        add_to(sum + 2 * matrix, de, n.dim);
        add_to(sum + 2 * matrix + n.dim, dq, n.latent);
        add_product(dresidual, de, p.in_weight.data + i * matrix, n.dim, n.latent);
      }
      if (!a.dz) continue;
      float* dz = a.dz.data + row * n.latent;
      if (a.add_dz)
        add_to(dz, dresidual, n.latent);
      else
        std::copy(dresidual, dresidual + n.latent, dz);
    }
  });

  parallel_ranges(ctx, n.stages, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* total = partials + i * partial;
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

// Each part owns some codes of one stage and adds their rows in order.
void codebook_gradient(const Context& ctx, const RvqBackward& a, const Sizes& n, const RowMask& mask, float scale) {
  constexpr int64_t slices = 4;
  parallel_parts(ctx, n.stages * slices, [&](int64_t part) {
    const int64_t i = part / slices, low = n.codes * (part % slices) / slices,
                  high = n.codes * (part % slices + 1) / slices;
    for (int64_t row = 0; row < n.rows; ++row) {
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
    throw_usage("rvq_backward", "gradients of projections are asked for, expected none without projections");
  expect_scratch("rvq_backward", a.scratch, rvq_backward_scratch(ctx, z, a.codebooks.shape, n.factorised));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::rvq_backward(ctx, a);

  const RowMask mask{.frames = a.frames, .stages = a.stages, .time = z.time};
  const int64_t elements = mask.valid_rows(z.batch) * n.dim;
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
// ------------------------------------------------------------------------------------------------------------

Shape rvq_decode_scratch(Context&, Shape codes, Shape y, Shape codebooks, bool factorised) {
  if (!factorised) return {.channels = 0};
  return {.channels = codebooks.batch * codebooks.channels * y.channels + codes.rows() * y.channels};
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

  float* transposed = a.scratch.data;
  float* product = transposed + n.stages * n.dim * n.latent;
  if (n.factorised) transpose_out(ctx, a.projections.out_weight.data, stages, n.latent, n.dim, transposed);
  parallel_ranges(ctx, n.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t i = 0; i < stages; ++i) {
        const float* q = a.codebooks.data + (i * n.codes + clamp_code(a.codes[row * stages + i], n.codes)) * n.dim;
        if (n.factorised) {
          float* out = product + row * n.latent;
          project_out(q, transposed + i * n.dim * n.latent, a.projections.out_bias.data + i * n.latent, n, out);
          q = out;
        }
        float* to = a.y.data + row * n.latent;
        if (i == 0)
          std::copy(q, q + n.latent, to);
        else
          add_to(to, q, n.latent);
      }
  });
}

}  // namespace nacre
