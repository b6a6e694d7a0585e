#include "info_systems.h"

#include <algorithm>
#include <vector>

#include "jobs.h"
#include "nacre/codec/streaming.h"
#include "nacre/formats/save_weights.h"
#include "nacre/systems/system.h"

namespace nacre::program {
namespace {

using nlohmann::ordered_json;

/// Seconds between a sample's arrival and its reconstruction, apart from computing: one block and both lookaheads.
/// Null if a signal must be complete first.
ordered_json latency(const CodecConfig& c) {
  const auto rate = static_cast<double>(c.sample_rate);
  if (c.segmented()) return static_cast<double>(c.segment) / rate;
  if (c.needs_whole_signal()) return nullptr;
  const StreamingLatency encoding = encoding_latency(c), decoding = decoding_latency(c);
  return static_cast<double>(encoding.block + encoding.lookahead + decoding.lookahead) / rate;
}
/// Whether no sample depends on a later frame.
bool causal(const CodecConfig& c) {
  return !c.segmented() && !c.needs_whole_signal() && encoding_latency(c).lookahead == 0 &&
         decoding_latency(c).lookahead == 0;
}
/// Programs that can hold the weights, as `nacre export --format` names them.
std::vector<std::string> formats(const CodecConfig& c) {
  std::vector<std::string> found;
  if (not_for_hugging_face(c).empty()) found.push_back("hf");
  if (not_for_descript(c).empty()) found.push_back("descript");
  if (not_for_encodec(c).empty()) found.push_back("encodec");
  if (not_for_audiolm(c).empty()) found.push_back("audiolm");
  return found;
}

std::string giga(const ordered_json& count) { return fixed(count.get<double>() / 1e9, 3); }

}  // namespace

ordered_json complexity(const CodecConfig& c) {
  // A number of frames at which rounding to whole samples and positions adds nothing.
  constexpr int64_t frames = 8;
  const double per_second = c.frame_rate() / static_cast<double>(frames);
  const auto rate = [&](int64_t macs) { return static_cast<double>(macs) * per_second; };
  Parameters parameters;
  const System system(parameters, c);
  return {{"values", parameters.effective_elements()},
          {"encoder_macs", rate(c.encoder_macs(frames))},
          {"decoder_macs", rate(c.decoder_macs(frames))},
          {"decoder_macs_profiled", rate(c.decoder_macs_profiled(frames))}};
}

std::string complexity_line(const ordered_json& of) {
  return fixed(of["values"].get<double>() / 1e6, 2) + " M values; G multiply-adds per second of audio: encoder " +
         giga(of["encoder_macs"]) + ", decoder " + giga(of["decoder_macs"]) + " (as profilers count: " +
         giga(of["decoder_macs_profiled"]) + ")";
}

ordered_json systems() {
  ordered_json rows = ordered_json::array();
  for (const Preset& p : presets()) {
    const CodecConfig& c = p.codec;
    ordered_json row = {{"name", p.name},
                        {"system", c.network},
                        {"sample_rate", c.sample_rate},
                        {"audio_channels", c.audio_channels},
                        {"bitrate", c.nominal_bitrate()},
                        {"frame_rate", c.frame_rate()}};
    row.update(complexity(c));
    row["latency"] = latency(c), row["causal"] = causal(c), row["formats"] = formats(c);
    rows.push_back(std::move(row));
  }
  return rows;
}

std::string systems_table(const ordered_json& systems) {
  std::vector<std::vector<std::string>> rows{
      {"configuration", "system", "Hz", "kbit/s", "frames/s", "values", "encode", "decode", "profiled", "latency",
       "causal", "exchanges with"},
      {"", "", "", "", "", "M", "GMAC/s", "GMAC/s", "GMAC/s", "ms", "", ""}};
  for (const ordered_json& s : systems) {
    const auto number = [&](const char* key, double scale, int digits) {
      return s[key].is_null() ? "-" : fixed(scale * s[key].get<double>(), digits);
    };
    std::string formats;
    for (const auto& f : s["formats"]) formats += (formats.empty() ? "" : ", ") + f.get<std::string>();
    rows.push_back({s["name"].get<std::string>(), s["system"].get<std::string>(),
                    number("sample_rate", 1, 0) + (s["audio_channels"] == 2 ? " stereo" : ""),
                    number("bitrate", 1e-3, 2), number("frame_rate", 1, 2), number("values", 1e-6, 2),
                    number("encoder_macs", 1e-9, 3), number("decoder_macs", 1e-9, 3),
                    number("decoder_macs_profiled", 1e-9, 3), number("latency", 1e3, 1),
                    s["causal"].get<bool>() ? "yes" : "no", formats.empty() ? "-" : formats});
  }
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string space(widths[i] - row[i].size(), ' ');
      const bool number = i >= 3 && i <= 9;
      line += (number ? space + row[i] : row[i] + space) + "  ";
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text +
         "values: without codebooks that are moving averages. decode counts transposed convolutions at the rate of their\n"
         "input, profiled at that of their output, as profilers do. latency: one frame and what encoder and decoder look\n"
         "ahead; of segments, one segment. exchanges with: forms of weights for `nacre export --format` and --model.\n";
}

}  // namespace nacre::program
