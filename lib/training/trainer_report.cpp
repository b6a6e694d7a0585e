// The end of an epoch: evaluates on held-out audio, prints one block of lines, writes logs and warnings.
//
// An evaluation has two parts. judge() codes whole clips with the averaged weights, in a second model, and scores the
// decoded audio. measure_held_out() runs forward pass and losses of the training step, with the weights that training
// uses, on fixed crops. report() puts both together; evaluate() decides what a failure of either means. Neither part
// changes weights, codebooks, moments or the balancer, so training goes on with the same bits, evaluated or not.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "files/text.h"
#include "nacre/log/image.h"
#include "training/trainer_run.h"

namespace nacre::training {
namespace {

/// The part of the gradient at the waveform that the balancer gives to losses against discriminators; 0 without it.
double adversarial_share_of(const LossConfig& c) {
  if (!c.balanced || !(c.adversarial > 0)) return 0;
  const double against = c.adversarial + c.feature;
  return against / (against + c.waveform + c.stft + c.mel);
}

constexpr size_t shown_examples = 3;     // decoded clips in the logs, the first ones of the list
constexpr int64_t shown_seconds = 10;    // seconds per decoded clip
constexpr size_t shown_codebooks = 12;   // codebooks on the screen; the logs have all of them
constexpr int64_t measured_batches = 4;  // batches of held-out crops, for losses and shares

std::string per_cent(double part) { return number(100 * part, "%.0f %%"); }

/// Thrown if a signal arrives, by the functions that the readers and the scores call in between. evaluate() catches it.
struct StoppedInEvaluation {};

/// A figure on the screen; "-" if no clip has it.
std::string shown(double x, const char* format = "%.3f") { return std::isnan(x) ? "-" : number(x, format); }

double mean(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x;
  return sum / static_cast<double>(v.size());
}

/// " [88 79 80 ...]", or an empty string for one value, which the mean already shows, and for too many.
std::string each(const std::vector<double>& v, double factor) {
  if (v.size() < 2 || v.size() > shown_codebooks) return "";
  std::string text;
  for (const double x : v) text += (text.empty() ? "" : " ") + number(factor * x, "%.0f");
  return " [" + text + "]";
}

}  // namespace

void drop_missing(nlohmann::ordered_json& line) {
  // erase() returns the iterator behind the erased element; only it stays valid.
  for (auto it = line.begin(); it != line.end();)
    // Numbers only: names and counts stay.
    it = it->is_number_float() && !std::isfinite(it->get<double>()) ? line.erase(it) : std::next(it);
}

std::function<void(int64_t, int64_t)> scan_progress(std::FILE* to) {
  const auto start = std::chrono::steady_clock::now();
  // std::function copies its target, so the bar is shared. It is made late: a short scan shows none.
  return [start, to, progress = std::shared_ptr<Progress>()](int64_t done, int64_t files) mutable {
    if (!progress && std::chrono::steady_clock::now() - start < std::chrono::seconds(1)) return;
    if (!progress)
      progress = std::make_shared<Progress>("read", files, "files", ProgressOptions{.to = to, .first = done});
    progress->update(done);
    if (done == files) progress->finish();
  };
}

DatasetOptions dataset_options(const RunConfig& c) {
  DatasetOptions d;
  d.sample_rate = static_cast<int>(c.codec.sample_rate);
  d.channels = static_cast<int>(c.codec.audio_channels);
  d.min_samples = c.codec.hop();  // shorter files have no whole frame
  d.valid_fraction = c.training.valid_fraction;
  d.held_out_folders = c.training.held_out_folders;
  d.salvage = c.training.salvage;
  return d;
}

DatasetOptions noise_options(const RunConfig& c) {
  DatasetOptions d = dataset_options(c);
  d.valid_fraction = 0;
  return d;
}

bool Run::evaluate(int64_t epoch) {
  std::string why;
  try {
    report(epoch);
    progress_->update(done_);
    return true;
  } catch (const StoppedInEvaluation&) {
    say("a signal stopped the evaluation at step " + std::to_string(done_) +
        "; it is repeated when the run is resumed");
  } catch (const Error& e) {
    // After either, training cannot go on.
    if (e.kind() == ErrorKind::device || e.kind() == ErrorKind::diverged) throw;
    why = e.kind() == ErrorKind::memory ? "not enough memory; a smaller training.valid_seconds needs less" : e.what();
  } catch (const std::bad_alloc&) {
    why = "not enough memory; a smaller training.valid_seconds needs less";
  }
  // What report() may have set before it failed. The means of the epoch begin anew, as after an evaluation that
  // succeeds.
  snr_ = std::nan("");
  take_discriminators();
  epoch_gradient_norm_ = 0;
  epoch_steps_ = 0;
  if (!why.empty())
    say("warning: the evaluation at step " + std::to_string(done_) + " failed: " + why +
        "; training goes on without its scores");
  return false;
}

/// Scores whole clips and excerpts of long ones, with averaged weights if there are any.
void Run::judge(Evaluation& e, int64_t epoch) {
  const auto look = [this] {
    if (stopped()) throw StoppedInEvaluation{};
  };
  // The average holds trained values only; assign() also copies the codebooks and derives the effective weights. A
  // model of its own, so that an evaluation changes nothing that training uses.
  judged_.parameters().assign(ctx_, step_.parameters(), step_.averaged());
  const int rate = static_cast<int>(config_.codec.sample_rate), channels = data_.channels();
  // The choice is made once per process, so that the scores of all epochs are comparable. It depends on the data and
  // the configuration alone.
  if (!judged_parts_) judged_parts_.emplace(data_, judged_excerpts(data_, config_.training.valid_seconds), look);
  const std::vector<Excerpt>& parts = judged_parts_->excerpts();
  const double all = total_seconds(data_, parts);
  const auto begun = Clock::now();
  double before = 0;
  const JudgeHooks hooks{.progress = [&](double seconds) {
    look();
    // `seconds` is within the present clip.
    const double done = before + seconds;  // the time that is left is extrapolated from the speed so far
    progress_->update(done_, "evaluating: " + number(done, "%.0f") + " of " + number(all, "%.0f") + " s, " +
                                 describe_duration(since(begun) * (all - done) / std::max(done, 1e-3)) + " left");
  }};
  std::vector<float> decoded;
  for (size_t i = 0; i < parts.size(); ++i) {
    look();
    const std::vector<float> samples = judged_parts_->samples(i);
    const std::string part = excerpt_name(data_, parts[i]);
    e.add(part, samples, i < shown_examples ? &decoded : nullptr, hooks);
    before += static_cast<double>(samples.size()) / rate / channels;
    if (i >= shown_examples) continue;
    // n is a number of values, all channels counted.
    const size_t n = std::min(samples.size(), static_cast<size_t>(shown_seconds * rate * channels));
    const std::span<const float> x = std::span(samples).first(n), y = std::span(decoded).first(n);
    const std::string name = std::to_string(i) + "/" + part;
    // Originals are logged once: before training if the start is scored, otherwise at the end of the first epoch.
    if (epoch == (options_.init.empty() ? 0 : 1)) {
      events_->audio("original/" + name, 0, x, rate, channels);
      events_->image("spectrogram_original/" + name, 0, spectrogram(x, {.channels = channels}));
    }
    events_->audio("decoded/" + name, done_, y, rate, channels);
    events_->image("spectrogram_decoded/" + name, done_, spectrogram(y, {.channels = channels}));
  }
}

/// The noise that is mixed in, and settings with which the codec cannot learn what it should.
void Run::say_noise() {
  const TrainingConfig& t = config_.training;
  const bool told = config_.codec.denoise != Denoise::none;
  if (!noise_data_) {
    if (told) say("warning: codec.denoise is set, and without --noise-dir the codec does not learn to remove noise");
    return;
  }
  say("noise: " + describe_parts(*noise_data_) + "; in " + number(100 * t.noise_share, "%.3g") + " % of the inputs, " +
      std::to_string(t.noise_gain[0]) + " to " + std::to_string(t.noise_gain[1]) + " dB; " +
      number(100 * t.clean_target, "%.3g") + " % of the targets are clean");
  say_bad(*noise_data_, "bad_noise_files.txt");
  const bool both = t.clean_target > 0 && t.clean_target < 1;
  if (t.noise_share == 0 || told == both) return;
  say("warning: training.clean_target is " + number(t.clean_target, "%.3g") + ", and the codec is " +
      (told ? "to denoise on request only (codec.denoise): a share such as 0.5 trains both outputs"
            : "not told which segments have a clean target; 1 trains it to remove noise, 0 to keep it"));
}

/// Losses and gradient shares on held-out crops, with the training weights. The crops are the same each time.
StepMetrics Run::measure_held_out() {
  const auto look = [this] {
    if (stopped()) throw StoppedInEvaluation{};
  };
  if (!measured_parts_) {
    std::vector<int64_t> lengths;
    const std::vector<int64_t>& held_out = data_.held_out().empty() ? data_.training() : data_.held_out();
    for (const int64_t c : held_out) lengths.push_back(data_.clips()[static_cast<size_t>(c)].samples);
    // Batches 0, 1, ... of a sampler over the held-out clips, of the size of training batches, as the plan demands.
    // Seed 0 whatever the run's seed: runs on the same data with equal batches are measured on the same crops.
    const CropSampler crops(held_out, lengths, step_.samples(), step_.batch(), 0);
    std::vector<Excerpt> parts;
    for (int64_t b = 0; b < std::min(crops.steps_per_epoch(), measured_batches); ++b)
      for (int64_t i = 0; i < step_.batch(); ++i) {
        const Crop crop = crops.at(b, i);
        parts.push_back({crop.clip, crop.offset, crop.length});
      }
    measured_parts_.emplace(data_, std::move(parts), look);
  }
  const auto batch = static_cast<size_t>(step_.batch()), channels = static_cast<size_t>(data_.channels()),
             row = static_cast<size_t>(step_.samples()) * channels,
             batches = measured_parts_->excerpts().size() / batch;
  const float part = 1.0f / static_cast<float>(batches);  // the figures are means over the batches
  StepMetrics sum;
  if (noise_) step_.set_labels(std::vector<int32_t>(batch, 0));  // as eval without --denoise
  for (size_t b = 0; b < batches; ++b) {
    look();
    // [batch, samples, channels]. A clip that is shorter than a segment is followed by zeros, which do not count.
    std::vector<float> audio(batch * row, 0.0f);
    std::vector<int32_t> valid;
    for (size_t i = 0; i < batch; ++i) {
      const std::vector<float> samples = measured_parts_->samples(b * batch + i);
      std::copy(samples.begin(), samples.end(), audio.begin() + static_cast<std::ptrdiff_t>(i * row));
      valid.push_back(static_cast<int32_t>(samples.size() / channels));
    }
    // All codebooks, without dropout.
    step_.load(audio, valid);
    step_.set_adversarial(done_ >= config_.loss.adversarial_start);  // shares are those of the next step
    step_.measure();
    const StepMetrics m = step_.metrics();
    if (sum.terms.empty())
      for (const TermMetrics& t : m.terms) sum.terms.push_back({.name = t.name, .title = t.title, .in_sum = t.in_sum});
    for (size_t i = 0; i < m.terms.size(); ++i) {
      sum.terms[i].value += part * m.terms[i].value;
      sum.terms[i].share += part * m.terms[i].share;
    }
    sum.commitment += part * m.commitment;
  }
  return sum;
}

std::vector<DiscriminatorMetrics> Run::take_discriminators() {
  std::vector<DiscriminatorMetrics> all = std::exchange(epoch_discriminators_, {});
  const float part = 1.0f / static_cast<float>(std::max<int64_t>(std::exchange(epoch_judged_, 0), 1));
  for (DiscriminatorMetrics& d : all) d.loss *= part, d.real *= part, d.fake *= part;
  return all;
}

void Run::report(int64_t epoch) {
  Evaluation e(judged_);
  judge(e, epoch);
  // After judge(), which a signal may stop: it takes most of the time.
  const StepMetrics m = measure_held_out();
  // From here on a signal stops nothing, so a score always belongs to a complete evaluation.
  snr_ = e.snr();
  const std::vector<double> usage = e.usage(), perplexity = e.perplexity();
  const double norm = epoch_steps_ > 0 ? epoch_gradient_norm_ / static_cast<double>(epoch_steps_) : std::nan("");
  const double speed = trained_seconds_ > 0 ? trained_audio_ / trained_seconds_ : 0;
  const std::vector<DiscriminatorMetrics> discriminators = take_discriminators();
  epoch_gradient_norm_ = 0;
  epoch_steps_ = 0;

  const bool start = epoch == 0;
  const auto loss_text = [](float loss) { return number(loss, loss_format(loss)); };
  // Lines for the reader, then the same figures and more for the logs. `adversarial_share` is the part of the gradient
  // that the losses against discriminators have.
  std::string terms;
  double adversarial_share = 0;
  for (const TermMetrics& t : m.terms) {
    const auto share = static_cast<double>(t.share);
    terms += t.title + " " + loss_text(t.value) + (std::isnan(share) ? "" : " [" + per_cent(share) + "]") + ", ";
    if (!t.in_sum && !std::isnan(share)) adversarial_share += share;
  }
  say((start ? "start" : "epoch " + std::to_string(epoch)) + "  step " + std::to_string(done_) + "  loss " +
      number(m.loss()) + " (" + terms + "VQ " + loss_text(m.commitment) + ")");
  const char* where = data_.held_out().empty() ? "training audio" : "held out";
  say("  " + std::string(where) + ": SNR " + shown(snr_, "%+.2f") + " dB  SI-SDR " + shown(e.si_sdr(), "%+.2f") +
      " dB  STOI " + shown(e.stoi()) + "  mel " + shown(e.mel()) + "  STFT " + shown(e.stft()) + "  output mean " +
      number(e.output_mean(), "%+.4f") + " std " + number(e.output_std()) + " (input " +
      number(e.input_mean(), "%+.4f") + ", " + number(e.input_std()) + ")");
  say("  codebooks: " + per_cent(mean(usage)) + " used" + each(usage, 100) + ", perplexity " +
      number(mean(perplexity), "%.0f") + " of " + std::to_string(config_.codec.codebook_size) + each(perplexity, 1) +
      (start ? "" : "  gradient norm " + number(norm) + "  " + number(speed, "%.1f") + " x real time"));
  if (!discriminators.empty()) {
    std::string line;
    for (const DiscriminatorMetrics& d : discriminators)
      line += (line.empty() ? "" : ", ") + d.name + " " + number(static_cast<double>(d.loss)) + " [" +
              per_cent(static_cast<double>(d.real)) + ", " + per_cent(static_cast<double>(d.fake)) + "]";
    say("  discriminators, loss [right about real, decoded]: " + line);
  }
  int64_t frames = 0;
  for (const ClipScore& c : e.clips()) frames += c.frames;
  const HealthFigures figures{.snr = snr_,
                              .input_mean = e.input_mean(),
                              .input_std = e.input_std(),
                              .output_mean = e.output_mean(),
                              .output_std = e.output_std(),
                              .usage = usage,
                              .perplexity = perplexity,
                              .codes_seen = frames,
                              .codebook_size = config_.codec.codebook_size,
                              .step = done_,
                              .balanced = config_.loss.balanced,
                              .codebooks_from_data = config_.training.codebook_start_rows > 0,
                              .ema = config_.codec.quantizer == QuantizerKind::ema,
                              .discriminators = discriminators,
                              .adversarial_share = adversarial_share,
                              .adversarial_share_set = adversarial_share_of(config_.loss)};
  // No warnings about a start: training is expected to improve it.
  if (!start)
    for (const std::string& w : warnings(figures)) say("  warning: " + w);

  nlohmann::ordered_json line = {{"step", done_}, {"epoch", epoch}, {"judged_on", where}, {"valid/loss", m.loss()}};
  for (const TermMetrics& t : m.terms) line["valid/" + t.name] = t.value;
  line["valid/vq"] = m.commitment;
  for (const TermMetrics& t : m.terms) line["valid/share_" + t.name] = t.share;
  line.update({{"valid/snr", snr_},
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
               {"trained_seconds", trained_seconds_}});
  for (const DiscriminatorMetrics& d : discriminators)
    line.update({{"discriminator/" + d.name + "_loss", d.loss},
                 {"discriminator/" + d.name + "_right_real", d.real},
                 {"discriminator/" + d.name + "_right_fake", d.fake}});
  if (!start) {
    line["valid/grad_norm"] = norm;
    line["valid/audio_seconds_per_second"] = speed;
  }
  drop_missing(line);
  // TensorBoard gets the figures of this evaluation; the discriminators' are in its curves of single steps.
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
