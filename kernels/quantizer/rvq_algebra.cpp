#include "quantizer/rvq_algebra.h"

#include "runtime/lanes.h"

// Factorised codes by products of the projections, on the CPU: rvq_forward with products, the sum over stages that
// rvq_decode shares, and rvq_products itself. nacre/ops/rvq.h gives the formulas; the same on CUDA is in
// rvq_algebra.cu, rvq_sum.cu and rvq_products.cu.
//
//   dots               products of rows with rows: W_in z of all stages at once, and P of rvq_products
//   subtract_products  e of the later stages, less the share of a chosen code
//   sum_codes          y from the chosen codes
namespace nacre {
namespace cuda {
void rvq_products(Context&, const RvqProducts&);
}  // namespace cuda

namespace rvq_algebra {

using namespace vq_search;

namespace {

constexpr int64_t row_group = 4;  ///< rows that share the loads of a weight

/// out [R][W] = products of R rows of x with W = width / R rows of w, along n: R W = `width` accumulators of `width`
/// lanes. One transposition turns them into vectors whose lane k belongs to accumulator k, so adding these vectors adds
/// the lanes of all accumulators at once. A product has the same bits in every tile, whatever R is: its lanes run along
/// n, then lane 0, 1, ... are added.
template <int width, int R>
NACRE_INLINE void dot_tile(const float* const (&x)[R], const float* const (&w)[width / R], int64_t n, float* out) {
  using Vec = typename Vector<width>::Type;
  constexpr int W = width / R;
  Vec sum[width] = {};
  const auto add = [&](const Vec(&a)[R], const Vec(&b)[W]) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) sum[r * W + j] += a[r] * b[j];
  };
  int64_t i = 0;
  for (; i + width <= n; i += width) {
    Vec a[R], b[W];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) a[r] = at<width>(x[r] + i);
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) b[j] = at<width>(w[j] + i);
    add(a, b);
  }
  if (i < n) {
    // The rest is filled up with zeros, because a vector must not read beyond a row.
    Vec a[R] = {}, b[W] = {};
    for (int r = 0; r < R; ++r)
      for (int64_t c = i; c < n; ++c) a[r][c - i] = x[r][c];
    for (int j = 0; j < W; ++j)
      for (int64_t c = i; c < n; ++c) b[j][c - i] = w[j][c];
    add(a, b);
  }
  exchange<width>(sum);
  Vec total = sum[0];
#pragma GCC unroll 16
  for (int l = 1; l < width; ++l) total += sum[l];
  at<width>(out) = total;
}

/// out[r * stride + j] = row r of x times row j of w, for `rows` rows of x and `count` rows of w, of n floats each. A
/// tile that goes beyond the last row of x or w repeats that row; the results of repeated rows are dropped.
template <int width, int R>
NACRE_INLINE void dot_rows(const float* x, int64_t rows, const float* w, int64_t count, int64_t n, float* out,
                           int64_t stride) {
  constexpr int W = width / R;
  for (int64_t j = 0; j < count; j += W) {
    const float* of_w[W];
    for (int64_t k = 0; k < W; ++k) of_w[k] = w + std::min(j + k, count - 1) * n;
    for (int64_t r = 0; r < rows; r += R) {
      const float* of_x[R];
      for (int64_t k = 0; k < R; ++k) of_x[k] = x + std::min(r + k, rows - 1) * n;
      float results[width];
      dot_tile<width, R>(of_x, of_w, n, results);
      for (int64_t k = 0; k < std::min<int64_t>(R, rows - r); ++k)
        for (int64_t l = 0; l < std::min<int64_t>(W, count - j); ++l)
          out[(r + k) * stride + j + l] = results[k * W + l];
    }
  }
}
/// A single row has no others to share the loads of w with, so all accumulators go to rows of w. The bits are the same.
template <int width>
NACRE_INLINE void dots_body(const float* x, int64_t rows, const float* w, int64_t count, int64_t n, float* out,
                            int64_t stride) {
  if (rows == 1)
    dot_rows<width, 1>(x, rows, w, count, n, out, stride);
  else
    dot_rows<width, 4>(x, rows, w, count, n, out, stride);
}

/// y of `rows` <= 4 rows, for V vectors of channels from c on. A weight is loaded once for four rows. q starts as the
/// bias and adds the code's channels in order, then y adds q: q and y stay in registers. chosen[r] is the row's codes
/// of all stages, used[r] its number of stages; y of a row without stages is 0. Rows beyond `rows` are computed and not
/// written.
template <int width, int V>
NACRE_INLINE void sum_tile(const float* const* chosen, const int64_t* used, int64_t rows, const float* transposed,
                           const float* bias, const Sizes& n, int64_t c, float* y) {
  using Vec = typename Vector<width>::Type;
  Vec sum[row_group][V] = {};
  for (int64_t i = 0; i < n.stages; ++i) {
    Vec q[row_group][V];
#pragma GCC unroll 4
    for (int r = 0; r < row_group; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) q[r][v] = at<width>(bias + i * n.latent + c + v * width);
    for (int64_t d = i * n.dim; d < (i + 1) * n.dim; ++d)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const Vec w = at<width>(transposed + d * n.latent + c + v * width);
#pragma GCC unroll 4
        for (int r = 0; r < row_group; ++r) q[r][v] += chosen[r][d] * w;
      }
#pragma GCC unroll 4
    for (int r = 0; r < row_group; ++r) {
      if (i >= used[r]) continue;
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] = i == 0 ? q[r][v] : sum[r][v] + q[r][v];
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < V; ++v) at<width>(y + r * n.latent + c + v * width) = sum[r][v];
}
/// sum_codes() of all rows: four rows at a time, and channels in pairs of vectors, vectors, and at the end one by one.
/// The order of the sums of a channel is the same in all three. Places beyond the last row repeat it.
template <int width>
NACRE_INLINE void sum_body(const float* chosen, int64_t rows, const int64_t* used, const float* transposed,
                           const float* bias, const Sizes& n, float* y) {
  for (int64_t first = 0; first < rows; first += row_group) {
    const float* of_rows[row_group];
    int64_t limits[row_group];
    for (int64_t r = 0; r < row_group; ++r) {
      const int64_t row = std::min(first + r, rows - 1);
      of_rows[r] = chosen + row * n.all();
      limits[r] = used != nullptr ? used[row] : n.stages;
    }
    float* to = y + first * n.latent;
    const int64_t count = std::min(row_group, rows - first);
    int64_t c = 0;
    for (; c + 2 * width <= n.latent; c += 2 * width)
      sum_tile<width, 2>(of_rows, limits, count, transposed, bias, n, c, to);
    for (; c + width <= n.latent; c += width) sum_tile<width, 1>(of_rows, limits, count, transposed, bias, n, c, to);
    for (; c < n.latent; ++c) sum_tile<1, 1>(of_rows, limits, count, transposed, bias, n, c, to);
  }
}

/// The functions of one instruction set. Not NACRE_CLONES, whose clones would all have vectors of one width.
struct Loops {
  void (*dots)(const float* x, int64_t rows, const float* w, int64_t count, int64_t n, float* out, int64_t stride);
  void (*sum)(const float* chosen, int64_t rows, const int64_t* used, const float* transposed, const float* bias,
              const Sizes& n, float* y);
};
#define NACRE_LOOPS(width, target)                                                                             \
  target void dots_##width(const float* x, int64_t rows, const float* w, int64_t count, int64_t n, float* out, \
                           int64_t stride) {                                                                   \
    dots_body<width>(x, rows, w, count, n, out, stride);                                                       \
  }                                                                                                            \
  target void sum_##width(const float* chosen, int64_t rows, const int64_t* used, const float* transposed,     \
                          const float* bias, const Sizes& n, float* y) {                                       \
    sum_body<width>(chosen, rows, used, transposed, bias, n, y);                                               \
  }
NACRE_LOOPS(4, )
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
NACRE_LOOPS(8, __attribute__((target("arch=x86-64-v3"))))
NACRE_LOOPS(16, __attribute__((target("arch=x86-64-v4"))))
#endif
#undef NACRE_LOOPS

const Loops& loops() {
  static const Loops picked = [] {
#if defined(__x86_64__) && !defined(NACRE_NO_CLONES)
    if (vector_width() == 16) return Loops{dots_16, sum_16};
    if (vector_width() == 8) return Loops{dots_8, sum_8};
#endif
    return Loops{dots_4, sum_4};
  }();
  return picked;
}

/// e[k] -= sum over d of code[d] p[d][k] for k < n, in the order of d: the code's share of all later stages. Rows of p
/// are `stride` floats apart. Four rows at a time, so that e is loaded and stored once for all four.
NACRE_CLONES void subtract_products(float* __restrict e, const float* __restrict code, const float* __restrict p,
                                    int64_t stride, int64_t dim, int64_t n) {
  int64_t d = 0;
  for (; d + 4 <= dim; d += 4) {
    const float c0 = code[d], c1 = code[d + 1], c2 = code[d + 2], c3 = code[d + 3];
    const float* __restrict p0 = p + d * stride;
    const float* __restrict p1 = p0 + stride;
    const float* __restrict p2 = p1 + stride;
    const float* __restrict p3 = p2 + stride;
    for (int64_t k = 0; k < n; ++k) e[k] = e[k] - c0 * p0[k] - c1 * p1[k] - c2 * p2[k] - c3 * p3[k];
  }
  for (; d < dim; ++d)
    for (int64_t k = 0; k < n; ++k) e[k] -= code[d] * p[d * stride + k];
}
NACRE_CLONES void add(float* __restrict a, const float* __restrict b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) a[i] += b[i];
}
// In float, because a row has few elements. Sums over rows are in double.
NACRE_CLONES float squared_difference(const float* __restrict a, const float* __restrict b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

/// Whether codebooks are searched in place. Otherwise they are packed first, all stages at once.
bool in_place(int64_t rows) { return rows <= few_rows; }

}  // namespace

void transpose_out(const Context& ctx, const float* w, int64_t stages, int64_t latent, int64_t dim, float* to) {
  parallel_ranges(ctx, stages * latent, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t d = 0; d < dim; ++d) to[(i / latent * dim + d) * latent + i % latent] = w[i * dim + d];
  });
}

void sum_codes(const float* chosen, int64_t rows, const int64_t* used, const float* transposed, const float* bias,
               const Sizes& n, float* y) {
  loops().sum(chosen, rows, used, transposed, bias, n, y);
}

int64_t forward_size(const Sizes& n) {
  // Packed codebooks and the search's buffer, or that of a search in place; e of all stages, and of one; out_weight.
  const int64_t rows = round_up(n.rows, tile);
  return (in_place(n.rows) ? in_place_buffer_size(n.dim)
                           : n.stages * packed_size(n.codes, n.dim) + buffer_size(n.rows, n.dim)) +
         rows * (n.all() + n.dim) + n.all() * n.latent;
}

void forward(const Context& ctx, const RvqForward& a, const Sizes& n, const RowMask& mask, float* scratch,
             float* row_losses) {
  const bool few = in_place(n.rows);
  const int64_t book_size = packed_size(n.codes, n.dim), rows = round_up(n.rows, tile), all = n.all();
  const View<const float> products = a.projections.products;
  // Products of more stages have longer rows than `all`.
  const int64_t stride = products.shape.channels;
  // Scratch, as forward_size() counts it: packed codebooks of all stages (not if they are searched in place); the
  // search's buffer; e [row][stages dim]; the rows of one stage as the search reads them, [row][dim]; W_out as
  // [stages][dim][latent]. The number of rows is a multiple of `tile`, so that parts of rows have their own places. A
  // search in place has one buffer, and few_rows are one part.
  float* const packed = scratch;
  float* const buffer = packed + (few ? 0 : n.stages * book_size);
  float* const every_e = buffer + (few ? in_place_buffer_size(n.dim) : buffer_size(n.rows, n.dim));
  float* const searched = every_e + rows * all;
  float* const transposed = searched + rows * n.dim;
  if (!few) pack_codebooks(ctx, a.codebooks.data, n.stages, n.codes, n.dim, a.metric, packed);
  if (a.y) transpose_out(ctx, a.projections.out_weight.data, n.stages, n.latent, n.dim, transposed);

  const auto quantise = [&](int64_t first, int64_t count) {
    // Up to max_rows rows from `first` on, through all stages. A row of e holds the stages to come; the places of
    // stages that are done hold their codes, which is what sum_codes() reads at the end.
    float* const e = every_e + first * all;
    loops().dots(a.z.data + first * n.latent, count, a.projections.in_weight.data, all, n.latent, e, all);
    for (int64_t r = 0; r < count; ++r) add(e + r * all, products.data, all);
    if (row_losses != nullptr) std::fill(row_losses + first, row_losses + first + count, 0.0f);
    for (int64_t i = 0; i < n.stages; ++i) {
      float* const x = searched + first * n.dim;
      for (int64_t r = 0; r < count; ++r) std::copy_n(e + r * all + i * n.dim, n.dim, x + r * n.dim);
      if (a.quantised) std::copy_n(x, count * n.dim, a.quantised.data + (i * n.rows + first) * n.dim);
      const float* const book = a.codebooks.data + i * n.codes * n.dim;
      int32_t* const codes = a.codes.data + first * n.stages + i;
      if (few)
        nearest_in_place(x, count, n.dim, book, n.codes, a.metric, buffer, codes, n.stages);
      else
        nearest(x, count, n.dim, packed + i * book_size, n.codes, a.metric, buffer + first * n.dim, codes, n.stages);
      for (int64_t r = 0; r < count; ++r) {
        const float* const code = book + codes[r * n.stages] * n.dim;
        if (row_losses != nullptr && mask.used(first + r, i) && mask.valid(first + r))
          row_losses[first + r] += squared_difference(x + r * n.dim, code, n.dim);
        float* const own = e + r * all + i * n.dim;
        subtract_products(own + n.dim, code, products.data + (1 + i * n.dim) * stride + (i + 1) * n.dim, stride, n.dim,
                          all - (i + 1) * n.dim);
        // The search has its copy of the stage's own e, so the place is free.
        std::copy_n(code, n.dim, own);
      }
    }
    // y is masked by the stages used; codes and e are not.
    if (!a.y) return;
    int64_t used[max_rows];
    for (int64_t r = 0; r < count; ++r) used[r] = mask.stages_used(first + r, n.stages);
    sum_codes(e, count, used, transposed, a.projections.out_bias.data, n, a.y.data + first * n.latent);
  };
  // Rows are independent, and no sum crosses a part, so the number of threads may decide.
  const int64_t tiles = rows / tile, parts = std::clamp<int64_t>(tiles, 1, ctx.threads());
  parallel_parts(ctx, parts, [&](int64_t part) {
    const int64_t begin = tiles * part / parts * tile, end = std::min(tiles * (part + 1) / parts * tile, n.rows);
    for (int64_t r = begin; r < end; r += max_rows) quantise(r, std::min(max_rows, end - r));
  });
}

}  // namespace rvq_algebra

using namespace rvq_algebra;

Shape rvq_products_shape(int64_t stages, int64_t dim) noexcept {
  return {.time = 1 + stages * dim, .channels = stages * dim};
}
Shape rvq_products_scratch(int64_t stages, int64_t dim, int64_t latent) noexcept {
  return {.channels = stages * dim * (latent + stages)};
}

void rvq_products(Context& ctx, const RvqProducts& a) {
  const RvqProjections& p = a.projections;
  const int64_t stages = p.in_weight.shape.batch, dim = p.in_weight.shape.time, latent = p.in_weight.shape.channels,
                all = stages * dim;
  expect_shape("rvq_products", "projections.in_weight", p.in_weight, {stages, dim, 1, latent});
  expect_shape("rvq_products", "projections.in_bias", p.in_bias, {stages, 1, 1, dim});
  expect_shape("rvq_products", "projections.out_weight", p.out_weight, {stages, latent, 1, dim});
  expect_shape("rvq_products", "projections.out_bias", p.out_bias, {stages, 1, 1, latent});
  expect_shape("rvq_products", "y", a.y, rvq_products_shape(stages, dim));
  expect_scratch("rvq_products", a.scratch, rvq_products_scratch(stages, dim, latent));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::rvq_products(ctx, a);

  // Scratch: W_out as rows of the latent, [stages][dim][latent]; then W_in_i b_out_j as [j][stages dim].
  float* const transposed = a.scratch.data;
  float* const of_bias = transposed + all * latent;
  transpose_out(ctx, p.out_weight.data, stages, latent, dim, transposed);
  parallel_parts(ctx, stages, [&](int64_t j) {
    const int64_t later = (j + 1) * dim, count = all - later;
    // The rows of stage j in y: zeros for the stages up to j, then the columns of W_out_j times the rows of W_in of the
    // later stages.
    float* const rows = a.y.data + (1 + j * dim) * all;
    for (int64_t d = 0; d < dim; ++d) std::fill_n(rows + d * all, later, 0.0f);
    const float* const w = p.in_weight.data + later * latent;
    loops().dots(transposed + j * dim * latent, dim, w, count, latent, rows + later, all);
    loops().dots(p.out_bias.data + j * latent, 1, w, count, latent, of_bias + j * all + later, all);
  });
  // Row 0: s_i = b_in_i - sum over j < i of W_in_i b_out_j, in the order of j.
  for (int64_t i = 0; i < stages; ++i)
    for (int64_t d = i * dim; d < (i + 1) * dim; ++d) {
      float start = p.in_bias[d];
      for (int64_t j = 0; j < i; ++j) start -= of_bias[j * all + d];
      a.y[d] = start;
    }
}

}  // namespace nacre
