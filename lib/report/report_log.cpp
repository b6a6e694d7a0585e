// Reads log.jsonl of a run. A run that was resumed has logged some steps twice. The later lines replace the earlier
// ones.
#include "report/report_log.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "nacre/error.h"

namespace nacre::training {
namespace {

using json = nlohmann::ordered_json;  // terms are listed in the order of the log

/// NaN for what a line does not have, which charts and tables leave out.
double value(const json& line, const std::string& key) {
  const auto it = line.find(key);
  return it != line.end() && it->is_number() ? it->get<double>() : std::nan("");
}
std::vector<double> values(const json& line, const char* key) {
  std::vector<double> v;
  if (const auto it = line.find(key); it != line.end() && it->is_array())
    for (const json& x : *it) v.push_back(x.is_number() ? x.get<double>() : std::nan(""));
  return v;
}
/// Adds the names of a line's terms. Lines of steps have "<name>/loss", lines of evaluations "valid/share_<name>".
void collect_terms(const json& line, std::vector<std::string>& terms) {
  constexpr std::string_view tail = "/loss", head = "valid/share_";
  for (const auto& [key, value] : line.items()) {
    std::string name;
    if (key.starts_with(head))
      name = key.substr(head.size());
    else if (key.ends_with(tail) && key != "valid/loss")
      name = key.substr(0, key.size() - tail.size());
    if (!name.empty() && std::find(terms.begin(), terms.end(), name) == terms.end()) terms.push_back(name);
  }
}
std::vector<double> of_terms(const json& line, const std::vector<std::string>& terms, const std::string& before,
                             const std::string& after) {
  std::vector<double> v;
  for (const std::string& name : terms) v.push_back(value(line, before + name + after));
  return v;
}
template <class Line>
/// Drops the lines of steps that a later process made again.
void forget(std::vector<Line>& lines, double from) {
  while (!lines.empty() && lines.back().step >= from) lines.pop_back();
}

}  // namespace

double term_of(const std::vector<double>& of_line, size_t i) { return i < of_line.size() ? of_line[i] : std::nan(""); }

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
    // A line that was cut by a full disk or a kill is skipped.
    const json line = json::parse(text, nullptr, false);
    if (!line.is_object()) continue;
    const double step = value(line, "step");
    // Below 2^53, so that the number is exact; also false for NaN.
    if (!(step >= 0 && step < 1e15)) continue;
    const auto of = [&](const char* key) { return value(line, key); };
    collect_terms(line, log.terms);
    if (line.contains("valid/loss")) {
      // An evaluation comes after the step of its number, so it replaces evaluations from that step on, but keeps its
      // training line.
      forget(log.valid, step);
      forget(log.train, step + 1);
      log.valid.push_back({.step = step,
                           .epoch = of("epoch"),
                           .loss = of("valid/loss"),
                           .commitment = of("valid/vq"),
                           .terms = of_terms(line, log.terms, "valid/", ""),
                           .shares = of_terms(line, log.terms, "valid/share_", ""),
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
        // The figure starts at 0 with every process: where it falls, the last one's total is added.
        if (s < seconds) log.trained_seconds += seconds;
        seconds = s;
      }
    } else if (line.contains("loss")) {
      forget(log.train, step);
      forget(log.valid, step);
      log.train.push_back({.step = step,
                           .loss = of("loss"),
                           .commitment = of("vq/commitment_loss"),
                           .terms = of_terms(line, log.terms, "", "/loss")});
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
