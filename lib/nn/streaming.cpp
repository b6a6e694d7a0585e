// Steps of streaming plans that keep rows between blocks. A convolution gets the last rows of the blocks before in
// front of its block (with_carried_rows), so it needs no padding and each row of the signal is computed once. What
// comes too early for a sum waits in a ring (delayed). streamed_rows() and streamed_transposed_rows() derive the number
// of carried rows and the lag of the result from the geometry.
#include "nn/streaming.h"

#include <algorithm>

namespace nacre {
namespace {

// Round towards minus infinity and plus infinity, for b > 0.
int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

[[noreturn]] void refuse(const std::string& name, const std::string& what) {
  throw Error(ErrorKind::usage, name + ": cannot be streamed: " + what);
}

int64_t rows_per_frame(const Plan& p, const std::string& name, Flow x) {
  if (x.shape.time % p.block_frames() != 0)
    refuse(name, std::to_string(x.shape.time) + " rows in a block of " + std::to_string(p.block_frames()) + " frames");
  return x.shape.time / p.block_frames();
}

/// Replaces the rows of an item that lie outside of the signal. `first`: of the buffer in the signal.
template <class T>
void fill_outside(Context& c, View<T> buffer, int64_t item, int64_t first, int64_t total, const Conv1dGeometry& g) {
  // `total`: rows of the signal, -1 while its end is unknown. All rows here are numbers in the signal, and `end` is
  // exclusive.
  const int64_t end = first + buffer.shape.time;
  const auto clear = [&](int64_t from, int64_t to) {
    if (from < to) c.zero(rows(buffer, item, from - first, to - from));
  };
  // A row whose reflection is not in the buffer is not needed: see the comments at the calls.
  const auto reflect = [&](int64_t row, int64_t from) {
    if (from >= first && from < end)
      c.copy<T>(rows(buffer, item, from - first, 1), rows(buffer, item, row - first, 1));
    else
      clear(row, row + 1);
  };
  if (total >= 0) clear(std::clamp(total, first, end), end);
  if (g.padding == Padding::zero) return clear(first, std::clamp<int64_t>(0, first, end));
  // A signal that is too short to be reflected is extended with zeros first.
  const int64_t length = total < 0 ? -1 : std::max(total, std::max(g.left, g.right) + 1);
  // An output at t reads as far back from t as ahead or farther, so the row that a row behind the end reflects is one
  // that this output or a later one reads itself.
  if (length >= 0)
    for (int64_t row = std::max(length, first); row < std::min(end, length + g.right); ++row)
      reflect(row, 2 * (length - 1) - row);
  // The first block is long enough to hold the rows that those in front of the signal reflect; Plan::start_frames().
  for (int64_t row = std::max(first, -g.left); row < std::min<int64_t>(end, 0); ++row) reflect(row, -row);
  clear(first, std::clamp(-g.left, first, end));
}

template <class T>
Flow plan_carried(Plan& p, const std::string& name, Flow x, int64_t carried, const Conv1dGeometry& g) {
  // The result has carried + time rows per item. The state is the last `carried` of them, after the replacement of rows
  // outside of the signal: a later block reads those rows as this one did.
  const int64_t lag = p.lag(x), per_frame = rows_per_frame(p, name, x), time = x.shape.time;
  const Step s = p.step(name + ".rows");
  Shape shape = x.shape, kept = x.shape;
  shape.time += carried, kept.time = carried;
  const auto in = s.reads<T>(x);
  const auto out = s.makes<T>(shape);
  const View<T> state = s.carries<T>(kept);
  if (g.padding == Padding::reflect && g.left > 0) p.require_start(ceil_div(lag + g.left + 1, per_frame));
  s.costs({.forward = {.bytes = 2.0 * sizeof(T) * static_cast<double>(shape.elements() + kept.elements())}});
  s.forward([=, block = &p.block()](Context& c) {
    const int64_t first = first_row(*block, per_frame, lag) - carried;
    for (int64_t b = 0; b < shape.batch; ++b) {
      // The copies are in stream order: the old state is read before the new one overwrites it.
      const View<T> of_item = rows(state, b, 0, carried);
      c.copy<T>(of_item, rows(out.value, b, 0, carried));
      c.copy<T>(rows(in.value, b, 0, time), rows(out.value, b, carried, time));
      const int64_t frames = block->total_of(b), total = frames < 0 ? -1 : frames * per_frame;
      // Between the ends of the signal there is nothing to replace.
      if (first < 0 || total >= 0) fill_outside<T>(c, out.value, b, first, total, g);
      c.copy<T>(rows(out.value, b, time, carried), of_item);
    }
  });
  return out.flow;
}

template <class T>
Flow plan_delayed(Plan& p, const std::string& name, Flow x, int64_t lag) {
  // y[t] = x[t - rows_late] in rows of the block's memory. The ring has one place per row of delay, and its size does
  // not depend on the length of a block.
  const int64_t rows_late = lag - p.lag(x), per_frame = rows_per_frame(p, name, x), time = x.shape.time;
  const Step s = p.step(name + ".delay");
  const auto in = s.reads<T>(x);
  const auto out = s.makes<T>(x.shape);
  Shape kept = x.shape;
  kept.time = rows_late;
  const View<T> ring = s.carries<T>(kept);
  s.costs({.forward = {.bytes = 2.0 * sizeof(T) * static_cast<double>(x.shape.elements() + kept.elements())}});
  s.forward([=, block = &p.block()](Context& c) {
    // Row r of all that have arrived is at r mod rows_late.
    const int64_t arrived = block->first * per_frame, waiting = std::min(rows_late, time);
    // Calls f(place in the ring, row of the block, number of rows) for rows first ... first + waiting - 1 of the block.
    const auto in_ring = [&](int64_t first, auto f) {
      for (int64_t done = 0; done < waiting;) {
        const int64_t place = (arrived + first + done) % rows_late, n = std::min(waiting - done, rows_late - place);
        f(place, first + done, n);
        done += n;
      }
    };
    for (int64_t b = 0; b < kept.batch; ++b) {
      // The oldest rows that wait are at the places where the newest ones go, because both numbers differ by rows_late.
      // So they are read first.
      in_ring(0, [&](int64_t place, int64_t row, int64_t n) {
        c.copy<T>(rows(ring, b, place, n), rows(out.value, b, row, n));
      });
      // A block longer than the delay also passes rows on within the run.
      const int64_t direct = time - waiting;
      if (direct > 0) c.copy<T>(rows(in.value, b, 0, direct), rows(out.value, b, waiting, direct));
      in_ring(direct, [&](int64_t place, int64_t row, int64_t n) {
        c.copy<T>(rows(in.value, b, row, n), rows(ring, b, place, n));
      });
    }
  });
  return out.flow;
}

}  // namespace

StreamedRows streamed_rows(const std::string& name, int64_t taps, const Conv1dGeometry& g, int64_t lag_of_input) {
  const int64_t length = g.dilation * (taps - 1);  // rows from the first to the last that an output reads
  if (length + 1 < g.stride) refuse(name, "its stride is longer than its taps reach");
  if (g.padding == Padding::reflect && g.left < g.right)
    refuse(name, "it reads farther ahead than back, and reflects the end of the signal");
  // Before a block, the input has rows up to -lag_of_input - 1, and the output those that they complete, counted from
  // the first frame of the block on.
  // Output o reads inputs o stride - left to o stride - left + length, and it is complete once the last of them has
  // arrived.
  const int64_t outputs = floor_div(-lag_of_input - 1 + g.left - length, g.stride) + 1;
  if (outputs > 0) refuse(name, "its padding at the start is longer than its taps reach");
  // From the first input that output `outputs` reads to the last one before the block. That is length + 1 + r - stride
  // rows with 0 <= r < stride, so a block of n stride rows gives n outputs.
  return {.carried = -lag_of_input - (outputs * g.stride - g.left), .lag = -outputs};
}

StreamedRows streamed_transposed_rows(const std::string& name, int64_t taps, const Conv1dGeometry& g,
                                      int64_t lag_of_input) {
  if (g.dilation != 1) refuse(name, "a transposed convolution with dilation");
  if (taps < g.stride) refuse(name, "its stride is longer than its taps reach");
  // Output u reads inputs ceil((u + left - taps + 1) / stride) to floor((u + left) / stride).
  return {.carried = (taps - 1) / g.stride, .lag = lag_of_input * g.stride + g.left};
}

Flow with_carried_rows(Plan& p, const std::string& name, Flow x, int64_t carried, const Conv1dGeometry& g) {
  if (carried == 0) return x;
  return visit(x.storage, [&]<class T>(Type<T>) { return plan_carried<T>(p, name, x, carried, g); });
}

Flow delayed(Plan& p, const std::string& name, Flow x, int64_t lag) {
  const int64_t now = p.lag(x);
  if (now > lag)
    refuse(name, "what it adds is " + std::to_string(now) + " rows late, its own result " + std::to_string(lag));
  if (now == lag) return x;
  const Flow y = visit(x.storage, [&]<class T>(Type<T>) { return plan_delayed<T>(p, name, x, lag); });
  p.set_lag(y, lag);
  return y;
}

}  // namespace nacre
