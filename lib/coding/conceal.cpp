// The gain around lost frames, and the account of what was lost. docs/format.md, "Concealment", defines the curve.
// LossEnvelope keeps runs of samples that are lost or there. add() appends runs when packets arrive, and apply() and
// skip() consume them when their samples leave the decoder.
#include "coding/conceal.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>

namespace nacre::training {
namespace {

std::string three_decimals(double x) {
  char text[64];
  std::snprintf(text, sizeof text, "%.3f", x);
  return text;
}

}  // namespace

LossEnvelope::LossEnvelope(int rate)
    : fall_(std::max<int64_t>(1, std::llround(0.06 * rate))), rise_(std::max<int64_t>(1, std::llround(0.02 * rate))) {}

void LossEnvelope::add(int64_t samples, bool lost) {
  if (samples <= 0) return;
  if (!runs_.empty() && runs_.back().lost == lost)
    runs_.back().samples += samples;
  else
    runs_.push_back({samples, lost});
}

/// The gain of sample `elapsed` of the run: start + (end - start) (1/2 - cos(pi p) / 2) with p = (elapsed + 1) /
/// length, where `end` is 0 in a loss and 1 otherwise. Sample length - 1 reaches `end`.
float LossEnvelope::gain_at(int64_t elapsed) const {
  const float end = lost_ ? 0.0f : 1.0f;
  const int64_t length = lost_ ? fall_ : rise_;
  if (start_ == end || elapsed + 1 >= length) return end;
  const double part = static_cast<double>(elapsed + 1) / static_cast<double>(length);
  const auto weight = static_cast<float>(0.5 - 0.5 * std::cos(std::numbers::pi * part));
  return start_ + (end - start_) * weight;
}

/// Passes samples run by run. each(n) gets the samples of one run, of which elapsed_ have been passed before.
template <class F>
void LossEnvelope::pass(int64_t samples, F&& each) {
  while (samples > 0 && !runs_.empty()) {
    Run& run = runs_.front();
    // The curve begins again from where it is. The state before the first run is "there, at gain 1": a stream that
    // begins with a loss begins at 0 instead.
    if (run.lost != lost_) {
      // The gain of the last sample that was passed.
      start_ = any_ ? gain_at(elapsed_ - 1) : 0.0f;
      lost_ = run.lost, elapsed_ = 0;
    }
    any_ = true;
    const int64_t n = std::min(samples, run.samples);
    each(n);
    elapsed_ += n, samples -= n, run.samples -= n;
    if (run.samples == 0) runs_.pop_front();
  }
}

void LossEnvelope::skip(int64_t samples) {
  pass(samples, [](int64_t) {});
}

void LossEnvelope::apply(std::span<float> samples, size_t channels) {
  pass(static_cast<int64_t>(samples.size() / channels), [&](int64_t n) {
    for (int64_t t = 0; t < n; ++t)
      if (const float gain = gain_at(elapsed_ + t); gain != 1)
        for (float& x : samples.subspan(static_cast<size_t>(t) * channels, channels)) x *= gain;
    samples = samples.subspan(static_cast<size_t>(n) * channels);
  });
}

void LossAccount::add(const StreamPacket& packet) {
  if (!packet.lost) return;
  const uint64_t from = packet.first_frame, to = from + packet.frames;
  // The channels of a stretch follow one another, and so do the stretches.
  if (!ranges_.empty() && from <= ranges_.back().second)
    ranges_.back().second = std::max(ranges_.back().second, to);
  else
    ranges_.emplace_back(from, to);
}

LossAccount::Lost LossAccount::within(double from, double to, const StreamHeader& h) const {
  Lost lost;
  const auto seconds = [&](uint64_t frame) {
    return static_cast<double>(first_sample(h, frame)) / static_cast<double>(h.model_rate);
  };
  const double frame = static_cast<double>(h.hop) / h.model_rate;
  for (const auto& [first, end] : ranges_) {
    // Only the part that meets the section counts.
    const double begins = std::max(from, seconds(first)), ends = std::min(to, seconds(end));
    if (begins >= ends) continue;
    lost.seconds.emplace_back(begins, ends);
    // Frames that the section has a part of. The small number is for the rounding of times to double.
    const double first_frame = std::floor(begins / frame + 1e-6), end_frame = std::ceil(ends / frame - 1e-6);
    lost.frames += static_cast<int64_t>(end_frame - first_frame);
  }
  return lost;
}

std::vector<std::string> loss_warnings(const LossAccount::Lost& lost, const StreamReader& reader) {
  constexpr size_t most = 5;
  std::vector<std::string> lines;
  if (!lost.seconds.empty()) {
    std::string text = std::to_string(lost.frames) + (lost.frames == 1 ? " frame is" : " frames are") +
                       " lost or damaged, and concealed: ";
    for (size_t i = 0; i < std::min(lost.seconds.size(), most); ++i)
      text += (i > 0 ? ", " : "") + three_decimals(lost.seconds[i].first) + " to " +
              three_decimals(lost.seconds[i].second) + " s";
    if (lost.seconds.size() > most) text += " and " + std::to_string(lost.seconds.size() - most) + " more";
    lines.push_back(text);
  }
  const StreamHeader& h = reader.header();
  if (reader.cut_off()) {
    std::string text = "has no closing packet, and ends with its last whole packet, at " +
                       three_decimals(static_cast<double>(reader.samples()) / h.original_rate);
    if (h.samples != StreamHeader::unknown)
      text += " of " + three_decimals(static_cast<double>(h.samples) / h.original_rate);
    lines.push_back(text + " s");
  }
  if (reader.continued()) lines.emplace_back("goes on behind its closing packet; that part is not decoded");
  return lines;
}

}  // namespace nacre::training
