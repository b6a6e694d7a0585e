// nacre eval
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "arguments.h"
#include "files/text.h"
#include "jobs.h"
#include "model.h"
#include "nacre/data/audio.h"
#include "nacre/files/atomic_file.h"
#include "nacre/training/baseline.h"
#include "nacre/training/trainer.h"
#include "rate.h"

namespace nacre::program {
namespace {

using nlohmann::ordered_json;

struct Options {
  std::vector<std::string> inputs;
  std::string model, baseline;
  ModelOptions model_options;
  bool held_out = false, json = false, quiet = false, salvage = false, denoise = false;
  std::optional<double> valid_fraction, valid_seconds;
  std::optional<int64_t> beam;
  RateOptions rate;
  DeviceOptions device;
};

/// The configuration that a checkpoint's model was trained with, or the defaults if there is no manifest beside it.
training::RunConfig trained_with(const std::filesystem::path& model, const CodecConfig& codec) {
  training::RunConfig config;
  const std::filesystem::path manifest = model.parent_path() / "manifest.json";
  if (std::filesystem::is_regular_file(manifest)) {
    const std::vector<std::byte> bytes = read_file(manifest, 1 << 24);
    const auto* text = reinterpret_cast<const char*>(bytes.data());
    const ordered_json all = ordered_json::parse(text, text + bytes.size(), nullptr, false);
    if (all.is_object() && all.contains("config")) config = training::RunConfig::from_json(all["config"].dump());
  }
  config.codec = codec;
  return config;
}

/// One line of the table. NaN marks figures that do not exist.
struct Figures {
  double seconds = 0, snr = 0, si_sdr = 0, segmental_snr = 0, stoi = 0, estoi = 0, mel = 0, stft = 0;
  double bitrate = 0, encode_speed = 0, decode_speed = 0;
};

Figures figures(const training::ClipScore& s, double bitrate) {
  const double none = std::nan("");
  return {s.seconds,
          s.silent ? none : s.snr,
          s.si_sdr,
          s.segmental_snr,
          s.stoi,
          s.estoi,
          s.mel,
          s.stft,
          bitrate,
          s.seconds / s.encode_seconds,
          s.seconds / s.decode_seconds};
}
Figures figures(const training::Scores& s, double bitrate) {
  return {s.seconds(), s.snr(),  s.si_sdr(), s.segmental_snr(), s.stoi(),        s.estoi(),
          s.mel(),     s.stft(), bitrate,    s.encode_speed(),  s.decode_speed()};
}

/// Omits keys of figures that do not exist.
ordered_json json_of(const Figures& f) {
  ordered_json all;
  const auto put = [&](const char* key, double value) {
    if (std::isfinite(value)) all[key] = value;
  };
  put("seconds", f.seconds);
  put("snr", f.snr);
  put("si_sdr", f.si_sdr);
  put("segmental_snr", f.segmental_snr);
  put("stoi", f.stoi);
  put("estoi", f.estoi);
  put("mel_distance", f.mel);
  put("stft_distance", f.stft);
  put("bitrate", f.bitrate);
  put("encode_speed", f.encode_speed);
  put("decode_speed", f.decode_speed);
  return all;
}

void print_head() {
  std::printf("%9s %8s %8s %8s %6s %6s %8s %8s %8s %9s %9s  %s\n", "seconds", "SNR dB", "SI-SDR", "seg SNR", "STOI",
              "ESTOI", "mel", "STFT", "kbit/s", "encode x", "decode x", "file");
}
void print(const Figures& f, const std::string& name) {
  const auto text = [](double x, int places) { return std::isnan(x) ? std::string("-") : fixed(x, places); };
  std::printf("%9.2f %8s %8s %8s %6s %6s %8s %8s %8.2f %9s %9s  %s\n", f.seconds, text(f.snr, 2).c_str(),
              text(f.si_sdr, 2).c_str(), text(f.segmental_snr, 2).c_str(), text(f.stoi, 3).c_str(),
              text(f.estoi, 3).c_str(), text(f.mel, 3).c_str(), text(f.stft, 3).c_str(), f.bitrate / 1000,
              text(f.encode_speed, 1).c_str(), text(f.decode_speed, 1).c_str(), printable(name).c_str());
  std::fflush(stdout);
}

/// Codes the same audio by Opus at the nominal bitrate of the codebooks in use and scores it by the same functions.
class OpusBaseline {
 public:
  OpusBaseline(Context& ctx, const CodecConfig& config, int64_t codebooks)
      : ctx_(ctx),
        rate_(config.sample_rate),
        channels_(config.audio_channels),
        bitrate_(config.nominal_bitrate(codebooks)) {
    if (const std::optional<std::string> reason = training::opus_unavailable())
      throw Error(ErrorKind::usage,
                  "--baseline opus: " + *reason + "; install a libsndfile with Opus, or omit --baseline");
  }

  /// Adds the next piece of a file. Long files are coded piece by piece, as they are scored.
  void piece(std::span<const float> samples) {
    if (!file_) file_.emplace(ctx_, rate_, channels_);
    const training::OpusCoded coded =
        training::code_opus(samples, static_cast<int>(rate_), bitrate_, static_cast<int>(channels_));
    file_->add(samples, coded.samples);
    file_bits_ += 8 * static_cast<double>(coded.bytes);
  }
  /// Discards what remains of an earlier file that could not be read to its end.
  void begin() {
    file_.reset();
    file_bits_ = 0;
  }
  void finish(const std::string& name) {
    training::ClipScore s = file_->total();
    s.name = name;
    const double bits = file_bits_;
    bits_ += bits;
    ordered_json row = {{"path", name}};
    row.update(json_without_speeds(figures(s, bits / s.seconds)));
    files_.push_back(std::move(row));
    scores_.add(std::move(s));
  }

  ordered_json json() const { return {{"codec", "opus"}, {"files", files_}, {"mean", json_without_speeds(mean())}}; }
  void print_mean() const { print(mean(), "Opus, mean of " + std::to_string(scores_.clips().size())); }

 private:
  static ordered_json json_without_speeds(const Figures& f) {
    ordered_json all = json_of(f);
    all.erase("encode_speed");
    all.erase("decode_speed");
    return all;
  }
  Figures mean() const {
    Figures f = figures(scores_, bits_ / scores_.seconds());
    f.encode_speed = f.decode_speed = std::nan("");
    return f;
  }

  Context& ctx_;
  int64_t rate_, channels_;
  double bitrate_;
  training::Scores scores_;
  std::optional<training::PieceScores> file_;
  double bits_ = 0, file_bits_ = 0;
  ordered_json files_ = ordered_json::array();
};

/// The size of the .nacre stream of a clip. Frames of segments count by their place in the stream: those of segment i
/// follow i times those of a whole segment.
uint64_t bytes_of_stream(const CodecConfig& c, uint64_t identity, int64_t codebooks, int64_t samples) {
  StreamHeader header = training::stream_header(c, identity, static_cast<int>(c.sample_rate),
                                                static_cast<int>(c.audio_channels), codebooks);
  int64_t frames = c.frames_of(samples);
  if (c.segmented() && samples > 0) {
    const int64_t last = (samples - 1) / c.segment_stride;
    frames = last * c.frames_of(c.segment) + c.frames_of(samples - last * c.segment_stride);
    header.samples = static_cast<uint64_t>(samples);  // the segment before the last one may be shorter, too
  }
  return training::stream_bytes(header, static_cast<uint64_t>(frames));
}

/// Prints scores as they become available.
class Report {
 public:
  Report(bool json, const CodecConfig& config, uint64_t identity, int64_t codebooks)
      : json_(json), config_(config), identity_(identity), codebooks_(codebooks) {}

  void add(const training::ClipScore& s) {
    const auto samples = static_cast<int64_t>(std::llround(s.seconds * static_cast<double>(config_.sample_rate)));
    const uint64_t bytes = bytes_of_stream(config_, identity_, codebooks_, samples);
    bits_ += 8 * static_cast<double>(bytes);
    const Figures row = figures(s, 8 * static_cast<double>(bytes) / s.seconds);
    if (json_) {
      ordered_json named = {{"path", s.name}};
      named.update(json_of(row));
      named["input_mean"] = s.input_mean, named["input_std"] = s.input_std;
      named["output_mean"] = s.output_mean, named["output_std"] = s.output_std;
      files_.push_back(std::move(named));
      return;
    }
    if (rows_++ == 0) print_head();
    print(row, s.silent               ? s.name + " (silent: no SNR, no STOI)"
               : std::isnan(s.si_sdr) ? s.name + " (constant: no SI-SDR)"
                                      : s.name);
  }

  /// judged_on: "held out" or "training audio", if known.
  void finish(const training::Evaluation& e, const std::string& model, const char* judged_on,
              const std::optional<OpusBaseline>& baseline, size_t failed) {
    if (e.clips().empty() && !json_) return;
    const Figures mean = figures(e, bits_ / e.seconds());
    const std::vector<double> usage = e.usage(), perplexity = e.perplexity();
    if (json_) {
      ordered_json all = {{"model", model},
                          {"identity", hex(identity_)},
                          {"n_codebooks", codebooks_},
                          {"nominal_bitrate", config_.nominal_bitrate(codebooks_)}};
      all["files"] = files_;
      all["failed"] = failed;
      if (e.clips().empty()) return print_json(all);
      all["mean"] = json_of(mean);
      all["mean"]["input_mean"] = e.input_mean(), all["mean"]["input_std"] = e.input_std();
      all["mean"]["output_mean"] = e.output_mean(), all["mean"]["output_std"] = e.output_std();
      all["codebook_usage"] = usage;
      all["codebook_perplexity"] = perplexity;
      if (judged_on != nullptr) all["judged_on"] = judged_on;
      if (baseline) all["baseline"] = baseline->json();
      print_json(all);
      return;
    }
    print(mean, "mean of " + std::to_string(e.clips().size()));
    if (baseline) baseline->print_mean();
    double used = 0, perplexed = 0;
    for (size_t i = 0; i < usage.size(); ++i) {
      used += usage[i] / static_cast<double>(usage.size());
      perplexed += perplexity[i] / static_cast<double>(usage.size());
    }
    std::printf(
        "nominal %.2f kbit/s; output mean %+.4f std %.3f (input %+.4f, %.3f); codebooks %.0f %% used, perplexity %.0f "
        "of %lld\n",
        config_.nominal_bitrate(codebooks_) / 1000, e.output_mean(), e.output_std(), e.input_mean(), e.input_std(),
        100 * used, perplexed, static_cast<long long>(config_.codebook_size));
  }

 private:
  bool json_;
  CodecConfig config_;
  uint64_t identity_;
  int64_t codebooks_;
  double bits_ = 0;
  int64_t rows_ = 0;
  ordered_json files_ = ordered_json::array();
};

/// A file as the model sees it. A short file is kept in memory; a longer one is read a second time.
class JudgedFile {
 public:
  JudgedFile(const std::string& path, const training::MaterialOptions& options)
      : reader_(path, options.audio),
        options_(options),
        facts_(training::survey(reader_, options, &kept_,
                                static_cast<int64_t>(training::longest_whole_clip * options.sample_rate))) {}
  double seconds() const { return static_cast<double>(facts_.samples) / options_.sample_rate; }
  const std::vector<std::string>& warnings() const { return facts_.warnings; }
  void read(const training::SampleSink& sink) {
    if (static_cast<int64_t>(kept_.size()) == facts_.samples * options_.channels) return sink(kept_);
    training::read_material(reader_, facts_, options_, 0, facts_.samples, sink);
  }

 private:
  training::AudioReader reader_;
  training::MaterialOptions options_;
  std::vector<float> kept_;
  training::Material facts_;
};

int eval(const Options& o) {
  if (o.inputs.empty())
    throw Error(ErrorKind::usage,
                "eval needs audio files, as inputs or by --data-dir; nacre eval --help lists the options");
  if (!o.held_out && (o.valid_fraction || o.valid_seconds))
    throw Error(ErrorKind::usage, std::string(o.valid_fraction ? "--valid-fraction" : "--valid-seconds") +
                                      " has no effect without --held-out");
  o.rate.check();
  Context ctx(o.device.context());
  const std::filesystem::path model = training::find_model(o.model);
  Codec codec = load_model(ctx, model, o.model_options, o.device.storage());
  if (o.beam) codec.set_beam(*o.beam);
  if (o.denoise) denoise(codec, true, true);
  const int64_t codebooks = codec.config().codebooks_used("eval", o.rate.codebooks(codec.config()));
  const int rate = static_cast<int>(codec.config().sample_rate),
            channels = static_cast<int>(codec.config().audio_channels);

  training::FileJobs jobs;
  std::optional<training::Dataset> data;
  std::map<std::string, training::Excerpt> parts;
  if (o.held_out) {
    std::error_code failed;
    if (o.inputs.size() == 1 && !std::filesystem::exists(o.inputs[0], failed))
      throw Error(ErrorKind::io, o.inputs[0] + ": cannot open: no such folder");
    if (o.inputs.size() != 1 || !std::filesystem::is_directory(o.inputs[0], failed))
      throw Error(ErrorKind::usage, "--held-out: expected one folder, the one that the model was trained on");
    training::RunConfig config = trained_with(model, codec.config());
    if (o.valid_fraction) config.training.valid_fraction = *o.valid_fraction;
    if (o.valid_seconds) config.training.valid_seconds = *o.valid_seconds;
    training::DatasetOptions options = training::dataset_options(config);
    options.threads = o.device.threads;
    options.salvage = options.salvage || o.salvage;
    if (!o.quiet) options.progress = training::scan_progress(stderr);
    data.emplace(o.inputs[0], options);
    if (const std::optional<uint64_t> then = training::trained_on(model); then && *then != data->fingerprint())
      warn(o.inputs[0],
           "differs from the data that the model was trained on, or was split differently; some of the evaluated audio "
           "may have been used for training");
    if (data->held_out().empty())
      std::fprintf(stderr, "nacre: no audio of %s is held out; these are scores of training audio\n",
                   o.inputs[0].c_str());
    jobs.several = true;
    for (const training::BadFile& file : data->warned()) warn(o.inputs[0] + "/" + file.path, file.reason);
    for (const training::BadFile& bad : data->bad())
      jobs.refused.emplace_back(ErrorKind::input, o.inputs[0] + "/" + bad.path + ": " + bad.reason);
    for (const training::Excerpt& part : training::judged_excerpts(*data, config.training.valid_seconds)) {
      const std::string name = training::excerpt_name(*data, part);
      parts[name] = part;
      jobs.jobs.push_back({name, ""});
    }
  } else {
    jobs = training::find_files(o.inputs, training::FileKind::audio);
  }

  training::Evaluation evaluation(codec, codebooks);
  std::optional<OpusBaseline> baseline;
  if (!o.baseline.empty()) baseline.emplace(ctx, codec.config(), codebooks);
  Report report(o.json, codec.config(), codec.identity(), codebooks);
  catch_signals();
  const int code = run_jobs(jobs, "eval", o.quiet, [&](const training::FileJob& job, const training::FileHooks& hooks) {
    const auto stop = [&] {
      if (const int signal = hooks.stop->load(); signal != 0) throw training::Stopped{signal};
    };
    const auto judge = [&](double seconds, const std::function<void(const training::SampleSink&)>& feed) {
      if (baseline) baseline->begin();
      training::ClipJudge judged(evaluation, job.in,
                                 {.progress =
                                      [&](double done) {
                                        stop();
                                        hooks.progress(done, seconds);
                                      },
                                  .piece =
                                      [&](std::span<const float> original, std::span<const float>) {
                                        stop();
                                        if (baseline) baseline->piece(original);
                                      }});
      feed([&](std::span<const float> samples) { judged.push(samples); });
      const training::ClipScore& score = judged.finish();
      if (baseline) baseline->finish(job.in);
      report.add(score);
    };
    stop();
    hooks.progress(0, 0);
    if (data) {
      const training::Excerpt& part = parts.at(job.in);
      judge(static_cast<double>(part.samples) / rate,
            [&](const training::SampleSink& sink) { data->read(part.clip, part.offset, part.samples, sink, stop); });
    } else {
      JudgedFile file(job.in,
                      {.sample_rate = rate, .channels = channels, .audio = {.salvage = o.salvage}, .check = stop});
      for (const std::string& warning : file.warnings()) warn(job.in, warning);
      judge(file.seconds(), [&](const training::SampleSink& sink) { file.read(sink); });
    }
    return std::string();
  });
  report.finish(evaluation, model.string(),
                !data                      ? nullptr
                : data->held_out().empty() ? "training audio"
                                           : "held out",
                baseline, jobs.jobs.size() + jobs.refused.size() - evaluation.clips().size());
  return code;
}

}  // namespace

Command add_eval(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("inputs,--data-dir,--data_dir", o->inputs,
                 "audio files, folders (searched recursively), or - for standard input; at least one is required")
      ->type_name("PATH");
  app.add_option("-m,--model", o->model, model_help)->type_name("MODEL")->required();
  o->model_options.add_to(app);
  app.add_flag("--salvage", o->salvage, salvage_help);
  app.add_flag("--held-out,--held_out", o->held_out,
               "evaluate only the audio that training held out of the given folder, as training evaluates it");
  app.add_option("--valid-fraction,--valid_fraction", o->valid_fraction,
                 "with --held-out: fraction of the files that is held out (default: as in training)")
      ->check(part());
  app.add_option("--valid-seconds,--valid_seconds", o->valid_seconds,
                 "with --held-out: seconds of held-out audio to evaluate; 0: all of it (default: as in training)")
      ->check(zero_or_more());
  app.add_option("--baseline", o->baseline,
                 "opus: also evaluate Opus on the same audio, at the nominal bitrate of the codebooks in use")
      ->type_name("CODEC")
      ->check(one_of({"opus"}));
  app.add_option("--beam", o->beam, beam_help)->check(between(1, 64));
  app.add_flag("--denoise", o->denoise, denoise_help);
  o->rate.add_to(app, "codebooks to evaluate, the first ones of the model (default: all)");
  app.add_flag("--json", o->json, "print one JSON object to standard output");
  app.add_flag("-q,--quiet", o->quiet, "print no progress");
  o->device.stores_bf16 = true;
  o->device.add_to(app);
  app.footer(
      "Each file is scored as the model gets it: at the model's rate, scaled to a peak of 0.95, and mixed to mono\n"
      "unless the model is stereo. Figures of stereo are means over both channels. No gain or lag is fitted.\n"
      "kbit/s is the size of the .nacre stream, including the container, divided by its duration.\n"
      "A mean is over the files that have a value: silent files have no SNR and no STOI, constant files no SI-SDR,\n"
      "files with less than 0.42 s of sound no STOI. Files of more than 30 s are scored in pieces, in constant "
      "memory.");
  return [o] { return eval(*o); };
}

}  // namespace nacre::program
