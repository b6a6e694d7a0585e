// Which part of a stream has to be read, decoded and resampled for a section of the output. The rates are up : down in
// lowest terms, so output sample i * up and model sample i * down stand at the same time, for every whole i. A
// resampler that starts there gives the samples that it would give within the whole signal, once `margin` samples have
// passed.
#include "coding/section.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "nacre/error.h"

namespace nacre::training {
namespace {

/// The sample at a time, rounded to nearest. No stream is longer than 2^40 samples at its own rate, which is at most
/// 2^50 at another.
int64_t sample_at(double seconds, int rate) { return std::llround(std::min(seconds * rate, 0x1p51)); }

std::string number(double x) {
  char text[40];
  std::snprintf(text, sizeof text, "%.10g", x);
  return text;
}

}  // namespace

Section section_of(const CodecConfig& c, const StreamHeader& h, int rate, const DecodeOptions& options) {
  const double from = options.from;
  if (!std::isfinite(from) || from < 0 || (options.to && (!std::isfinite(*options.to) || *options.to < 0)))
    throw Error(ErrorKind::usage, "decode: from and to are times in seconds, expected 0 or more");
  Section s;
  s.first = sample_at(from, rate);
  if (options.to) {
    s.end = sample_at(*options.to, rate);
    if (s.first >= s.end)
      throw Error(ErrorKind::usage, "decode: from " + number(from) + " to " + number(*options.to) +
                                        " s there is no sample at " + std::to_string(rate) + " Hz");
  }
  const auto model_rate = static_cast<int64_t>(h.model_rate), hop = static_cast<int64_t>(h.hop);
  const int64_t common = std::gcd(model_rate, static_cast<int64_t>(rate));
  const int64_t down = model_rate / common, up = rate / common;
  const int64_t margin = up == down ? 0 : resampling_reach(static_cast<int>(model_rate), rate);  // of output
  const int64_t context = c.decoder_context();
  // The last such place that is `margin` output samples or more in front of the section.
  const int64_t group = std::max<int64_t>(0, s.first - margin) / up;
  s.model_first = group * down;
  s.resampled_first = group * up;
  if (c.segmented()) {
    const auto segment = static_cast<int64_t>(h.packet_frames), stride = static_cast<int64_t>(h.stride);
    // The segment of the first sample, the one that overlaps it, and one more: the weights of the overlap are those of
    // a whole segment, and only the last two may be shorter.
    s.frame_first = std::max<int64_t>(0, s.model_first / stride - 2) * segment;
    if (!options.to) return s;
    // The first place behind the section and the margin.
    s.model_end = (s.end + margin) / up * down + down;
    s.frame_end = s.frames_read = (s.model_end + stride - 1) / stride * segment;
    // If only the end of the stream says how long it is, another segment shows that `to` is not behind it.
    if (h.samples == StreamHeader::unknown) s.frames_read += segment;
    return s;
  }
  // What is before depends on all frames, and what follows on a context.
  if (!c.recurrent() && !c.needs_whole_signal()) s.frame_first = std::max<int64_t>(0, s.model_first / hop - context);
  if (!options.to) return s;
  s.model_end = (s.end + margin) / up * down + down;
  if (c.needs_whole_signal()) return s;
  s.frame_end = s.frames_read = (s.model_end + hop - 1) / hop + context;
  // A stream has up to four frames of padding. If only its end says how long it is, a frame behind them shows that `to`
  // is not in the padding.
  if (h.samples == StreamHeader::unknown) s.frames_read += 5;
  return s;
}

void expect_within(const Section& s, const DecodeOptions& options, int64_t samples, int rate, const std::string& name) {
  const auto beyond = [&](const char* option, double seconds) {
    throw Error(ErrorKind::usage, name + ": --" + option + " " + number(seconds) +
                                      " is behind the end: the audio has " +
                                      number(static_cast<double>(samples) / rate) + " s");
  };
  if (s.first > 0 && s.first >= samples) beyond("from", options.from);
  if (options.to && s.end > samples) beyond("to", *options.to);
}

}  // namespace nacre::training
