#include "conv/conv1d_column_sums.h"

#include "runtime/host.h"

namespace nacre::conv {
namespace {

int64_t rounded(int64_t floats) { return (floats + 15) / 16 * 16; }

// Per part, rows are added four at a time into one accumulator row of scratch; parts are added in order. Narrow rows
// are joined, so that they fill vectors: rows_at_once rows of fewer than 64 channels are one row of `width` columns,
// whose rows_at_once sums per channel are added at the end, and `rest` rows fill no such row and are added last.
struct ColumnSums {
  int64_t channels = 0, rows_at_once = 1, width = 0, groups_of_rows = 0, rest = 0, parts = 1;
  explicit ColumnSums(Shape s) : channels(s.channels) {
    rows_at_once = channels > 0 && channels < 64 ? 64 / channels : 1;
    width = rows_at_once * channels;
    groups_of_rows = s.rows() / rows_at_once;
    rest = s.rows() % rows_at_once;
    parts = std::clamp<int64_t>(groups_of_rows / 64, 1, 64);
  }
  int64_t scratch() const { return parts * rounded(width); }
};

// to[i] = the sum of rows of n floats. Float adds four rows pairwise, (0 + 1) + (2 + 3), and then to the accumulators,
// so the accumulators are loaded and stored once for four rows.
NACRE_CLONES void sum_rows(const float* __restrict from, int64_t rows, int64_t n, float* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] = 0;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, from += 4 * n)
    for (int64_t i = 0; i < n; ++i) to[i] += (from[i] + from[i + n]) + (from[i + 2 * n] + from[i + 3 * n]);
  for (; r < rows; ++r, from += n)
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}
void sum_rows(const bf16* from, int64_t rows, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; ++i) to[i] += to_float(from[r * n + i]);
}

}  // namespace

int64_t column_sums_scratch(Shape x) { return ColumnSums(x).scratch(); }

template <class T>
void add_column_sums(Context& ctx, View<const T> x, View<float> sums, float* scratch) {
  const ColumnSums plan(x.shape);
  const int64_t pitch = rounded(plan.width);
  parallel_parts(ctx, plan.parts, [&](int64_t p) {
    const int64_t begin = plan.groups_of_rows * p / plan.parts, end = plan.groups_of_rows * (p + 1) / plan.parts;
    sum_rows(x.data + begin * plan.width, end - begin, plan.width, scratch + p * pitch);
  });
  // All parts are complete. One thread adds them in order, then the rows that were left over.
  for (int64_t p = 0; p < plan.parts; ++p)
    for (int64_t k = 0; k < plan.rows_at_once; ++k)
      for (int64_t c = 0; c < plan.channels; ++c) sums.data[c] += scratch[p * pitch + k * plan.channels + c];
  for (int64_t i = plan.groups_of_rows * plan.width; i < x.elements(); ++i)
    sums.data[i % plan.channels] += to_float(x.data[i]);
}
template void add_column_sums<float>(Context&, View<const float>, View<float>, float*);
template void add_column_sums<bf16>(Context&, View<const bf16>, View<float>, float*);

}  // namespace nacre::conv
