// The end of an epoch: held-out audio through the codec, one block of lines, logs, warnings.
#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "nacre/training/image.h"
#include "trainer_run.h"

namespace nacre::training {
namespace {

constexpr size_t shown_examples = 3;     // decoded clips that go into the logs
constexpr size_t shown_codebooks = 12;   // on the screen; the logs have all of them
constexpr int64_t measured_batches = 4;  // of held-out crops, for losses and shares

std::string per_cent(double part) { return number(100 * part, "%.0f %%"); }

double mean(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x;
  return sum / static_cast<double>(v.size());
}

/// " [88 79 80 ...]", or nothing where there are too many to read.
std::string each(const std::vector<double>& v, double factor) {
  if (v.size() < 2 || v.size() > shown_codebooks) return "";
  std::string text;
  for (const double x : v) text += (text.empty() ? "" : " ") + number(factor * x, "%.0f");
  return " [" + text + "]";
}

}  // namespace

std::vector<int64_t> judged_clips(const Dataset& data, double seconds) {
  const std::vector<int64_t>& from = data.held_out().empty() ? data.training() : data.held_out();
  // Spread over the list: neighbours are often the same sentence or speaker.
  const size_t n = from.size(), stride = std::max<size_t>(1, n / 17) | 1;
  std::vector<int64_t> order;
  double left = seconds > 0 ? seconds : std::numeric_limits<double>::infinity();
  for (size_t first = 0; first < stride; ++first)
    for (size_t i = first; i < n && left > 0; i += stride) {
      order.push_back(from[i]);
      left -= static_cast<double>(data.clips()[static_cast<size_t>(from[i])].samples) / data.sample_rate();
    }
  return order;
}

DatasetOptions dataset_options(const RunConfig& c) {
  DatasetOptions d;
  d.sample_rate = static_cast<int>(c.codec.sample_rate);
  d.min_samples = c.codec.hop();
  d.valid_fraction = c.training.valid_fraction;
  d.held_out_folders = c.training.held_out_folders;
  d.salvage = c.training.salvage;
  return d;
}

/// Whole clips, with averaged weights where there are some.
void Run::judge(Evaluation& e, int64_t epoch) {
  judged_.parameters().assign(ctx_, step_.parameters(), step_.averaged());
  const int rate = static_cast<int>(config_.codec.sample_rate);
  const std::vector<int64_t> order = judged_clips(data_, config_.training.valid_seconds);
  std::vector<float> decoded;
  for (size_t i = 0; i < order.size(); ++i) {
    const Dataset::Samples samples = data_.load(order[i]);
    const std::string& path = data_.clips()[static_cast<size_t>(order[i])].path;
    e.add(path, *samples, &decoded);
    if (i >= shown_examples) continue;
    const std::string name = std::to_string(i) + "/" + path;
    // Once: before training where that is judged, else at the end of the first epoch.
    if (epoch == (options_.init.empty() ? 0 : 1)) {
      events_->audio("original/" + name, 0, *samples, rate);
      events_->image("spectrogram_original/" + name, 0, spectrogram(*samples));
    }
    events_->audio("decoded/" + name, done_, decoded, rate);
    events_->image("spectrogram_decoded/" + name, done_, spectrogram(decoded));
  }
}

/// Losses and gradient shares on held-out crops that are the same each time, with the training weights.
StepMetrics Run::measure_held_out() {
  std::vector<int64_t> lengths;
  const std::vector<int64_t>& held_out = data_.held_out().empty() ? data_.training() : data_.held_out();
  for (const int64_t c : held_out) lengths.push_back(data_.clips()[static_cast<size_t>(c)].samples);
  const CropSampler crops(held_out, lengths, step_.samples(), step_.batch(), 0);
  const int64_t batches = std::min(crops.steps_per_epoch(), measured_batches);
  const float part = 1.0f / static_cast<float>(batches);
  StepMetrics sum;
  for (int64_t b = 0; b < batches; ++b) {
    Batch batch;
    fill_batch(data_, crops, b, batch);
    std::vector<int32_t> valid;
    for (const Crop& c : batch.crops) valid.push_back(static_cast<int32_t>(c.length));
    step_.load(batch.samples, valid);
    step_.measure();
    const StepMetrics m = step_.metrics();
    sum.waveform += part * m.waveform, sum.stft += part * m.stft, sum.mel += part * m.mel;
    sum.commitment += part * m.commitment;
    sum.share_waveform += part * m.share_waveform, sum.share_stft += part * m.share_stft;
    sum.share_mel += part * m.share_mel;
  }
  return sum;
}

void Run::report(int64_t epoch) {
  Evaluation e(judged_);
  judge(e, epoch);
  const StepMetrics m = measure_held_out();
  snr_ = e.snr();
  const std::vector<double> usage = e.usage(), perplexity = e.perplexity();
  const double norm = epoch_steps_ > 0 ? epoch_gradient_norm_ / static_cast<double>(epoch_steps_) : std::nan("");
  const double speed = trained_seconds_ > 0 ? trained_audio_ / trained_seconds_ : 0;
  epoch_gradient_norm_ = 0;
  epoch_steps_ = 0;

  const bool start = epoch == 0;
  say((start ? "start" : "epoch " + std::to_string(epoch)) + "  step " + std::to_string(done_) + "  loss " +
      number(m.loss()) + " (waveform " + number(m.waveform, "%.4f") + " [" + per_cent(m.share_waveform) + "], STFT " +
      number(m.stft) + " [" + per_cent(m.share_stft) + "], mel " + number(m.mel) + " [" + per_cent(m.share_mel) +
      "], VQ " + number(m.commitment, "%.4f") + ")");
  say("  held out: SNR " + number(snr_, "%+.2f") + " dB  SI-SDR " + number(e.si_sdr(), "%+.2f") + " dB  STOI " +
      (std::isnan(e.stoi()) ? "-" : number(e.stoi())) + "  mel " + number(e.mel()) + "  STFT " + number(e.stft()) +
      "  output mean " + number(e.output_mean(), "%+.4f") + " std " + number(e.output_std()) + " (input " +
      number(e.input_mean(), "%+.4f") + ", " + number(e.input_std()) + ")");
  say("  codebooks: " + per_cent(mean(usage)) + " used" + each(usage, 100) + ", perplexity " +
      number(mean(perplexity), "%.0f") + " of " + std::to_string(config_.codec.codebook_size) + each(perplexity, 1) +
      (start ? "" : "  gradient norm " + number(norm) + "  " + number(speed, "%.1f") + " x real time"));
  double frames = 0;
  for (const ClipScore& c : e.clips()) frames += c.seconds * config_.codec.frame_rate();
  const HealthFigures figures{.snr = snr_,
                              .input_mean = e.input_mean(),
                              .input_std = e.input_std(),
                              .output_mean = e.output_mean(),
                              .output_std = e.output_std(),
                              .usage = usage,
                              .perplexity = perplexity,
                              .codes_seen = static_cast<int64_t>(frames),
                              .codebook_size = config_.codec.codebook_size,
                              .step = done_,
                              .balanced = config_.loss.balanced,
                              .codebooks_from_data = config_.training.codebook_start_rows > 0,
                              .ema = config_.codec.quantizer == QuantizerKind::ema};
  // A start may look unhealthy: training is to cure it.
  if (!start)
    for (const std::string& w : warnings(figures)) say("  warning: " + w);

  nlohmann::ordered_json line = {{"step", done_},
                                 {"epoch", epoch},
                                 {"valid/loss", m.loss()},
                                 {"valid/waveform", m.waveform},
                                 {"valid/stft", m.stft},
                                 {"valid/mel", m.mel},
                                 {"valid/vq", m.commitment},
                                 {"valid/share_waveform", m.share_waveform},
                                 {"valid/share_stft", m.share_stft},
                                 {"valid/share_mel", m.share_mel},
                                 {"valid/snr", snr_},
                                 {"valid/si_sdr", e.si_sdr()},
                                 {"valid/segmental_snr", e.segmental_snr()},
                                 {"valid/stoi", e.stoi()},
                                 {"valid/estoi", e.estoi()},
                                 {"valid/mel_distance", e.mel()},
                                 {"valid/stft_distance", e.stft()},
                                 {"valid/output_mean", e.output_mean()},
                                 {"valid/output_std", e.output_std()},
                                 {"valid/input_mean", e.input_mean()},
                                 {"valid/input_std", e.input_std()},
                                 {"trained_seconds", trained_seconds_}};
  if (!start) {
    line["valid/grad_norm"] = norm;
    line["valid/audio_seconds_per_second"] = speed;
  }
  for (const auto& [key, value] : line.items())
    if (key.rfind("valid/", 0) == 0) events_->scalar(key, done_, value.get<double>());
  for (size_t i = 0; i < usage.size(); ++i) {
    events_->scalar("codebook_usage/" + std::to_string(i), done_, usage[i]);
    events_->scalar("codebook_perplexity/" + std::to_string(i), done_, perplexity[i]);
  }
  line["codebook_usage"] = usage;
  line["codebook_perplexity"] = perplexity;
  log_->write(line);
}

}  // namespace nacre::training
