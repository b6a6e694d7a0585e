#include "report/report_log.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "nacre/error.h"

namespace nacre::training {
namespace {

using nlohmann::json;

double value(const json& line, const char* key) {
  const auto it = line.find(key);
  return it != line.end() && it->is_number() ? it->get<double>() : std::nan("");
}
std::vector<double> values(const json& line, const char* key) {
  std::vector<double> v;
  if (const auto it = line.find(key); it != line.end() && it->is_array())
    for (const json& x : *it) v.push_back(x.is_number() ? x.get<double>() : std::nan(""));
  return v;
}
template <class Line>
void forget(std::vector<Line>& lines, double from) {
  while (!lines.empty() && lines.back().step >= from) lines.pop_back();
}

}  // namespace

RunLog read_run_log(const std::filesystem::path& file) {
  namespace fs = std::filesystem;
  const fs::path run = file.parent_path();
  const char* const expected = "; --run is the folder that nacre train wrote";
  std::error_code failed;
  if (!fs::exists(run, failed)) throw Error(ErrorKind::io, run.string() + ": no such folder" + expected);
  if (!fs::is_directory(run, failed)) throw Error(ErrorKind::io, run.string() + ": is a file" + expected);
  if (!fs::exists(file, failed))
    throw Error(ErrorKind::input, run.string() + ": is not a run, it has no " + file.filename().string() + expected);
  std::ifstream in(file, std::ios::binary);
  if (!in) throw Error(ErrorKind::io, file.string() + ": cannot open");
  RunLog log;
  double seconds = 0;  // of the current start of the run
  for (std::string text; std::getline(in, text);) {
    const json line = json::parse(text, nullptr, false);
    if (!line.is_object()) continue;
    const double step = value(line, "step");
    if (!(step >= 0 && step < 1e15)) continue;
    const auto of = [&](const char* key) { return value(line, key); };
    if (line.contains("valid/loss")) {
      forget(log.valid, step);
      forget(log.train, step + 1);
      log.valid.push_back({.step = step,
                           .epoch = of("epoch"),
                           .loss = of("valid/loss"),
                           .waveform = of("valid/waveform"),
                           .stft = of("valid/stft"),
                           .mel = of("valid/mel"),
                           .commitment = of("valid/vq"),
                           .share_waveform = of("valid/share_waveform"),
                           .share_stft = of("valid/share_stft"),
                           .share_mel = of("valid/share_mel"),
                           .snr = of("valid/snr"),
                           .si_sdr = of("valid/si_sdr"),
                           .input_mean = of("valid/input_mean"),
                           .input_std = of("valid/input_std"),
                           .output_mean = of("valid/output_mean"),
                           .output_std = of("valid/output_std"),
                           .gradient_norm = of("valid/grad_norm"),
                           .usage = values(line, "codebook_usage"),
                           .perplexity = values(line, "codebook_perplexity")});
      if (const double s = of("trained_seconds"); s >= 0) {
        if (s < seconds) log.trained_seconds += seconds;
        seconds = s;
      }
    } else if (line.contains("loss")) {
      forget(log.train, step);
      forget(log.valid, step);
      log.train.push_back({.step = step,
                           .loss = of("loss"),
                           .waveform = of("waveform/loss"),
                           .stft = of("stft/loss"),
                           .mel = of("mel/loss"),
                           .commitment = of("vq/commitment_loss")});
    }
  }
  log.trained_seconds += seconds;
  double last = -1;
  if (!log.train.empty()) last = log.train.back().step;
  if (!log.valid.empty()) last = std::max(last, log.valid.back().step);
  if (last < 0) throw Error(ErrorKind::input, file.string() + ": contains no line of a training run");
  log.step = static_cast<int64_t>(last);
  return log;
}

}  // namespace nacre::training
