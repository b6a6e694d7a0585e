#include "conv/conv1d_windows.h"

#include <cstring>

#include "conv/conv1d_groups.h"
#include "conv/conv1d_karatsuba_tiles.h"
#include "runtime/host.h"

namespace nacre::windows {
namespace {

using karatsuba::matrices;
using karatsuba::panel;

constexpr int64_t max_rows = 96;      // of y per chunk; a multiple of the tiles' rows
constexpr int64_t max_depth = 512;    // of a slice: 128 KiB of a panel, which stay in the second-level cache
constexpr int64_t grain = 1 << 14;    // floats that make a thread worth its start
constexpr int64_t few_rows = 16;      // of all items
constexpr int64_t few_width = 256;    // outputs that are computed together, of few rows with an adjoint weight
constexpr int64_t wanted_tasks = 16;  // for any number of threads, so that bits do not depend on it
// Limits of a short signal: rows of y, floats of x, and the least floats of weight. A lighter weight stays in the
// second-level cache and is laid out once, as for long signals.
constexpr int64_t short_rows = 512, short_floats = 1 << 19, heavy_weight = 1 << 16;

int64_t rounded(int64_t n) { return (n + 15) / 16 * 16; }

/// A part of the sum over taps and channels. A slice of several taps has all channels of each.
struct Slice {
  int64_t tap, taps, channel, depth;
};

// The weight is copied into panels of up to 64 outputs, [panel][tap][in][outputs of the panel]: its rows in place are
// kilobytes apart and would map to few sets of the caches. There are three schedules:
//  - long signals: the whole weight is copied first; then each task multiplies one chunk of rows by every panel.
//  - short signals with a heavy weight: each task copies one panel, slice by slice, and multiplies all rows by it. The
//    weight is read from memory once, which is most of the time that such a layer takes, and its panels stay in cache.
//  - few rows: a copy would take longer than the products, so the weight is read in place, once for up to eight rows.
// All three add an output in the same order if rows of y are whole vectors. Then the bits of a row depend neither on
// the schedule nor on other rows.
struct Plan {
  Problem p;  // of one group
  int64_t padded_out, width, panels, chunk_rows, per_item, chunks, splits;
  bool joined_taps;    // dilation 1: the window is contiguous and counts as one tap
  bool few;            // rows
  bool short_signal;   // short signal and heavy weight
  int64_t padded = 0;  // rows of an item of x with its padding, for short signals

  explicit Plan(const Problem& problem) : p(problem), padded_out(rounded(problem.out)), width(panel) {
    if (p.taps == 1 && p.stride == 1 && p.left == 0 && p.length == p.time)  // no padding: all items are joined into one
      p.time *= p.batch, p.length *= p.batch, p.batch = 1;
    joined_taps = p.dilation == 1;
    padded = (p.length - 1) * p.stride + span();
    few = is_few(p.batch * p.length);
    short_signal = !few && p.batch * p.length <= short_rows && p.batch * padded * p.in <= short_floats &&
                   depth() * padded_out >= heavy_weight;
    // Narrower panels until there are enough tasks: a short signal has no other way to split.
    while (short_signal && width > 16 && (padded_out + width - 1) / width < wanted_tasks / 2) width /= 2;
    if (width < panel && p.batch * p.length > short_rows / 4)
      short_signal = false, width = panel;  // narrow panels multiply slower
    panels = (padded_out + width - 1) / width;
    per_item = (p.length + max_rows - 1) / max_rows;
    // Chunks of equal size, in whole tiles of six rows.
    chunk_rows = ((p.length + per_item - 1) / per_item + 5) / 6 * 6;
    per_item = (p.length + chunk_rows - 1) / chunk_rows;
    chunks = p.batch * per_item;
    splits = std::clamp<int64_t>((wanted_tasks + chunks - 1) / chunks, 1, panels);
  }
  // Samples that one row of y reads, from the first to the last; terms of its sum; floats of the window of a chunk.
  int64_t span() const { return (p.taps - 1) * p.dilation + 1; }
  int64_t depth() const { return p.taps * p.in; }
  int64_t window() const { return rounded(((chunk_rows - 1) * p.stride + span()) * p.in); }
  // Whether any row of y reads padding before or behind x.
  bool edges() const { return p.left != 0 || padded > p.time; }
  int64_t padded_x() const { return edges() ? p.batch * padded * p.in : 0; }
  /// Floats shared by all threads: the bias in whole vectors, and either padded x or the weight in panels.
  int64_t shared() const { return padded_out + rounded(few || short_signal ? padded_x() : depth() * padded_out); }
  /// Floats per thread: a slice of the weight, or a padded window; and rows of y that are not whole vectors.
  int64_t slot() const {
    if (few) return 0;
    const int64_t rows = short_signal ? p.batch * p.length : chunk_rows;
    return (short_signal ? max_depth * width : window()) + (padded_out != p.out ? rows * padded_out : 0);
  }
  int64_t scratch(const Context& ctx) const { return shared() + ctx.threads() * slot(); }

  template <class F>
  void slices(F&& f) const {
    // A slice is at most max_depth deep: part of a contiguous window; part of a tap; or several whole taps.
    if (joined_taps) {
      for (int64_t at = 0; at < depth(); at += max_depth) f(Slice{0, 1, at, std::min(max_depth, depth() - at)});
    } else if (p.in >= max_depth) {
      for (int64_t k = 0; k < p.taps; ++k)
        for (int64_t at = 0; at < p.in; at += max_depth) f(Slice{k, 1, at, std::min(max_depth, p.in - at)});
    } else {
      const int64_t together = max_depth / p.in;
      for (int64_t k = 0; k < p.taps; k += together) f(Slice{k, std::min(together, p.taps - k), 0, p.in});
    }
  }
};

NACRE_CLONES void copy_outputs(const float* __restrict from, int64_t n, float* __restrict to, int64_t width) {
  for (int64_t o = 0; o < n; ++o) to[o] = from[o];
  for (int64_t o = n; o < width; ++o) to[o] = 0;
}

/// Copies a part of the panel that begins at output `begin`: to[d][o] for d in [at, at + n), d = tap * in + channel.
void lay_out(const Plan& plan, const float* weight, int64_t begin, int64_t width, int64_t at, int64_t n, float* to) {
  const Problem& p = plan.p;
  const int64_t outs = std::min(width, p.out - begin), depth = plan.depth();
  if (p.adjoint) {
    // Row d of the panel is one tap of one input: contiguous in the adjoint's weight, with the taps in reverse order.
    int64_t k = at / p.in, i = at % p.in;
    for (int64_t d = 0; d < n; ++d, to += width) {
      copy_outputs(weight + (i * p.taps + p.taps - 1 - k) * p.out + begin, outs, to, width);
      if (++i == p.in) i = 0, ++k;
    }
    return;
  }
  const float* const from = weight + begin * depth + at;
  const int64_t whole_blocks = n / 16 * 16;
  for (int64_t o = 0; o < width; o += 16) {
    // Outputs innermost: 16 x 16 squares are transposed; what is left goes one by one, with zeros for outputs that do
    // not exist.
    const int64_t existing = std::min<int64_t>(16, outs - o);
    int64_t d = 0;
    if (existing == 16)
      for (; d < whole_blocks; d += 16) matrices().transpose(from + o * depth + d, depth, to + d * width + o, width);
    for (; d < n; ++d)
      for (int64_t j = 0; j < 16; ++j) to[d * width + o + j] = j < existing ? from[(o + j) * depth + d] : 0.0f;
  }
}

/// The samples of x that rows [begin, begin + rows) of y read: in place, or copied to `buffer` with their padding.
const float* window(const Problem& p, const float* item, int64_t begin, int64_t rows, int64_t span, float* buffer) {
  const int64_t first = begin * p.stride - p.left, samples = (rows - 1) * p.stride + span;
  if (first >= 0 && first + samples <= p.time) return item + first * p.in;
  // Padding before the signal, the samples, padding after it.
  const int64_t from = std::clamp<int64_t>(first, 0, p.time), to = std::clamp<int64_t>(first + samples, from, p.time);
  float* at = buffer;
  const auto pad = [&](int64_t low, int64_t high) {
    for (int64_t s = low; s < high; ++s) {
      const int64_t source = s < 0 ? -s : 2 * (p.time - 1) - s;
      at = p.reflect ? std::copy_n(item + source * p.in, p.in, at) : std::fill_n(at, p.in, 0.0f);
    }
  };
  pad(first, std::min(from, first + samples));
  at = std::copy(item + from * p.in, item + to * p.in, at);
  pad(std::max(first, to), first + samples);
  return buffer;
}

NACRE_CLONES void add_or_copy(const float* __restrict from, float* __restrict to, int64_t n, bool add) {
  if (add)
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
  else
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

/// Stores rows of y, one panel wide: directly to y, or through `local`, whose rows are whole vectors.
struct Rows {
  const Plan& plan;
  const Arguments& a;
  const float* bias;
  float* local;
  bool stores_directly() const { return plan.padded_out == plan.p.out; }
  /// Adds the products of a slice with `rows` windows, to the rows from `at` of y (or `in_local` of local) on.
  void multiply(const float* x, const Slice& s, const float* w, int64_t j, int64_t width, int64_t at, int64_t in_local,
                int64_t rows, bool first) const {
    const Problem& p = plan.p;
    // The first slice adds the bias (and the old y with `add`, if y is written directly); each later one adds its sum
    // to what is there. So the order of an output's sum is fixed: first slice, bias, old y, then the other slices.
    float* const to = stores_directly() ? a.y + at * p.out + j : local + in_local * plan.padded_out + j;
    matrices().multiply_all({.a = x + s.tap * p.dilation * p.in + s.channel,
                             .row = p.stride * p.in,
                             .taps = s.taps,
                             .tap = p.dilation * p.in},
                            w, width, s.depth, first ? bias + j : nullptr,
                            first && !(stores_directly() && a.add) ? nullptr : to, to,
                            stores_directly() ? p.out : plan.padded_out, rows);
  }
  // After the last slice: from local to y.
  void finish(int64_t j, int64_t width, int64_t at, int64_t in_local, int64_t rows) const {
    if (stores_directly()) return;
    for (int64_t r = 0; r < rows; ++r)
      add_or_copy(local + (in_local + r) * plan.padded_out + j, a.y + (at + r) * plan.p.out + j,
                  std::min(width, plan.p.out - j), a.add);
  }
};

/// Lays out the whole weight, [panel][depth][outputs of the panel], and then multiplies each chunk of rows by the
/// panels of its task. A chunk that reads padding is copied to the thread's slot; the others are read in place.
void run_long(Context& ctx, const Plan& plan, const Arguments& a, const float* bias, float* weights, float* slots) {
  const Problem& p = plan.p;
  const int64_t slices_per_panel = (plan.depth() + max_depth - 1) / max_depth;
  parallel_ranges(ctx, plan.panels * slices_per_panel, 1 + grain / (max_depth * panel), [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; ++task) {
      const int64_t j = task / slices_per_panel * panel, width = std::min(panel, plan.padded_out - j),
                    at = task % slices_per_panel * max_depth;
      lay_out(plan, a.weight, j, width, at, std::min(max_depth, plan.depth() - at),
              weights + j * plan.depth() + at * width);
    }
  });
  parallel_parts(ctx, plan.chunks * plan.splits, [&](int64_t task, int thread) {
    // A chunk's window of x is used for all panels of the task. Few chunks are split over panels, so that there are
    // tasks enough.
    const int64_t chunk = task / plan.splits, split = task % plan.splits;
    const int64_t item = chunk / plan.per_item, begin = chunk % plan.per_item * plan.chunk_rows;
    const int64_t rows = std::min(plan.chunk_rows, p.length - begin), at = item * p.length + begin;
    float* const buffer = slots + thread * plan.slot();
    const float* const x = window(p, a.x + item * p.time * p.in, begin, rows, plan.span(), buffer);
    const Rows to{plan, a, bias, buffer + plan.window()};
    for (int64_t q = plan.panels * split / plan.splits; q < plan.panels * (split + 1) / plan.splits; ++q) {
      const int64_t j = q * panel, width = std::min(panel, plan.padded_out - j);
      const float* w = weights + j * plan.depth();
      plan.slices([&](const Slice& s) {
        to.multiply(x, s, w, j, width, at, 0, rows, s.tap == 0 && s.channel == 0);
        w += s.taps * s.depth * width;
      });
      to.finish(j, width, at, 0, rows);
    }
  });
}

/// x with its padding, all items at equal distances: in place, or copied to `xs`.
struct PaddedItems {
  const float* x;
  int64_t item;
  PaddedItems(Context& ctx, const Plan& plan, const float* from, float* xs) : x(from), item(plan.p.time * plan.p.in) {
    if (!plan.edges()) return;
    const Problem& p = plan.p;
    parallel_ranges(ctx, p.batch, 1 + grain / (plan.padded * p.in), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        float* const buffer = xs + b * plan.padded * p.in;
        const float* const at = window(p, from + b * p.time * p.in, 0, p.length, plan.span(), buffer);
        if (at != buffer) std::copy(at, at + plan.padded * p.in, buffer);
      }
    });
    x = xs, item = plan.padded * p.in;
  }
};

/// All rows, item by item, by one panel per task. x is padded once for all tasks. The task owns its columns of y.
void run_short(Context& ctx, const Plan& plan, const Arguments& a, const float* bias, float* xs, float* slots) {
  const Problem& p = plan.p;
  const PaddedItems items(ctx, plan, a.x, xs);
  parallel_parts(ctx, plan.panels, [&](int64_t q, int thread) {
    // One slice of the panel at a time is laid out in the thread's slot and used for all rows.
    float* const w = slots + thread * plan.slot();
    const Rows to{plan, a, bias, w + max_depth * plan.width};
    const int64_t j = q * plan.width, width = std::min(plan.width, plan.padded_out - j);
    plan.slices([&](const Slice& s) {
      lay_out(plan, a.weight, j, width, s.tap * p.in + s.channel, s.taps * s.depth, w);
      for (int64_t b = 0; b < p.batch; ++b)
        to.multiply(items.x + b * items.item, s, w, j, width, b * p.length, b * p.length, p.length,
                    s.tap == 0 && s.channel == 0);
    });
    to.finish(j, width, 0, 0, p.batch * p.length);
  });
}

/// y = sum + bias (+ y), or y += sum where the bias is null.
NACRE_CLONES void finish_sums(const float* __restrict sum, const float* __restrict bias, float* __restrict y, int64_t n,
                              bool add) {
  if (bias == nullptr)
    for (int64_t i = 0; i < n; ++i) y[i] = sum[i] + y[i];
  else if (add)
    for (int64_t i = 0; i < n; ++i) y[i] = sum[i] + bias[i] + y[i];
  else
    for (int64_t i = 0; i < n; ++i) y[i] = sum[i] + bias[i];
}

/// Outputs [j, j + n) of all rows, by the weight in place. A slice's sums are complete before they are added to y, as
/// in Rows::multiply. In the adjoint's weight the channels of one tap are at equal distances, but the next tap begins
/// elsewhere, so a joined window is cut where a tap ends.
void few_outputs(const Plan& plan, const Arguments& a, const float* bias, const PaddedItems& items, int64_t j,
                 int64_t n) {
  const Problem& p = plan.p;
  const auto& matrix = matrices();
  float sums[few_rows * few_width];
  const auto add = [&](const float* x, int64_t tap, int64_t channel, int64_t depth) {
    for (int64_t b = 0; b < p.batch; ++b) {
      float* const to = sums + b * p.length * n;
      const float* const from = x + b * items.item;
      if (p.adjoint)
        matrix.add_by_inputs(from, p.stride * p.in, p.length,
                             a.weight + (channel * p.taps + p.taps - 1 - tap) * p.out + j, p.taps * p.out, n, depth, to,
                             n);
      else
        matrix.add_by_outputs(from, p.stride * p.in, p.length, a.weight + j * plan.depth() + tap * p.in + channel,
                              plan.depth(), n, depth, to, n);
    }
  };
  plan.slices([&](const Slice& s) {
    std::fill_n(sums, p.batch * p.length * n, 0.0f);
    if (plan.joined_taps && !p.adjoint) {
      add(items.x + s.channel, 0, s.channel, s.depth);
    } else if (plan.joined_taps) {
      for (int64_t at = s.channel, end = at + s.depth, depth; at < end; at += depth) {
        depth = std::min(p.in - at % p.in, end - at);
        add(items.x + at, at / p.in, at % p.in, depth);
      }
    } else {
      for (int64_t k = s.tap; k < s.tap + s.taps; ++k)
        add(items.x + k * p.dilation * p.in + s.channel, k, s.channel, s.depth);
    }
    const bool first = s.tap == 0 && s.channel == 0;
    for (int64_t r = 0; r < p.batch * p.length; ++r)
      finish_sums(sums + r * n, first ? bias + j : nullptr, a.y + r * p.out + j, n, a.add);
  });
}

/// Tasks are ranges of outputs. Those of the adjoint are up to 256 wide, because its weight has outputs innermost and
/// is read row by row; else a weight per output is read along its depth, 16 outputs at a time.
void run_few(Context& ctx, const Plan& plan, const Arguments& a, const float* bias, float* xs) {
  const Problem& p = plan.p;
  const PaddedItems items(ctx, plan, a.x, xs);
  const int64_t width = p.adjoint ? few_width : 16;
  parallel_ranges(ctx, plan.padded_out / 16, 1 + grain / (16 * plan.depth()), [&](int64_t from, int64_t to) {
    for (int64_t j = from * 16, end = std::min(to * 16, p.out); j < end; j += width)
      few_outputs(plan, a, bias, items, j, std::min(width, end - j));
  });
}

/// One group. The bias is laid out once for all samples of a row, in whole vectors; without a bias it is zeros, so that
/// all schedules add one.
void run_one(Context& ctx, const Plan& plan, const Arguments& a) {
  float *const bias = a.scratch, *const shared = bias + plan.padded_out, *const slots = a.scratch + plan.shared();
  std::fill_n(bias, plan.padded_out, 0.0f);
  if (a.bias != nullptr)
    for (int64_t o = 0, channels = plan.p.out / plan.p.samples; o < plan.p.out; o += channels)
      std::copy_n(a.bias, channels, bias + o);
  if (plan.few) return run_few(ctx, plan, a, bias, shared);
  (plan.short_signal ? run_short : run_long)(ctx, plan, a, bias, shared, slots);
}

/// The problem of one group, on tensors that hold only that group.
Problem of_group(const Problem& p) {
  Problem g = p;
  g.groups = 1, g.in = p.in / p.groups, g.out = p.out / p.groups;
  g.samples = 1;  // run() lays the bias out for all samples
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

bool is_few(int64_t rows) { return rows <= few_rows; }
bool by_slices(const Problem& p) { return Plan(of_group(p)).short_signal; }

int64_t scratch(const Context& ctx, const Problem& p) {
  if (p.groups == 1) return Plan(p).scratch(ctx);
  if (groups::supports(p)) return groups::scratch(ctx, p);
  const Problem g = of_group(p);
  return rounded(p.batch * p.time * g.in) + rounded(p.batch * p.length * g.out) + rounded(g.out) + Plan(g).scratch(ctx);
}

void run(Context& ctx, const Problem& p, const Arguments& a) {
  if (p.groups == 1) return run_one(ctx, Plan(p), a);
  if (groups::supports(p)) return groups::run(ctx, p, a);
  const Problem g = of_group(p);
  const Plan plan(g);
  const int64_t rows = p.batch * p.length * p.samples, channels = p.out / p.samples, n = channels / p.groups;
  // Groups run one after the other on copies that hold only that group; y is added or copied back in its columns.
  float* const x = a.scratch;
  float* const y = x + rounded(p.batch * p.time * g.in);
  float* const bias = y + rounded(p.batch * p.length * g.out);
  float* const rest = bias + rounded(g.out);
  for (int64_t group = 0; group < p.groups; ++group) {
    take_columns(ctx, a.x, p.batch * p.time, p.in, group * g.in, g.in, x);
    if (a.bias != nullptr)
      for (int64_t o = 0; o < g.out; ++o) bias[o] = a.bias[group * n + o % n];
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
