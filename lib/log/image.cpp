// Spectrograms as PNG for the logs and the report.
#include "nacre/log/image.h"

#include <zlib.h>

#include <algorithm>
#include <cmath>

#include "nacre/context.h"
#include "nacre/ops/stft.h"

namespace nacre::training {
namespace {

/// Big-endian, as all numbers in PNG.
void append_number(std::string& out, uint32_t x) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<char>(x >> shift & 255));
}
void append_chunk(std::string& out, const char* name, const std::string& data) {
  // The length counts the data alone; the CRC covers the name as well (PNG, section 5.3).
  append_number(out, static_cast<uint32_t>(data.size()));
  const std::string body = name + data;
  out += body;
  append_number(out, static_cast<uint32_t>(
                         crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()))));
}

/// Converts a colour in Oklab (lightness, chroma, hue) to linear RGB.
std::array<double, 3> linear_rgb(double lightness, double chroma, double hue) {
  const double a = chroma * std::cos(hue), b = chroma * std::sin(hue);
  const auto cube = [](double x) { return x * x * x; };
  // The matrices of Oklab's definition (Bjoern Ottosson, 2020).
  const double l = cube(lightness + 0.3963377774 * a + 0.2158037573 * b);
  const double m = cube(lightness - 0.1055613458 * a - 0.0638541728 * b);
  const double s = cube(lightness - 0.0894841775 * a - 1.2914855480 * b);
  return {4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
          -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
          -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s};
}

/// The colour scale: lightness grows evenly with t, so that equal steps of level look equal and a grey print keeps
/// their order. The hue goes from blue over red to yellow.
std::array<uint8_t, 3> make_colour(double t) {
  const double lightness = 0.02 + 0.95 * t, hue = (285 + 180 * t) * std::numbers::pi / 180;
  // The largest chroma that RGB can represent at this lightness, limited by a smooth arch over t.
  double low = 0, high = 0.19 * std::sin(std::numbers::pi * (0.05 + 0.87 * t));
  // Bisection: what RGB can represent is an interval from grey on. 20 halvings are finer than 8 bits.
  for (int i = 0; i < 20; ++i) {
    const double middle = (low + high) / 2;
    const auto rgb = linear_rgb(lightness, middle, hue);
    const bool shown = *std::min_element(rgb.begin(), rgb.end()) >= 0 && *std::max_element(rgb.begin(), rgb.end()) <= 1;
    (shown ? low : high) = middle;
  }
  std::array<uint8_t, 3> out{};
  const auto rgb = linear_rgb(lightness, low, hue);
  for (size_t i = 0; i < 3; ++i) {
    const double x = std::clamp(rgb[i], 0.0, 1.0);
    // The transfer function of sRGB.
    const double encoded = x <= 0.0031308 ? 12.92 * x : 1.055 * std::pow(x, 1 / 2.4) - 0.055;
    out[i] = static_cast<uint8_t>(std::lround(255 * encoded));
  }
  return out;
}

}  // namespace

std::string png_bytes(const Image& image) {
  const auto width = static_cast<size_t>(image.width), height = static_cast<size_t>(image.height);
  if (image.width < 1 || image.height < 1 || image.width > 32768 || image.height > 32768 ||
      image.rgb.size() != 3 * width * height)
    throw Error(ErrorKind::usage, "png: " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                                      " pixels with " + std::to_string(image.rgb.size()) + " bytes");
  // Each row begins with its filter type. Type 0 means no filter.
  std::string rows;
  rows.reserve((3 * width + 1) * height);
  for (size_t y = 0; y < height; ++y) {
    rows.push_back(0);
    rows.append(reinterpret_cast<const char*>(image.rgb.data() + 3 * width * y), 3 * width);
  }
  uLongf size = compressBound(static_cast<uLong>(rows.size()));
  std::string packed(size, '\0');
  if (compress2(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(rows.data()),
                static_cast<uLong>(rows.size()), 6) != Z_OK)
    throw Error(ErrorKind::memory, "png: zlib failed");
  packed.resize(size);

  std::string header, out = "\x89PNG\r\n\x1a\n";
  append_number(header, static_cast<uint32_t>(width));
  append_number(header, static_cast<uint32_t>(height));
  header += std::string("\x08\x02\0\0\0", 5);  // 8 bits, RGB, zlib, adaptive filtering, not interlaced
  append_chunk(out, "IHDR", header);
  append_chunk(out, "IDAT", packed);
  append_chunk(out, "IEND", "");
  return out;
}

std::array<uint8_t, 3> colour_of(double t) {
  static const auto table = [] {
    std::array<std::array<uint8_t, 3>, 256> colours{};
    for (size_t i = 0; i < colours.size(); ++i) colours[i] = make_colour(static_cast<double>(i) / 255);
    return colours;
  }();
  return table[static_cast<size_t>(std::lround(255 * (t > 0 ? std::min(t, 1.0) : 0.0)))];
}

Image spectrogram(std::span<const float> interleaved, const SpectrogramOptions& options) {
  const int window = options.window, bins = window / 2 + 1, height = std::min(options.height, bins);
  const auto channels = static_cast<size_t>(std::max(options.channels, 1));
  if (window < 4 || window % 2 != 0 || options.width < 1 || height < 1 || !(options.top_db > options.floor_db) ||
      options.channels < 1 || interleaved.size() % channels != 0)
    throw Error(ErrorKind::usage, "spectrogram: window " + std::to_string(window) + ", size " +
                                      std::to_string(options.width) + " x " + std::to_string(options.height) + ", " +
                                      std::to_string(interleaved.size()) + " samples of " +
                                      std::to_string(options.channels) + " channels");
  const auto n = static_cast<int64_t>(interleaved.size() / channels);
  // The hop is a quarter of a window. For long audio it grows, so that there are at most four frames per pixel.
  const int64_t hop = std::max<int64_t>({window / 4, (n + 4 * options.width - 1) / (4 * options.width), 1});
  const int64_t frames = std::max<int64_t>(1, (n + hop - 1) / hop);
  const int64_t width = std::min<int64_t>(options.width, frames);

  // A context of its own on the CPU, whatever device the training uses.
  Context ctx({.threads = 1});
  const StftPlan plan(ctx, {.batch = options.channels, .time = std::max<int64_t>(n, 1)},
                      {.window = window, .hop = hop, .padding = StftPadding::zero});
  std::vector<float> signal(static_cast<size_t>(plan.signal().elements()), 0.0f);
  const auto length = static_cast<size_t>(plan.signal().time);
  for (size_t i = 0; i < interleaved.size(); ++i)
    signal[i % channels * length + i / channels] = std::isfinite(interleaved[i]) ? interleaved[i] : 0.0f;
  std::vector<float> spectrum(static_cast<size_t>(plan.spectrum().elements()));
  stft_forward(ctx, {.plan = plan,
                     .x = View<const float>(signal.data(), plan.signal()),
                     .spectrum = View<float>(spectrum.data(), plan.spectrum())});
  // A sine of amplitude 1 has the magnitude window / 4 in its bin: the factor 1/2 of a real signal times the window's
  // sum, window / 2.
  const double full_scale = window / 4.0 * (window / 4.0);

  std::vector<double> power(static_cast<size_t>(bins));
  Image image{.width = static_cast<int>(width),
              .height = height,
              .rgb = std::vector<uint8_t>(static_cast<size_t>(3 * width * height))};
  for (int64_t x = 0; x < width; ++x) {
    // A column is the mean power of its frames in all channels.
    const int64_t first = x * frames / width, end = std::max(first + 1, (x + 1) * frames / width);
    std::fill(power.begin(), power.end(), 0.0);
    for (int64_t c = 0; c < options.channels; ++c)
      for (int64_t f = first; f < end; ++f) {
        const float* bin = spectrum.data() + (c * plan.spectrum().time + f) * bins * 2;
        for (size_t k = 0; k < power.size(); ++k) {
          const double re = static_cast<double>(bin[2 * k]), im = static_cast<double>(bin[2 * k + 1]);
          power[k] += (re * re + im * im) / static_cast<double>((end - first) * options.channels);
        }
      }
    for (int y = 0; y < height; ++y) {
      const auto from = static_cast<size_t>(int64_t{y} * bins / height);
      const auto to = static_cast<size_t>((int64_t{y} + 1) * bins / height);
      // The maximum over the bins, because a mean would hide thin partials.
      const double loudest = *std::max_element(power.begin() + static_cast<std::ptrdiff_t>(from),
                                               power.begin() + static_cast<std::ptrdiff_t>(to));
      const double db = 10 * std::log10(loudest / full_scale + 1e-30);
      const auto colour = colour_of((db - options.floor_db) / (options.top_db - options.floor_db));
      // Low frequencies are at the bottom; rows of an image go downwards.
      const auto at = static_cast<std::ptrdiff_t>(3 * ((height - 1 - y) * width + x));
      std::copy(colour.begin(), colour.end(), image.rgb.begin() + at);
    }
  }
  return image;
}

}  // namespace nacre::training
