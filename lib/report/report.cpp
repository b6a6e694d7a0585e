// The report of a run: one HTML page without references to other files. write_report() gathers Findings, and the
// functions above it write the parts of the page from them.
#include "nacre/report/report.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "files/text.h"
#include "nacre/data/audio.h"
#include "nacre/data/dataset.h"
#include "nacre/data/excerpts.h"
#include "nacre/files/atomic_file.h"
#include "nacre/log/image.h"
#include "nacre/losses/loss.h"
#include "nacre/training/evaluation.h"
#include "nacre/training/trainer.h"
#include "report/chart.h"
#include "report/report_compare.h"
#include "report/report_log.h"
#include "report/report_style.h"
#include "training/trainer_run.h"

namespace nacre::training {
namespace {

constexpr double longest_example = 8;  // seconds
constexpr double audio_budget = 9e6;   // bytes of audio on the page, over all versions of all examples
constexpr size_t rows_in_sight = 60;   // further files are in a collapsed section

std::string capitalised(std::string text) {
  if (!text.empty()) text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

std::string base64(std::string_view raw) {
  static constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((raw.size() + 2) / 3 * 4);
  for (size_t i = 0; i < raw.size(); i += 3) {
    uint32_t x = 0;
    for (size_t k = 0; k < 3; ++k) x = x << 8 | (i + k < raw.size() ? static_cast<unsigned char>(raw[i + k]) : 0u);
    for (size_t k = 0; k < 4; ++k) out += i + k <= raw.size() ? digits[x >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

/// The indices of `count` names that share as few words as possible. If names contain voice, sentence and speaker, the
/// examples then cover all of them.
std::vector<size_t> unlike(const std::vector<std::string>& names, size_t count) {
  std::vector<std::set<std::string>> words(names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    std::string word;
    // The "/" ends the last word. Bytes from 128 on belong to letters of other alphabets.
    for (const char c : names[i] + "/") {
      if (std::isalnum(static_cast<unsigned char>(c)) != 0 || static_cast<unsigned char>(c) >= 128) {
        word += c;
      } else if (!word.empty()) {
        words[i].insert(std::move(word));
        word.clear();
      }
    }
  }
  std::map<std::string, int64_t> seen;
  std::vector<size_t> chosen;
  std::vector<bool> taken(names.size(), false);
  // Greedy: the next name is the one whose words were chosen least so far. Squares count a word that was chosen twice
  // more than two that were chosen once. Among equals the first wins.
  while (chosen.size() < std::min(count, names.size())) {
    size_t best = 0;
    int64_t least = INT64_MAX;
    for (size_t i = 0; i < names.size(); ++i) {
      if (taken[i]) continue;
      int64_t shared = 0;
      for (const std::string& w : words[i])
        if (const auto it = seen.find(w); it != seen.end()) shared += it->second * it->second;
      if (shared < least) least = shared, best = i;
    }
    taken[best] = true;
    chosen.push_back(best);
    for (const std::string& w : words[best]) ++seen[w];
  }
  return chosen;
}

struct Example {
  size_t score = 0;  ///< index into Evaluation::clips()
  std::vector<float> original, decoded;
  std::vector<std::vector<float>> others = {};  ///< decoded by the baselines, in their order
};

/// The data from which the page is written.
struct Findings {
  std::string name, model;
  RunConfig config;
  CodecConfig codec;
  RunLog log;
  double parameters = 0;
  double training_seconds = 0, held_out_seconds = 0;
  int64_t training_files = 0, held_out_files = 0, scored_files = 0;
  bool on_training = false;  ///< nothing was held out
  bool other_data = false;   ///< the folder differs from the model's training data
  std::vector<Example> examples;
};

std::string cell(double x, const char* format) { return "<td>" + figure_of(x, format) + "</td>"; }

/// A sentence with the same figure of the baselines, or "".
std::string beside(const std::vector<Baseline>& others) {
  std::string s;
  for (const Baseline& b : others) {
    if (!std::isfinite(b.scores.snr())) continue;
    s += s.empty() ? " On the same audio " : ", and ";
    s += (b.name == "Opus" ? "Opus, at " + figure_of(b.kilobits(), "%.1f") + " kbit/s, has "
                           : "the codec before training has ") +
         figure_of(b.scores.snr(), "%+.1f") + " dB";
  }
  return s.empty() ? s : s + ".";
}

std::string summary(const Findings& f, const Evaluation& e, const std::vector<Baseline>& others) {
  // In kbit/s.
  const double rate = f.codec.nominal_bitrate() / 1000,
               plain = 16 * static_cast<double>(f.codec.sample_rate * f.codec.audio_channels) / 1000;
  std::string s = "<p>This neural audio codec was trained on " + describe_duration(f.training_seconds) + " of audio (" +
                  std::to_string(f.training_files) + " files) in " + std::to_string(f.log.step) +
                  " steps, which took " + describe_duration(f.log.trained_seconds) + ". It codes " +
                  (f.codec.audio_channels > 1 ? "stereo " : "") + "audio of " +
                  figure_of(static_cast<double>(f.codec.sample_rate) / 1000, "%g") + " kHz at " +
                  figure_of(rate, "%.1f") + " kbit/s (" + std::to_string(f.codec.codes_per_frame()) + " codes of " +
                  std::to_string(f.codec.code_bits()) + " bits, " + figure_of(f.codec.frame_rate(), "%g") +
                  " times a second), " + figure_of(plain / rate, "%.3g") + " times less than plain 16-bit samples. ";
  s += f.on_training ? "No audio was held out, so the figures here are for audio that it was trained on: "
                     : "It was evaluated on audio that was held out of training: ";
  s += std::to_string(f.scored_files) + (f.scored_files == 1 ? " file, " : " files, ") +
       describe_duration(e.seconds()) + ". ";
  // An SNR of s dB means that the error has 10^(-s/10) of the original's power.
  const double snr = e.snr();
  if (std::isfinite(snr)) {
    s += "On this audio the signal-to-noise ratio (SNR) is " + figure_of(snr, "%+.1f") + " dB on average: ";
    s += snr > 0 ? "the difference from the original has " +
                       (snr >= 6 ? "1/" + figure_of(std::pow(10, snr / 10), "%.0f")
                                 : figure_of(100 * std::pow(10, -snr / 10), "%.0f") + " percent") +
                       " of the original's power. Higher is better."
                 : std::string("at or below 0 dB, silence would be as close to the original as this output.");
    s += beside(others) + "</p>\n";
  } else {
    s += "There is no SNR, because all of the audio is silent.</p>\n";
  }
  const auto fact = [&](const char* name, const std::string& value, const char* unit) {
    s += "<div><dt>" + std::string(name) + "</dt><dd>" + value + " <small>" + unit + "</small></dd></div>\n";
  };
  s += "<dl>\n";
  fact(f.on_training ? "SNR, training audio" : "SNR, held-out audio", figure_of(snr, "%+.2f"), "dB");
  fact("Bitrate", figure_of(rate, "%.1f"), "kbit/s");
  fact("Trained for", describe_duration(f.log.trained_seconds), "");
  fact("Parameters", figure_of(f.parameters / 1e6, "%.2f"), "million");
  fact("Encoding", figure_of(e.encode_speed(), "%.1f"), "× real time");
  fact("Decoding", figure_of(e.decode_speed(), "%.1f"), "× real time");
  s += "</dl>\n";

  std::vector<std::string> notes;
  if (f.other_data)
    notes.push_back(
        "The data folder differs from the one that this model was trained on (files or settings): some of the audio "
        "called held out here may have been used for its training.");
  int64_t frames = 0;
  for (const ClipScore& c : e.clips()) frames += c.frames;
  for (const std::string& w : warnings({.snr = snr,
                              .input_mean = e.input_mean(),
                              .input_std = e.input_std(),
                              .output_mean = e.output_mean(),
                              .output_std = e.output_std(),
                              .usage = e.usage(),
                              .perplexity = e.perplexity(),
                              .codes_seen = frames,
                              .codebook_size = f.codec.codebook_size,
                              .step = f.log.step,
                              .balanced = f.config.loss.balanced,
                              .codebooks_from_data = f.config.training.codebook_start_rows > 0,
                              .ema = f.config.codec.quantizer == QuantizerKind::ema}))
    notes.push_back("Warning: " + w + ".");
  if (!notes.empty()) {
    s += "<ul class=\"notes\">";
    for (const std::string& n : notes) s += "<li>" + html_text(n) + "</li>";
    s += "</ul>\n";
  }
  return s;
}

std::string curves(const Findings& f) {
  const auto of_train = [&](std::string name, std::string colour, double TrainLine::*what) {
    Series s{.name = std::move(name), .colour = std::move(colour), .points = {}};
    for (const TrainLine& l : f.log.train) s.points.emplace_back(l.step, l.*what);
    return s;
  };
  const auto of_valid = [&](std::string name, std::string colour, double ValidLine::*what, double scale = 1) {
    Series s{.name = std::move(name), .colour = std::move(colour), .points = {}, .dots = f.log.valid.size() <= 40};
    for (const ValidLine& l : f.log.valid) s.points.emplace_back(l.step, scale * l.*what);
    return s;
  };
  // Terms of the loss in the order of the log, then the commitment.
  static constexpr std::array<const char*, 3> colours{"var(--blue)", "var(--orange)", "var(--green)"};
  const auto colour_of = [&](size_t term) {
    if (term < colours.size()) return std::string(colours[term]);
    // 73 and 360 have no common factor, so hues repeat only after 360 terms.
    return "hsl(" + std::to_string(20 + 73 * (term - colours.size()) % 360) + " 60% 52%)";
  };
  std::vector<Series> parts, shares;
  std::string titles;
  for (size_t i = 0; i < f.log.terms.size(); ++i) {
    const std::string title = term_title(f.log.terms[i]);
    titles += (i == 0 ? "" : i + 1 == f.log.terms.size() ? " and " : ", ") + title;
    Series part{.name = title, .colour = colour_of(i)},
        share{.name = title, .colour = colour_of(i), .dots = f.log.valid.size() <= 40};
    for (const TrainLine& l : f.log.train) part.points.emplace_back(l.step, term_of(l.terms, i));
    for (const ValidLine& l : f.log.valid) share.points.emplace_back(l.step, 100 * term_of(l.shares, i));
    parts.push_back(std::move(part)), shares.push_back(std::move(share));
  }
  parts.push_back(of_train("VQ", "var(--violet)", &TrainLine::commitment));
  std::string s = "<div class=\"charts\">\n";
  s += chart_html({.title = "Similarity to the original",
                   .note = "SNR on held-out audio, before training and at the end of every epoch. It should rise.",
                   .y_name = "SNR, dB",
                   .from_zero = true,
                   .series = {of_valid("held out", "var(--blue)", &ValidLine::snr)}});
  s += chart_html({.title = "Loss",
                   .note = "The quantity that training minimises: the sum of the parts below. It should fall.",
                   .y_name = "loss",
                   .series = {of_train("training", "var(--blue)", &TrainLine::loss),
                              of_valid("held out", "var(--orange)", &ValidLine::loss)}});
  s += chart_html(
      {.title = "Parts of the training loss",
       .note = "On a logarithmic scale. " + capitalised(titles) + " compare sound; VQ is the quantizer's commitment.",
       .y_name = "loss",
       .log_y = true,
       .series = std::move(parts)});
  s += chart_html(
      {.title = "Shares of the gradient",
       .note = "Each part's share of the gradient at the decoder's output, on held-out audio. No part should take all.",
       .y_name = "share, %",
       .y_min = 0,
       .y_max = 100,
       .series = std::move(shares)});
  Chart usage{
      .title = "Codebook use",
      .note = "Part of each codebook's codes that occur in the held-out audio. Codes that never occur waste bits.",
      .y_name = "codes in use, %",
      .y_min = 0,
      .y_max = 100,
      .series = {}};
  const auto books = static_cast<size_t>(f.codec.n_codebooks);
  for (size_t b = 0; b < books; ++b) {
    const double part = books > 1 ? static_cast<double>(b) / static_cast<double>(books - 1) : 0;
    Series line{.name = "book " + std::to_string(b + 1),
                .colour = "hsl(" + figure_of(215 + 150 * part, "%.0f") + " 60% 52%)",
                .points = {},
                .dots = f.log.valid.size() <= 40};
    for (const ValidLine& l : f.log.valid)
      if (b < l.usage.size()) line.points.emplace_back(l.step, 100 * l.usage[b]);
    usage.series.push_back(std::move(line));
  }
  s += chart_html(usage);
  s += chart_html({.title = "Level of the output",
                   .note = "Standard deviation of the decoded audio and of the original. The two should agree.",
                   .y_name = "standard deviation",
                   .from_zero = true,
                   .series = {of_valid("original", "var(--orange)", &ValidLine::input_std),
                              of_valid("decoded", "var(--blue)", &ValidLine::output_std)}});
  return s + "</div>\n";
}

std::string history(const Findings& f) {
  std::string s =
      "<details><summary>Every evaluation</summary>\n<div class=\"wide\"><table>\n<thead><tr><th>Epoch</th>"
      "<th>Step</th><th>Loss</th>";
  for (const std::string& name : f.log.terms) s += "<th>" + html_text(capitalised(term_title(name))) + "</th>";
  s += "<th>VQ</th><th>SNR <small>dB</small></th><th>SI-SDR <small>dB</small></th><th>Output mean</th>"
       "<th>Output std</th><th>Gradient norm</th></tr></thead>\n<tbody>\n";
  for (const ValidLine& l : f.log.valid) {
    s += "<tr>" + (l.epoch == 0 ? std::string("<td>start</td>") : cell(l.epoch, "%.0f")) + cell(l.step, "%.0f") +
         cell(l.loss, "%.3f");
    for (size_t i = 0; i < f.log.terms.size(); ++i) {
      const double value = term_of(l.terms, i);
      s += cell(value, loss_format(value));
    }
    s += cell(l.commitment, loss_format(l.commitment)) + cell(l.snr, "%+.2f") + cell(l.si_sdr, "%+.2f") +
         cell(l.output_mean, "%+.4f") + cell(l.output_std, "%.3f") + cell(l.gradient_norm, "%.2f") + "</tr>\n";
  }
  return s + "</tbody></table></div></details>\n";
}

std::string scores(const Evaluation& e) {
  static constexpr const char* head =
      "<div class=\"wide\"><table>\n<thead><tr><th>File</th><th>Length <small>s</small></th><th>SNR "
      "<small>dB</small></th>"
      "<th>SI-SDR <small>dB</small></th><th>Mel <small>distance</small></th><th>STFT <small>distance</small></th>"
      "<th>Encode <small>× real time</small></th><th>Decode <small>× real time</small></th></tr></thead>\n";
  const auto row = [](const ClipScore& c) {
    const double none = std::nan("");
    return "<tr><td>" + html_text(c.name) + (c.silent ? " <small>(silent)</small>" : "") + "</td>" +
           cell(c.seconds, "%.2f") + cell(c.silent ? none : c.snr, "%+.2f") +
           cell(c.silent ? none : c.si_sdr, "%+.2f") + cell(c.mel, "%.3f") + cell(c.stft, "%.3f") +
           cell(c.encode_seconds > 0 ? c.seconds / c.encode_seconds : none, "%.1f") +
           cell(c.decode_seconds > 0 ? c.seconds / c.decode_seconds : none, "%.1f") + "</tr>\n";
  };
  std::string s = head + std::string("<tbody>\n");
  const std::vector<ClipScore>& clips = e.clips();
  for (size_t i = 0; i < std::min(clips.size(), rows_in_sight); ++i) s += row(clips[i]);
  s += "</tbody>\n<tfoot><tr><td>Mean of " + std::to_string(clips.size()) + "</td>" +
       cell(e.seconds() / static_cast<double>(clips.size()), "%.2f") + cell(e.snr(), "%+.2f") +
       cell(e.si_sdr(), "%+.2f") + cell(e.mel(), "%.3f") + cell(e.stft(), "%.3f") + cell(e.encode_speed(), "%.1f") +
       cell(e.decode_speed(), "%.1f") + "</tr></tfoot>\n</table></div>\n";
  if (clips.size() > rows_in_sight) {
    s += "<details><summary>The other " + std::to_string(clips.size() - rows_in_sight) + " files</summary>\n" + head +
         "<tbody>\n";
    for (size_t i = rows_in_sight; i < clips.size(); ++i) s += row(clips[i]);
    s += "</tbody></table></div></details>\n";
  }
  return s;
}

std::string codebooks(const Findings& f, const Evaluation& e) {
  const std::vector<double> usage = e.usage(), perplexity = e.perplexity();
  std::string s =
      "<div class=\"wide\"><table class=\"narrow\">\n<thead><tr><th>Codebook</th><th>Codes in use <small>%</small></th>"
      "<th>Perplexity <small>of " +
      std::to_string(f.codec.codebook_size) + "</small></th></tr></thead>\n<tbody>\n";
  for (size_t b = 0; b < usage.size(); ++b)
    s += "<tr><td>" + std::to_string(b + 1) + "</td>" + cell(100 * usage[b], "%.1f") + cell(perplexity[b], "%.0f") +
         "</tr>\n";
  return s + "</tbody></table></div>\n";
}

/// One version of an example: title, figures, spectrogram and player. Image and sound are in the page itself, so that
/// one file can be sent and opened without a server.
std::string side(const char* name, const ClipScore* score, const std::string& about, std::span<const float> samples,
                 int rate, int channels) {
  // A window of about 32 ms at any rate: short enough to show syllables, long enough to resolve the partials of a
  // voice.
  const Image picture =
      spectrogram(samples, {.window = rate > 24000 ? 1024 : 512, .width = 560, .height = 200, .channels = channels});
  std::string s = "<figure><figcaption><b>" + std::string(name) + "</b>";
  if (score != nullptr)
    s += (score->silent ? ""
                        : "SNR " + figure_of(score->snr, "%+.1f") + " dB, SI-SDR " + figure_of(score->si_sdr, "%+.1f") +
                              " dB, ") +
         "mel distance " + figure_of(score->mel, "%.2f");
  else  // a line here as well, so that adjacent images are aligned
    s += "16-bit samples, " + figure_of(16e-3 * rate * channels, "%g") + " kbit/s";
  return s + "</figcaption>\n<img alt=\"Spectrogram: " + name + ", " + html_text(about) +
         "\" src=\"data:image/png;base64," + base64(png_bytes(picture)) +
         "\">\n<audio controls preload=\"metadata\" src=\"data:audio/wav;base64," +
         base64(wav_bytes(samples, rate, channels)) + "\"></audio>\n</figure>\n";
}

std::string listening(const Findings& f, const Evaluation& e, const std::vector<Baseline>& others) {
  const int rate = static_cast<int>(f.codec.sample_rate), channels = static_cast<int>(f.codec.audio_channels);
  std::string s = "<p>Spectrograms: time to the right, frequency upwards to " +
                  figure_of(static_cast<double>(rate) / 2000, "%g") + " kHz, loudness " +
                  (channels > 1 ? "(mean power of both channels) " : "") +
                  "as colour from black (-90 dB) to pale yellow (0 dB). Figures are of the whole file.</p>\n";
  for (const Example& x : f.examples) {
    const ClipScore& c = e.clips()[x.score];
    const double shown = static_cast<double>(x.original.size()) / channels / rate;
    s += "<h3>" + html_text(c.name) + "</h3>\n<p><small>" +
         (shown < c.seconds ? "the first " + figure_of(shown, "%.1f") + " of " + figure_of(c.seconds, "%.1f") + " s"
                            : figure_of(c.seconds, "%.1f") + " s") +
         (c.silent ? ", silent" : "") + "</small></p>\n<div class=\"pair\">\n" +
         side("Original", nullptr, c.name, x.original, rate, channels) +
         side("Decoded", &c, c.name, x.decoded, rate, channels);
    for (size_t i = 0; i < others.size(); ++i)
      s += side(others[i].name.c_str(), &others[i].scores.clips()[x.score], c.name, x.others[i], rate, channels);
    s += "</div>\n";
  }
  return s;
}

std::string page(const Findings& f, const Evaluation& e, const Baselines& baselines) {
  const std::string title = html_text("Codec trained in " + f.name);
  // The policy makes a browser refuse everything that is not in this file.
  std::string s =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "img-src data:; media-src data:\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>" +
      title + "</title>\n<style>" + report_style + "</style>\n</head>\n<body>\n<h1>" + title + "</h1>\n";
  s += summary(f, e, baselines.all());
  Baseline codec{.name = "This codec", .scores = e};
  for (const ClipScore& c : e.clips()) codec.bits += code_bits(f.codec, c);
  s += "<h2>Comparison</h2>\n" + comparison_html(codec, baselines.all(), baselines.notes());
  s += "<h2>Training</h2>\n" + curves(f) + history(f);
  s += "<h2>Examples</h2>\n" + listening(f, e, baselines.all());
  s += std::string("<h2>Scores</h2>\n<p>") +
       (e.seconds() < f.held_out_seconds - 1e-6
            ? std::to_string(f.scored_files) + " of " + std::to_string(f.held_out_files) +
                  " files, evenly spread over the list; of long files, excerpts. "
            : "") +
       "SNR and SI-SDR: higher is better. Mel and STFT distance: lower is better. Speeds were measured on "
       "this machine; those of short files are too low, because whole windows are computed.</p>\n" +
       scores(e);
  s += "<h2>Codebooks</h2>\n<p>On the same audio. Perplexity is the number of codes that would carry as much "
       "information "
       "if they were used equally often.</p>\n" +
       codebooks(f, e);
  s += "<h2>Configuration</h2>\n<details><summary>config.json</summary>\n<pre>" + html_text(f.config.to_json()) +
       "</pre></details>\n";
  return s + "<footer>Weights: " + html_text(f.model) + ". Audio is at the model's rate, " +
         (f.codec.audio_channels > 1 ? "stereo" : "mono") +
         ", scaled to a peak of 0.95.</footer>\n"
         "</body>\n</html>\n";
}

}  // namespace

std::optional<uint64_t> trained_on(const std::filesystem::path& model) {
  const std::filesystem::path file = model.parent_path() / "manifest.json";
  if (!std::filesystem::is_regular_file(file)) return {};
  const std::vector<std::byte> bytes = read_file(file, uint64_t{1} << 22);
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  const nlohmann::json manifest = nlohmann::json::parse(text, text + bytes.size(), nullptr, false);
  if (!manifest.is_object() || !manifest.contains("data") || !manifest["data"].is_number_unsigned()) return {};
  return manifest["data"].get<uint64_t>();
}

ReportResult write_report(const ReportOptions& o) {
  if (!o.overwrite && std::filesystem::exists(o.output))
    throw Error(ErrorKind::usage, o.output.string() + ": already exists; -f replaces it");
  Findings f;
  // The phases: what the run says about itself, the model and its data, the choice of excerpts and examples, their
  // scores, and the page. The page is written at the end and as a whole.
  f.log = read_run_log(o.run / "log.jsonl");
  f.config = RunConfig::named((o.run / "config.json").string());
  const std::filesystem::path run = std::filesystem::absolute(o.run).lexically_normal();
  f.name = (run.has_filename() ? run : run.parent_path()).filename().string();
  const std::filesystem::path model = find_model(o.model.empty() ? o.run : o.model);
  f.model = (model.parent_path().filename() / model.filename()).string();

  Context ctx(o.context);
  Codec codec = Codec::load(ctx, model);
  f.codec = codec.config();
  f.parameters = static_cast<double>(codec.parameters().effective_elements());
  const CodecConfig& trained = f.config.codec;
  if (trained.sample_rate != f.codec.sample_rate || trained.audio_channels != f.codec.audio_channels)
    throw Error(ErrorKind::usage, model.string() + ": codes " + std::to_string(f.codec.audio_channels) +
                                      " channels at " + std::to_string(f.codec.sample_rate) + " Hz, expected " +
                                      std::to_string(trained.audio_channels) + " at " +
                                      std::to_string(trained.sample_rate) + " Hz as the run has");
  DatasetOptions d = dataset_options(f.config);
  d.max_bad_fraction = 1;  // training has already accepted the data
  d.threads = o.context.threads;
  const Dataset data(o.data_dir, d);
  f.training_seconds = data.training_seconds();
  f.training_files = static_cast<int64_t>(data.training().size());
  f.on_training = data.held_out().empty();
  const std::vector<int64_t>& files = f.on_training ? data.training() : data.held_out();
  f.held_out_seconds = f.on_training ? data.training_seconds() : data.held_out_seconds();
  f.held_out_files = static_cast<int64_t>(files.size());
  if (const std::optional<uint64_t> then = trained_on(model)) f.other_data = *then != data.fingerprint();

  std::vector<Excerpt> scored = judged_excerpts(data, o.max_seconds);
  // In order of file, as tables are read. The choice itself was made in spread order.
  std::sort(scored.begin(), scored.end(), [](const Excerpt& a, const Excerpt& b) {
    return std::pair(a.clip, a.offset) < std::pair(b.clip, b.offset);
  });
  std::set<int64_t> clips;
  for (const Excerpt& part : scored) clips.insert(part.clip);
  f.scored_files = static_cast<int64_t>(clips.size());
  std::vector<std::string> names;
  for (const Excerpt& part : scored) names.push_back(excerpt_name(data, part));
  const std::vector<size_t> chosen = unlike(names, static_cast<size_t>(std::max<int64_t>(0, o.examples)));
  Baselines baselines(ctx, o.run, f.codec);
  const auto versions = static_cast<double>(2 + baselines.all().size());
  // 16-bit samples; base64 takes four characters for three bytes.
  const auto channels = static_cast<size_t>(f.codec.audio_channels);
  const double seconds =
      std::min(longest_example, audio_budget / (static_cast<double>(std::max<size_t>(1, chosen.size())) *
                                                static_cast<double>(f.codec.sample_rate) * versions * 2 * 4 / 3 *
                                                static_cast<double>(channels)));
  const size_t most = static_cast<size_t>(seconds * static_cast<double>(f.codec.sample_rate)) * channels;
  Evaluation e(codec);
  std::map<size_t, Example> examples;
  for (size_t i = 0; i < scored.size(); ++i) {
    std::vector<float> samples(static_cast<size_t>(scored[i].samples) * channels), decoded;
    data.read(scored[i].clip, scored[i].offset, samples);
    e.add(names[i], samples, &decoded);
    std::vector<std::vector<float>> others = baselines.add(names[i], samples);
    if (std::find(chosen.begin(), chosen.end(), i) != chosen.end()) {
      // Only audio that the page plays is kept, so memory does not grow with the audio that is scored.
      decoded.resize(std::min(decoded.size(), most));
      for (std::vector<float>& other : others) other.resize(decoded.size());
      examples[i] = {.score = i,
                     .original = {samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(decoded.size())},
                     .decoded = std::move(decoded),
                     .others = std::move(others)};
    }
    if (o.progress) o.progress(static_cast<int64_t>(i) + 1, static_cast<int64_t>(scored.size()));
  }
  // In the order in which unlike() chose them: the first few differ most.
  for (const size_t i : chosen) f.examples.push_back(std::move(examples[i]));

  const std::string html = page(f, e, baselines);
  write_file_atomically(o.output, html);
  return {.output = o.output, .bytes = html.size(), .files = f.scored_files, .snr = e.snr()};
}

}  // namespace nacre::training
