#include "nacre/ops/level.h"

#include <bit>
#include <cmath>
#include <limits>

#include "runtime/elementwise.h"
#include "runtime/sums.h"

// Level on the CPU; level.cu is the same on CUDA. nacre/ops/level.h gives the formulas.
//
// A part is up to sum_part samples of one item. Each loop over the samples is parallel over parts; what joins the parts
// of an item is serial. The order of the sums follows from the length of an item alone.
//
//   forward    a sum per part -> mean of the item; a peak per part -> peak of the item and its position; y
//   backward   sums of dy and of dy u per part; dx, for which each part adds the partial sums of its item again
//
// u = (x - mean) - rest, with the mean as two floats: its rounding error would otherwise be an error of all samples.
namespace nacre {
namespace cuda {
Shape level_scratch(Shape);
void level_forward(Context&, const LevelForward&);
void level_backward(Context&, const LevelBackward&);
}  // namespace cuda
namespace {

constexpr int64_t lanes = 16;  // running sums of a part: fixed, so that bits do not depend on the vector width

/// The statistics of an item in the order in which level_statistics() stores them. `position` has the bits of an int32.
/// `rest` is what rounding to a float took from the mean.
struct Statistics {
  float mean, peak, position, rest;
  int64_t at() const { return std::bit_cast<int32_t>(position); }
};
Statistics load_statistics(const float* s) { return {s[0], s[1], s[2], s[3]}; }

/// How the samples are divided. Parts are numbered through all items; those of an item are adjacent.
struct Parts {
  int64_t batch, time, parts;  ///< parts of an item
  explicit Parts(Shape x) : batch(x.batch), time(x.time), parts(sum_parts(x.time)) {}
  int64_t count() const { return batch * parts; }
  int64_t item(int64_t part) const { return part / parts; }
  /// Position of the part's first sample in its item, its address in all samples, and its length.
  int64_t position(int64_t part) const { return part % parts * sum_part; }
  int64_t begin(int64_t part) const { return item(part) * time + position(part); }
  int64_t length(int64_t part) const { return std::min(sum_part, time - position(part)); }
};

/// Adds the lanes in order.
double total(const double* sums) {
  double sum = 0;
  for (int64_t k = 0; k < lanes; ++k) sum += sums[k];
  return sum;
}

/// The sum of n samples in double. Samples behind the last full vector join the lanes 0, 1, ...
NACRE_CLONES double sum_of_part(const float* x, int64_t n) {
  double sums[lanes] = {};
  for (int64_t i = 0; i + lanes <= n; i += lanes)
    for (int64_t k = 0; k < lanes; ++k) sums[k] += static_cast<double>(x[i + k]);
  for (int64_t i = n / lanes * lanes; i < n; ++i) sums[i % lanes] += static_cast<double>(x[i]);
  return total(sums);
}

/// The largest |u| of n samples. NaN compares false, so it counts as 0; level_forward() finds items with NaN by their
/// mean.
NACRE_CLONES float peak_of_part(const float* x, int64_t n, float mean, float rest) {
  float peaks[lanes] = {};
  for (int64_t i = 0; i + lanes <= n; i += lanes)
    for (int64_t k = 0; k < lanes; ++k) {
      const float size = std::fabs((x[i + k] - mean) - rest);
      peaks[k] = size > peaks[k] ? size : peaks[k];
    }
  float peak = 0;
  for (int64_t k = 0; k < lanes; ++k) peak = peaks[k] > peak ? peaks[k] : peak;
  for (int64_t i = n / lanes * lanes; i < n; ++i) {
    const float size = std::fabs((x[i] - mean) - rest);
    peak = size > peak ? size : peak;
  }
  return peak;
}

/// y = scale u.
NACRE_CLONES void scale_part(const float* __restrict x, float* __restrict y, int64_t n, float mean, float rest,
                             float scale) {
  for (int64_t i = 0; i < n; ++i) y[i] = scale * ((x[i] - mean) - rest);
}

/// sums[0] = sum of dy and sums[1] = sum of dy u over n samples, in double.
NACRE_CLONES void gradient_sums_of_part(const float* __restrict x, const float* __restrict dy, int64_t n, float mean,
                                        float rest, double* __restrict sums) {
  double plain[lanes] = {}, products[lanes] = {};
  for (int64_t i = 0; i + lanes <= n; i += lanes)
    for (int64_t k = 0; k < lanes; ++k) {
      const double d = static_cast<double>(dy[i + k]);
      plain[k] += d;
      products[k] += d * static_cast<double>((x[i + k] - mean) - rest);
    }
  for (int64_t i = n / lanes * lanes; i < n; ++i) {
    const double d = static_cast<double>(dy[i]);
    plain[i % lanes] += d;
    products[i % lanes] += d * static_cast<double>((x[i] - mean) - rest);
  }
  sums[0] = total(plain), sums[1] = total(products);
}

/// dx = du - mean of du, with du = scale dy, which holds for all samples but that of the peak.
NACRE_CLONES void gradient_part(const float* __restrict dy, float* __restrict dx, int64_t n, float scale, float mean) {
  for (int64_t i = 0; i < n; ++i) dx[i] = scale * dy[i] - mean;
}
NACRE_CLONES void add_gradient_part(const float* __restrict dy, float* __restrict dx, int64_t n, float scale,
                                    float mean) {
  for (int64_t i = 0; i < n; ++i) dx[i] += scale * dy[i] - mean;
}

void expect_signal(const char* op, Shape x) {
  if (x.time < 1 || x.time > std::numeric_limits<int32_t>::max() || x.width != 1 || x.channels != 1)
    throw_usage(op, "x is " + str(x) + ", expected [batch, time, 1, 1] with a time of 1 to 2^31 - 1");
}

}  // namespace

Shape level_statistics(Shape x) { return {.batch = x.batch, .channels = 4}; }

Shape level_scratch(Context& ctx, Shape x) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::level_scratch(x);
  return {.channels = partial_floats(2 * Parts(x).count())};
}

void level_forward(Context& ctx, const LevelForward& a) {
  const Shape s = a.x.shape;
  expect_signal("level_forward", s);
  expect_shape("level_forward", "x", a.x, s);
  expect_shape("level_forward", "y", a.y, s);
  expect_shape("level_forward", "statistics", a.statistics, level_statistics(s));
  expect_scratch("level_forward", a.scratch, level_scratch(ctx, s));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::level_forward(ctx, a);

  // Scratch: a sum per part as double; then, at `peaks`, a peak per part as float.
  const Parts p(s);
  const auto statistics = [&](int64_t item) { return load_statistics(a.statistics.data + 4 * item); };
  parallel_parts(ctx, p.count(), [&](int64_t part) {
    put_partial(a.scratch.data, part, sum_of_part(a.x.data + p.begin(part), p.length(part)));
  });
  for (int64_t item = 0; item < s.batch; ++item) {
    const double mean =
        add_partials(a.scratch.data + partial_floats(item * p.parts), p.parts) / static_cast<double>(s.time);
    float* const to = a.statistics.data + 4 * item;
    to[0] = static_cast<float>(mean);
    to[3] = static_cast<float>(mean - static_cast<double>(to[0]));
  }
  // From here on the means are known, which u needs.
  float* const peaks = a.scratch.data + partial_floats(p.count());
  parallel_parts(ctx, p.count(), [&](int64_t part) {
    const Statistics of = statistics(p.item(part));
    peaks[part] = peak_of_part(a.x.data + p.begin(part), p.length(part), of.mean, of.rest);
  });
  for (int64_t item = 0; item < s.batch; ++item) {
    const Statistics of = statistics(item);
    // The first part with the largest peak, and in it the first sample.
    const int64_t part = std::max_element(peaks + item * p.parts, peaks + (item + 1) * p.parts) - peaks;
    const float* const x = a.x.data + p.begin(part);
    int64_t at = 0;
    // From the end, so that `at` is the first of equal samples. It stays 0 if no sample matches, that is if all u are
    // NaN.
    for (int64_t i = p.length(part) - 1; i >= 0; --i)
      if (std::fabs((x[i] - of.mean) - of.rest) == peaks[part]) at = i;
    float* const to = a.statistics.data + 4 * item;
    to[1] = peaks[part] + 0.0f * of.mean;  // NaN if a sample is NaN or infinite, because the mean then is
    to[2] = std::bit_cast<float>(static_cast<int32_t>(p.position(part) + at));
  }
  parallel_parts(ctx, p.count(), [&](int64_t part) {
    const Statistics of = statistics(p.item(part));
    const double scale = static_cast<double>(a.peak) / (static_cast<double>(of.peak) + static_cast<double>(a.eps));
    scale_part(a.x.data + p.begin(part), a.y.data + p.begin(part), p.length(part), of.mean, of.rest,
               static_cast<float>(scale));
  });
}

void level_backward(Context& ctx, const LevelBackward& a) {
  const Shape s = a.x.shape;
  expect_signal("level_backward", s);
  expect_shape("level_backward", "x", a.x, s);
  expect_shape("level_backward", "statistics", a.statistics, level_statistics(s));
  expect_shape("level_backward", "dy", a.dy, s);
  expect_shape("level_backward", "dx", a.dx, s);
  expect_scratch("level_backward", a.scratch, level_scratch(ctx, s));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::level_backward(ctx, a);

  // Scratch: the sums of dy of all parts, then the sums of dy u of all parts, both as doubles.
  const Parts p(s);
  float *const sums = a.scratch.data, *const products = sums + partial_floats(p.count());
  parallel_parts(ctx, p.count(), [&](int64_t part) {
    const Statistics of = load_statistics(a.statistics.data + 4 * p.item(part));
    double both[2];
    gradient_sums_of_part(a.x.data + p.begin(part), a.dy.data + p.begin(part), p.length(part), of.mean, of.rest, both);
    put_partial(sums, part, both[0]);
    put_partial(products, part, both[1]);
  });
  parallel_parts(ctx, p.count(), [&](int64_t part) {
    const int64_t item = p.item(part), first = partial_floats(item * p.parts), n = p.length(part);
    const Statistics of = load_statistics(a.statistics.data + 4 * item);
    const double whole = static_cast<double>(of.peak) + static_cast<double>(a.eps),
                 scale = static_cast<double>(a.peak) / whole;
    // What du has less at the sample of the peak, because m depends on it: sign(u) s / (m + eps) times the sum of dy u.
    const float u = (a.x[item * s.time + of.at()] - of.mean) - of.rest;
    const double taken = (u > 0 ? 1.0 : u < 0 ? -1.0 : 0.0) * scale / whole * add_partials(products + first, p.parts);
    // The mean of du over the item.
    const double mean = (scale * add_partials(sums + first, p.parts) - taken) / static_cast<double>(s.time);
    const float* const dy = a.dy.data + p.begin(part);
    float* const dx = a.dx.data + p.begin(part);
    const int64_t at = of.at() - p.position(part);
    const bool here = at >= 0 && at < n;
    // The loops treat the sample of the peak like all others. Afterwards it is computed again, in double, and written.
    // With add_dx its old value is saved first, because the loop overwrites it.
    const float before = here && a.add_dx ? dx[at] : 0.0f;
    (a.add_dx ? add_gradient_part : gradient_part)(dy, dx, n, static_cast<float>(scale), static_cast<float>(mean));
    if (here) dx[at] = before + static_cast<float>(scale * static_cast<double>(dy[at]) - taken - mean);
  });
}

}  // namespace nacre
