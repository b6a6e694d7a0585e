#include "conv1d_windows.h"

#include <cstring>

#include "conv1d_karatsuba_tiles.h"
#include "host.h"

namespace nacre::windows {
namespace {

using karatsuba::matrices;
using karatsuba::panel;

constexpr int64_t most_rows = 96;     // of y in a chunk; a multiple of the tiles' rows
constexpr int64_t most_depth = 512;   // of a slice: with a panel's columns 128 KiB, which stay in the second-level cache
constexpr int64_t grain = 1 << 14;    // floats worth a thread
constexpr int64_t wanted_tasks = 16;  // whatever the number of threads

int64_t rounded(int64_t n) { return (n + 15) / 16 * 16; }

/// A part of the sum over taps and channels. More than one tap: all channels of each.
struct Slice {
  int64_t tap, taps, channel, depth;
};

struct Plan {
  Problem p;  // of one group
  int64_t wide, chunk_rows, per_item, chunks, splits;
  bool joined;  // dilation 1: the window lies in one piece, and counts as one tap

  explicit Plan(const Problem& problem) : p(problem), wide(rounded(problem.out)) {
    if (p.taps == 1 && p.stride == 1 && p.left == 0 && p.length == p.time)  // no edges: all items are one
      p.time *= p.batch, p.length *= p.batch, p.batch = 1;
    joined = p.dilation == 1;
    per_item = (p.length + most_rows - 1) / most_rows;
    chunk_rows = ((p.length + per_item - 1) / per_item + 5) / 6 * 6;
    per_item = (p.length + chunk_rows - 1) / chunk_rows;
    chunks = p.batch * per_item;
    const int64_t panels = (wide + panel - 1) / panel;
    splits = std::clamp<int64_t>((wanted_tasks + chunks - 1) / chunks, 1, panels);
  }
  int64_t span() const { return (p.taps - 1) * p.dilation + 1; }
  int64_t weights() const { return p.taps * p.in * wide; }
  int64_t window() const { return rounded(((chunk_rows - 1) * p.stride + span()) * p.in); }
  /// Of a thread: a window with an edge, and rows of y that are no whole vectors.
  int64_t slot() const { return window() + (wide != p.out ? chunk_rows * wide : 0); }
  int64_t scratch(const Context& ctx) const { return weights() + wide + ctx.threads() * slot(); }

  template <class F>
  void slices(F&& f) const {
    if (joined) {
      const int64_t depth = p.taps * p.in;
      for (int64_t at = 0; at < depth; at += most_depth) f(Slice{0, 1, at, std::min(most_depth, depth - at)});
    } else if (p.in >= most_depth) {
      for (int64_t k = 0; k < p.taps; ++k)
        for (int64_t at = 0; at < p.in; at += most_depth) f(Slice{k, 1, at, std::min(most_depth, p.in - at)});
    } else {
      const int64_t together = most_depth / p.in;
      for (int64_t k = 0; k < p.taps; k += together) f(Slice{k, std::min(together, p.taps - k), 0, p.in});
    }
  }
};

/// The columns [begin, begin + 16) of the weight to [panel of outputs][tap][in][outputs of the panel].
void pack(const Plan& plan, const float* weight, int64_t begin, float* to) {
  const Problem& p = plan.p;
  const int64_t column = begin / panel * panel, width = std::min(panel, plan.wide - column);
  const int64_t outs = std::min<int64_t>(16, p.out - begin);
  float* row = to + column * p.taps * p.in + (begin - column);
  if (p.turned) {
    for (int64_t k = p.taps - 1; k >= 0; --k)
      for (int64_t i = 0; i < p.in; ++i, row += width) {
        const float* const from = weight + (i * p.taps + k) * p.out + begin;
        for (int64_t o = 0; o < outs; ++o) row[o] = from[o];
        for (int64_t o = outs; o < 16; ++o) row[o] = 0;
      }
    return;
  }
  const int64_t depth = p.taps * p.in, whole = outs == 16 ? depth / 16 * 16 : 0;
  const float* const from = weight + begin * depth;
  int64_t d = 0;
  for (; d < whole; d += 16) matrices().transpose(from + d, depth, row + d * width, width);
  for (; d < depth; ++d)
    for (int64_t o = 0; o < 16; ++o) row[d * width + o] = o < outs ? from[o * depth + d] : 0.0f;
}

/// The window under rows [begin, begin + rows) of y: in place, or in `room` with zeros where x ends.
const float* window(const Problem& p, const float* item, int64_t begin, int64_t rows, int64_t span, float* room) {
  const int64_t first = begin * p.stride - p.left, samples = (rows - 1) * p.stride + span;
  if (first >= 0 && first + samples <= p.time) return item + first * p.in;
  const int64_t from = std::clamp<int64_t>(first, 0, p.time), to = std::clamp<int64_t>(first + samples, from, p.time);
  float* at = std::fill_n(room, (std::min(from, first + samples) - first) * p.in, 0.0f);
  at = std::copy(item + from * p.in, item + to * p.in, at);
  std::fill(at, room + samples * p.in, 0.0f);
  return room;
}

NACRE_CLONES void add_or_copy(const float* __restrict from, float* __restrict to, int64_t n, bool add) {
  if (add)
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
  else
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

void run_one(Context& ctx, const Plan& plan, const Arguments& a) {
  const Problem& p = plan.p;
  const auto& matrix = matrices();
  float *const weights = a.scratch, *const bias = weights + plan.weights(), *const slots = bias + plan.wide;
  parallel_ranges(ctx, plan.wide / 16, 1 + grain / (16 * p.taps * p.in), [&](int64_t from, int64_t to) {
    for (int64_t o = from; o < to; ++o) pack(plan, a.weight, o * 16, weights);
  });
  for (int64_t o = 0; o < plan.wide; ++o) bias[o] = a.bias != nullptr && o < p.out ? a.bias[o] : 0.0f;
  const bool whole = plan.wide == p.out;
  const int64_t panels = (plan.wide + panel - 1) / panel, row_step = p.stride * p.in;
  parallel_parts(ctx, plan.chunks * plan.splits, [&](int64_t task, int thread) {
    const int64_t chunk = task / plan.splits, split = task % plan.splits;
    const int64_t item = chunk / plan.per_item, begin = chunk % plan.per_item * plan.chunk_rows;
    const int64_t rows = std::min(plan.chunk_rows, p.length - begin);
    float *const room = slots + thread * plan.slot(), *const local = room + plan.window();
    const float* const x = window(p, a.x + item * p.time * p.in, begin, rows, plan.span(), room);
    float* const y = a.y + (item * p.length + begin) * p.out;
    float* const to = whole ? y : local;
    const int64_t step = whole ? p.out : plan.wide;
    for (int64_t q = panels * split / plan.splits; q < panels * (split + 1) / plan.splits; ++q) {
      const int64_t j = q * panel, width = std::min(panel, plan.wide - j);
      const float* w = weights + j * p.taps * p.in;
      bool first = true;
      plan.slices([&](const Slice& s) {
        const float* const from = x + s.tap * p.dilation * p.in + s.channel;
        const float* const add = first ? (whole && a.add ? to + j : nullptr) : to + j;
        matrix.multiply_all({.a = from, .row = row_step, .taps = s.taps, .tap = p.dilation * p.in}, w, width, s.depth,
                            first && a.bias != nullptr ? bias + j : nullptr, add, to + j, step, rows);
        w += s.taps * s.depth * width;
        first = false;
      });
      if (!whole)
        for (int64_t r = 0; r < rows; ++r)
          add_or_copy(to + r * step + j, y + r * p.out + j, std::min(width, p.out - j), a.add);
    }
  });
}

/// A group's own problem, on tensors that hold it alone.
Problem of_group(const Problem& p) {
  Problem g = p;
  g.groups = 1, g.in = p.in / p.groups, g.out = p.out / p.groups;
  return g;
}

}  // namespace

void take_columns(Context& ctx, const float* from, int64_t rows, int64_t channels, int64_t first, int64_t n,
                  float* to) {
  parallel_ranges(ctx, rows, 1 + grain / n, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      std::memcpy(to + r * n, from + r * channels + first, static_cast<size_t>(n) * sizeof(float));
  });
}

int64_t scratch(const Context& ctx, const Problem& p) {
  if (p.groups == 1) return Plan(p).scratch(ctx);
  const Problem g = of_group(p);
  return rounded(p.batch * p.time * g.in) + rounded(p.batch * p.length * g.out) + rounded(g.out) +
         Plan(g).scratch(ctx);
}

void run(Context& ctx, const Problem& p, const Arguments& a) {
  if (p.groups == 1) return run_one(ctx, Plan(p), a);
  const Problem g = of_group(p);
  const Plan plan(g);
  const int64_t rows = p.batch * p.length * p.samples, channels = p.out / p.samples, n = channels / p.groups;
  float* const x = a.scratch;
  float* const y = x + rounded(p.batch * p.time * g.in);
  float* const bias = y + rounded(p.batch * p.length * g.out);
  float* const rest = bias + rounded(g.out);
  for (int64_t group = 0; group < p.groups; ++group) {
    take_columns(ctx, a.x, p.batch * p.time, p.in, group * g.in, g.in, x);
    if (a.bias != nullptr)
      for (int64_t o = 0; o < g.out; ++o) bias[o] = a.bias[o / n * channels + group * n + o % n];
    run_one(ctx, plan,
            {.x = x,
             .weight = a.weight + group * g.out * g.taps * g.in,
             .bias = a.bias != nullptr ? bias : nullptr,
             .y = y,
             .scratch = rest});
    parallel_ranges(ctx, rows, 1 + grain / n, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) add_or_copy(y + r * n, a.y + r * channels + group * n, n, a.add);
    });
  }
}

}  // namespace nacre::windows
