#pragma once
// A report on a run in one HTML page: the configuration, the training curves and decoded examples. The file contains
// everything (curves as SVG, images as PNG, audio as WAV). It has no script and no external link.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "nacre/context.h"

namespace nacre::training {

struct ReportOptions {
  std::filesystem::path run;    ///< output folder of train(); log.jsonl and config.json are read
  std::filesystem::path model;  ///< the model to evaluate; empty: the run's best checkpoint
  std::string data_dir;         ///< the folder that the run was trained on
  std::filesystem::path output = "report.html";
  bool overwrite = false;
  double max_seconds = 600;  ///< of held-out audio to score, chosen as in excerpts.h; 0: all of it
  int64_t examples = 6;      ///< number of clips with spectrograms and audio
  ContextOptions context = {};
  /// Called with the number of scored files and of all files.
  std::function<void(int64_t, int64_t)> progress = {};
};

struct ReportResult {
  std::filesystem::path output;
  uint64_t bytes = 0;
  int64_t files = 0;  ///< number of scored files
  double snr = 0;     ///< mean SNR of these files, dB
};

/// Writes the page. Throws Error(usage) if the output exists and overwrite is not set, Error(io) if the run does not
/// exist, Error(input) if its folder has no log of a run.
ReportResult write_report(const ReportOptions&);

}  // namespace nacre::training
