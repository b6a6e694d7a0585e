#include "nacre/ops/group_norm.h"

#include <cmath>
#include <numeric>

#include "runtime/host.h"
#include "runtime/inline.h"
#include "runtime/sums.h"

// Group normalisation on the CPU; group_norm.cu is the same on CUDA. nacre/ops/group_norm.h gives the formulas.
//
// A part is a number of rows of one item, fixed by the shape. Every loop runs over the rows of a part and the channels
// of one group, whose statistics it reads `step` floats apart: 0 over an item, the number of groups over a position.
//
//   over an item       forward   item_statistics, then y per part
//                      backward  column_sums; from them dgain and dbias (parameter_gradients) and the sums of d and d h
//                                of each set, then dx per part (item_input_gradient)
//   over a position    forward   statistics and y of a part together
//                      backward  column_sums and parameter_gradients if gain or bias is trained; dx, whose sums are
//                                those of one row (position_input_gradient)
//
// Loops are compiled once per instruction set (NACRE_CLONES), for float and bf16 alike, from one template each. Sums
// over a set have `lanes` partial sums, so their order does not depend on the vector width.
namespace nacre {
namespace cuda {
template <class T>
Shape group_norm_forward_scratch(Shape x, int64_t groups, NormOver);
template <class T>
Shape group_norm_backward_scratch(Shape x, int64_t groups, NormOver);
template <class T>
void group_norm_forward(Context&, const GroupNormForward<T>&);
template <class T>
void group_norm_backward(Context&, const GroupNormBackward<T>&);
}  // namespace cuda
namespace {

constexpr int64_t lanes = 16;  // partial sums of a set: fixed, so that bits do not depend on the vector width
constexpr int64_t part_elements = 16384;  ///< elements of x per part; a part has at least one row
constexpr int64_t tile = 512;  // channels whose sums lie on the stack

/// How x is divided. Over an item, a set is the `rows` rows of an item and `width` channels; over a position, it is
/// `width` channels of one row. In the latter case the rows of all items are treated as one item, because sets do not
/// depend on items.
struct Layout {
  int64_t batch, rows, channels, groups, width;  ///< rows of an item; channels of a group
  int64_t part_rows, parts;                      ///< parts of an item
  bool over_item;

  Layout(Shape s, int64_t group_count, NormOver over)
      : batch(over == NormOver::item ? s.batch : 1),
        rows(over == NormOver::item ? s.time * s.width : s.rows()),
        channels(s.channels),
        groups(group_count),
        width(s.channels / group_count),
        part_rows(std::max<int64_t>(part_elements / std::max<int64_t>(s.channels, 1), 1)),
        parts((rows + part_rows - 1) / part_rows),
        over_item(over == NormOver::item) {}

  int64_t step() const { return over_item ? 0 : groups; }
  /// Elements of a set.
  int64_t size() const { return over_item ? rows * width : width; }
};
/// The rows of one part.
struct Part {
  int64_t item, rows;
  int64_t at;         ///< element of x
  int64_t statistic;  ///< of the first row and the first group

  Part(const Layout& l, int64_t part) : item(part / l.parts) {
    const int64_t first = part % l.parts * l.part_rows;
    rows = std::min(l.part_rows, l.rows - first);
    at = (item * l.rows + first) * l.channels;
    statistic = (l.over_item ? item : item * l.rows + first) * l.groups;
  }
};

/// Rows of n elements, `stride` apart.
template <class T>
struct Run {
  const T* x;
  int64_t rows, stride, n;
};
/// sum += x - pivot, squares += (x - pivot)^2, in `lanes` partial sums.
template <class T>
NACRE_INLINE void add(const Run<T>& a, double pivot, double* __restrict sum, double* __restrict squares) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* const __restrict x = a.x + r * a.stride;
    int64_t i = 0;
    const auto one = [&](int64_t l) {
      const double v = static_cast<double>(to_float(x[i + l])) - pivot;
      sum[l] += v;
      squares[l] += v * v;
    };
    for (; i + lanes <= a.n; i += lanes)
      for (int64_t l = 0; l < lanes; ++l) one(l);
    for (int64_t l = 0; l < a.n - i; ++l) one(l);
  }
}
/// A clone must be a plain function, so each loop is a template that is inlined into one function per type.
NACRE_CLONES void add_moments(const Run<float>& a, double pivot, double* sum, double* squares) {
  add(a, pivot, sum, squares);
}
NACRE_CLONES void add_moments(const Run<bf16>& a, double pivot, double* sum, double* squares) {
  add(a, pivot, sum, squares);
}
/// Sums of differences from the pivot, and of their squares. Also the sums of d and of d h of a row.
struct Moments {
  double sum[lanes] = {}, squares[lanes] = {};
  double total(const double* v) const { return std::accumulate(v, v + lanes, 0.0); }
};
/// Mean and 1 / sqrt(var + eps) of n elements, from sums of v = x - pivot and of v^2: var = mean v^2 - (mean v)^2. The
/// pivot is an element of the set, so v is of the size of the deviation, and little cancels. Rounding may still make
/// the difference negative.
void put_statistics(double pivot, double sum, double squares, int64_t n, float eps, float* mean, float* inverse) {
  const double size = static_cast<double>(n), first = sum / size, variance = squares / size - first * first;
  *mean = static_cast<float>(pivot + first);
  *inverse = static_cast<float>(1 / std::sqrt((variance < 0 ? 0 : variance) + static_cast<double>(eps)));
}

/// One group in the rows of a part: what the loops read and write. Pointers are those of the first row and of the
/// group's first channel. Rows are `stride` elements apart, their statistics `step` floats.
template <class T>
struct Rows {
  const T *x, *other;  ///< other: the residual, or dy
  T* out;              ///< y or dx
  const float *gain, *bias, *mean, *inverse;
  int64_t rows, stride, width, step;
};

/// y = h gain + bias (+ residual), with r gain multiplied first.
template <class T>
NACRE_INLINE void forward(const Rows<T>& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* const x = a.x + r * a.stride;
    T* const __restrict y = a.out + r * a.stride;
    const float mean = a.mean[r * a.step], inverse = a.inverse[r * a.step];
    if (a.other == nullptr) {
      for (int64_t i = 0; i < a.width; ++i)
        y[i] = store<T>((to_float(x[i]) - mean) * (inverse * a.gain[i]) + a.bias[i]);
    } else {
      const T* const residual = a.other + r * a.stride;
      for (int64_t i = 0; i < a.width; ++i)
        y[i] = store<T>((to_float(x[i]) - mean) * (inverse * a.gain[i]) + a.bias[i] + to_float(residual[i]));
    }
  }
}
NACRE_CLONES void forward_rows(const Rows<float>& a) { forward(a); }
NACRE_CLONES void forward_rows(const Rows<bf16>& a) { forward(a); }

/// Per channel, sum_dy += dy and sum_dyh += dy h, for a.width <= tile channels. Products are in float, sums in double.
template <class T>
NACRE_INLINE void columns(const Rows<T>& a, double* __restrict sum_dy, double* __restrict sum_dyh) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const T *const x = a.x + r * a.stride, *const dy = a.other + r * a.stride;
    const float mean = a.mean[r * a.step], inverse = a.inverse[r * a.step];
    for (int64_t i = 0; i < a.width; ++i) {
      const float d = to_float(dy[i]);
      sum_dy[i] += static_cast<double>(d);
      sum_dyh[i] += static_cast<double>(d * ((to_float(x[i]) - mean) * inverse));
    }
  }
}
NACRE_CLONES void add_columns(const Rows<float>& a, double* sum_dy, double* sum_dyh) { columns(a, sum_dy, sum_dyh); }
NACRE_CLONES void add_columns(const Rows<bf16>& a, double* sum_dy, double* sum_dyh) { columns(a, sum_dy, sum_dyh); }

/// Sums of d = dy gain and of d h over the first row alone, in `lanes` partial sums.
template <class T>
NACRE_INLINE void products(const Rows<T>& a, double* __restrict sum_d, double* __restrict sum_dh) {
  const float mean = a.mean[0], inverse = a.inverse[0];
  int64_t i = 0;
  const auto one = [&](int64_t l) {
    const float d = to_float(a.other[i + l]) * a.gain[i + l];
    sum_d[l] += static_cast<double>(d);
    sum_dh[l] += static_cast<double>(d * ((to_float(a.x[i + l]) - mean) * inverse));
  };
  for (; i + lanes <= a.width; i += lanes)
    for (int64_t l = 0; l < lanes; ++l) one(l);
  for (int64_t l = 0; l < a.width - i; ++l) one(l);
}
NACRE_CLONES void add_products(const Rows<float>& a, double* sum_d, double* sum_dh) { products(a, sum_d, sum_dh); }
NACRE_CLONES void add_products(const Rows<bf16>& a, double* sum_d, double* sum_dh) { products(a, sum_d, sum_dh); }

/// dx = r (d - mean_d - h mean_dh), written as r gain dy - r mean_d - (x - mean) r^2 mean_dh, so that a set has two
/// constants.
template <bool add_dx, class T>
NACRE_INLINE void input_gradient(const Rows<T>& a, float mean_d, float mean_dh) {
  const float mean = a.mean[0], inverse = a.inverse[0], constant = inverse * mean_d,
              slope = inverse * inverse * mean_dh;
  for (int64_t r = 0; r < a.rows; ++r) {
    const T *const x = a.x + r * a.stride, *const dy = a.other + r * a.stride;
    T* const __restrict dx = a.out + r * a.stride;
    for (int64_t i = 0; i < a.width; ++i) {
      const float g = (inverse * a.gain[i]) * to_float(dy[i]) - constant - (to_float(x[i]) - mean) * slope;
      dx[i] = store<T>(add_dx ? to_float(dx[i]) + g : g);
    }
  }
}
#define NACRE_GROUP_NORM_LOOPS(T)                                             \
  NACRE_CLONES void write_dx(const Rows<T>& a, float mean_d, float mean_dh) { \
    input_gradient<false>(a, mean_d, mean_dh);                                \
  }                                                                           \
  NACRE_CLONES void add_dx(const Rows<T>& a, float mean_d, float mean_dh) { input_gradient<true>(a, mean_d, mean_dh); }
NACRE_GROUP_NORM_LOOPS(float)
NACRE_GROUP_NORM_LOOPS(bf16)

/// Calls f(part) for all parts of all items, in parallel.
template <class F>
void each_part(Context& ctx, const Layout& l, F&& f) {
  parallel_parts(ctx, l.batch * l.parts, [&](int64_t part) { f(part, Part(l, part)); });
}

/// Statistics of an item. Scratch: doubles [item][part][group][2], sum and squares of each part; then a set's parts are
/// added in order. The pivot of a set is its first element in the item, the same in all parts.
template <class T>
void item_statistics(Context& ctx, const GroupNormForward<T>& a, const Layout& l) {
  const auto pivot = [&](int64_t item, int64_t group) {
    return static_cast<double>(to_float(a.x[item * l.rows * l.channels + group * l.width]));
  };
  each_part(ctx, l, [&](int64_t part, const Part& p) {
    for (int64_t g = 0; g < l.groups; ++g) {
      Moments m;
      const T* const x = a.x.data + p.at + g * l.width;
      // The channels of a single group are contiguous over rows, so a part is one run.
      const int64_t runs = l.groups == 1 ? 1 : p.rows, length = l.groups == 1 ? p.rows * l.width : l.width;
      add_moments(Run<T>{x, runs, l.channels, length}, pivot(p.item, g), m.sum, m.squares);
      put_partial(a.scratch.data, 2 * (part * l.groups + g), m.total(m.sum));
      put_partial(a.scratch.data, 2 * (part * l.groups + g) + 1, m.total(m.squares));
    }
  });
  for (int64_t set = 0; set < l.batch * l.groups; ++set) {
    const int64_t item = set / l.groups, g = set % l.groups;
    double sum = 0, squares = 0;
    for (int64_t part = item * l.parts; part < (item + 1) * l.parts; ++part) {
      sum += get_partial(a.scratch.data, 2 * (part * l.groups + g));
      squares += get_partial(a.scratch.data, 2 * (part * l.groups + g) + 1);
    }
    put_statistics(pivot(item, g), sum, squares, l.size(), a.eps, a.mean.data + set, a.inverse_deviation.data + set);
  }
}

/// The group g of a part, for the loops of the backward pass.
template <class T>
Rows<T> rows_of(const GroupNormBackward<T>& a, const Layout& l, const Part& p, int64_t g) {
  const int64_t at = p.at + g * l.width;
  return {.x = a.x.data + at,
          .other = a.dy.data + at,
          .out = a.dx ? a.dx.data + at : nullptr,
          .gain = a.gain.data + g * l.width,
          .bias = nullptr,
          .mean = a.mean.data + p.statistic + g,
          .inverse = a.inverse_deviation.data + p.statistic + g,
          .rows = p.rows,
          .stride = l.channels,
          .width = l.width,
          .step = l.step()};
}

/// Sums of dy and of dy h over the rows of every part. Scratch: doubles [part][2][channels], with the parts of all
/// items. Channels go through in tiles, because the running sums are on the stack.
template <class T>
void column_sums(Context& ctx, const GroupNormBackward<T>& a, const Layout& l) {
  each_part(ctx, l, [&](int64_t part, const Part& p) {
    for (int64_t g = 0; g < l.groups; ++g)
      for (int64_t first = 0; first < l.width; first += tile) {
        double sum_dy[tile], sum_dyh[tile];
        Rows<T> rows = rows_of(a, l, p, g);
        rows.x += first, rows.other += first, rows.width = std::min(tile, l.width - first);
        std::fill_n(sum_dy, rows.width, 0.0), std::fill_n(sum_dyh, rows.width, 0.0);
        add_columns(rows, sum_dy, sum_dyh);
        const int64_t to = 2 * part * l.channels + g * l.width + first;
        for (int64_t i = 0; i < rows.width; ++i) {
          put_partial(a.scratch.data, to + i, sum_dy[i]);
          put_partial(a.scratch.data, to + l.channels + i, sum_dyh[i]);
        }
      }
  });
}

/// dgain and dbias from the column sums: for each channel, the parts of all items in order.
template <class T>
void parameter_gradients(Context& ctx, const GroupNormBackward<T>& a, const Layout& l) {
  parallel_ranges(ctx, l.channels, 64, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double sum_dy = 0, sum_dyh = 0;
      for (int64_t part = 0; part < l.batch * l.parts; ++part) {
        sum_dy += get_partial(a.scratch.data, 2 * part * l.channels + c);
        sum_dyh += get_partial(a.scratch.data, (2 * part + 1) * l.channels + c);
      }
      if (a.dbias) a.dbias[c] += static_cast<float>(sum_dy);
      if (a.dgain) a.dgain[c] += static_cast<float>(sum_dyh);
    }
  });
}

/// Sums of d and of d h over a set.
struct SetSums {
  double d = 0, dh = 0;
};
/// Over an item, from its column sums: gain is constant along a column, so sum of d = sum over channels of gain (sum of
/// dy).
template <class T>
SetSums set_sums(const GroupNormBackward<T>& a, const Layout& l, int64_t item, int64_t group) {
  SetSums s;
  for (int64_t part = item * l.parts; part < (item + 1) * l.parts; ++part)
    for (int64_t c = group * l.width; c < (group + 1) * l.width; ++c) {
      const auto gain = static_cast<double>(a.gain[c]);
      s.d += gain * get_partial(a.scratch.data, 2 * part * l.channels + c);
      s.dh += gain * get_partial(a.scratch.data, (2 * part + 1) * l.channels + c);
    }
  return s;
}

/// dx of the rows from the sums over their set of n elements.
template <class T>
void write_input_gradient(const GroupNormBackward<T>& a, const Rows<T>& rows, double sum_d, double sum_dh, int64_t n) {
  const auto mean_d = static_cast<float>(sum_d / static_cast<double>(n)),
             mean_dh = static_cast<float>(sum_dh / static_cast<double>(n));
  a.add_dx ? add_dx(rows, mean_d, mean_dh) : write_dx(rows, mean_d, mean_dh);
}
/// dx over an item. The sums of a set are computed once, then all parts of the item read them. Scratch: behind the
/// column sums, doubles [item][group][2].
template <class T>
void item_input_gradient(Context& ctx, const GroupNormBackward<T>& a, const Layout& l) {
  const int64_t sums = 2 * l.batch * l.parts * l.channels;  // behind the column sums
  parallel_ranges(ctx, l.batch * l.groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t set = begin; set < end; ++set) {
      const SetSums s = set_sums(a, l, set / l.groups, set % l.groups);
      put_partial(a.scratch.data, sums + 2 * set, s.d);
      put_partial(a.scratch.data, sums + 2 * set + 1, s.dh);
    }
  });
  each_part(ctx, l, [&](int64_t, const Part& p) {
    for (int64_t g = 0; g < l.groups; ++g) {
      const int64_t set = sums + 2 * (p.item * l.groups + g);
      write_input_gradient(a, rows_of(a, l, p, g), get_partial(a.scratch.data, set),
                           get_partial(a.scratch.data, set + 1), l.size());
    }
  });
}
/// dx over a position: a set lies in one row, so each row has its own sums, and needs no scratch.
template <class T>
void position_input_gradient(Context& ctx, const GroupNormBackward<T>& a, const Layout& l) {
  each_part(ctx, l, [&](int64_t, const Part& p) {
    for (int64_t g = 0; g < l.groups; ++g) {
      Rows<T> row = rows_of(a, l, p, g);
      row.rows = 1;
      for (int64_t r = 0; r < p.rows; ++r) {
        Moments m;
        add_products(row, m.sum, m.squares);
        write_input_gradient(a, row, m.total(m.sum), m.total(m.squares), l.size());
        row.x += row.stride, row.other += row.stride, row.out += row.stride;
        row.mean += row.step, row.inverse += row.step;
      }
    }
  });
}

void check_groups(const char* op, Shape x, int64_t groups) {
  if (groups < 1 || x.channels % groups != 0) [[unlikely]]
    throw_usage(op, std::to_string(x.channels) + " channels do not form " + std::to_string(groups) + " groups");
}

}  // namespace

Shape group_norm_statistics(Shape x, int64_t groups, NormOver over) {
  if (over == NormOver::item) return {.batch = x.batch, .channels = groups};
  return {.batch = x.batch, .time = x.time, .width = x.width, .channels = groups};
}

template <class T>
Shape group_norm_forward_scratch(Context& ctx, Shape x, int64_t groups, NormOver over) {
  check_groups("group_norm_forward_scratch", x, groups);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::group_norm_forward_scratch<T>(x, groups, over);
  const Layout l(x, groups, over);
  return {.channels = l.over_item ? partial_floats(2 * l.batch * l.parts * groups) : 0};
}
template <class T>
Shape group_norm_backward_scratch(Context& ctx, Shape x, int64_t groups, NormOver over) {
  check_groups("group_norm_backward_scratch", x, groups);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::group_norm_backward_scratch<T>(x, groups, over);
  const Layout l(x, groups, over);
  return {.channels = partial_floats(2 * l.batch * (l.parts * l.channels + (l.over_item ? groups : 0)))};
}

template <class T>
void group_norm_forward(Context& ctx, const GroupNormForward<T>& a) {
  const char* const op = "group_norm_forward";
  const Shape x = a.x.shape, per_channel{.channels = x.channels};
  check_groups(op, x, a.groups);
  expect_shape(op, "x", a.x, x);
  expect_shape(op, "gain", a.gain, per_channel);
  expect_shape(op, "bias", a.bias, per_channel);
  expect_shape_or_empty(op, "residual", a.residual, x);
  expect_shape(op, "y", a.y, x);
  expect_shape(op, "mean", a.mean, group_norm_statistics(x, a.groups, a.over));
  expect_shape(op, "inverse_deviation", a.inverse_deviation, group_norm_statistics(x, a.groups, a.over));
  expect_scratch(op, a.scratch, group_norm_forward_scratch<T>(ctx, x, a.groups, a.over));
  if (x.elements() == 0) return;
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::group_norm_forward(ctx, a);
  const Layout l(x, a.groups, a.over);
  if (l.over_item) item_statistics(ctx, a, l);
  each_part(ctx, l, [&](int64_t, const Part& p) {
    for (int64_t g = 0; g < l.groups; ++g) {
      const int64_t at = p.at + g * l.width;
      float *const mean = a.mean.data + p.statistic + g, *const inverse = a.inverse_deviation.data + p.statistic + g;
      // Over a position the statistics of the part's rows are not known yet. Over an item they are.
      for (int64_t r = 0; r < p.rows && !l.over_item; ++r) {
        const T* const row = a.x.data + at + r * l.channels;
        const auto pivot = static_cast<double>(to_float(row[0]));
        Moments m;
        add_moments(Run<T>{row, 1, 0, l.width}, pivot, m.sum, m.squares);
        put_statistics(pivot, m.total(m.sum), m.total(m.squares), l.width, a.eps, mean + r * l.groups,
                       inverse + r * l.groups);
      }
      forward_rows({.x = a.x.data + at,
                    .other = a.residual ? a.residual.data + at : nullptr,
                    .out = a.y.data + at,
                    .gain = a.gain.data + g * l.width,
                    .bias = a.bias.data + g * l.width,
                    .mean = mean,
                    .inverse = inverse,
                    .rows = p.rows,
                    .stride = l.channels,
                    .width = l.width,
                    .step = l.step()});
    }
  });
}

template <class T>
void group_norm_backward(Context& ctx, const GroupNormBackward<T>& a) {
  const char* const op = "group_norm_backward";
  const Shape x = a.x.shape, per_channel{.channels = x.channels};
  check_groups(op, x, a.groups);
  expect_shape(op, "x", a.x, x);
  expect_shape(op, "gain", a.gain, per_channel);
  expect_shape(op, "mean", a.mean, group_norm_statistics(x, a.groups, a.over));
  expect_shape(op, "inverse_deviation", a.inverse_deviation, group_norm_statistics(x, a.groups, a.over));
  expect_shape(op, "dy", a.dy, x);
  expect_shape_or_empty(op, "dx", a.dx, x);
  expect_shape_or_empty(op, "dgain", a.dgain, per_channel);
  expect_shape_or_empty(op, "dbias", a.dbias, per_channel);
  expect_scratch(op, a.scratch, group_norm_backward_scratch<T>(ctx, x, a.groups, a.over));
  const bool trains = a.dgain || a.dbias;
  if (x.elements() == 0 || (!a.dx && !trains)) return;
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::group_norm_backward(ctx, a);
  const Layout l(x, a.groups, a.over);
  // Over an item, dx needs the column sums, too.
  if (trains || l.over_item) column_sums(ctx, a, l);
  if (trains) parameter_gradients(ctx, a, l);
  if (!a.dx) return;
  l.over_item ? item_input_gradient(ctx, a, l) : position_input_gradient(ctx, a, l);
}

#define NACRE_GROUP_NORM(T)                                                          \
  template Shape group_norm_forward_scratch<T>(Context&, Shape, int64_t, NormOver);  \
  template Shape group_norm_backward_scratch<T>(Context&, Shape, int64_t, NormOver); \
  template void group_norm_forward<T>(Context&, const GroupNormForward<T>&);         \
  template void group_norm_backward<T>(Context&, const GroupNormBackward<T>&);
NACRE_GROUP_NORM(float)
NACRE_GROUP_NORM(bf16)

}  // namespace nacre
