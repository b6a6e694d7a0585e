#include "nacre/ops/conv2d.h"

#include <cstring>
#include <string>

#include "conv/choose.h"
#include "conv/conv2d_stack.h"
#include "runtime/host.h"

// Frames are stacked as channels in scratch, conv1d convolves along the width, and the input gradient is gathered from
// its stacked form. The weight is the same memory in both views: [out, taps of width, taps of time, in] is a weight of
// conv1d with taps of time * in channels. So the ops at the end of the file only arrange tensors and scratch around one
// call of conv1d. stack() and unstack() are the copies, for the CPU here and for CUDA in conv2d.cu; conv2d_stack.h has
// their formula.
namespace nacre {
namespace cuda {
template <class T>
void conv2d_stack(Context&, const Conv2dParts<const T>& x, const conv::StackSizes&, T* stacked);
template <class T>
void conv2d_unstack(Context&, const T* stacked, const conv::StackSizes&, const Conv2dParts<T>& dx,
                    const std::array<bool, conv2d_max_parts>& add);
}  // namespace cuda

namespace {

using conv::StackSizes;

constexpr int64_t grain = 1 << 14;  // elements that make a thread worth its start
constexpr int64_t short_run = 64;   // bytes below which a loop copies faster than a call of memcpy
// Elements of dx that gather() sums at a time: 4 KiB of floats on the stack.
constexpr int64_t sum_elements = 1024;

// ---- stacking on the CPU, which does not pad: pitch is taps * channels

/// Copies `columns` columns of one frame to where they are one tap's channels. With a single tap they are contiguous
/// there as well.
template <class T>
void copy_columns(const T* from, int64_t columns, int64_t channels, T* to, int64_t to_stride) {
  if (to_stride == channels) {
    std::memcpy(to, from, static_cast<size_t>(columns * channels) * sizeof(T));
  } else if (channels * static_cast<int64_t>(sizeof(T)) < short_run) {
    for (int64_t v = 0; v < columns; ++v)
      for (int64_t i = 0; i < channels; ++i) to[v * to_stride + i] = from[v * channels + i];
  } else {
    for (int64_t v = 0; v < columns; ++v)
      std::memcpy(to + v * to_stride, from + v * channels, static_cast<size_t>(channels) * sizeof(T));
  }
}
template <class T>
void clear_columns(int64_t columns, int64_t channels, T* to, int64_t to_stride) {
  for (int64_t v = 0; v < columns; ++v)
    std::memset(static_cast<void*>(to + v * to_stride), 0, static_cast<size_t>(channels) * sizeof(T));
}

/// Writes the whole stacked tensor: a row is one item and frame of y, the parts have all of its columns between them,
/// and each tap is copied from its frame or zero.
template <class T>
void stack(Context& ctx, const Conv2dParts<const T>& x, const StackSizes& s, T* stacked) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv2d_stack<T>(ctx, x, s, stacked);
  parallel_ranges(ctx, s.batch * s.frames, grain / s.row() + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t b = r / s.frames, t = r % s.frames;
      for (int p = 0; p < x.count; ++p) {
        const View<const T>& part = x.part[static_cast<size_t>(p)];
        const conv::PartColumns c = conv::columns_of(x, p, s);
        if (c.count == 0) continue;
        for (int64_t k = 0; k < s.taps; ++k) {
          T* const to = stacked + r * s.row() + c.to * s.pitch + k * s.channels;
          const int64_t frame = t * s.stride + k * s.dilation - s.left;
          if (frame < 0 || frame >= s.time) {
            clear_columns(c.count, s.channels, to, s.pitch);
            continue;
          }
          const T* const from = part.data + ((b * s.time + frame) * part.shape.width + c.first) * s.channels;
          copy_columns(from, c.count, s.channels, to, s.pitch);
        }
      }
    }
  });
}

NACRE_CLONES void add_run(const float* __restrict from, float* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += from[i];
}
NACRE_CLONES void add_run(const bf16* __restrict from, float* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += to_float(from[i]);
}
template <class T>
void finish_run(const float* sum, T* to, int64_t n, bool add) {
  for (int64_t i = 0; i < n; ++i) to[i] = store<T>(add ? to_float(to[i]) + sum[i] : sum[i]);
}

/// Elements [begin, end) of the columns of one frame of dx: the sum of the taps that read the frame, in ascending order
/// of the frames of y, which is descending order of taps. `from` is the item's part of the stacked gradient at the
/// first of these columns. The sum is in float and rounded once. A frame collects its taps, instead of each tap being
/// scattered to its frames, so every element has one writer.
template <class T>
void gather(const T* from, const StackSizes& s, int64_t frame, int64_t begin, int64_t end, T* to, bool add) {
  float sum[sum_elements];
  const int64_t n = end - begin, channels = s.channels;
  std::memset(sum, 0, static_cast<size_t>(n) * sizeof(float));
  for (int64_t k = s.taps - 1; k >= 0; --k) {
    const int64_t at = frame + s.left - k * s.dilation;
    if (at < 0 || at % s.stride != 0 || at / s.stride >= s.frames) continue;
    const T* const tap = from + at / s.stride * s.row() + k * channels;
    for (int64_t e = begin; e < end;) {  // runs of one column each
      const int64_t v = e / channels, run = std::min(end, (v + 1) * channels) - e;
      const T* const run_from = tap + v * s.pitch + (e - v * channels);
      if (run == 1)
        sum[e - begin] += to_float(*run_from);
      else
        add_run(run_from, sum + (e - begin), run);
      e += run;
    }
  }
  finish_run(sum, to + begin, n, add);
}

/// dx of every part that has an address, from the stacked gradient. Columns that take no part become zero, or stay with
/// `add`.
template <class T>
void unstack(Context& ctx, const T* stacked, const StackSizes& s, const Conv2dParts<T>& dx,
             const std::array<bool, conv2d_max_parts>& adds) {
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::conv2d_unstack<T>(ctx, stacked, s, dx, adds);
  const int64_t row = dx.shape().width * s.channels;
  parallel_ranges(ctx, s.batch * s.time, grain / row + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t b = r / s.time, frame = r % s.time;
      for (int p = 0; p < dx.count; ++p) {
        const View<T>& part = dx.part[static_cast<size_t>(p)];
        if (!part) continue;
        const bool add = adds[static_cast<size_t>(p)];
        const conv::PartColumns c = conv::columns_of(dx, p, s);
        const int64_t width = part.shape.width;
        T* const to = part.data + r * width * s.channels;
        if (!add) {  // the columns outside of the range
          const int64_t before = c.count > 0 ? c.first : width, after = c.count > 0 ? width - c.first - c.count : 0;
          std::fill_n(to, before * s.channels, T{});
          std::fill_n(to + (width - after) * s.channels, after * s.channels, T{});
        }
        if (c.count == 0) continue;
        const T* const from = stacked + b * s.frames * s.row() + c.to * s.pitch;
        for (int64_t e = 0; e < c.count * s.channels; e += sum_elements)
          gather(from, s, frame, e, std::min(e + sum_elements, c.count * s.channels), to + c.first * s.channels, add);
      }
    }
  });
}

// ---- checks

void check_axis(const char* op, const char* name, const Conv2dAxis& a) {
  if (a.stride < 1 || a.dilation < 1 || a.left < 0 || a.right < 0) [[unlikely]]
    throw_usage(op, std::string(name) + " has stride " + std::to_string(a.stride) + ", dilation " +
                        std::to_string(a.dilation) + ", left " + std::to_string(a.left) + ", right " +
                        std::to_string(a.right) + "; the first two must be positive, padding not negative");
}
int64_t axis_length(int64_t length, int64_t taps, const Conv2dAxis& a) {
  return conv1d_length(length, taps, {.stride = a.stride, .dilation = a.dilation, .left = a.left, .right = a.right});
}

/// The convolution as one of conv1d along the width.
struct AsConv1d {
  bool stacks = false;  ///< else x itself is the input
  bool pads = false;    ///< the channels here fill 16 bytes, and `narrow` has the real ones
  Shape narrow{};       ///< of the weight
  // The stacked tensor, and the arguments of conv1d: x is the stacked tensor, or that of conv2d under another shape.
  StackSizes stack{};
  Shape x{}, weight{}, y{};
  Conv1dGeometry geometry{};
  Shape output{};  ///< y as conv2d has it
};
/// The frames of all items become the batch, columns become time, and taps of time * channels become channels. Throws
/// if shapes or geometry are invalid. stacks is false only where a frame of x already is what conv1d reads: one tap,
/// stride 1 and no padding in time, one part, all columns.
AsConv1d view(const char* op, Shape x, int parts, Shape weight, const Conv2dGeometry& g) {
  check_axis(op, "time", g.time);
  check_axis(op, "width", g.width);
  if (parts < 1 || parts > conv2d_max_parts) [[unlikely]]
    throw_usage(op, std::to_string(parts) + " parts of x, expected 1 to " + std::to_string(conv2d_max_parts));
  if (x.batch < 0 || x.time < 1 || x.width < parts || x.channels < 1) [[unlikely]]
    throw_usage(op, "x is " + str(x) + " in " + std::to_string(parts) +
                        " parts, expected [batch, time, width, channels] with a column per part");
  if (weight.batch < 1 || weight.time < 1 || weight.width < 1 || weight.channels != x.channels) [[unlikely]]
    throw_shape(op, "weight", weight,
                {std::max<int64_t>(weight.batch, 1), std::max<int64_t>(weight.time, 1),
                 std::max<int64_t>(weight.width, 1), x.channels});
  if (g.first_column < 0 || g.columns < 0 || g.first_column >= x.width || g.columns > x.width - g.first_column)
      [[unlikely]]
    throw_usage(op, "columns " + std::to_string(g.first_column) + " + " + std::to_string(g.columns) +
                        " are not within the " + std::to_string(x.width) + " columns of x");
  const int64_t columns = g.columns > 0 ? g.columns : x.width - g.first_column;
  const int64_t frames = axis_length(x.time, weight.width, g.time), length = axis_length(columns, weight.time, g.width);
  if (frames < 1 || length < 1) [[unlikely]]
    throw_usage(op, "x has " + std::to_string(x.time) + " frames and " + std::to_string(columns) +
                        " columns with padding, too few for " + std::to_string(weight.width) + " by " +
                        std::to_string(weight.time) + " taps");
  const int64_t channels = weight.width * x.channels;
  return {.stacks = weight.width > 1 || g.time.stride > 1 || g.time.left > 0 || g.time.right > 0 || parts > 1 ||
                    columns != x.width,
          .stack = {.batch = x.batch,
                    .time = x.time,
                    .channels = x.channels,
                    .frames = frames,
                    .taps = weight.width,
                    .stride = g.time.stride,
                    .dilation = g.time.dilation,
                    .left = g.time.left,
                    .first_column = g.first_column,
                    .columns = columns,
                    .pitch = channels},
          .x = {.batch = x.batch * frames, .time = columns, .channels = channels},
          .weight = {.batch = weight.batch, .time = weight.time, .channels = channels},
          .y = {.batch = x.batch * frames, .time = length, .channels = weight.batch},
          .geometry = {.stride = g.width.stride,
                       .dilation = g.width.dilation,
                       .left = g.width.left,
                       .right = g.width.right},
          .output = {x.batch, frames, length, weight.batch}};
}

/// On CUDA, conv1d is fast for channels that fill 16 bytes. Where the stacked channels do not and the outputs do, the
/// channels are padded with zeros, in x and in a copy of the weight. The first layer of DAC's spectrogram
/// discriminators is one: 2 channels in 3 frames.
template <class T>
AsConv1d padded(const Context& ctx, AsConv1d v) {
  constexpr int64_t pack = 16 / sizeof(T);
  const int64_t channels = v.weight.channels;
  if (!on_cuda(ctx) || !v.stacks || channels % pack == 0 || v.weight.batch % pack != 0) return v;
  v.pads = true, v.narrow = v.weight;
  v.stack.pitch = v.x.channels = v.weight.channels = (channels + pack - 1) / pack * pack;
  return v;
}
/// The rows of a weight as columns of a stacked tensor, one of padded channels each. So stack() pads the weight, and
/// unstack() takes its gradient out of the padded one.
StackSizes weight_rows(const AsConv1d& v) {
  return {.batch = 1,
          .time = 1,
          .channels = v.narrow.channels,
          .frames = 1,
          .taps = 1,
          .stride = 1,
          .dilation = 1,
          .left = 0,
          .first_column = 0,
          .columns = v.narrow.rows(),
          .pitch = v.weight.channels};
}
Shape in_columns(Shape narrow) { return {.width = narrow.rows(), .channels = narrow.channels}; }

/// Parts of equal batch, time and channels, each with a column or more. Without with_data a part may lack its address.
template <class T>
void expect_parts(const char* op, const char* name, const Conv2dParts<T>& x, bool with_data) {
  if (x.count < 1 || x.count > conv2d_max_parts) [[unlikely]]
    throw_usage(op,
                std::to_string(x.count) + " parts of " + name + ", expected 1 to " + std::to_string(conv2d_max_parts));
  for (int p = 0; p < x.count; ++p) {
    const View<T>& part = x.part[static_cast<size_t>(p)];
    Shape expected = x.part[0].shape;
    expected.width = std::max<int64_t>(part.shape.width, 1);
    if (with_data || part.shape != expected) expect_shape(op, name, part, expected);
  }
}

// ---- scratch

Shape floats(int64_t n) { return {.channels = n}; }

/// The scratch of a direction: the stacked tensor, if there is one, the padded weight or its gradient (elements of type
/// W), and what conv1d needs.
template <class T, class W>
Shape with_stacked(const AsConv1d& v, Shape of_conv1d) {
  return floats((v.stacks ? conv::tensor_floats<T>(v.x) : 0) + (v.pads ? conv::tensor_floats<W>(v.weight) : 0) +
                of_conv1d.elements());
}
template <class T, class W>
struct Pieces {
  // In the order and with the sizes of with_stacked().
  Pieces(const AsConv1d& v, View<float> scratch) {
    float* at = scratch.data;
    if (v.stacks) stacked = {reinterpret_cast<T*>(at), v.x}, at += conv::tensor_floats<T>(v.x);
    if (v.pads) weight = {reinterpret_cast<W*>(at), v.weight}, at += conv::tensor_floats<W>(v.weight);
    if (scratch) rest = {at, floats(scratch.elements() - (at - scratch.data))};
  }
  View<T> stacked{};
  View<W> weight{};
  View<float> rest{};
};
/// The weight of conv1d: the given one, or a padded copy.
template <class T>
View<const T> weight_of(Context& ctx, const AsConv1d& v, View<const T> weight, const Pieces<T, T>& pieces) {
  if (!v.pads) return {weight.data, v.weight};
  stack<T>(ctx, {.part = {View<const T>(weight.data, in_columns(v.narrow))}}, weight_rows(v), pieces.weight.data);
  return pieces.weight;
}
/// The input of conv1d: x itself, or its stacked frames.
template <class T>
View<const T> input(Context& ctx, const AsConv1d& v, const Conv2dParts<const T>& x, View<T> stacked) {
  if (!v.stacks) return {x.part[0].data, v.x};
  stack<T>(ctx, x, v.stack, stacked.data);
  return stacked;
}

}  // namespace

Shape conv2d_output(Shape x, Shape weight, const Conv2dGeometry& g) {
  return view("conv2d_output", x, 1, weight, g).output;
}

template <class T>
Shape conv2d_forward_scratch(Context& ctx, Shape x, int parts, Shape weight, const Conv2dGeometry& g) {
  const AsConv1d v = padded<T>(ctx, view("conv2d_forward_scratch", x, parts, weight, g));
  if (x.batch == 0) return {0, 0, 0, 0};
  return with_stacked<T, T>(v, conv1d_forward_scratch<T>(ctx, v.x, v.weight, v.geometry));
}
template <class T>
void conv2d_forward(Context& ctx, const Conv2dForward<T>& a) {
  const char* const op = "conv2d_forward";
  expect_parts(op, "x", a.x, true);
  const Shape x = a.x.shape();
  const AsConv1d v = padded<T>(ctx, view(op, x, a.x.count, a.weight.shape, a.geometry));
  expect_shape(op, "weight", a.weight, a.weight.shape);
  expect_shape_or_empty(op, "bias", a.bias, {.channels = v.output.channels});
  expect_shape(op, "y", a.y, v.output);
  if (x.batch == 0) return;
  expect_scratch(op, a.scratch, conv2d_forward_scratch<T>(ctx, x, a.x.count, a.weight.shape, a.geometry));
  const Pieces<T, T> pieces(v, a.scratch);
  conv1d_forward<T>(ctx, {.x = input(ctx, v, a.x, pieces.stacked),
                          .weight = weight_of(ctx, v, a.weight, pieces),
                          .bias = a.bias,
                          .y = {a.y.data, v.y},
                          .scratch = pieces.rest,
                          .geometry = v.geometry});
}

template <class T>
Shape conv2d_input_gradient_scratch(Context& ctx, Shape x, int parts, Shape weight, const Conv2dGeometry& g) {
  const AsConv1d v = padded<T>(ctx, view("conv2d_input_gradient_scratch", x, parts, weight, g));
  if (x.batch == 0) return {0, 0, 0, 0};
  return with_stacked<T, T>(v, conv1d_input_gradient_scratch<T>(ctx, v.x, v.weight, v.y, v.geometry));
}
template <class T>
void conv2d_input_gradient(Context& ctx, const Conv2dInputGradient<T>& a) {
  const char* const op = "conv2d_input_gradient";
  expect_parts(op, "dx", a.dx, false);
  const Shape x = a.dx.shape();
  const AsConv1d v = padded<T>(ctx, view(op, x, a.dx.count, a.weight.shape, a.geometry));
  expect_shape(op, "weight", a.weight, a.weight.shape);
  expect_shape(op, "dy", a.dy, v.output);
  if (x.batch == 0) return;
  expect_scratch(op, a.scratch, conv2d_input_gradient_scratch<T>(ctx, x, a.dx.count, a.weight.shape, a.geometry));
  if (std::none_of(a.dx.part.begin(), a.dx.part.begin() + a.dx.count, [](const auto& p) { return bool(p); })) return;
  // With stacking, conv1d writes the stacked gradient and unstack() adds; without, conv1d writes or adds to dx itself.
  const Pieces<T, T> pieces(v, a.scratch);
  conv1d_input_gradient<T>(ctx, {.dy = {a.dy.data, v.y},
                                 .weight = weight_of(ctx, v, a.weight, pieces),
                                 .dx = v.stacks ? pieces.stacked : View<T>(a.dx.part[0].data, v.x),
                                 .scratch = pieces.rest,
                                 .geometry = v.geometry,
                                 .add_dx = !v.stacks && a.add_dx[0]});
  if (v.stacks) unstack<T>(ctx, pieces.stacked.data, v.stack, a.dx, a.add_dx);
}

template <class T>
Shape conv2d_weight_gradient_scratch(Context& ctx, Shape x, int parts, Shape weight, const Conv2dGeometry& g) {
  const AsConv1d v = padded<T>(ctx, view("conv2d_weight_gradient_scratch", x, parts, weight, g));
  if (x.batch == 0) return {0, 0, 0, 0};
  return with_stacked<T, float>(v, conv1d_weight_gradient_scratch<T>(ctx, v.x, v.weight, v.y, v.geometry));
}
template <class T>
Shape conv2d_weight_gradient_parts(Context& ctx, Shape x, int parts, Shape weight, const Conv2dGeometry& g) {
  const AsConv1d v = padded<T>(ctx, view("conv2d_weight_gradient_parts", x, parts, weight, g));
  if (x.batch == 0 || v.pads) return {0, 0, 0, 0};
  return conv1d_weight_gradient_parts<T>(ctx, v.x, v.weight, v.y, v.geometry);
}
template <class T>
void conv2d_weight_gradient(Context& ctx, const Conv2dWeightGradient<T>& a) {
  const char* const op = "conv2d_weight_gradient";
  expect_parts(op, "x", a.x, true);
  const Shape x = a.x.shape();
  const AsConv1d v = padded<T>(ctx, view(op, x, a.x.count, a.dweight.shape, a.geometry));
  expect_shape(op, "dy", a.dy, v.output);
  expect_shape(op, "dweight", a.dweight, a.dweight.shape);
  expect_shape_or_empty(op, "dbias", a.dbias, {.channels = v.output.channels});
  if (x.batch == 0) {
    if (!a.add_dweight) ctx.zero(a.dweight);
    return;
  }
  expect_scratch(op, a.scratch, conv2d_weight_gradient_scratch<T>(ctx, x, a.x.count, a.dweight.shape, a.geometry));
  const Pieces<T, float> pieces(v, a.scratch);
  // A padded gradient is computed into scratch, complete when conv1d returns (no parts that are added later), and its
  // real channels are then copied or added to dweight.
  conv1d_weight_gradient<T>(ctx, {.x = input(ctx, v, a.x, pieces.stacked),
                                  .dy = {a.dy.data, v.y},
                                  .dweight = v.pads ? pieces.weight : View<float>(a.dweight.data, v.weight),
                                  .dbias = a.dbias,
                                  .scratch = pieces.rest,
                                  .parts = v.pads ? View<float>{} : a.parts,
                                  .geometry = v.geometry,
                                  .add_dweight = !v.pads && a.add_dweight});
  if (v.pads)
    unstack<float>(ctx, pieces.weight.data, weight_rows(v),
                   {.part = {View<float>(a.dweight.data, in_columns(v.narrow))}}, {a.add_dweight});
}

#define NACRE_INSTANTIATE(T)                                                                            \
  template Shape conv2d_forward_scratch<T>(Context&, Shape, int, Shape, const Conv2dGeometry&);         \
  template Shape conv2d_input_gradient_scratch<T>(Context&, Shape, int, Shape, const Conv2dGeometry&);  \
  template Shape conv2d_weight_gradient_scratch<T>(Context&, Shape, int, Shape, const Conv2dGeometry&); \
  template Shape conv2d_weight_gradient_parts<T>(Context&, Shape, int, Shape, const Conv2dGeometry&);   \
  template void conv2d_forward<T>(Context&, const Conv2dForward<T>&);                                   \
  template void conv2d_input_gradient<T>(Context&, const Conv2dInputGradient<T>&);                      \
  template void conv2d_weight_gradient<T>(Context&, const Conv2dWeightGradient<T>&);
NACRE_INSTANTIATE(float)
NACRE_INSTANTIATE(bf16)
#undef NACRE_INSTANTIATE

}  // namespace nacre
