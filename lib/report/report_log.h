#pragma once
// log.jsonl read back, as one history: where a run was resumed from an earlier step, what it did after that step the
// first time is left out.
#include <cstdint>
#include <filesystem>
#include <vector>

namespace nacre::training {

/// What is not in a line, or null there, is NaN.
struct TrainLine {
  double step = 0, loss = 0, waveform = 0, stft = 0, mel = 0, commitment = 0;
};
struct ValidLine {
  double step = 0, epoch = 0, loss = 0, waveform = 0, stft = 0, mel = 0, commitment = 0;
  double share_waveform = 0, share_stft = 0, share_mel = 0;
  double snr = 0, si_sdr = 0, input_mean = 0, input_std = 0, output_mean = 0, output_std = 0, gradient_norm = 0;
  std::vector<double> usage, perplexity;  ///< per codebook
};
struct RunLog {
  std::vector<TrainLine> train;
  std::vector<ValidLine> valid;
  double trained_seconds = 0;  ///< over all starts of the run; those of work that was lost included
  int64_t step = 0;            ///< the last one
};

/// Lines that do not parse are skipped. Throws Error(input) when the file is not there or holds nothing of use.
RunLog read_run_log(const std::filesystem::path& file);

}  // namespace nacre::training
