// nacre encode, nacre decode, nacre export
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "arguments.h"
#include "files/text.h"
#include "jobs.h"
#include "model.h"
#include "nacre/formats/save_weights.h"
#include "nacre/training/trainer.h"
#include "rate.h"

namespace nacre::program {
namespace {

constexpr const char* inputs_help =
    "files, folders (searched recursively; the output folder gets the same sub-folders), or - for standard input";
constexpr const char* output_help =
    "output file, or - for standard output; taken as a folder if there are several inputs, if a folder of this name "
    "exists, or if the name ends in /";

struct Options {
  std::vector<std::string> inputs;
  std::string output, model, format;
  ModelOptions model_options;
  bool force = false, quiet = false, as_float = false, model_rate = false, json = false, salvage = false,
       keep_ending = false, conceal = false, denoise = false;
  std::optional<int64_t> beam, block;
  std::optional<double> gain, from, to;  // from, to: seconds
  bool no_normalise = false;
  RateOptions rate;
  DeviceOptions device;

  void add_to(CLI::App& app) {
    app.add_option("inputs", inputs, inputs_help)->type_name("PATH")->required();
    app.add_option("-o,--output", output, output_help)->type_name("PATH")->required();
    app.add_option("-m,--model", model, model_help)->type_name("MODEL")->required();
    model_options.add_to(app);
    app.add_flag("-f,--force", force, "overwrite existing files");
    app.add_flag("-q,--quiet", quiet, "print no progress and no results, only errors and warnings");
    app.add_flag("--json", json, "print one JSON object to standard output instead of lines to standard error");
    device.stores_bf16 = true;
    device.add_to(app);
  }
};

nlohmann::ordered_json json_of(const training::FileJob& job, const training::FileReport& r) {
  return {{"input", job.in},
          {"output", job.out},
          {"seconds", r.seconds},
          {"sample_rate", r.sample_rate},
          {"channels", r.channels},
          {"samples", r.samples},
          {"n_codebooks", r.codebooks},
          {"stream_bytes", r.bytes},
          {"bitrate", r.seconds > 0 ? 8 * static_cast<double>(r.bytes) / r.seconds : 0},
          {"wall_seconds", r.wall_seconds}};
}

/// --format of encode. Without it, the ending of the output file decides.
training::StreamFormat stream_format(const Options& o) {
  const bool ecdc = o.format.empty() ? o.output.ends_with(".ecdc") : o.format == "ecdc";
  return ecdc ? training::StreamFormat::ecdc : training::StreamFormat::nacre;
}

template <class F>
int convert_matched(const Options& o, const training::FileJobs& jobs, training::FileKind jobs_from, const char* label,
                    nlohmann::ordered_json& done, F&& one) {
  if (jobs.jobs.empty()) return run_jobs(jobs, label, o.quiet, {});
  Context ctx(o.device.context());
  const std::filesystem::path model = training::find_model(o.model);
  if (const std::string warning = training::going_to_be_removed(model);
      jobs_from == training::FileKind::audio && !o.quiet && !warning.empty())
    std::fprintf(stderr, "nacre: warning: %s\n", printable(warning).c_str());
  Codec codec = load_model(ctx, model, o.model_options, o.device.storage());
  if (o.beam) codec.set_beam(*o.beam);
  const bool encodes = jobs_from == training::FileKind::audio;
  if (o.denoise) denoise(codec, encodes, !encodes);
  if (encodes && stream_format(o) == training::StreamFormat::ecdc)
    if (const std::string why = training::not_for_ecdc(codec.config()); !why.empty())
      throw Error(ErrorKind::usage, "the model cannot write .ecdc files: " + why);
  const int64_t codebooks = o.rate.codebooks(codec.config());
  training::FileCodec files(codec);
  catch_signals();
  return run_jobs(jobs, label, o.quiet, [&](const training::FileJob& job, const training::FileHooks& hooks) {
    if (job.make_folders) {
      const std::filesystem::path parent = std::filesystem::path(job.out).parent_path();
      std::error_code failed;
      if (!parent.empty()) std::filesystem::create_directories(parent, failed);
      if (failed) throw Error(ErrorKind::io, parent.string() + ": cannot create the folder: " + failed.message());
    }
    training::FileReport r;
    const std::string line = one(files, job, hooks, codebooks, r);
    if (!o.json) return line;
    done.push_back(json_of(job, r));
    if (jobs_from == training::FileKind::stream) done.back()["clipped"] = r.clipped;
    if (o.conceal) done.back()["lost"] = r.lost, done.back()["lost_frames"] = r.lost_frames;
    return std::string();
  });
}

/// Matches inputs to outputs, loads the model only if there is work, and processes the files.
template <class F>
int convert(const Options& o, training::FileKind from, const char* label, F&& one) {
  if (o.json && o.output == "-")
    throw Error(ErrorKind::usage,
                "--json: -o - already writes to standard output; name an output file, or omit --json");
  o.rate.check();
  const training::FileJobs jobs = training::match_files(
      o.inputs, o.output, from, {.overwrite = o.force, .keep_ending = o.keep_ending, .format = stream_format(o)});
  nlohmann::ordered_json done = nlohmann::ordered_json::array();
  const int code = convert_matched(o, jobs, from, label, done, one);
  if (o.json) {
    const size_t failed = jobs.jobs.size() + jobs.refused.size() - done.size();
    print_json({{"files", std::move(done)}, {"failed", failed}});
  }
  return code;
}

std::string short_number(double x) {
  char text[40];
  std::snprintf(text, sizeof text, "%.10g", x);
  return text;
}
std::string codebooks_used(const Options& o, const training::FileReport& r) {
  if (!o.rate.given()) return "";
  return ", " + std::to_string(r.codebooks) + (r.codebooks == 1 ? " codebook" : " codebooks");
}
std::string seconds_and_speed(const training::FileReport& r) {
  return fixed(r.seconds, 2) + " s, " + std::to_string(r.sample_rate) + " Hz, " + std::to_string(r.channels) +
         (r.channels == 1 ? " channel, " : " channels, ") + fixed(r.seconds / std::max(r.wall_seconds, 1e-9), 1) +
         " x real time";
}

/// The factor by which samples are multiplied, or 0 to scale by the peak.
float gain_of(const Options& o) {
  if (o.gain && o.no_normalise) throw Error(ErrorKind::usage, "--gain and --no-normalise exclude each other");
  if (o.block && !o.gain && !o.no_normalise)
    throw Error(ErrorKind::usage, "--block has no effect without --gain or --no-normalise");
  if (!o.gain && !o.no_normalise) return 0;
  if (stream_format(o) == training::StreamFormat::ecdc)
    throw Error(ErrorKind::usage,
                std::string(o.gain ? "--gain" : "--no-normalise") +
                    " has no effect on .ecdc files, which have no gain: their samples are always coded as they are");
  const double gain = o.gain.value_or(1);
  // The stream holds the reciprocal.
  if (gain < 0x1p-40 || gain > 0x1p40) {
    char text[40];
    std::snprintf(text, sizeof text, "%.6g", gain);
    throw Error(ErrorKind::usage, "--gain is " + std::string(text) + ", expected 2^-40 to 2^40 (9.1e-13 to 1.1e12)");
  }
  return static_cast<float>(gain);
}

int encode(const Options& o) {
  const float gain = gain_of(o);
  return convert(o, training::FileKind::audio, "encode",
                 [&](training::FileCodec& files, const training::FileJob& job, const training::FileHooks& hooks,
                     int64_t codebooks, training::FileReport& r) {
                   r = files.encode(job.in, job.out, hooks,
                                    {.audio = {.salvage = o.salvage},
                                     .codebooks = codebooks,
                                     .format = stream_format(o),
                                     .gain = gain,
                                     .block_frames = o.block.value_or(0)});
                   for (const std::string& warning : r.warnings) warn(job.in, warning);
                   return job.in + " -> " + job.out + ": " + seconds_and_speed(r) + ", " + std::to_string(r.bytes) +
                          " bytes, " + fixed(8e-3 * static_cast<double>(r.bytes) / r.seconds, 2) + " kbit/s" +
                          codebooks_used(o, r);
                 });
}

int decode(const Options& o) {
  if (o.to && o.from.value_or(0) >= *o.to)
    throw Error(ErrorKind::usage, "--to is " + short_number(*o.to) + ", expected more than --from, which is " +
                                      short_number(o.from.value_or(0)));
  training::DecodeOptions options{.format = o.as_float ? training::WavFormat::float32 : training::WavFormat::pcm16,
                                  .model_rate = o.model_rate,
                                  .from = o.from.value_or(0),
                                  .to = o.to,
                                  .conceal = o.conceal};
  return convert(o, training::FileKind::stream, "decode",
                 [&](training::FileCodec& files, const training::FileJob& job, const training::FileHooks& hooks,
                     int64_t codebooks, training::FileReport& r) {
                   // A bitrate is a limit, which a stream of fewer codebooks keeps.
                   (o.rate.bitrate ? options.max_codebooks : options.codebooks) = codebooks;
                   r = files.decode(job.in, job.out, options, hooks);
                   for (const std::string& warning : r.warnings) warn(job.in, warning);
                   // Printed even when quiet, because the sound differs from what the model produced.
                   if (r.clipped > 0)
                     std::fprintf(stderr,
                                  "nacre: warning: %s: %lld samples exceeded full scale and were clipped; --float "
                                  "writes them unclipped\n",
                                  printable(job.out).c_str(), static_cast<long long>(r.clipped));
                   return job.in + " -> " + job.out + ": " + seconds_and_speed(r) + codebooks_used(o, r);
                 });
}

/// Checks where an export is written: a file, or a folder for transformers.
void check_target(const Options& o, const std::filesystem::path& from) {
  namespace fs = std::filesystem;
  const fs::path to = o.output;
  const bool folder = o.format == "hf";
  const std::string expected = folder ? "a folder" : "a file name such as model.safetensors";
  if (o.output == "-")
    throw Error(ErrorKind::usage, "-o -: a model cannot be written to standard output; expected " + expected);
  if (!folder && (fs::is_directory(to) || o.output.ends_with('/')))
    throw Error(ErrorKind::usage, "-o " + o.output + ": is a folder, expected " + expected);
  if (folder && fs::exists(to) && !fs::is_directory(to))
    throw Error(ErrorKind::usage, "-o " + o.output + ": is a file, expected " + expected);
  const fs::path parent = fs::path(to / "").parent_path().parent_path();
  if (std::error_code failed; !parent.empty() && !fs::is_directory(parent, failed))
    throw Error(ErrorKind::io, "-o " + o.output + ": there is no folder " + parent.string());
  const fs::path file = folder ? to / "model.safetensors" : to;
  if (fs::exists(file) && fs::equivalent(from, file))
    throw Error(ErrorKind::usage, "-o " + o.output + ": is the model that is exported; choose another name");
  if (fs::exists(to) && !o.force) throw Error(ErrorKind::usage, o.output + " exists; -f overwrites it");
  if (!folder || !fs::exists(to)) return;
  for (const fs::directory_entry& e : fs::directory_iterator(to)) {
    const std::string name = e.path().filename().string();
    if (name != "config.json" && name != "preprocessor_config.json" && name != "model.safetensors")
      throw Error(ErrorKind::usage,
                  "-o " + o.output + ": contains " + name + ", so it is no folder of such files; choose another name");
  }
}

int export_model(const Options& o) {
  namespace fs = std::filesystem;
  const fs::path from = training::find_model(o.model);
  fs::path to = o.output;
  if (o.format == "hf" && to.has_relative_path() && !to.has_filename()) to = to.parent_path();  // "out/"
  check_target(o, from);
  Context ctx;
  Codec codec = load_model(ctx, from, o.model_options);
  fs::path file = to;
  if (o.format == "hf")
    save_hugging_face(ctx, codec.parameters(), codec.config(), to), file = to / "model.safetensors";
  else if (o.format == "descript")
    save_descript(ctx, codec.parameters(), codec.config(), to);
  else if (o.format == "encodec")
    save_encodec(ctx, codec.parameters(), codec.config(), to);
  else if (o.format == "audiolm")
    save_audiolm(ctx, codec.parameters(), codec.config(), to);
  else
    codec.save(to);
  if (o.json)
    print_json({{"input", from.string()},
                {"output", to.string()},
                {"format", o.format},
                {"identity", hex(codec.identity())},
                {"values", codec.parameters().effective_elements()},
                {"bytes", static_cast<uint64_t>(fs::file_size(file))}});
  else if (!o.quiet)
    std::fprintf(stderr, "%s -> %s: model %s, %.2f M values, %ju bytes\n", printable(from.string()).c_str(),
                 printable(to.string()).c_str(), hex(codec.identity()).c_str(),
                 static_cast<double>(codec.parameters().effective_elements()) / 1e6,
                 static_cast<uintmax_t>(fs::file_size(file)));
  return 0;
}

}  // namespace

Command add_encode(CLI::App& app) {
  auto o = std::make_shared<Options>();
  o->add_to(app);
  app.add_option("--beam", o->beam, beam_help)->check(between(1, 64));
  app.add_flag("--denoise", o->denoise, denoise_help);
  o->rate.add_to(app, "codebooks of the stream, the first ones of the model (default: all)");
  app.add_option("--gain", o->gain,
                 "multiply the samples by X instead of scaling by the peak; decoding undoes it. Standard input and "
                 "pipes are then encoded while they arrive")
      ->type_name("X")
      ->check(above_zero());
  app.add_flag("--no-normalise,--no_normalise,--no-normalize,--no_normalize", o->no_normalise, "the same as --gain 1");
  app.add_option("--block", o->block,
                 "frames per block and per packet while encoding what arrives: more take less time and fewer bytes per "
                 "frame, and delay the stream (default: 1)")
      ->check(between(1, 65536));
  app.add_flag("--salvage", o->salvage, salvage_help);
  app.add_flag("--keep-ending,--keep_ending", o->keep_ending,
               "write x.wav to x.wav.nacre, so that x.wav and x.flac get different names");
  app.add_option("--format", o->format,
                 "nacre: streams of nacre; ecdc: files of EnCodec, for models of the network encodec at 24 kHz "
                 "(default: by the ending of the output)")
      ->check(one_of({"nacre", "ecdc"}));
  app.footer(
      "With --gain or --no-normalise, nacre encode - -o - writes each packet as soon as its samples have arrived.\n"
      "x.wav becomes x.nacre, or x.ecdc with --format ecdc. If some of several inputs cannot be encoded, each is\n"
      "reported on standard error, the others are encoded, and the exit code is 3.");
  return [o] { return encode(*o); };
}

Command add_decode(CLI::App& app) {
  auto o = std::make_shared<Options>();
  o->add_to(app);
  o->rate.add_to(app, "codebooks to decode, the first ones of the stream (default: all that it has)");
  app.add_flag("--denoise", o->denoise, denoise_help);
  app.add_flag("--float", o->as_float, "write 32-bit float samples instead of 16-bit integers");
  app.add_flag("--model-rate,--model_rate", o->model_rate, "write the model's sample rate instead of the original's");
  app.add_option("--from", o->from, "decode from this time on, in seconds (default: 0)")->check(finite_zero_or_more());
  app.add_option("--to", o->to, "decode up to this time, in seconds (default: the end)")->check(finite_zero_or_more());
  app.add_flag(
      "--conceal", o->conceal,
      "decode damaged streams and streams without an end: fade lost parts out, with a warning for each stream");
  app.footer(
      "nacre decode - -o - writes the samples of each packet as soon as it has arrived.\n"
      "x.nacre becomes x.wav, with the sample rate, channels and length that the original had. x.ecdc becomes x.wav\n"
      "at 24 kHz.");
  return [o] { return decode(*o); };
}

Command add_export(CLI::App& app) {
  auto o = std::make_shared<Options>();
  o->format = "nacre";
  app.add_option("-o,--output", o->output, "the safetensors file to write, or the folder for --format hf")
      ->type_name("PATH")
      ->required();
  app.add_option("-m,--model", o->model, model_help)->type_name("MODEL")->required();
  o->model_options.add_to(app);
  app.add_flag("-f,--force", o->force, "overwrite an existing file");
  app.add_flag("-q,--quiet", o->quiet, "print only errors");
  app.add_flag("--json", o->json, "print one JSON object to standard output instead of a line to standard error");
  app.add_option(
         "--format", o->format,
         "nacre: a file with the configuration in it; descript, encodec or audiolm: the state dict of "
         "descript-audio-codec, the package encodec, or SoundStream of audiolm-pytorch; hf: a folder for DacModel or "
         "EncodecModel of transformers")
      ->check(one_of({"nacre", "descript", "encodec", "audiolm", "hf"}))
      ->capture_default_str();
  app.footer(
      "The file holds the weights, and the codec's configuration in its metadata. Encoding and decoding need no more;\n"
      "the state of training is not included.");
  return [o] { return export_model(*o); };
}

}  // namespace nacre::program
