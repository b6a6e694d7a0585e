// Advice derived from figures, and small functions of the trainer: the learning rate's schedule, and the search for a
// model below a path.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numbers>

#include "data/sniff.h"
#include "nacre/files/checkpoint_store.h"
#include "nacre/training/trainer.h"
#include "training/trainer_run.h"

namespace nacre::training {

/// The format must be for one double; longer text is cut at 63 characters.
std::string number(double x, const char* format) {
  char text[64];
  std::snprintf(text, sizeof text, format, x);
  return text;
}

std::vector<std::string> warnings(const HealthFigures& f) {
  std::vector<std::string> w;
  // Alone, because no other figure means anything then.
  if (!std::isfinite(f.output_std) || !std::isfinite(f.output_mean)) {
    w.push_back(
        "the output is not a number: the weights are damaged; go back to an earlier checkpoint and lower the learning "
        "rate");
    return w;
  }
  if (f.snr < 0)
    w.push_back(
        "SNR is negative (" + number(f.snr, "%.1f") +
        " dB): silence would be closer to the original than this output. This is normal early in training. If it "
        "persists, the gradients of the losses conflict (" +
        (f.balanced ? "lower loss.stft and loss.mel beside loss.waveform" : "set loss.balanced") +
        ") or the codebooks carry no information");
  // Levels are compared with the input's standard deviation, so that loud and quiet audio have the same limits.
  if (f.input_std > 0 && std::fabs(f.output_mean - f.input_mean) > 0.1 * f.input_std)
    w.push_back("DC offset: the output's mean is " + number(f.output_mean, "%+.4f") + ", the input's " +
                number(f.input_mean, "%+.4f") +
                ". The waveform loss alone can leave an offset; the spectral losses should remove it");
  if (f.input_std > 0 && f.output_std < 0.5 * f.input_std)
    w.push_back("the output is too quiet: std " + number(f.output_std) + " against " + number(f.input_std) +
                " of the input. The decoder still outputs averages; train longer, or check the use of the codebooks");
  if (f.input_std > 0 && f.output_std > 2 * f.input_std)
    w.push_back("the output is too loud: std " + number(f.output_std) + " against " + number(f.input_std) +
                " of the input. Lower the learning rate");
  std::string collapsed;
  // A short evaluation has fewer frames than a codebook has codes; usage is at most their quotient then.
  const double possible = std::min(1.0, static_cast<double>(f.codes_seen) / static_cast<double>(f.codebook_size));
  for (size_t i = 0; i < f.usage.size(); ++i)
    if (f.usage[i] < 0.1 * possible) collapsed += (collapsed.empty() ? "" : ", ") + std::to_string(i);
  const bool several = collapsed.find(',') != std::string::npos;
  if (!collapsed.empty())
    w.push_back("codebook collapsed: codebook" + std::string(several ? "s " : " ") + collapsed +
                (several ? " use" : " uses") + " less than a tenth of the codes, so that bits carry no information; " +
                (!f.codebooks_from_data ? "start codebooks from data (training.codebook_start_rows)"
                 : !f.ema               ? "train codebooks by moving averages (codec.quantizer=ema)"
                                        : "use fewer codes (codec.codebook_size)") +
                ", or train with more frames per batch (training.batch_size, training.segment_length)");
  // A discriminator that is right about everything gives the codec no direction, and one that says the same of both
  // (right about real + right about fake = 1) sees no difference.
  if (!f.discriminators.empty()) {
    std::string won, dead;
    for (const DiscriminatorMetrics& d : f.discriminators) {
      const auto add = [&](std::string& names) { names += (names.empty() ? "" : ", ") + d.name; };
      if (d.real > 0.97f && d.fake > 0.97f) add(won);
      // In their first steps all discriminators say the same of everything.
      if (f.step >= 500 && std::fabs(d.real + d.fake - 1) < 0.02f) add(dead);
    }
    if (!won.empty())
      w.push_back(
          "discriminators have won: " + won +
          " are right about more than 97 % of the recorded and of the decoded audio, so the codec learns little "
          "from them. Lower discriminator.learning_rate");
    if (!dead.empty())
      w.push_back("discriminators are dead: " + dead +
                  " say the same of recorded and of decoded audio. Raise discriminator.learning_rate, unless the codec "
                  "has become very good");
    // Shares that a balanced configuration asks for are no surprise.
    if (f.adversarial_share > std::max(0.5, f.adversarial_share_set + 0.1))
      w.push_back("the discriminators steer the codec: their losses are " + number(100 * f.adversarial_share, "%.0f") +
                  " % of the gradient, more than waveform and spectra together. Lower loss.adversarial and "
                  "loss.feature");
  }
  return w;
}

/// warmup(step) * schedule(step):
///
///   warmup        (step + 1) / warmup_steps below warmup_steps, then 1. Not 0 in the first step
///   constant      1
///   cosine        final_rate + (1 - final_rate) / 2 * (1 + cos(pi (step + shift) / (end + shift))); behind `end` it
///                 stays at final_rate
///   exponential   rate_decay ^ step
double schedule_factor(const TrainingConfig& t, int64_t step, int64_t end, int64_t shift) {
  double factor = 1;
  if (step < t.warmup_steps) factor = static_cast<double>(step + 1) / static_cast<double>(t.warmup_steps);
  if (t.schedule == Schedule::cosine && end + shift > 0) {
    const double part = std::clamp(static_cast<double>(step + shift) / static_cast<double>(end + shift), 0.0, 1.0);
    factor *= t.final_rate + (1 - t.final_rate) * 0.5 * (1 + std::cos(std::numbers::pi * part));
  }
  if (t.schedule == Schedule::exponential) factor *= std::pow(t.rate_decay, static_cast<double>(step));
  return factor;
}

std::filesystem::path find_model(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  std::error_code failed;
  const fs::file_status status = fs::status(path, failed);
  if (fs::is_regular_file(status)) {
    const std::string reason = mistaken(thing_at(path), Thing::weights);
    if (!reason.empty()) throw Error(ErrorKind::input, path.string() + ": " + reason);
    return path;
  }
  if (fs::is_directory(status)) {
    if (fs::is_regular_file(path / "model.safetensors", failed)) return path / "model.safetensors";
    // A run has no best checkpoint before its first evaluation.
    CheckpointSearch best = best_checkpoint(path);
    if (!best.found) best = newest_checkpoint(path);
    if (best.found) return best.found->file("model.safetensors");
    std::string why;
    for (const DamagedCheckpoint& d : best.damaged) why += "; " + d.path.string() + " is damaged: " + d.reason;
    if (why.empty()) why = about_folder(path, Thing::weights);
    throw Error(ErrorKind::input, path.string() + ": contains no model.safetensors and no usable checkpoint" + why);
  }
  if (fs::exists(status))
    throw Error(ErrorKind::io, path.string() + ": is not a regular file, expected a model (safetensors)");
  const std::vector<std::string> names = CodecConfig::names();
  const bool is_name = std::find(names.begin(), names.end(), path.string()) != names.end();
  throw Error(ErrorKind::io, path.string() + ": cannot open: " +
                                 (failed ? failed.message() : std::string("No such file or directory")) +
                                 (is_name ? "; it is the name of a configuration, and nacre train makes a model of it"
                                          : "; expected the folder of a run or checkpoint, or a safetensors file"));
}

std::string going_to_be_removed(const std::filesystem::path& model) {
  namespace fs = std::filesystem;
  try {
    // RUN/step-.../model.safetensors: the checkpoint's folder and the run's, which its lock tells from other folders.
    const fs::path folder = fs::weakly_canonical(model).parent_path(), run = folder.parent_path();
    if (!folder.filename().string().starts_with("step-") || !fs::exists(run / "run.lock")) return "";
    const std::vector<int64_t> steps = list_checkpoints(run);
    std::ifstream in(folder / "manifest.json");
    const auto manifest = nlohmann::json::parse(in, nullptr, false);
    if (steps.empty() || !manifest.is_object()) return "";
    const auto schedule = manifest.find("schedule");
    // The newest checkpoint is at the step where the run stops, so the run is finished.
    if (schedule != manifest.end() && schedule->is_object() && steps.back() >= schedule->value("stop", INT64_MAX))
      return "";
    return folder.string() +
           " belongs to an unfinished run, which removes older checkpoints as training continues. A stream can be "
           "decoded only with the model that encoded it; keep this model with nacre export -m " +
           folder.string() + " -o model.safetensors";
  } catch (const std::exception&) {  // an error here only suppresses the warning
    return "";
  }
}

}  // namespace nacre::training
