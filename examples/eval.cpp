// nacre eval
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "jobs.h"
#include "nacre/atomic_file.h"
#include "nacre/training/trainer.h"

namespace nacre::program {
namespace {

using nlohmann::ordered_json;

struct Options {
  std::vector<std::string> inputs;
  std::string model;
  bool held_out = false, json = false, quiet = false;
  std::optional<double> valid_fraction, valid_seconds;
  std::optional<int64_t> beam;
  DeviceOptions device;
};

/// The configuration that a checkpoint's model was trained with; without a manifest beside it, the defaults.
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

/// Prints scores as they come.
class Report {
 public:
  Report(bool json, const CodecConfig& config, uint64_t identity)
      : json_(json), config_(config), identity_(identity) {}

  void add(const training::ClipScore& s) {
    const auto samples = static_cast<int64_t>(std::llround(s.seconds * static_cast<double>(config_.sample_rate)));
    const auto frames = static_cast<uint64_t>((samples + config_.hop() - 1) / config_.hop());
    const uint64_t bytes = training::stream_bytes(
        training::stream_header(config_, identity_, static_cast<int>(config_.sample_rate), 1), frames);
    const double bitrate = 8 * static_cast<double>(bytes) / s.seconds;
    bits_ += 8 * static_cast<double>(bytes);
    if (json_) {
      ordered_json row = figures(s.seconds, s.snr, s.si_sdr, s.mel, s.stft, bitrate, s.seconds / s.encode_seconds,
                                 s.seconds / s.decode_seconds, s.silent);
      row["input_mean"] = s.input_mean, row["input_std"] = s.input_std;
      row["output_mean"] = s.output_mean, row["output_std"] = s.output_std;
      ordered_json named = {{"path", s.name}};
      named.update(row);
      files_.push_back(std::move(named));
      return;
    }
    if (rows_++ == 0)
      std::printf("%9s %8s %8s %8s %8s %8s %9s %9s  %s\n", "seconds", "SNR dB", "SI-SDR", "mel", "STFT", "kbit/s", "encode x",
                  "decode x", "file");
    line(s.seconds, s.snr, s.si_sdr, s.mel, s.stft, bitrate, s.seconds / s.encode_seconds, s.seconds / s.decode_seconds,
         s.silent ? s.name + " (silent: no SNR)" : s.name, s.silent);
  }

  void finish(const training::Evaluation& e, const std::string& model) {
    if (e.clips().empty()) return;
    const double bitrate = bits_ / e.seconds();
    const std::vector<double> usage = e.usage(), perplexity = e.perplexity();
    if (json_) {
      ordered_json all = {{"model", model}, {"identity", hex(identity_)}, {"nominal_bitrate", config_.nominal_bitrate()}};
      all["files"] = files_;
      all["mean"] = figures(e.seconds(), e.snr(), e.si_sdr(), e.mel(), e.stft(), bitrate, e.encode_speed(), e.decode_speed(), false);
      all["mean"]["input_mean"] = e.input_mean(), all["mean"]["input_std"] = e.input_std();
      all["mean"]["output_mean"] = e.output_mean(), all["mean"]["output_std"] = e.output_std();
      all["codebook_usage"] = usage;
      all["codebook_perplexity"] = perplexity;
      std::printf("%s\n", all.dump(2, ' ', false, ordered_json::error_handler_t::replace).c_str());
      return;
    }
    line(e.seconds(), e.snr(), e.si_sdr(), e.mel(), e.stft(), bitrate, e.encode_speed(), e.decode_speed(),
         "mean of " + std::to_string(e.clips().size()), false);
    double used = 0, perplexed = 0;
    for (size_t i = 0; i < usage.size(); ++i) {
      used += usage[i] / static_cast<double>(usage.size());
      perplexed += perplexity[i] / static_cast<double>(usage.size());
    }
    std::printf("nominal %.2f kbit/s; output mean %+.4f std %.3f (input %+.4f, %.3f); codebooks %.0f %% used, perplexity %.0f of %lld\n",
                config_.nominal_bitrate() / 1000, e.output_mean(), e.output_std(), e.input_mean(), e.input_std(), 100 * used,
                perplexed, static_cast<long long>(config_.codebook_size));
  }

 private:
  static ordered_json figures(double seconds, double snr, double si_sdr, double mel, double stft, double bitrate, double encode,
                              double decode, bool silent) {
    const ordered_json none = nullptr;
    return {{"seconds", seconds},
            {"snr", silent ? none : ordered_json(snr)},
            {"si_sdr", silent ? none : ordered_json(si_sdr)},
            {"mel_distance", mel},
            {"stft_distance", stft},
            {"bitrate", bitrate},
            {"encode_speed", encode},
            {"decode_speed", decode}};
  }
  static void line(double seconds, double snr, double si_sdr, double mel, double stft, double bitrate, double encode, double decode,
                   const std::string& name, bool silent) {
    std::printf("%9.2f %8s %8s %8.3f %8.3f %8.2f %9.1f %9.1f  %s\n", seconds, silent ? "-" : fixed(snr, 2).c_str(),
                silent ? "-" : fixed(si_sdr, 2).c_str(), mel, stft, bitrate / 1000, encode, decode, name.c_str());
    std::fflush(stdout);
  }

  bool json_;
  CodecConfig config_;
  uint64_t identity_;
  double bits_ = 0;
  int64_t rows_ = 0;
  ordered_json files_ = ordered_json::array();
};

int eval(const Options& o) {
  Context ctx(o.device.context());
  const std::filesystem::path model = training::find_model(o.model);
  Codec codec = Codec::load(ctx, model);
  if (o.beam) codec.set_beam(*o.beam);
  const int rate = static_cast<int>(codec.config().sample_rate);

  training::FileJobs jobs;
  std::optional<training::Dataset> data;
  std::map<std::string, int64_t> clips;
  if (o.held_out) {
    if (o.inputs.size() != 1 || !std::filesystem::is_directory(o.inputs[0]))
      throw Error(ErrorKind::usage, "--held-out: expected one folder, the one that was trained on");
    training::RunConfig config = trained_with(model, codec.config());
    if (o.valid_fraction) config.training.valid_fraction = *o.valid_fraction;
    if (o.valid_seconds) config.training.valid_seconds = *o.valid_seconds;
    training::DatasetOptions options = training::dataset_options(config);
    options.threads = o.device.threads;
    data.emplace(o.inputs[0], options);
    jobs.several = true;
    for (const training::BadFile& bad : data->bad())
      jobs.refused.emplace_back(ErrorKind::input, o.inputs[0] + "/" + bad.path + ": " + bad.reason);
    for (const int64_t clip : training::judged_clips(*data, config.training.valid_seconds)) {
      const std::string& path = data->clips()[static_cast<size_t>(clip)].path;
      clips[path] = clip;
      jobs.jobs.push_back({path, ""});
    }
  } else {
    jobs = training::find_files(o.inputs, training::FileKind::audio);
  }

  training::Evaluation evaluation(codec);
  Report report(o.json, codec.config(), codec.identity());
  catch_signals();
  const int code = run_jobs(jobs, "eval", o.quiet, [&](const training::FileJob& job, const training::FileHooks& hooks) {
    if (hooks.stop->load() != 0) throw training::Stopped{hooks.stop->load()};
    hooks.progress(0, 0);
    if (data) {
      report.add(evaluation.add(job.in, *data->load(clips.at(job.in))));
    } else {
      training::Audio audio = training::read_audio(job.in);
      if (audio.channels > 1) audio.samples = training::to_mono(audio.samples, audio.channels);
      if (audio.sample_rate != rate) audio.samples = training::resample(audio.samples, 1, audio.sample_rate, rate);
      training::normalise_peak(audio.samples);
      report.add(evaluation.add(job.in, audio.samples));
    }
    return std::string();
  });
  report.finish(evaluation, model.string());
  return code;
}

}  // namespace

Command add_eval(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("inputs,--data-dir,--data_dir", o->inputs, "audio files, folders (searched recursively), or - for standard input")->required();
  app.add_option("-m,--model", o->model, "a run's folder (its best checkpoint), a checkpoint's folder or a safetensors file")
      ->required();
  app.add_flag("--held-out,--held_out", o->held_out, "of a folder that was trained on: only what the trainer holds out and judges by");
  app.add_option("--valid-fraction,--valid_fraction", o->valid_fraction, "with --held-out: part held out; else as in training")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--valid-seconds,--valid_seconds", o->valid_seconds,
                 "with --held-out: audio to judge by, 0: all of it; else as in training")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--beam", o->beam, beam_help);
  app.add_flag("--json", o->json, "one JSON object on standard output");
  app.add_flag("-q,--quiet", o->quiet, "no progress");
  o->device.add_to(app);
  app.footer("Scored is the mean over the channels, at the model's rate, scaled to a peak of 0.95; no gain or lag is fitted.\n"
             "kbit/s is the size of the .nacre stream of that, container included, over its length. Means are over files;\n"
             "silent files have no SNR.");
  return [o] { return eval(*o); };
}

}  // namespace nacre::program
