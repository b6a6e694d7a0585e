#include "nacre/training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "nacre/atomic_file.h"
#include "nacre/random.h"
#include "nacre/safetensors.h"
#include "nacre/training/audio.h"
#include "nacre/training/checkpoint_store.h"
#include "nacre/training/dataset.h"
#include "nacre/training/image.h"
#include "nacre/training/json_log.h"
#include "nacre/training/progress.h"
#include "nacre/training/sampler.h"
#include "nacre/training/tensorboard.h"
#include "trainer_state.h"

namespace nacre::training {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

constexpr int shown_examples = 3;         // decoded clips that go into the logs
constexpr int skipped_before_stop = 20;   // updates in a row that were not finite
constexpr double saves_apart = 30;        // seconds between checkpoints at the ends of very short epochs

std::string number(double x, const char* format = "%.3f") {
  char text[64];
  std::snprintf(text, sizeof text, format, x);
  return text;
}
std::string per_cent(double part) { return number(100 * part, "%.0f %%"); }

/// All that a run holds while it goes.
class Run {
 public:
  explicit Run(const TrainerOptions&);
  TrainResult go();

 private:
  void say(const std::string& line);
  void begin();
  void one_step();
  void report(int64_t epoch);
  void save(const std::string& why);
  std::vector<int32_t> drop_codebooks() const;
  int64_t epoch_of(int64_t step) const { return (step + steps_per_epoch_ - 1) / steps_per_epoch_; }

  TrainerOptions options_;
  RunConfig config_;
  Context ctx_;
  CheckpointStore store_;
  Dataset data_;
  TrainingStep step_;
  Codec judged_;
  CropSampler sampler_;
  std::optional<JsonLog> log_;
  std::optional<EventWriter> events_;
  std::optional<Prefetcher> batches_;
  std::optional<Progress> progress_;
  int64_t steps_per_epoch_, steps_, done_ = 0, saved_at_ = -1;
  int64_t skipped_in_a_row_ = 0, skipped_seen_ = 0;
  double trained_seconds_ = 0, trained_audio_ = 0;
  double epoch_gradient_norm_ = 0;
  int64_t epoch_steps_ = 0;
  Clock::time_point last_save_ = Clock::now();
  double snr_ = std::nan("");
  std::filesystem::path last_checkpoint_;
};

DatasetOptions dataset_options(const TrainerOptions& o) {
  DatasetOptions d = training::dataset_options(o.config);
  d.max_bad_files = o.max_bad;
  d.threads = o.context.threads;
  return d;
}

Run::Run(const TrainerOptions& options)
    : options_(options),
      config_((options.config.check(), options.config)),
      ctx_(options.context),
      store_(options.run, {.keep_last = 3, .higher_is_better = true}),
      data_(options.data_dir, dataset_options(options)),
      step_(ctx_, config_.codec, config_.loss, config_.optimizer, config_.training.batch_size,
            config_.training.segment_length, config_.training.seed),
      judged_(ctx_, config_.codec),
      sampler_(data_, step_.samples(), config_.training.batch_size, config_.training.seed),
      steps_per_epoch_(sampler_.steps_per_epoch()),
      steps_(config_.training.num_epochs * steps_per_epoch_) {
  if (config_.training.max_steps > 0) steps_ = std::min(steps_, config_.training.max_steps);
}

void Run::say(const std::string& line) {
  if (progress_) {
    progress_->message(line, options_.out);
  } else {
    std::fprintf(options_.out, "%s\n", line.c_str());
    std::fflush(options_.out);
  }
}

/// Resume, or start anew.
void Run::begin() {
  const std::vector<Clip>& clips = data_.clips();
  say("data: " + std::to_string(data_.training().size()) + " files, " + describe_duration(data_.training_seconds()) +
      " to train on; " + std::to_string(data_.held_out().size()) + " files, " +
      describe_duration(data_.held_out_seconds()) + " held out");
  if (!data_.bad().empty())
    say(describe_bad(data_.bad(), static_cast<int64_t>(clips.size() + data_.bad().size()), 20));

  std::optional<Checkpoint> from;
  if (options_.resume == "auto") {
    const CheckpointSearch search = store_.resume();
    for (const DamagedCheckpoint& d : search.damaged) say("warning: " + d.path.string() + " is damaged: " + d.reason);
    from = search.found;
  } else if (options_.resume != "never") {
    from = verify_checkpoint(options_.resume);
  }
  if (options_.resume == "never" && !list_checkpoints(options_.run).empty())
    throw Error(ErrorKind::usage, "--resume never: " + options_.run.string() +
                                      " already holds checkpoints; choose another folder or remove them");
  if (from) {
    const RunIdentity now = identity_of(config_, data_.fingerprint(), ctx_);
    const RunIdentity then = identity_from_manifest(from->manifest);
    const std::vector<std::string> changed = what_forbids_resume(then, now);
    if (!changed.empty()) {
      std::string list;
      for (const std::string& c : changed) list += "\n  " + c;
      if (!options_.allow_change)
        throw Error(ErrorKind::usage, "resume: " + from->path.string() + " was made with other settings:" + list +
                                          "\n  use --allow-change to go on all the same, or another --checkpoint_dir");
      say("warning: resuming with other settings, as asked:" + list);
    }
    if (const std::string bits = what_changes_bits(then, now); !bits.empty())
      say("note: " + bits + "; results may differ in the last bits from a run that was never stopped");
    done_ = restore(step_, *from);
    saved_at_ = done_;
    last_checkpoint_ = from->path;
    say("resumed from " + from->path.string() + " at step " + std::to_string(done_) + " of " + std::to_string(steps_));
  } else if (!options_.init.empty()) {
    const std::filesystem::path weights = find_model(options_.init);
    const LoadReport r = load_parameters(ctx_, step_.parameters(), weights, false);
    say("init: " + std::to_string(r.matched) + " tensors taken from " + weights.string() + ", " +
        std::to_string(r.missing.size()) + " missing, " + std::to_string(r.surplus.size()) + " not used, " +
        std::to_string(r.misshapen.size()) + " of another shape");
    if (r.matched == 0) throw Error(ErrorKind::input, "init: no tensor of " + weights.string() + " fits this model");
    for (const TrainingStep::StateTensor& s : step_.state())
      if (s.name == "adamw.ema") ctx_.copy<float>(step_.parameters().values(), s.values);
  }
  write_file_atomically(options_.run / "config.json", config_.to_json() + "\n");
  if (done_ >= steps_) return;

  const LogFailure failed = [this](const std::string& line) { say("warning: " + line); };
  log_.emplace((options_.run / "log.jsonl").string(), failed);
  events_.emplace(options_.run.string(), EventOptions{.resume_step = from ? done_ : -1, .failed = failed});
  if (!from) events_->text("config", 0, "```\n" + config_.to_json() + "\n```");
  batches_.emplace(data_, sampler_, PrefetchOptions{.first_step = done_, .threads = 1});
  say("model: " + number(static_cast<double>(step_.parameters().effective_elements()) / 1e6, "%.2f") + " M parameters, " +
      number(config_.codec.nominal_bitrate() / 1000, "%.1f") + " kbit/s, " + number(config_.codec.frame_rate(), "%.1f") +
      " frames/s; " + number(static_cast<double>(step_.planned_bytes()) / (1 << 20), "%.0f") +
      " MiB of activations; " + std::to_string(steps_per_epoch_) + " steps per epoch, " + std::to_string(steps_) +
      " in all; " + std::to_string(ctx_.threads()) + " threads, " + ctx_.instruction_set());
  if (!from && options_.init.empty() && config_.training.codebook_start_rows > 0) {
    // The codebooks' first rows come from batches before the first step's, which no step sees again.
    int64_t extra = 0;
    Batch batch;
    std::vector<int32_t> lengths(static_cast<size_t>(step_.batch()));
    step_.start_codebooks(
        [&] {
          fill_batch(data_, sampler_, -(++extra), batch);
          for (size_t i = 0; i < lengths.size(); ++i) lengths[i] = static_cast<int32_t>(batch.crops[i].length);
          step_.load(batch.samples, lengths);
        },
        config_.training.codebook_start_rows);
  }
}

/// DAC's quantizer dropout: the first part of the batch trains with a random number of codebooks.
std::vector<int32_t> Run::drop_codebooks() const {
  const auto n = static_cast<int32_t>(config_.codec.n_codebooks);
  std::vector<int32_t> stages(static_cast<size_t>(step_.batch()), n);
  const auto dropped = static_cast<size_t>(config_.codec.quantizer_dropout * static_cast<double>(stages.size()));
  const Philox draw{config_.training.seed, 0x64726f70ull};
  for (size_t i = 0; i < dropped; ++i)
    stages[i] = 1 + static_cast<int32_t>(draw.below(static_cast<uint64_t>(done_) * stages.size() + i,
                                                    static_cast<uint64_t>(n)));
  return stages;
}

void Run::one_step() {
  const Batch& batch = batches_->next();
  const auto start = Clock::now();
  std::vector<int32_t> lengths;
  double audio = 0;
  for (const Crop& c : batch.crops) {
    lengths.push_back(static_cast<int32_t>(c.length));
    audio += static_cast<double>(c.length) / static_cast<double>(config_.codec.sample_rate);
  }
  step_.load(batch.samples, lengths, drop_codebooks());
  step_.set_learning_rate(config_.optimizer.learning_rate * schedule_factor(config_.training, done_, steps_));
  step_.run();
  ++done_;
  trained_seconds_ += since(start);
  trained_audio_ += audio;
  const StepMetrics m = step_.metrics();
  epoch_gradient_norm_ += m.gradient_norm;
  ++epoch_steps_;
  if (m.skipped > skipped_seen_) {
    skipped_seen_ = m.skipped;
    if (++skipped_in_a_row_ == 1) {
      std::string files;
      for (const Crop& c : batch.crops)
        files += " " + data_.clips()[static_cast<size_t>(c.clip)].path + "@" + std::to_string(c.offset);
      say("warning: step " + std::to_string(done_) +
          ": the gradient is not finite; this update was left out. The batch was:" + files);
    }
    if (skipped_in_a_row_ >= skipped_before_stop)
      throw Error(ErrorKind::diverged,
                  "training diverged: " + std::to_string(skipped_in_a_row_) +
                      " updates in a row had a gradient that is not finite; the last good checkpoint is " +
                      (last_checkpoint_.empty() ? "none" : last_checkpoint_.string()) +
                      "; resume from it with a lower --learning_rate and --allow-change");
  } else {
    skipped_in_a_row_ = 0;
  }
  if (progress_)
    progress_->update(done_, "loss " + number(m.loss()) + "  " + number(trained_audio_ / trained_seconds_, "%.1f") +
                                 " x real time");
  if (done_ % 10 == 0 || done_ == 1) {
    log_->write({{"step", done_},
                 {"epoch", epoch_of(done_)},
                 {"loss", m.loss()},
                 {"waveform/loss", m.waveform},
                 {"stft/loss", m.stft},
                 {"mel/loss", m.mel},
                 {"vq/commitment_loss", m.commitment},
                 {"vq/codebook_loss", m.codebook},
                 {"other/grad_norm", m.gradient_norm},
                 {"other/learning_rate", step_.scalars().lr},
                 {"other/audio_seconds_per_second", trained_audio_ / trained_seconds_},
                 {"other/skipped", m.skipped}});
    events_->scalar("train/loss", done_, m.loss());
    events_->scalar("waveform/loss", done_, m.waveform);
    events_->scalar("stft/loss", done_, m.stft);
    events_->scalar("mel/loss", done_, m.mel);
    events_->scalar("vq/commitment_loss", done_, m.commitment);
    events_->scalar("vq/codebook_loss", done_, m.codebook);
    events_->scalar("other/grad_norm", done_, m.gradient_norm);
    events_->scalar("other/learning_rate", done_, step_.scalars().lr);
  }
}

/// The end of an epoch: held-out audio, one line, logs, warnings.
void Run::report(int64_t epoch) {
  judged_.parameters().assign(ctx_, step_.parameters(), step_.averaged());
  Evaluation e(judged_);
  const std::vector<int64_t>& held_out = data_.held_out().empty() ? data_.training() : data_.held_out();
  std::vector<float> decoded;
  const std::vector<int64_t> order = judged_clips(data_, config_.training.valid_seconds);
  for (size_t i = 0; i < order.size(); ++i) {
    const Dataset::Samples samples = data_.load(order[i]);
    const std::string& path = data_.clips()[static_cast<size_t>(order[i])].path;
    e.add(path, *samples, &decoded);
    if (i < shown_examples) {
      const std::string name = std::to_string(i) + "/";
      const int rate = static_cast<int>(config_.codec.sample_rate);
      if (epoch == 1) {
        events_->audio("original/" + name + path, 0, *samples, rate);
        events_->image("spectrogram_original/" + name + path, 0, spectrogram(*samples));
      }
      events_->audio("decoded/" + name + path, done_, decoded, rate);
      events_->image("spectrogram_decoded/" + name + path, done_, spectrogram(decoded));
    }
  }
  // Loss and gradient shares on fixed held-out crops, with the training weights.
  std::vector<int64_t> lengths;
  for (const int64_t c : held_out) lengths.push_back(data_.clips()[static_cast<size_t>(c)].samples);
  const CropSampler crops(held_out, lengths, step_.samples(), step_.batch(), 0);
  StepMetrics sum;
  const int64_t batches = std::clamp<int64_t>(crops.steps_per_epoch(), 1, 4);
  for (int64_t b = 0; b < batches; ++b) {
    Batch batch;
    fill_batch(data_, crops, b, batch);
    std::vector<int32_t> valid;
    for (const Crop& c : batch.crops) valid.push_back(static_cast<int32_t>(c.length));
    step_.load(batch.samples, valid);
    step_.measure();
    const StepMetrics m = step_.metrics();
    const float part = 1.0f / static_cast<float>(batches);
    sum.waveform += part * m.waveform, sum.stft += part * m.stft, sum.mel += part * m.mel;
    sum.commitment += part * m.commitment;
    sum.share_waveform += part * m.share_waveform, sum.share_stft += part * m.share_stft, sum.share_mel += part * m.share_mel;
  }
  snr_ = e.snr();
  const std::vector<double> usage = e.usage(), perplexity = e.perplexity();
  const auto mean = [](const std::vector<double>& v) {
    double s = 0;
    for (const double x : v) s += x;
    return s / static_cast<double>(v.size());
  };
  const double norm = epoch_steps_ > 0 ? epoch_gradient_norm_ / static_cast<double>(epoch_steps_) : 0;
  const double speed = trained_seconds_ > 0 ? trained_audio_ / trained_seconds_ : 0;
  say("epoch " + std::to_string(epoch) + "  step " + std::to_string(done_) + "  loss " + number(sum.loss()) + " (waveform " +
      number(sum.waveform, "%.4f") + " [" + per_cent(sum.share_waveform) + "], STFT " + number(sum.stft) + " [" +
      per_cent(sum.share_stft) + "], mel " + number(sum.mel) + " [" + per_cent(sum.share_mel) + "], VQ " +
      number(sum.commitment, "%.4f") + ")");
  say("  held out: SNR " + number(snr_, "%+.2f") + " dB  SI-SDR " + number(e.si_sdr(), "%+.2f") + " dB  mel " + number(e.mel()) +
      "  STFT " + number(e.stft()) + "  output mean " + number(e.output_mean(), "%+.4f") + " std " + number(e.output_std()) +
      " (input " + number(e.input_mean(), "%+.4f") + ", " + number(e.input_std()) + ")");
  say("  codebooks: " + per_cent(mean(usage)) + " used, perplexity " + number(mean(perplexity), "%.0f") + " of " +
      std::to_string(config_.codec.codebook_size) + "  gradient norm " + number(norm) + "  " + number(speed, "%.1f") +
      " x real time");
  int64_t frames = 0;
  for (const ClipScore& c : e.clips()) frames += static_cast<int64_t>(c.seconds * config_.codec.frame_rate());
  for (const std::string& w : warnings({.snr = snr_,
                                        .input_mean = e.input_mean(),
                                        .input_std = e.input_std(),
                                        .output_mean = e.output_mean(),
                                        .output_std = e.output_std(),
                                        .usage = usage,
                                        .perplexity = perplexity,
                                        .codes_seen = frames,
                                        .codebook_size = config_.codec.codebook_size,
                                        .step = done_}))
    say("  warning: " + w);
  nlohmann::ordered_json line = {{"step", done_},
                                 {"epoch", epoch},
                                 {"valid/loss", sum.loss()},
                                 {"valid/waveform", sum.waveform},
                                 {"valid/stft", sum.stft},
                                 {"valid/mel", sum.mel},
                                 {"valid/vq", sum.commitment},
                                 {"valid/share_waveform", sum.share_waveform},
                                 {"valid/share_stft", sum.share_stft},
                                 {"valid/share_mel", sum.share_mel},
                                 {"valid/snr", snr_},
                                 {"valid/si_sdr", e.si_sdr()},
                                 {"valid/mel_distance", e.mel()},
                                 {"valid/stft_distance", e.stft()},
                                 {"valid/output_mean", e.output_mean()},
                                 {"valid/output_std", e.output_std()},
                                 {"valid/input_mean", e.input_mean()},
                                 {"valid/input_std", e.input_std()},
                                 {"valid/grad_norm", norm},
                                 {"valid/audio_seconds_per_second", speed},
                                 {"trained_seconds", trained_seconds_}};
  for (const auto& [key, value] : line.items())
    if (key.rfind("valid/", 0) == 0) events_->scalar(key, done_, value.get<double>());
  for (size_t i = 0; i < usage.size(); ++i) {
    events_->scalar("codebook_usage/" + std::to_string(i), done_, usage[i]);
    events_->scalar("codebook_perplexity/" + std::to_string(i), done_, perplexity[i]);
  }
  line["codebook_usage"] = usage;
  line["codebook_perplexity"] = perplexity;
  log_->write(line);
  epoch_gradient_norm_ = 0;
  epoch_steps_ = 0;
}

void Run::save(const std::string& why) {
  if (done_ == saved_at_) return;
  try {
    const CheckpointStore::Saved s =
        store_.save(done_, content_of(step_, ctx_, identity_of(config_, data_.fingerprint(), ctx_), done_, epoch_of(done_), snr_));
    saved_at_ = done_;
    last_checkpoint_ = s.path;
    last_save_ = Clock::now();
    if (!s.warning.empty()) say("warning: " + s.warning);
  } catch (const Error& e) {
    // A full disk must not end a run that could go on; a model that is not finite must.
    if (e.kind() != ErrorKind::io) throw;
    last_save_ = Clock::now();
    say("warning: checkpoint at step " + std::to_string(done_) + " (" + why + ") was not saved: " + e.what() +
        "; training goes on");
  }
}

TrainResult Run::go() {
  begin();
  TrainResult result;
  result.steps = steps_;
  if (done_ >= steps_) {
    say("this run is finished: " + std::to_string(done_) + " of " + std::to_string(steps_) +
        " steps are done; raise --num_epochs to go on");
  } else {
    progress_.emplace("train", steps_, "steps", ProgressOptions{.first = done_});
    const auto stopped = [&] { return options_.stop != nullptr && options_.stop->load() != 0; };
    while (done_ < steps_ && !stopped()) {
      one_step();
      const bool epoch_ends = done_ % steps_per_epoch_ == 0 || done_ == steps_;
      if (epoch_ends) {
        report(epoch_of(done_));
        if (since(last_save_) >= saves_apart || done_ == steps_) save("end of epoch");
      }
      if (since(last_save_) >= 60 * config_.training.checkpoint_minutes) save("in mid-epoch");
    }
    result.signal = options_.stop != nullptr ? options_.stop->load() : 0;
    if (done_ < steps_ || saved_at_ != done_) {
      snr_ = done_ % steps_per_epoch_ == 0 ? snr_ : std::nan("");  // a metric of another step is no metric
      save("stopped");
    }
    progress_->finish();
    progress_.reset();
    if (saved_at_ != done_)
      throw Error(ErrorKind::io, "the last checkpoint could not be saved; the newest good one is " +
                                     (last_checkpoint_.empty() ? std::string("none") : last_checkpoint_.string()));
    say(result.signal != 0 ? "stopped at step " + std::to_string(done_) + "; saved " + last_checkpoint_.string() +
                                 "; the same command goes on from there"
                           : "done: " + std::to_string(done_) + " steps; saved " + last_checkpoint_.string());
  }
  result.step = done_;
  result.finished = done_ >= steps_;
  result.checkpoint = last_checkpoint_;
  result.snr = snr_;
  return result;
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
  return d;
}

TrainResult train(const TrainerOptions& options) { return Run(options).go(); }

}  // namespace nacre::training
