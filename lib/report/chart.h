#pragma once
// Line charts as inline SVG, and escaping of text for HTML. CSS sets the colours, and the page decides between light
// and dark.
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nacre::training {

/// Escapes markup. Bytes that are not UTF-8 and control characters become U+FFFD.
std::string html_text(std::string_view);
/// Formats one number with snprintf; "–" if it is not finite.
std::string figure_of(double x, const char* format);

struct Series {
  std::string name, colour;
  std::vector<std::pair<double, double>> points = {};  ///< x increasing; a y that is not finite makes a gap
  bool dots = false;
};

struct Chart {
  std::string title = {}, note = {};  ///< above the chart; the note explains it
  std::string x_name = "step", y_name = {};
  bool from_zero = false;
  bool log_y = false;                                                      ///< values that are not positive are omitted
  double y_min = std::numeric_limits<double>::quiet_NaN(), y_max = y_min;  ///< NaN: from the data
  std::vector<Series> series = {};
};

/// A <figure> with title, note, SVG, and a legend if there is more than one series. Long series are averaged to about
/// one point per pixel.
std::string chart_html(const Chart&);

}  // namespace nacre::training
