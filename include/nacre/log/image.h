#pragma once
// Small images for logs and reports: PNG files and spectrograms.
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nacre/cxx20.h"

namespace nacre::training {

struct Image {
  int width = 0, height = 0;
  std::vector<uint8_t> rgb;  ///< rows from the top, three bytes per pixel
};

/// The image as a PNG file. Throws Error(usage) if width, height and the number of bytes do not agree.
std::string png_bytes(const Image&);

/// A colour map from black through violet, red and orange to pale yellow. t is clamped to [0, 1]. The lightness (Oklab,
/// Ottosson 2020) rises evenly, so that the image is also readable in greyscale.
std::array<uint8_t, 3> colour_of(double t);

struct SpectrogramOptions {
  int window = 1024;                  ///< samples, even
  int width = 640;                    ///< maximum in pixels; shorter audio gives fewer
  int height = 256;                   ///< maximum in pixels; at most window / 2 + 1 are used
  double floor_db = -90, top_db = 0;  ///< 0 dB is a sine of full scale
  int channels = 1;                   ///< of the interleaved samples; their mean power is shown
};

/// A spectrogram with time to the right, frequency upwards to half the sample rate, and power in dB as colour. Samples
/// that are not finite count as zero.
Image spectrogram(std::span<const float> interleaved, const SpectrogramOptions& = {});

}  // namespace nacre::training
