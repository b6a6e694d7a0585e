#pragma once
// Reads log.jsonl as one history. Where a run was resumed from an earlier step, the lines of its first attempt after
// that step are left out.
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace nacre::training {

/// Values that are absent from a line, or null, are NaN.
struct TrainLine {
  double step = 0, loss = 0, commitment = 0;
  std::vector<double> terms;  ///< values of RunLog::terms; a term that appears in a later line is absent here
};
struct ValidLine {
  double step = 0, epoch = 0, loss = 0, commitment = 0;
  std::vector<double> terms, shares;  ///< of RunLog::terms, as in TrainLine
  double snr = 0, si_sdr = 0, input_mean = 0, input_std = 0, output_mean = 0, output_std = 0, gradient_norm = 0;
  std::vector<double> usage, perplexity;  ///< per codebook
};
struct RunLog {
  std::vector<std::string> terms;  ///< names of the terms of the loss, in the order of their appearance
  std::vector<TrainLine> train;
  std::vector<ValidLine> valid;
  double trained_seconds = 0;  ///< over all starts of the run, including work that was lost
  int64_t step = 0;            ///< the last step
};
/// Entry i of a line's terms or shares; NaN if the line does not have it.
double term_of(const std::vector<double>& of_line, size_t i);

/// Skips lines that do not parse. Throws Error(input) if the file does not exist or contains no usable line.
RunLog read_run_log(const std::filesystem::path& file);

}  // namespace nacre::training
