#pragma once
// Predicted intelligibility of decoded speech, relative to the original.
//
//   STOI    C. H. Taal, R. C. Hendriks, R. Heusdens, J. Jensen: "An Algorithm for Intelligibility Prediction of
//           Time-Frequency Weighted Noisy Speech", IEEE Trans. Audio, Speech, Lang. Process. 19(7), 2011, section II
//   ESTOI   J. Jensen, C. H. Taal: "An Algorithm for Predicting the Intelligibility of Speech Masked by Modulated Noise
//           Maskers", IEEE/ACM Trans. Audio, Speech, Lang. Process. 24(11), 2016, section II
//
// Both use the settings of the papers:
//   rate      10 kHz. Other rates are resampled by a linear-phase filter that has -6 dB at 5 kHz (for rates from 8 to
//             10 kHz: at half the rate) and passes frequencies 10 percent below, as Octave's resample and pystoi's do
//   silence   frames of 256 samples, hop 128, window w[n] = 1/2 - 1/2 cos(2 pi (n + 1) / 257). Frames whose windowed
//             original is 40 dB or more below the loudest frame are removed from both signals; the remaining frames are
//             overlapped and added
//   bands     DFT of length 512 of frames with the hop and window above; X[j, m] = sqrt(sum |x[k, m]|^2) over the bins
//             k of band j. There are 15 bands, each a third of an octave wide, the lowest around 150 Hz, with edges at
//             the nearest bins (2011, equation 1)
//   segments  the last N = 30 frames up to m, for every m from N on: 384 ms
// STOI, for each segment and band:
//   y' = min(y |x| / |y|, (1 + 10^(15/20)) x): scaled to the level of the original, with distortion bounded at -15 dB;
//   d = correlation coefficient of x and y' over the N frames; STOI = mean of d over segments and bands
// ESTOI, for each segment:
//   the N values of each band, then the 15 values of each frame, are normalised to mean 0 and norm 1; d = 1/N sum over
//   frames of the inner products of x and y; ESTOI = mean of d over segments
//
// As in the papers' Matlab code and in pystoi, a frame that ends with the signal's last sample is not used. A row or
// column that does not vary has correlation 0. Neither score depends on the level of either signal.
// tests/golden/check_stoi.py compares with pystoi.
#include <cstdint>
#include <limits>
#include <span>

#include "nacre/context.h"

namespace nacre::training {

/// Lowest rate that is scored. Below it, too little of the highest band (3394 to 4276 Hz) remains.
inline constexpr int64_t min_intelligibility_rate = 8000;

struct Intelligibility {
  double stoi = std::numeric_limits<double>::quiet_NaN();   ///< 0 (unintelligible) .. 1; chance can make it negative
  double estoi = std::numeric_limits<double>::quiet_NaN();  ///< same range
};

/// NaN if the audio cannot be scored: the original is silent, fewer than 31 frames (0.42 s) are not silent (joining
/// them leaves 30), or the rate is below min_intelligibility_rate. Throws Error(usage) if the lengths differ or the
/// rate is above max_sample_rate.
Intelligibility intelligibility(Context&, std::span<const float> decoded, std::span<const float> original,
                                int64_t sample_rate);

}  // namespace nacre::training
