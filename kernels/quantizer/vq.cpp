#include "nacre/ops/vq.h"

#include <bit>
#include <cmath>

#include "nacre/random.h"
#include "quantizer/vq_search.h"

// Nearest code, gather, moving averages and k-means on the CPU; vq.cu and vq_means.cu are the same on CUDA.
// nacre/ops/vq.h gives the formulas, vq_search.h the search.
namespace nacre {
namespace cuda {
void vq_nearest(Context&, const VqNearest&);
void vq_gather(Context&, const VqGather&);
void vq_ema(Context&, const VqEma&);
void vq_kmeans(Context&, const VqKmeans&);
Shape vq_nearest_scratch(Shape x, Shape codebook);
Shape vq_kmeans_scratch(Shape x, Shape codebook);
}  // namespace cuda

using namespace vq_search;

namespace {

constexpr int64_t slices = 8;  ///< parts of a codebook that are updated in parallel
// Amplitude of the noise on repeated rows, relative to the root mean square of x. Without it, repetitions would tie and
// all but the lowest index would stay empty.
constexpr float jitter = 1e-3f;

// Codes of all rows, tile by tile. The code of a row does not depend on its tile.
void search_rows(const Context& ctx, const float* x, int64_t rows, int64_t dim, const float* packed, int64_t codes,
                 VqMetric metric, float* buffer, int32_t* out, float* half_distances) {
  // Ranges start at multiples of `tile`, and max_rows is one, so `buffer + r * dim` belongs to this call alone.
  parallel_ranges(ctx, round_up(rows, tile) / tile, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin * tile, last = std::min(end * tile, rows); r < last; r += max_rows)
      nearest(x + r * dim, std::min(max_rows, last - r), dim, packed, codes, metric, buffer + r * dim, out + r, 1,
              half_distances != nullptr ? half_distances + r : nullptr);
  });
}

// NaN and infinities have all bits of the exponent set. The loop has no early exit, so that it is vectorised.
NACRE_CLONES bool all_finite(const float* x, int64_t n) {
  int32_t found = 0;
  for (int64_t i = 0; i < n; ++i) found |= (std::bit_cast<int32_t>(x[i]) & 0x7f800000) == 0x7f800000;
  return found == 0;
}

void check_codebook(const char* op, Shape codebook, Shape expected) {
  if (codebook != expected || codebook.time < 1 || codebook.channels < 1) [[unlikely]]
    throw_shape(op, "codebook", codebook, expected);
}

// The start of k-means: `codes` different rows; if there are fewer, all rows and then jittered repetitions of them.
// `order` [rows] receives a permutation whose first min(rows, codes) places are the draw.
void draw_rows(const VqKmeans& a, int32_t* order) {
  const int64_t rows = a.x.shape.rows(), dim = a.x.shape.channels, codes = a.codebook.shape.time;
  for (int64_t r = 0; r < rows; ++r) order[r] = static_cast<int32_t>(r);
  // A Fisher-Yates shuffle that stops after min(rows, codes) swaps. Draws are numbered by code and noise by element, so
  // that CUDA draws the same rows and the same noise. The noise's amplitude may differ there by rounding.
  const Philox draw{a.seed, 0}, noise{a.seed, 1};
  for (int64_t k = 0; k < std::min(rows, codes); ++k) {
    const int64_t other =
        k + static_cast<int64_t>(draw.below(static_cast<uint64_t>(k), static_cast<uint64_t>(rows - k)));
    std::swap(order[k], order[other]);
  }
  double energy = 0;
  if (codes > rows)
    for (const float v : a.x) energy += static_cast<double>(v) * static_cast<double>(v);
  const double amplitude = jitter * std::sqrt(energy / static_cast<double>(a.x.elements()));
  for (int64_t k = 0; k < codes; ++k) {
    const float* from = a.x.data + order[k % rows] * dim;
    for (int64_t d = 0; d < dim; ++d)
      a.codebook[k * dim + d] =
          k < rows
              ? from[d]
              : from[d] + static_cast<float>(amplitude * (2 * noise.uniform(static_cast<uint64_t>(k * dim + d)) - 1));
  }
}

}  // namespace

Shape vq_nearest_scratch(Context& ctx, Shape x, Shape codebook) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::vq_nearest_scratch(x, codebook);
  // The packed codebook, then all rows in tiles: threads write disjoint tiles, so the size does not depend on their
  // number.
  return {.channels = packed_size(codebook.time, codebook.channels) + buffer_size(x.rows(), x.channels)};
}

void vq_nearest(Context& ctx, const VqNearest& a) {
  const Shape x = a.x.shape;
  const int64_t codes = a.codebook.shape.time, dim = x.channels;
  expect_shape("vq_nearest", "x", a.x, x);
  check_codebook("vq_nearest", a.codebook.shape, {1, codes, 1, dim});
  expect_shape("vq_nearest", "codebook", a.codebook, {1, codes, 1, dim});
  expect_shape("vq_nearest", "codes", a.codes, {x.batch, x.time, x.width, 1});
  expect_scratch("vq_nearest", a.scratch, vq_nearest_scratch(ctx, x, a.codebook.shape));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::vq_nearest(ctx, a);

  float* packed = a.scratch.data;
  pack_codebooks(ctx, a.codebook.data, 1, codes, dim, a.metric, packed);
  search_rows(ctx, a.x.data, x.rows(), dim, packed, codes, a.metric, packed + packed_size(codes, dim), a.codes.data,
              nullptr);
}

void vq_gather(Context& ctx, const VqGather& a) {
  const Shape c = a.codes.shape;
  const int64_t codes = a.codebook.shape.time, dim = a.codebook.shape.channels;
  check_codebook("vq_gather", a.codebook.shape, {1, codes, 1, dim});
  expect_shape("vq_gather", "codebook", a.codebook, {1, codes, 1, dim});
  expect_shape("vq_gather", "codes", a.codes, {c.batch, c.time, c.width, 1});
  expect_shape("vq_gather", "y", a.y, {c.batch, c.time, c.width, dim});
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::vq_gather(ctx, a);

  parallel_ranges(ctx, c.rows(), 256, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = a.codebook.data + clamp_code(a.codes[r], codes) * dim;
      float* to = a.y.data + r * dim;
      for (int64_t d = 0; d < dim; ++d) to[d] = a.add_y ? to[d] + from[d] : from[d];
    }
  });
}

Shape vq_ema_scratch(Context&, Shape x, Shape codebooks) {
  // Per stage: the list of rows by code, then the begin of each code's run in it.
  return {.channels = x.batch * (x.time + codebooks.time + 1)};
}

void vq_ema(Context& ctx, const VqEma& a) {
  const int64_t stages = a.codebooks.shape.batch, codes = a.codebooks.shape.time, dim = a.codebooks.shape.channels;
  const int64_t rows = a.x.shape.time;
  expect_shape("vq_ema", "codebooks", a.codebooks, {stages, codes, 1, dim});
  expect_shape("vq_ema", "x", a.x, {stages, rows, 1, dim});
  expect_elements("vq_ema", "codes", a.codes, rows * stages);
  if (a.batch < 1 || rows % a.batch != 0) [[unlikely]]
    throw_usage("vq_ema", "batch is " + std::to_string(a.batch) + ", expected a divisor of the " +
                              std::to_string(rows) + " rows of x");
  expect_elements_or_empty("vq_ema", "frames", a.frames, a.batch);
  expect_elements("vq_ema", "counts", a.counts, stages * codes);
  expect_shape("vq_ema", "sums", a.sums, a.codebooks.shape);
  expect_elements("vq_ema", "step", a.step, 1);
  expect_scratch("vq_ema", a.scratch, vq_ema_scratch(ctx, a.x.shape, a.codebooks.shape));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::vq_ema(ctx, a);

  // A batch with a value that is not finite changes nothing: an average would never recover from it. The first stage is
  // enough, because the residuals of later stages derive from it.
  const int64_t time = rows / a.batch;
  const RowMask mask{.frames = a.frames, .time = time};
  const int64_t valid = mask.valid_rows(a.batch);
  if (valid == 0) return;
  for (int64_t b = 0; b < a.batch; ++b)
    if (!all_finite(a.x.data + b * time * dim, mask.valid_frames(b) * dim)) return;
  // Rows are sorted by code first, so that a code's rows are a list. Then every code belongs to one part, which adds
  // its rows in order: the sums do not depend on the number of threads.
  int32_t* order = reinterpret_cast<int32_t*>(a.scratch.data);
  int32_t* first = order + stages * rows;
  parallel_parts(ctx, stages, [&](int64_t s) {
    sort_by_code(a.codes.data + s, stages, rows, codes, first + s * (codes + 1), order + s * rows,
                 [&](int64_t r) { return mask.valid(r); });
  });
  parallel_parts(ctx, stages * slices, [&](int64_t part) {
    const int64_t s = part / slices, slice = part % slices;
    const float* x = a.x.data + s * rows * dim;
    const Philox draw{a.seed, static_cast<uint64_t>(s)};
    for (int64_t k = codes * slice / slices; k < codes * (slice + 1) / slices; ++k) {
      // The code's rows are elements run[0] to run[1] - 1 of the stage's list.
      const int32_t* run = first + s * (codes + 1) + k;
      float* code = a.codebooks.data + (s * codes + k) * dim;
      float* sum = a.sums.data + (s * codes + k) * dim;
      float& count = a.counts[s * codes + k];
      // The codebook row first stores this batch's sum, then the new code.
      sum_rows(x, dim, order + s * rows + run[0], run[1] - run[0], code);
      count = a.decay * count + (1 - a.decay) * static_cast<float>(run[1] - run[0]);
      // count and sums have the same weights, so their quotient is a weighted mean of rows (but for eps).
      const float scale = 1 / (count + a.eps);
      for (int64_t d = 0; d < dim; ++d) {
        sum[d] = a.decay * sum[d] + (1 - a.decay) * code[d];
        code[d] = sum[d] * scale;
      }
      // A dead code restarts at a random valid row of this batch. The draw is numbered by step and code, so it depends
      // neither on other dead codes nor on the order of the parts.
      if (count >= a.dead_below) continue;
      const uint64_t counter =
          static_cast<uint64_t>(a.step[0]) * static_cast<uint64_t>(codes) + static_cast<uint64_t>(k);
      const int64_t chosen = static_cast<int64_t>(draw.below(counter, static_cast<uint64_t>(valid)));
      const float* row = x + mask.row_of_valid(chosen, a.batch) * dim;
      std::copy(row, row + dim, code);
      std::copy(row, row + dim, sum);
      count = 1;
    }
  });
}

Shape vq_kmeans_scratch(Context& ctx, Shape x, Shape codebook) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::vq_kmeans_scratch(x, codebook);
  const int64_t rows = x.rows();
  // The packed codebook; rows in tiles; a half distance, half the energy, a code and a place in the list for each row;
  // the begins of runs.
  return {.channels = packed_size(codebook.time, codebook.channels) + buffer_size(rows, x.channels) + 4 * rows +
                      codebook.time + 1};
}

void vq_kmeans(Context& ctx, const VqKmeans& a) {
  const int64_t rows = a.x.shape.rows(), dim = a.x.shape.channels, codes = a.codebook.shape.time;
  expect_shape("vq_kmeans", "x", a.x, a.x.shape);
  check_codebook("vq_kmeans", a.codebook.shape, {1, codes, 1, dim});
  expect_shape("vq_kmeans", "codebook", a.codebook, {1, codes, 1, dim});
  expect_elements_or_empty("vq_kmeans", "counts", a.counts, codes);
  expect_scratch("vq_kmeans", a.scratch, vq_kmeans_scratch(ctx, a.x.shape, a.codebook.shape));
  if (rows == 0 || a.iterations < 0) [[unlikely]]
    throw_usage("vq_kmeans", rows == 0 ? "x has no rows, expected at least one"
                                       : "iterations is " + std::to_string(a.iterations) + ", expected 0 or more");
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::vq_kmeans(ctx, a);

  // The arrays of vq_kmeans_scratch() in its order. The buffer has a place for each row, as search_rows() requires.
  float* packed = a.scratch.data;
  float* buffer = packed + packed_size(codes, dim);
  float* distances = buffer + buffer_size(rows, dim);
  float* half_energies = distances + rows;
  int32_t* chosen = reinterpret_cast<int32_t*>(half_energies + rows);
  int32_t* order = chosen + rows;
  int32_t* first = order + rows;
  // Lloyd's algorithm: assign each row to its nearest code, replace each code by the mean of its rows, and give empty
  // codes the rows that are worst represented. assign() leaves the code and the half distance of each row, and the rows
  // listed by code: those of code k are order[first[k]] to order[first[k + 1] - 1].
  const auto assign = [&] {
    // The codebook has changed since the last iteration, so it is packed again.
    pack_codebooks(ctx, a.codebook.data, 1, codes, dim, VqMetric::euclidean, packed);
    search_rows(ctx, a.x.data, rows, dim, packed, codes, VqMetric::euclidean, buffer, chosen, distances);
    sort_by_code(chosen, 1, rows, codes, first, order, [](int64_t) { return true; });
  };
  draw_rows(a, order);
  // Half distances omit |x|^2 / 2, which matters between rows.
  if (a.iterations > 0)
    parallel_ranges(ctx, rows, 256, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        float energy = 0;
        for (int64_t d = 0; d < dim; ++d) energy += a.x[r * dim + d] * a.x[r * dim + d];
        half_energies[r] = 0.5f * energy;
      }
    });
  for (int i = 0; i < a.iterations; ++i) {
    assign();
    parallel_parts(ctx, slices, [&](int64_t slice) {
      for (int64_t k = codes * slice / slices; k < codes * (slice + 1) / slices; ++k) {
        const int32_t n = first[k + 1] - first[k];
        // A code without rows keeps its value here; the loop below may give it a row.
        if (n == 0) continue;
        float* code = a.codebook.data + k * dim;
        sum_rows(a.x.data, dim, order + first[k], n, code);
        for (int64_t d = 0; d < dim; ++d) code[d] /= static_cast<float>(n);
      }
    });
    bool complete = false;
    for (int64_t k = 0; k < codes; ++k) {
      // Sequential, in the order of codes: a row that one empty code took is at distance 0 and is not taken again. The
      // loop ends when no row is away from its code (or the distance is NaN); further empty codes stay as they are.
      if (first[k + 1] > first[k]) continue;
      // Only here rows are compared with each other, so only now their distances are completed.
      for (int64_t r = 0; !complete && r < rows; ++r) distances[r] += half_energies[r];
      complete = true;
      const int64_t row = std::max_element(distances, distances + rows) - distances;
      if (!(distances[row] > 0)) break;
      distances[row] = 0;
      std::copy(a.x.data + row * dim, a.x.data + (row + 1) * dim, a.codebook.data + k * dim);
    }
  }
  if (!a.counts) return;
  // The counts are those of the final codebook, which is not the one of the last assignment.
  assign();
  for (int64_t k = 0; k < codes; ++k) a.counts[k] = static_cast<float>(first[k + 1] - first[k]);
}

}  // namespace nacre
