#pragma once
// Line charts as inline SVG, and text made safe for HTML. Colours are CSS; the page decides about light and dark.
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nacre::training {

/// Markup escaped; what is not UTF-8, and control characters, replaced by U+FFFD.
std::string html_text(std::string_view);
/// snprintf of one number; "–" if it is not finite.
std::string figure_of(double x, const char* format);

struct Series {
  std::string name, colour;
  std::vector<std::pair<double, double>> points = {};  ///< x rising; a y that is not finite makes a gap
  bool dots = false;
};

struct Chart {
  std::string title = {}, note = {};  ///< above the picture; the note says what to see
  std::string x_name = "step", y_name = {};
  bool from_zero = false;
  bool log_y = false;  ///< values that are not positive are left out
  double y_min = std::numeric_limits<double>::quiet_NaN(), y_max = y_min;  ///< NaN: from the data
  std::vector<Series> series = {};
};

/// A <figure>: title, note, SVG, and a legend if there is more than one series. Long series are averaged to about one
/// point per pixel.
std::string chart_html(const Chart&);

}  // namespace nacre::training
