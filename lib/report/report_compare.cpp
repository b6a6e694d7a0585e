// What the trained codec is compared with: the same codec before training, and Opus at the same nominal bitrate, each
// on the same audio and with the same scores.
#include "report/report_compare.h"

#include <utility>

#include "nacre/error.h"
#include "nacre/training/baseline.h"
#include "report/chart.h"

namespace nacre::training {

/// Bits of the codes of a clip, and 32 for each scale of a segment.
double code_bits(const CodecConfig& c, const ClipScore& clip) {
  constexpr double scale_bits = 32;
  return static_cast<double>(clip.frames) * static_cast<double>(c.codes_per_frame() * c.code_bits()) +
         static_cast<double>(clip.scales) * scale_bits;
}

Baselines::Baselines(Context& ctx, const std::filesystem::path& run, const CodecConfig& config)
    : ctx_(ctx), config_(config) {
  const std::filesystem::path start = run / "start" / "model.safetensors";
  if (!std::filesystem::exists(start)) {
    notes_.push_back(
        "The codec before training is not shown: the run has no start/model.safetensors (a run that began from "
        "given weights keeps none).");
  } else {
    try {
      start_.emplace(Codec::load(ctx, start));
      // A model from another run or another configuration would not show what training has changed.
      if (start_->config().to_json() != config.to_json()) {
        notes_.push_back(
            "The codec before training is not shown: the run's start/model.safetensors has another "
            "configuration than the codec that is judged.");
        start_.reset();
      }
    } catch (const Error& e) {
      notes_.push_back("The codec before training is not shown: " + std::string(e.what()) + ".");
    }
  }
  if (start_) {
    judged_.emplace(*start_);
    all_.push_back({.name = "Before training"});
  }
  if (const std::optional<std::string> reason = opus_unavailable()) {
    notes_.push_back("Opus is not shown: " + *reason + ".");
  } else {
    opus_ = true;
    all_.push_back({.name = "Opus"});
    const auto channels = static_cast<double>(config.audio_channels);
    const double wanted = config.nominal_bitrate(), least = channels * min_opus_bitrate,
                 most = channels * max_opus_bitrate;
    if (wanted < least || wanted > most)
      notes_.push_back("Opus was set to " + figure_of((wanted < least ? least : most) / 1000, "%g") + " kbit/s, the " +
                       (wanted < least ? "lowest" : "highest") + " bitrate that can be set here.");
  }
}

std::vector<std::vector<float>> Baselines::add(const std::string& name, std::span<const float> samples) {
  // One entry per baseline, in the order of all_: the start first, if there is one, then Opus.
  std::vector<std::vector<float>> decoded;
  if (judged_) {
    std::vector<float>& audio = decoded.emplace_back();
    Baseline& b = all_[0];
    b.bits += code_bits(config_, b.scores.add(judged_->add(name, samples, &audio)));
  }
  if (opus_) {
    OpusCoded coded = code_opus(samples, static_cast<int>(config_.sample_rate), config_.nominal_bitrate(),
                                static_cast<int>(config_.audio_channels));
    Baseline& b = all_.back();
    ClipScore score = score_clip(ctx_, samples, coded.samples, config_.sample_rate, config_.audio_channels);
    score.name = name;
    b.scores.add(std::move(score));
    // The size of the packets, because the bitrate that Opus uses may differ from the requested one.
    b.bits += 8 * static_cast<double>(coded.bytes);
    decoded.push_back(std::move(coded.samples));
  }
  return decoded;
}

std::string comparison_html(const Baseline& codec, const std::vector<Baseline>& others,
                            const std::vector<std::string>& notes) {
  const auto cell = [](double x, const char* format) { return "<td>" + figure_of(x, format) + "</td>"; };
  const auto row = [&](const Baseline& b) {
    return "<tr><td>" + html_text(b.name) + "</td>" + cell(b.kilobits(), "%.1f") + cell(b.scores.snr(), "%+.2f") +
           cell(b.scores.si_sdr(), "%+.2f") + cell(b.scores.stoi(), "%.3f") + cell(b.scores.mel(), "%.3f") +
           cell(b.scores.stft(), "%.3f") + "</tr>\n";
  };
  std::string s =
      "<p>Means over the same files. kbit/s: size of the codes, or of Opus's packets, without a container. ";
  s += "SNR, SI-SDR and STOI (intelligibility, at most 1): higher is better. Mel and STFT distance: lower is better.";
  bool opus = false;
  for (const Baseline& b : others) opus = opus || b.name == "Opus";
  if (opus)
    s += " Opus was set to this codec's nominal bitrate, from which it may deviate. It shapes its noise so that it is "
         "less "
         "audible, and can sound better than its SNR suggests: listen to both.";
  s += "</p>\n<div class=\"wide\"><table>\n<thead><tr><th>Codec</th><th>kbit/s</th><th>SNR "
       "<small>dB</small></th><th>SI-SDR "
       "<small>dB</small></th><th>STOI</th><th>Mel <small>distance</small></th><th>STFT "
       "<small>distance</small></th></tr></thead>\n"
       "<tbody>\n" +
       row(codec);
  for (const Baseline& b : others) s += row(b);
  s += "</tbody></table></div>\n";
  if (!notes.empty()) {
    s += "<ul class=\"notes\">";
    for (const std::string& n : notes) s += "<li>" + html_text(n) + "</li>";
    s += "</ul>\n";
  }
  return s;
}

}  // namespace nacre::training
