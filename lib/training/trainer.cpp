// The training run from its start to its end (trainer_run.h lists the parts and the state). A run is one loop over
// steps; what surrounds it decides where it begins, what is saved when, and how signals and errors leave it:
//
//   signal before the first step    StoppedAtStart: nothing is saved, and the same command starts again
//   signal later                    the loop ends; the last whole step is saved, and the same command goes on
//   error in between steps          rescue() saves the state, and the error leaves train()
//   error in a step, or divergence  nothing is saved: the state belongs to no step, or is of no use
#include "nacre/training/trainer.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <nlohmann/json.hpp>
#include <utility>

#include "data/folder_scan.h"
#include "data/sniff.h"
#include "files/spelling.h"
#include "files/text.h"
#include "nacre/files/atomic_file.h"
#include "nacre/files/safetensors.h"
#include "nacre/random.h"
#include "training/trainer_run.h"
#include "training/trainer_state.h"

namespace nacre::training {
namespace {

namespace fs = std::filesystem;

constexpr int skipped_before_stop = 20;  // consecutive updates that were not finite
constexpr double saves_apart = 30;       // minimum seconds between checkpoints at the ends of very short epochs
constexpr size_t bad_files_shown = 20;   // RUN/bad_files.txt lists the others

/// Thrown if a signal arrives before the first step, because scanning the data and starting the codebooks take minutes.
struct StoppedAtStart {};

bool is_set(const std::atomic<int>* stop) { return stop != nullptr && stop->load() != 0; }

/// During its lifetime, the process may exit at once without losing anything.
class MayLeave {
 public:
  explicit MayLeave(std::atomic<bool>* flag) : flag_(flag) { set(true); }
  ~MayLeave() { set(false); }
  MayLeave(const MayLeave&) = delete;
  MayLeave& operator=(const MayLeave&) = delete;

 private:
  void set(bool value) {
    if (flag_ != nullptr) flag_->store(value);
  }
  std::atomic<bool>* flag_;
};

DatasetOptions scanning(DatasetOptions d, const TrainerOptions& o) {
  d.max_bad_files = o.max_bad;
  d.threads = o.context.threads;
  d.progress = [stop = o.stop, show = scan_progress(o.progress)](int64_t done, int64_t files) {
    // Between files. The exception passes through the scan and leaves the constructor of Run.
    if (is_set(stop)) throw StoppedAtStart{};
    show(done, files);
  };
  return d;
}

Dataset scanned(const TrainerOptions& o) {
  const MayLeave now(o.may_leave);
  return {o.data_dir, scanning(dataset_options(o.config), o)};
}
std::optional<Dataset> scanned_noise(const TrainerOptions& o) {
  if (o.noise_dir.empty()) return {};
  const MayLeave now(o.may_leave);
  return Dataset(o.noise_dir, scanning(noise_options(o.config), o));
}
/// Both folders exist. Checked before anything is written.
void expect_folders(const TrainerOptions& o) {
  expect_folder(o.data_dir);
  if (!o.noise_dir.empty()) expect_folder(o.noise_dir);
}

/// The checkpoint in a checkpoint's folder, or the newest one in a run's folder.
Checkpoint checkpoint_at(const fs::path& path) {
  if (!fs::is_directory(path))
    throw Error(ErrorKind::io,
                "--resume " + path.string() +
                    (fs::exists(path) ? ": is a file, expected the folder of a checkpoint or run"
                                      : ": no such folder; expected auto, never, or a checkpoint's folder") +
                    did_you_mean(path.string(), {"auto", "never"}));
  if (fs::exists(path / "manifest.json")) return verify_checkpoint(path);
  if (const CheckpointSearch search = newest_checkpoint(path); search.found) return *search.found;
  throw Error(ErrorKind::input, "--resume " + path.string() +
                                    ": is neither a checkpoint nor a run with a usable checkpoint" +
                                    about_folder(path, Thing::weights));
}

std::vector<int32_t> valid_samples(const Batch& batch) {
  std::vector<int32_t> lengths;
  for (const Crop& c : batch.crops) lengths.push_back(static_cast<int32_t>(c.length));
  return lengths;
}

}  // namespace

Run::Run(const TrainerOptions& options)
    : options_(options),
      // Invalid options are found before the run's folder is created.
      config_((options.config.check(), expect_folders(options), options.config)),
      ctx_(options.context),
      // The members are made in this order: the lock of the run's folder is taken before the data is scanned, so that a
      // second run is refused at once, and not after minutes.
      store_(options.run, {.keep_last = 3, .higher_is_better = true}),
      data_(scanned(options)),
      noise_data_(scanned_noise(options)),
      step_(ctx_, config_.codec, config_.loss, config_.optimizer, config_.training.batch_size,
            config_.training.segment_length, config_.training.seed, options.storage, nullptr, config_.discriminator,
            noise_data_.has_value()),
      judged_(ctx_, config_.codec),
      sampler_(data_, step_.samples(), config_.training.batch_size, config_.training.seed),
      schedule_(config_.training, sampler_.steps_per_epoch(), 0),
      snr_(std::nan("")) {
  const TrainingConfig& t = config_.training;
  if (noise_data_)
    noise_.emplace(*noise_data_, step_.samples(), t.batch_size, t.seed,
                   NoiseOptions{.share = t.noise_share,
                                .clean_target = t.clean_target,
                                .lowest_gain = static_cast<double>(t.noise_gain[0]),
                                .highest_gain = static_cast<double>(t.noise_gain[1])});
}

void Run::say(const std::string& text) {
  const std::string line = printable_lines(text);  // the text contains file names
  // The progress line is erased first and drawn again after the message.
  if (progress_) {
    progress_->message(line, options_.out);
  } else {
    std::fprintf(options_.out, "%s\n", line.c_str());
    std::fflush(options_.out);
  }
}

/// Reports the files of a folder that are skipped, and those with defects.
void Run::say_bad(const Dataset& data, const char* list_name) {
  if (const std::vector<BadFile>& bad = data.bad(); !bad.empty()) {
    const auto files = static_cast<int64_t>(data.clips().size() + bad.size());
    const fs::path list = options_.run / list_name;
    if (bad.size() > bad_files_shown) write_file_atomically(list, describe_bad(bad, files, bad.size()) + "\n");
    say("warning: " + describe_bad(bad, files, bad_files_shown) +
        (bad.size() > bad_files_shown ? "; all of them: " + list.string() : ""));
  }
  const std::vector<BadFile>& warned = data.warned();
  for (size_t i = 0; i < warned.size() && i < bad_files_shown; ++i)
    say("warning: " + warned[i].path + ": " + warned[i].reason);
  if (warned.size() > bad_files_shown)
    say("warning: " + std::to_string(warned.size() - bad_files_shown) + " more files have defects and are used");
}

/// Resumes a run or starts a new one.
void Run::begin() {
  if (!store_.locked())
    say("warning: " + options_.run.string() +
        " is on a file system without locks; a second run in this folder would not be refused");
  say("data: " + describe_parts(data_) + (data_.held_out().empty() ? ": evaluations use the training audio" : ""));
  say_bad(data_, "bad_files.txt");
  say_noise();
  if (const std::vector<int64_t>& files = data_.training();
      data_.channels() == 2 && std::none_of(files.begin(), files.end(), [&](int64_t i) {
        return data_.clips()[static_cast<size_t>(i)].channels == 2;
      }))
    say("warning: codec.audio_channels is 2 and no file to train on is stereo; both channels are always equal");
  if (const int64_t coded = config_.codec.segment; coded > 0 && step_.samples() != coded)
    say("warning: training.segment_length is " + std::to_string(step_.samples()) + " samples, and the codec codes " +
        "segments of " + std::to_string(coded) + "; levels and norms over a segment differ in use");

  const std::optional<Checkpoint> from = find_checkpoint();
  // Weights come from a checkpoint, from --init, or from the configured start, in this order of precedence.
  if (!from && options_.init.empty() && config_.training.start == Start::transform) start_as_transform();
  if (!from && options_.init.empty() && config_.training.start == Start::scaled) start_scaled();
  bool fresh_codebooks = !from;
  if (from)
    resume(*from);
  else if (!options_.init.empty())
    fresh_codebooks = init();
  // Only now: a resume that is refused leaves the configuration of the run as it was.
  write_file_atomically(options_.run / "config.json", config_.to_json() + "\n");
  if (done_ >= schedule_.stop && !judges_first_) return;

  // A run whose checkpoints were removed may still have its start folder.
  if (std::error_code none; !from) fs::remove_all(options_.run / "start", none);
  judges_start_ = options_.init.empty() && done_ == 0 && !fs::exists(options_.run / "start" / "model.safetensors");
  const LogFailure failed = [this](const std::string& line) { say("warning: " + line); };
  const std::string log = (options_.run / "log.jsonl").string();
  // Steps are repeated from the checkpoint on, and each step has one line in the log, so later lines of an earlier
  // process are removed (also that of step 0 if the start is scored again). TensorBoard's files are not cut; the first
  // event of the new one says from which step on earlier events are replaced.
  drop_log_lines_after(log, from && !judges_start_ ? done_ : -1, failed);
  log_.emplace(log, failed);
  events_.emplace(options_.run.string(), EventOptions{.resume_step = from ? done_ + 1 : 0, .failed = failed});
  if (!from) events_->text("config", 0, "```\n" + config_.to_json() + "\n```");
  // A crop depends on seed, step and index alone, so the sampler has no state to restore.
  batches_.emplace(data_, sampler_, PrefetchOptions{.first_step = done_, .threads = 1}, noise_ ? &*noise_ : nullptr);
  say("model: " + number(static_cast<double>(step_.parameters().effective_elements()) / 1e6, "%.2f") +
      " M parameters, " + number(config_.codec.nominal_bitrate() / 1000, "%.1f") + " kbit/s, " +
      number(config_.codec.frame_rate(), "%.1f") + " frames/s; " +
      number(static_cast<double>(step_.planned_bytes()) / (1 << 20), "%.0f") + " MiB of activations; " +
      std::to_string(schedule_.steps_per_epoch) + " steps per epoch, " + std::to_string(schedule_.end) + " in all" +
      (schedule_.stop < schedule_.end ? ", limited by --max_steps to " + std::to_string(schedule_.stop) : "") + "; " +
      std::to_string(ctx_.threads()) + " threads, " + ctx_.instruction_set());
  if (fresh_codebooks && config_.training.codebook_start_rows > 0) start_codebooks();
  // Nothing has been saved yet that a later process could go on from.
  if (!from && judges_start_ && stopped()) throw StoppedAtStart{};
}

std::optional<Checkpoint> Run::find_checkpoint() {
  const std::vector<int64_t> present = list_checkpoints(options_.run);
  if (options_.resume == "never") {
    if (!present.empty())
      throw Error(ErrorKind::usage, "--resume never: " + options_.run.string() +
                                        " already holds checkpoints; choose another folder or remove them");
    return {};
  }
  if (options_.resume == "auto") {
    CheckpointSearch search = store_.resume();
    for (const DamagedCheckpoint& d : search.damaged) say("warning: " + d.path.string() + " is damaged: " + d.reason);
    return std::move(search.found);
  }
  Checkpoint found = checkpoint_at(options_.resume);
  const fs::path parent = fs::weakly_canonical(found.path).parent_path();
  // Checkpoints of two runs in one folder would have one order of steps and be rotated as one.
  if (!present.empty() && parent != fs::weakly_canonical(options_.run))
    throw Error(ErrorKind::usage, "--resume " + options_.resume + ": " + options_.run.string() +
                                      " has checkpoints of its own; omit --resume to continue from them, or choose "
                                      "another folder");
  return found;
}

void Run::resume(const Checkpoint& from) {
  RunIdentity then = identity_from_manifest(from.manifest);
  const TrainingConfig& before = then.config.training;
  if (then.schedule.steps_per_epoch == 0) {
    // An older run did not record its schedule. Assume the current data; its schedule ended at the step where it was to
    // stop.
    const int64_t hop = config_.codec.hop(), segment = (before.segment_length + hop - 1) / hop * hop;
    then.schedule = RunSchedule(before, CropSampler(data_, segment, before.batch_size, 0).steps_per_epoch(), 0);
    then.schedule.end = then.schedule.stop;
  }
  // The schedule depends on the data and the batch size, which may both have changed.
  schedule_ = continued(then.schedule, config_.training, sampler_.steps_per_epoch(), from.step);
  const RunIdentity now = identity();
  if (const std::vector<std::string> changed = what_forbids_resume(then, now); !changed.empty()) {
    std::string list, line;
    for (const std::string& c : changed) list += "\n  " + c, line += (line.empty() ? "" : ", ") + c;
    if (!options_.allow_change)
      throw Error(ErrorKind::usage, "resume: " + from.path.string() + " was made with other settings: " + line +
                                        "; use --allow-change to continue nevertheless, or another --checkpoint_dir");
    say("warning: resuming with other settings, because of --allow-change:" + list);
  }
  if (const std::string bits = what_changes_bits(then, now); !bits.empty())
    say("note: " + bits + "; results may differ in the last bits from a run that was never stopped");
  // The first change of the weights. All refusals come before it.
  const bool judges = has_discriminators(from, then.config.discriminator, config_.discriminator);
  done_ = restore(step_, from, judges);
  saved_at_ = done_;
  // The earlier process was stopped after it had saved the epoch and before it had scored it.
  judges_first_ = !from.metric && done_ > 0 && (schedule_.ends_epoch(done_) || done_ == then.schedule.stop);
  // The counter of skipped updates is part of the state and goes on counting.
  skipped_seen_ = step_.scalars().skipped;
  last_checkpoint_ = from.path;
  if (!options_.init.empty()) say("note: --init is not used, the run goes on from a checkpoint");
  say("resumed from " + from.path.string() + " at step " + std::to_string(done_) +
      (done_ > schedule_.end ? "" : " of " + std::to_string(schedule_.end)));
  if (step_.discriminators() != nullptr && !judges)
    say(std::string("note: the checkpoint has ") + (fs::exists(from.file(discriminator_file)) ? "other" : "no") +
        " discriminators; they start from random weights");
  if (then.schedule.steps_per_epoch != schedule_.steps_per_epoch)
    say("note: an epoch has " + std::to_string(schedule_.steps_per_epoch) + " steps now, it had " +
        std::to_string(then.schedule.steps_per_epoch) + "; the " + std::to_string(done_) + " steps done are " +
        number(static_cast<double>(done_ + then.schedule.shift) / static_cast<double>(then.schedule.steps_per_epoch),
               "%.2f") +
        " of " + std::to_string(config_.training.num_epochs) + " epochs");
  if (done_ < schedule_.stop)
    if (const std::string rate = what_changes_rate(then, now, done_); !rate.empty()) say("note: " + rate);
  // At the end, because a refusal above must not rename anything.
  for (const fs::path& aside : store_.set_aside_after(done_))
    say("note: a newer checkpoint is set aside as " + aside.string());
}

/// The codebooks' first rows come from batches with numbers below the first step's, which no step uses.
void Run::start_codebooks() {
  const MayLeave now(options_.may_leave);
  int64_t extra = 0;
  Batch batch;
  std::optional<Progress> progress;
  step_.start_codebooks(
      [&] {
        if (stopped()) throw StoppedAtStart{};
        // Read in this thread: the prefetcher reads the batches of training.
        fill_batch(data_, sampler_, -(++extra), batch, noise_ ? &*noise_ : nullptr);
        load(batch);
      },
      config_.training.codebook_start_rows, config_.training.codebook_average_rows,
      [&](int64_t done, int64_t total) {
        if (stopped()) throw StoppedAtStart{};
        if (!progress) progress.emplace("codebooks", total, "parts", ProgressOptions{.to = options_.progress});
        progress->update(done);
        if (done == total) progress->finish();
      });
}

/// EnCodec's bandwidths: one number of codebooks for the whole batch, drawn from a list. Or else DAC's quantizer
/// dropout: the first part of the batch trains with a random number of codebooks per item.
std::vector<int32_t> Run::drop_codebooks() const {
  const auto n = static_cast<int32_t>(config_.codec.n_codebooks);
  std::vector<int32_t> stages(static_cast<size_t>(step_.batch()), n);
  const auto dropped = static_cast<size_t>(config_.codec.quantizer_dropout * static_cast<double>(stages.size()));
  // The stream's number is "drop" in ASCII. The counter is unique for each item of each step, so a resumed run draws
  // the same numbers.
  const Philox draw{config_.training.seed, 0x64726f70ull};
  if (const std::vector<int64_t>& numbers = config_.codec.codebooks_drawn; !numbers.empty()) {
    const auto at = draw.below(static_cast<uint64_t>(done_), static_cast<uint64_t>(numbers.size()));
    std::fill(stages.begin(), stages.end(), static_cast<int32_t>(numbers[static_cast<size_t>(at)]));
    return stages;
  }
  for (size_t i = 0; i < dropped; ++i)
    stages[i] = 1 + static_cast<int32_t>(
                        draw.below(static_cast<uint64_t>(done_) * stages.size() + i, static_cast<uint64_t>(n)));
  return stages;
}

/// Hands a batch of training to the step: what the codec hears, what its output is compared with, and which targets are
/// clean.
void Run::load(const Batch& batch, std::span<const int32_t> stages) {
  step_.load(batch.samples, valid_samples(batch), stages, batch.targets);
  if (noise_) step_.set_labels(batch.clean_target);
}

/// Trains on the next batch. Returns false if a signal stopped the step; the state is then as before the step.
bool Run::one_step() {
  const auto start = Clock::now();
  const Batch& batch = batches_->next();
  waited_seconds_ += since(start);
  for (const BadFile& file : batch.lost)
    if (lost_.insert(file.path).second) say("warning: " + file.reason + "; other audio is used instead");
  load(batch, drop_codebooks());
  // Written to the device before the run, because a captured graph reads it from there.
  const double rate = schedule_.factor(config_.training, done_);
  step_.set_learning_rate(config_.optimizer.learning_rate * rate);
  step_.set_discriminator_learning_rate(config_.discriminator.learning_rate * rate);
  step_.set_adversarial(done_ >= config_.loss.adversarial_start);
  // The stream's number is "critic" in ASCII.
  const Philox draw{config_.training.seed, 0x637269746963ull};
  step_.set_discriminators(draw.uniform(static_cast<uint64_t>(done_)) < config_.discriminator.update_fraction);
  // If run() throws, in_step_ stays true and rescue() saves nothing: the state is neither that before the step nor that
  // after it.
  in_step_ = true;
  const bool whole = step_.run([this] { return stopped(); });
  in_step_ = false;
  // The batch has been taken from the prefetcher, but done_ has not moved, so a resumed run draws it again.
  if (!whole) return false;
  ++done_;
  // An earlier score belongs to other weights.
  snr_ = std::nan("");
  // Reading metrics waits for the device. On CUDA only every tenth step is read, so that the next batch can be loaded
  // while this step runs.
  const bool looks = ctx_.device().kind == Device::cpu || done_ % 10 == 0 || done_ == 1 || done_ == schedule_.stop;
  const StepMetrics m = looks ? step_.metrics() : StepMetrics{};
  trained_seconds_ += since(start);
  for (const Crop& c : batch.crops)
    trained_audio_ += static_cast<double>(c.length) / static_cast<double>(config_.codec.sample_rate);
  ++unseen_steps_;
  if (!looks) return true;
  // The device counts skipped updates. `seen` steps have passed since the last look, one on the CPU and up to ten on
  // CUDA.
  const int64_t skipped = m.skipped - skipped_seen_, seen = std::exchange(unseen_steps_, 0);
  if (skipped > 0) {
    skipped_seen_ = m.skipped;
    if (skipped < seen) skipped_in_a_row_ = 0;  // some updates in between were finite
    skipped_update(batch, skipped);
  } else {
    skipped_in_a_row_ = 0;
    epoch_gradient_norm_ += static_cast<double>(m.gradient_norm);
    ++epoch_steps_;
    if (!m.discriminators.empty()) ++epoch_judged_;
    if (epoch_discriminators_.empty())
      for (const DiscriminatorMetrics& d : m.discriminators) epoch_discriminators_.push_back({.name = d.name});
    for (size_t i = 0; i < m.discriminators.size(); ++i) {
      DiscriminatorMetrics& sum = epoch_discriminators_[i];
      sum.loss += m.discriminators[i].loss;
      sum.real += m.discriminators[i].real, sum.fake += m.discriminators[i].fake;
    }
  }
  progress_->update(
      done_, "loss " + number(m.loss()) + "  " + number(trained_audio_ / trained_seconds_, "%.1f") + " x real time");
  if (done_ % 10 == 0 || done_ == 1) log_step(m);
  return true;
}

void Run::skipped_update(const Batch& batch, int64_t updates) {
  // Only the first of a row is reported, with the audio that it came from; the others usually follow from it.
  const bool first = skipped_in_a_row_ == 0;
  skipped_in_a_row_ += updates;
  if (first) {
    std::string files;
    for (const Crop& c : batch.crops)
      files += " " + printable(data_.clips()[static_cast<size_t>(c.clip)].path) + "@" + std::to_string(c.offset);
    say("warning: step " + std::to_string(done_) + ": the gradient is not finite; " +
        (updates == 1 ? "this update was" : std::to_string(updates) + " updates were") + " skipped. The" +
        (updates == 1 ? "" : " last") + " batch was:" + files);
  }
  if (skipped_in_a_row_ >= skipped_before_stop)
    throw Error(ErrorKind::diverged,
                "training diverged: " + std::to_string(skipped_in_a_row_) +
                    " updates in a row had a gradient that is not finite; the last good checkpoint is " +
                    newest_checkpoint_name() + "; resume from it with a lower --learning_rate and --allow-change");
}

void Run::log_step(const StepMetrics& m) {
  nlohmann::ordered_json line = {{"step", done_}, {"epoch", schedule_.epoch_of(done_)}, {"loss", m.loss()}};
  for (const TermMetrics& t : m.terms) line[t.name + "/loss"] = t.value;
  line.update({{"vq/commitment_loss", m.commitment},
               {"vq/codebook_loss", m.codebook},
               {"other/grad_norm", m.gradient_norm},
               {"other/learning_rate", step_.scalars().lr}});
  if (!m.discriminators.empty()) {
    for (const TermMetrics& t : m.terms) line[t.name + "/share"] = t.share;
    for (const DiscriminatorMetrics& d : m.discriminators) {
      const std::string name = "discriminator/" + d.name;
      line.update({{name + "_loss", d.loss}, {name + "_right_real", d.real}, {name + "_right_fake", d.fake}});
    }
    line["other/discriminator_grad_norm"] = m.discriminator_norm;
  }
  if (std::isfinite(m.loss())) events_->scalar("train/loss", done_, static_cast<double>(m.loss()));
  // A step whose gradient is not finite has figures that are NaN; they are omitted.
  drop_missing(line);
  for (const auto& [key, value] : line.items())
    if (key.find('/') != std::string::npos) events_->scalar(key, done_, value.get<double>());
  line["other/skipped"] = m.skipped;
  if (!m.discriminators.empty()) line["other/discriminator_skipped"] = m.discriminator_skipped;
  line["other/audio_seconds_per_second"] = trained_audio_ / trained_seconds_;
  line["other/data_wait"] = waited_seconds_ / trained_seconds_;
  log_->write(line);
}

void Run::save(const std::string& why, bool goes_on) {
  // An evaluation or a stop may ask for a step that is already saved.
  if (done_ == saved_at_) return;
  // Also set if the save fails, so that a full disk is tried again after the usual time and not at every step.
  last_save_ = Clock::now();
  const auto failed = [&](ErrorKind kind, const std::string& reason) {
    save_failure_ = kind;
    say("warning: checkpoint at step " + std::to_string(done_) + " (" + why + ") was not saved: " + reason +
        (goes_on ? "; training goes on" : ""));
  };
  try {
    const CheckpointStore::Saved s = store_.save(done_, content_of(step_, ctx_, identity(), done_, snr_));
    saved_at_ = done_;
    last_checkpoint_ = s.path;
    if (!s.warning.empty()) say("warning: " + s.warning);
  } catch (const Error& e) {
    // A full disk or a lack of memory does not end a run that can continue. A model that is not finite does.
    if (e.kind() != ErrorKind::io && e.kind() != ErrorKind::memory) throw;
    failed(e.kind(), e.what());
  } catch (const std::bad_alloc&) {
    failed(ErrorKind::memory, "not enough memory");
  }
}

void Run::judge_checkpoint() {
  // The run may have resumed from a checkpoint of another run, which must not be changed.
  if (done_ != saved_at_ || std::isnan(snr_) || !fs::exists(options_.run / last_checkpoint_.filename())) return;
  try {
    const CheckpointStore::Saved s = store_.judge(done_, manifest_of(step_, identity(), done_, snr_), snr_);
    if (!s.warning.empty()) say("warning: " + s.warning);
  } catch (const std::exception& e) {
    say("warning: the scores of checkpoint step " + std::to_string(done_) + " were not saved: " + e.what() +
        "; training goes on");
  }
}

void Run::rescue() {
  // An error in an evaluation or in reading data leaves the trained state whole.
  if (done_ != saved_at_ && !in_step_) {
    try {
      save("before an error", false);
    } catch (const std::exception& e) {
      say("warning: step " + std::to_string(done_) + " could not be saved: " + std::string(e.what()));
    }
  }
  say(saved_at_ == done_
          ? "an error ends the run; saved " + newest_checkpoint_name() + "; the same command goes on from there"
          : "an error ends the run; the newest good checkpoint is " + newest_checkpoint_name());
}

/// Saves the model that report(0) has scored, for comparison with what training makes of it.
void Run::keep_start() {
  const fs::path folder = options_.run / "start";
  try {
    std::error_code problem;
    fs::create_directories(folder, problem);  // a failure shows when the file is written
    remove_leftovers(folder);
    judged_.save(folder / "model.safetensors");
  } catch (const Error& e) {
    // After an error of the device no later call can succeed.
    if (e.kind() == ErrorKind::device) throw;
    say("warning: the model before training was not saved: " + std::string(e.what()) + "; training goes on");
  } catch (const std::bad_alloc&) {
    say("warning: the model before training was not saved: not enough memory; training goes on");
  }
}

void Run::loop(TrainResult& result) {
  if (judges_start_ && !stopped()) {
    save("before the first step");  // clustering the codebooks may have taken minutes
    if (evaluate(0)) keep_start();
  }
  const auto end_epoch = [&] {
    if (!stopped() && evaluate(schedule_.epoch_of(done_))) {
      result.snr = snr_;
      judge_checkpoint();
    } else {
      unjudged_ = stopped();
    }
  };
  // The unfinished evaluation of the last process comes before the next step, which would change the weights.
  if (judges_first_) end_epoch();
  while (done_ < schedule_.stop && !stopped()) {
    // false: a signal. done_ and the state are those of the last whole step, which is saved below.
    if (!one_step()) break;
    if (schedule_.ends_epoch(done_) || done_ == schedule_.stop) {
      // Save first, so that the epoch is not lost if the evaluation fails.
      if (since(last_save_) >= saves_apart || done_ == schedule_.stop || saved_at_ < 0) save("end of epoch");
      end_epoch();
    }
    if (since(last_save_) >= 60 * config_.training.checkpoint_minutes) save("in mid-epoch");
  }
  // Read before the save: a signal that arrives during it did not stop the run early.
  result.signal = options_.stop != nullptr ? options_.stop->load() : 0;
  save("stopped", false);
}

TrainResult Run::go() {
  TrainResult result;
  try {
    begin();
  } catch (const StoppedAtStart&) {
    say("stopped before the first step; nothing is saved yet, the same command starts again");
    result.steps = schedule_.stop;
    result.signal = options_.stop->load();
    return result;
  }
  result.steps = schedule_.stop;
  if (done_ >= schedule_.stop && !judges_first_) {
    const std::string asked = std::to_string(done_ > schedule_.end ? schedule_.stop : schedule_.end);
    say("this run is finished: " + std::to_string(done_) +
        (done_ > schedule_.end ? " steps are done, " + asked + " are requested" : " of " + asked + " steps are done") +
        "; raise " + (schedule_.stop < schedule_.end ? "--max_steps" : "--num_epochs") + " to go on");
  } else {
    progress_.emplace("train", schedule_.stop, "steps", ProgressOptions{.to = options_.progress, .first = done_});
    try {
      loop(result);
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::diverged) rescue();  // a diverged state is not worth saving
      throw;
    } catch (...) {
      rescue();
      throw;
    }
    progress_->finish();
    progress_.reset();
    if (saved_at_ != done_)
      throw Error(save_failure_,
                  "the last checkpoint could not be saved; the newest good one is " + newest_checkpoint_name());
    say(result.signal != 0 ? "stopped at step " + std::to_string(done_) + "; saved " + last_checkpoint_.string() +
                                 "; the same command goes on from there"
                           : "done: " + std::to_string(done_) + " steps; saved " + last_checkpoint_.string());
  }
  result.step = done_;
  // Without its last evaluation the run is not finished: the same command makes that evaluation.
  result.finished = done_ >= schedule_.stop && !unjudged_;
  result.checkpoint = last_checkpoint_;
  return result;
}

TrainResult train(const TrainerOptions& options) {
  try {
    return Run(options).go();
  } catch (const StoppedAtStart&) {
    std::fprintf(options.out,
                 "stopped before the first step, while the data was read; the same command starts again\n");
    std::fflush(options.out);
    TrainResult result;
    result.signal = options.stop->load();
    return result;
  }
}

}  // namespace nacre::training
