// Line charts as SVG for the report. Text and colours come from the page's style sheet (report_style.h).
#include "report/chart.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "files/text.h"

namespace nacre::training {
namespace {

// Small enough for 13-pixel text to remain readable when a phone shows the image 340 pixels wide.
constexpr double width = 480, height = 260, left = 50, right = 14, top = 24, bottom = 36;
constexpr size_t max_points = 400;

/// At most max_points points: means over equal numbers of neighbours, which keeps the page small and smooths noise.
std::vector<std::pair<double, double>> thinned(const std::vector<std::pair<double, double>>& all) {
  if (all.size() <= max_points) return all;
  std::vector<std::pair<double, double>> out;
  for (size_t b = 0; b < max_points; ++b) {
    const size_t from = b * all.size() / max_points, to = (b + 1) * all.size() / max_points;
    double x = 0, y = 0;
    for (size_t i = from; i < to; ++i) x += all[i].first, y += all[i].second;
    const auto n = static_cast<double>(to - from);
    out.emplace_back(x / n, y / n);
  }
  return out;
}

/// About `wanted` round numbers in [low, high].
std::vector<double> linear_ticks(double low, double high, int wanted) {
  // The smallest of 1, 2, 5 and 10 times a power of ten that is at least `rough`.
  const double rough = (high - low) / wanted, power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double s : {1.0, 2.0, 5.0})
    if (s * power >= rough) {
      step = s * power;
      break;
    }
  std::vector<double> t;
  // Ticks are multiples of the step. A tick at zero is then exactly 0 and not 1e-17. Adding 0.0 removes a negative
  // zero.
  for (double k = std::ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; ++k) t.push_back(k * step + 0.0);
  return t;
}

/// 1, 2 and 5 times powers of ten in [low, high], or the powers alone.
std::vector<double> log_ticks(double low, double high) {
  std::vector<double> t;
  // Over more than two and a half decades, powers of ten are enough.
  const bool wide = high > 300 * low;
  for (double p = std::pow(10, std::floor(std::log10(low))); p <= high; p *= 10)
    for (const double s : {1.0, 2.0, 5.0})
      if ((s == 1.0 || !wide) && s * p >= low * 0.999 && s * p <= high * 1.001) t.push_back(s * p);
  return t;
}

std::string tick_text(double x) { return x >= 10000 ? figure_of(x / 1000, "%g") + "k" : figure_of(x, "%g"); }
/// A coordinate in the units of the picture, to a tenth.
std::string at(double x) { return figure_of(x, "%.1f"); }

}  // namespace

std::string html_text(std::string_view raw) {
  static constexpr std::string_view replacement = "\xEF\xBF\xBD";
  const bool valid = is_utf8(raw);
  std::string out;
  for (const char c : raw) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else if ((u < 32 && c != '\n') || u == 127 || (u >= 128 && !valid)) {
      // Control characters and bytes that are not UTF-8 are not allowed in HTML.
      out += replacement;
    } else {
      out += c;
    }
  }
  return out;
}

std::string figure_of(double x, const char* format) {
  if (!std::isfinite(x)) return "–";
  char text[64];
  std::snprintf(text, sizeof text, format, x);
  return text;
}

std::string chart_html(const Chart& c) {
  std::vector<Series> shown = c.series;
  double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
  for (Series& s : shown) {
    s.points = thinned(s.points);
    for (auto& [x, y] : s.points) {
      // Has no logarithm, so the line has a gap there.
      if (c.log_y && !(y > 0)) y = std::nan("");
      if (!std::isfinite(y)) continue;
      x_low = std::min(x_low, x), x_high = std::max(x_high, x);
      y_low = std::min(y_low, y), y_high = std::max(y_high, y);
    }
  }
  std::string out = "<figure>\n<figcaption><b>" + html_text(c.title) + "</b> " + html_text(c.note) + "</figcaption>\n";
  if (!(x_low <= x_high)) return out + "<p class=\"none\">Nothing was logged yet.</p>\n</figure>\n";

  // Time begins at 0. One point or equal values still need an axis of some length.
  x_low = std::min(x_low, 0.0);
  if (x_high <= x_low) x_high = x_low + 1;
  if (c.log_y) {
    y_low *= 0.8, y_high *= 1.25;
  } else {
    const double room = std::max({0.06 * (y_high - y_low), 0.02 * std::fabs(y_high), 1e-9});
    if (c.from_zero) y_low = std::min(y_low, room), y_high = std::max(y_high, -room);
    y_low -= room, y_high += room;
  }
  if (std::isfinite(c.y_min)) y_low = c.y_min;
  if (std::isfinite(c.y_max)) y_high = c.y_max;
  // From figures to pixels. y grows upwards in the chart and downwards in SVG.
  const auto px = [&](double x) { return left + (x - x_low) / (x_high - x_low) * (width - left - right); };
  const auto py = [&](double y) {
    const double part = c.log_y ? std::log(y / y_low) / std::log(y_high / y_low) : (y - y_low) / (y_high - y_low);
    return height - bottom - std::clamp(part, 0.0, 1.0) * (height - top - bottom);
  };

  out += "<svg viewBox=\"0 0 " + figure_of(width, "%g") + " " + figure_of(height, "%g") +
         "\" role=\"img\" aria-label=\"" + html_text(c.title) + "\">\n";
  for (const double t : c.log_y ? log_ticks(y_low, y_high) : linear_ticks(y_low, y_high, 5))
    out += "<path class=\"grid\" d=\"M" + at(left) + " " + at(py(t)) + "H" + at(width - right) +
           "\"/><text class=\"y\" x=\"" + at(left - 7) + "\" y=\"" + at(py(t) + 4) + "\">" + tick_text(t) + "</text>\n";
  for (const double t : linear_ticks(x_low, x_high, 5))
    out += "<text class=\"x\" x=\"" + at(px(t)) + "\" y=\"" + at(height - bottom + 17) + "\">" + tick_text(t) +
           "</text>\n";
  out += "<path class=\"axis\" d=\"M" + at(left) + " " + at(height - bottom) + "H" + at(width - right) + "\"/>\n";
  out += "<text class=\"x\" x=\"" + at((left + width - right) / 2) + "\" y=\"" + at(height - 4) + "\">" +
         html_text(c.x_name) + "</text>\n";
  out += "<text class=\"name\" x=\"4\" y=\"13\">" + html_text(c.y_name) + "</text>\n";
  for (const Series& s : shown) {
    std::string path, dots;
    // A missing figure interrupts the line: the next point begins with M (move) and not with L (line).
    bool drawing = false;
    for (const auto& [x, y] : s.points) {
      if (!std::isfinite(y)) {
        drawing = false;
        continue;
      }
      path += (drawing ? "L" : "M") + at(px(x)) + " " + at(py(y));
      drawing = true;
      if (s.dots || s.points.size() == 1)
        dots += "<circle cx=\"" + at(px(x)) + "\" cy=\"" + at(py(y)) + "\" r=\"3.5\"/>";
    }
    // Colours are variables of the style sheet, which has two sets of them, for light and dark pages.
    out += "<g style=\"--c:" + html_text(s.colour) + "\"><path class=\"line\" d=\"" + path + "\"/>" + dots + "</g>\n";
  }
  out += "</svg>\n";
  if (shown.size() > 1) {
    out += "<ul class=\"legend\">";
    for (const Series& s : shown) out += "<li style=\"--c:" + html_text(s.colour) + "\">" + html_text(s.name) + "</li>";
    out += "</ul>\n";
  }
  return out + "</figure>\n";
}

}  // namespace nacre::training
