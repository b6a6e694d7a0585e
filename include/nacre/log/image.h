#pragma once
// Small pictures for logs and reports: PNG files, spectrograms.
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

/// The image as a PNG file. Throws Error(usage) if its sizes do not agree.
std::string png_bytes(const Image&);

/// Black through violet, red and orange to pale yellow, for t in [0, 1]; outside is clamped. Lightness (Oklab) rises
/// evenly, so that the picture means the same in grey.
std::array<uint8_t, 3> colour_of(double t);

struct SpectrogramOptions {
  int window = 1024;                  ///< samples, even
  int width = 640;                    ///< pixels at most; short audio gives fewer
  int height = 256;                   ///< pixels at most: no more than window / 2 + 1
  double floor_db = -90, top_db = 0;  ///< 0 dB is a sine of full scale
};

/// Time to the right, frequency upwards to half the sample rate, power in dB as colour. Samples that are not finite
/// count as zero.
Image spectrogram(std::span<const float> samples, const SpectrogramOptions& = {});

}  // namespace nacre::training
