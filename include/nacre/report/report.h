#pragma once
// A run as one page: what was trained, how it went, how it sounds. One HTML file with everything inside (curves as SVG,
// pictures as PNG, sound as WAV), no script, no link to anywhere.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "nacre/context.h"

namespace nacre::training {

struct ReportOptions {
  std::filesystem::path run;    ///< what train() wrote: log.jsonl and config.json are read
  std::filesystem::path model;  ///< what is judged; empty: the run's best checkpoint
  std::string data_dir;         ///< the folder the run was trained on
  std::filesystem::path output = "report.html";
  bool overwrite = false;
  double max_seconds = 600;  ///< of held-out audio that is scored, as excerpts.h chooses it; 0: all of it
  int64_t examples = 6;      ///< clips to look at and to listen to
  ContextOptions context = {};
  /// Files scored, files in all.
  std::function<void(int64_t, int64_t)> progress = {};
};

struct ReportResult {
  std::filesystem::path output;
  uint64_t bytes = 0;
  int64_t files = 0;  ///< scored
  double snr = 0;     ///< mean over them
};

/// Throws Error(usage) when the output exists and overwrite is not set, Error(io) when there is no such run, Error(input)
/// when the folder has no log of one.
ReportResult write_report(const ReportOptions&);

}  // namespace nacre::training
