// Segments in the words of EnCodec's programs.
#include <algorithm>
#include <cmath>

#include "formats/encodec_exchange.h"

namespace nacre {
namespace {

int64_t rounded_down(double x) { return static_cast<int64_t>(std::clamp(x, -0x1p52, 0x1p52)); }

}  // namespace

int64_t segment_of(double seconds, int64_t sample_rate) {
  return rounded_down(seconds * static_cast<double>(sample_rate));
}

int64_t stride_of(double overlap, int64_t segment) {
  return std::max<int64_t>(1, rounded_down((1 - overlap) * static_cast<double>(segment)));
}

double seconds_of(int64_t segment, int64_t sample_rate) {
  double seconds = static_cast<double>(segment) / static_cast<double>(sample_rate);
  while (segment_of(seconds, sample_rate) < segment) seconds = std::nextafter(seconds, HUGE_VAL);
  return seconds;
}

/// The decimal with the fewest digits. 1 - stride / segment itself can be rounded to a number that gives a sample less.
double overlap_of(int64_t stride, int64_t segment) {
  const double exact = 1 - static_cast<double>(stride) / static_cast<double>(segment);
  // Digits end where a unit is far below 1 / segment, the width of the interval of overlaps with this stride.
  for (double unit = 1; unit < 1e15; unit *= 10)
    for (const double digits : {std::round(exact * unit), std::floor(exact * unit) - 1})
      if (const double overlap = digits / unit; overlap >= 0 && overlap <= 0.5 && stride_of(overlap, segment) == stride)
        return overlap;
  return exact;
}

}  // namespace nacre
