// PNG files inflate to their pixels. Colours are in order. Spectrograms show a tone at its frequency.
#include "nacre/log/image.h"

#include <zlib.h>

#include <limits>

#include "data/files.h"
#include "harness.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

uint32_t big_endian(const std::string& b, size_t at) {
  uint32_t x = 0;
  for (size_t i = 0; i < 4; ++i) x = x << 8 | static_cast<unsigned char>(b[at + i]);
  return x;
}

double lightness(const std::array<uint8_t, 3>& c) {
  const auto linear = [](uint8_t v) { return std::pow(v / 255.0, 2.2); };
  return 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
}

}  // namespace

TEST_CASE("PNG files decode to the picture", "[training][image]") {
  std::mt19937 rng(static_cast<unsigned>(seed()));
  for (const auto& [width, height] : {std::pair{1, 1}, {3, 2}, {640, 257}}) {
    Image image{.width = width, .height = height, .rgb = std::vector<uint8_t>(static_cast<size_t>(3 * width * height))};
    for (uint8_t& v : image.rgb) v = static_cast<uint8_t>(rng());
    const std::string png = png_bytes(image);
    REQUIRE(png.substr(0, 8) == "\x89PNG\r\n\x1a\n");
    std::string packed;
    std::vector<std::string> names;
    for (size_t at = 8; at < png.size();) {
      const uint32_t n = big_endian(png, at);
      REQUIRE(at + 12 + n <= png.size());
      const std::string body = png.substr(at + 4, n + 4);
      CHECK(big_endian(png, at + 8 + n) ==
            crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size())));
      names.push_back(body.substr(0, 4));
      if (names.back() == "IDAT") packed += body.substr(4);
      if (names.back() == "IHDR") {
        CHECK(big_endian(body, 4) == static_cast<uint32_t>(width));
        CHECK(big_endian(body, 8) == static_cast<uint32_t>(height));
        CHECK(body.substr(12) == std::string("\x08\x02\0\0\0", 5));
      }
      at += 12 + n;
    }
    CHECK(names == std::vector<std::string>{"IHDR", "IDAT", "IEND"});
    const size_t row = static_cast<size_t>(3 * width) + 1;
    std::vector<uint8_t> rows(row * static_cast<size_t>(height) + 1);
    uLongf size = rows.size();
    REQUIRE(uncompress(rows.data(), &size, reinterpret_cast<const Bytef*>(packed.data()), packed.size()) == Z_OK);
    REQUIRE(size == rows.size() - 1);
    for (size_t y = 0; y < static_cast<size_t>(height); ++y) {
      CHECK(rows[y * row] == 0);
      CHECK(std::equal(rows.begin() + static_cast<std::ptrdiff_t>(y * row + 1),
                       rows.begin() + static_cast<std::ptrdiff_t>((y + 1) * row),
                       image.rgb.begin() + static_cast<std::ptrdiff_t>(y * (row - 1))));
    }
  }
  CHECK_THROWS_AS(png_bytes({.width = 2, .height = 2, .rgb = {1, 2, 3}}), Error);
  CHECK_THROWS_AS(png_bytes({}), Error);
}

TEST_CASE("colours rise in lightness", "[training][image]") {
  for (int i = 8; i < 256; i += 4) CHECK(lightness(colour_of(i / 255.0)) > lightness(colour_of((i - 4) / 255.0)));
  CHECK(lightness(colour_of(0)) < 0.01);
  CHECK(lightness(colour_of(1)) > 0.8);
  CHECK(colour_of(-3) == colour_of(0));
  CHECK(colour_of(7) == colour_of(1));
  CHECK(colour_of(std::nan("")) == colour_of(0));
}

TEST_CASE("a spectrogram shows a tone at its height and level", "[training][image]") {
  // 3000 Hz at 16 kHz is bin 192 of 512, which is row 256 - 1 - 96.
  const Image image = spectrogram(sine(16000 * 4, 3000, 16000, 1.0));
  CHECK(image.width == 250);
  CHECK(image.height == 256);
  const auto at = [](const Image& i, int x, int y) {
    const auto p = static_cast<size_t>(3 * (y * i.width + x));
    return std::array<uint8_t, 3>{i.rgb[p], i.rgb[p + 1], i.rgb[p + 2]};
  };
  CHECK(at(image, 100, 255 - 96) == colour_of(1));  // full scale is 0 dB, within half a colour of 256
  CHECK(at(image, 100, 255 - 30) == colour_of(0));
  CHECK(at(image, 100, 255 - 200) == colour_of(0));
  // 40 dB down, of a range of 90.
  const Image soft = spectrogram(sine(16000, 3000, 16000, 0.01));
  CHECK(std::abs(int{at(soft, 30, 255 - 96)[1]} - int{colour_of(50.0 / 90)[1]}) <= 2);
  // The mean power of two channels: that of both if they are equal, and half of it (3 dB down) if one is silent.
  std::vector<float> equal, left;
  for (const float v : sine(16000, 3000, 16000, 0.01))
    equal.insert(equal.end(), {v, v}), left.insert(left.end(), {v, 0});
  const Image of_two = spectrogram(equal, {.channels = 2}), of_left = spectrogram(left, {.channels = 2});
  CHECK(of_two.width == soft.width);
  CHECK(std::abs(int{at(of_two, 30, 255 - 96)[1]} - int{colour_of(50.0 / 90)[1]}) <= 2);
  CHECK(std::abs(int{at(of_left, 30, 255 - 96)[1]} - int{colour_of(47.0 / 90)[1]}) <= 2);
  CHECK(int{colour_of(50.0 / 90)[1]} - int{colour_of(47.0 / 90)[1]} > 4);
  CHECK_THROWS_AS(spectrogram(std::vector<float>(3), {.channels = 2}), Error);
  CHECK_THROWS_AS(spectrogram({}, {.channels = 0}), Error);
  // Long audio is reduced to the given width. Short, empty and non-finite audio also give a picture.
  CHECK(spectrogram(sine(1000000, 100, 16000), {.width = 100}).width == 100);
  CHECK(spectrogram({}).width == 1);
  CHECK(spectrogram(std::vector<float>(1, 1.0f)).width == 1);
  std::vector<float> nan(5000, std::numeric_limits<float>::quiet_NaN());
  CHECK(at(spectrogram(nan), 3, 100) == colour_of(0));
  CHECK_THROWS_AS(spectrogram(nan, {.window = 3}), Error);
}
