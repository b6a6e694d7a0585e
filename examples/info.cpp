// nacre info
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "arguments.h"
#include "data/sniff.h"
#include "files/files.h"
#include "files/spelling.h"
#include "files/text.h"
#include "info_systems.h"
#include "jobs.h"
#include "model.h"
#include "nacre/codec/cost.h"
#include "nacre/codec/streaming.h"
#include "nacre/codec/windowed.h"
#include "nacre/files/checkpoint_store.h"
#include "nacre/files/ecdc.h"
#include "nacre/files/safetensors.h"
#include "nacre/training/trainer.h"
#include "nacre/training/training_step.h"

namespace nacre::program {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

struct Options {
  std::vector<std::string> inputs;
  bool configs = false, systems = false, keys = false, memory = false, devices = false, json = false, salvage = false;
  std::string cost;  // name of a device
  ModelOptions model_options;
  DeviceOptions device;
};

/// Prints text unless JSON is requested. Each function below prints text or fills in its part of the object.
__attribute__((format(printf, 2, 3))) void say(const Options& o, const char* format, ...) {
  if (o.json) return;
  va_list values;
  va_start(values, format);
  std::vprintf(format, values);
  va_end(values);
}

std::string words(const CodecConfig& c) {
  std::string rates;
  for (const int64_t r : c.encoder_rates) rates += (rates.empty() ? "" : " x ") + std::to_string(r);
  return std::to_string(c.sample_rate) + (c.audio_channels == 2 ? " Hz stereo, hop " : " Hz, hop ") +
         std::to_string(c.hop()) + " (" + rates + "), " + fixed(c.frame_rate(), 2) + " frames/s, " +
         std::to_string(c.n_codebooks) + " codebooks of " + std::to_string(c.codebook_size) +
         (c.quantizer == QuantizerKind::ema ? " (EMA)" : " (factorised)") + ", " +
         (c.two_rates() ? std::to_string(c.long_codebooks) + " of them once per frame and the others " +
                              std::to_string(c.long_frames) + " times, "
                        : "") +
         fixed(c.nominal_bitrate() / 1000, 2) + " kbit/s";
}

std::string mebibytes(size_t bytes) {
  return std::to_string(bytes) + " bytes (" + fixed(static_cast<double>(bytes) / (1 << 20), 1) + " MiB)";
}

/// Resident memory of this process at the first call: the program and its libraries, before a model is loaded.
size_t program_bytes() {
  static const size_t at_first = [] {
    size_t total = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> total >> resident;
    return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  }();
  return at_first;
}

/// Peak memory of `nacre encode` or `decode`, in bytes: while a model file is read, or while a window is coded. With a
/// GPU, only memory on the host. Within a few percent of measurements (docs/performance.md).
size_t process_bytes(Context& ctx, const CodecConfig& config, Codec::Use use) {
  constexpr size_t huge_page = size_t{2} << 20;  // large blocks (parameters, weights, a plan) are rounded up to it
  const Device host{};
  const size_t before = memory_use(host).now;
  Codec codec(ctx, config);
  size_t file = 0, widest = 0;
  codec.parameters().each_tensor(ctx, [&](const std::string&, const std::vector<int64_t>&, std::span<const float> v) {
    file += v.size_bytes();
    widest = std::max(widest, v.size_bytes());
  });
  // Tensors are copied one by one, but codebooks all at once. The process keeps the memory that this needed.
  const size_t codebooks =
      sizeof(float) * static_cast<size_t>(config.n_codebooks * config.codebook_size * config.code_dim());
  const size_t base = program_bytes() + 2 * widest + std::max(widest, codebooks) + huge_page;
  const size_t model = memory_use(host).now - before;
  const int64_t frames = default_window_frames(config), samples = frames * config.hop();
  // The windows of a recurrent codec are blocks of a stream (nacre/codec/windowed.h).
  std::optional<StreamingEncoder> encoder;
  std::optional<StreamingDecoder> decoder;
  if (!config.recurrent() || config.takes_any_length())
    codec.reserve_inference(1, samples, use);
  else if (use == Codec::Use::encode)
    encoder.emplace(
        codec, [](View<const int32_t>) {}, StreamingOptions{.block_frames = frames});
  else
    decoder.emplace(
        codec, [](std::span<const float>) {}, StreamingOptions{.block_frames = frames});
  const size_t plan = memory_use(host).now - before - model;
  const size_t buffers = 4 * static_cast<size_t>(samples * config.audio_channels) *
                         sizeof(float);  // as read, resampled, in the window, being written
  return base + model + std::max(file, plan + huge_page / 2 + buffers);
}

/// Memory of the plans for inference on one window and for one training step.
void about_memory(const Options& o, Context& ctx, const training::RunConfig& c, ordered_json& out) {
  const int64_t frames = default_window_frames(c.codec);
  const size_t encoding = process_bytes(ctx, c.codec, Codec::Use::encode);
  const size_t decoding = process_bytes(ctx, c.codec, Codec::Use::decode);
  say(o, "  memory of the whole process: nacre encode %s; nacre decode %s\n", mebibytes(encoding).c_str(),
      mebibytes(decoding).c_str());
  out["memory"] = {{"encode_process", encoding}, {"decode_process", decoding}};
  {
    Codec codec(ctx, c.codec);
    codec.reserve_inference(1, frames * c.codec.hop());
    const double window = static_cast<double>(frames) / c.codec.frame_rate();
    say(o, "  inference, windows of %.2f s: %s; without sharing of memory: %s\n", window,
        mebibytes(codec.reserved_bytes()).c_str(), mebibytes(codec.unshared_bytes()).c_str());
    out["memory"]["inference"] = {
        {"window_seconds", window}, {"bytes", codec.reserved_bytes()}, {"unshared_bytes", codec.unshared_bytes()}};
  }
  TrainingStep step(ctx, c.codec, c.loss, c.optimizer, c.training.batch_size, c.training.segment_length,
                    c.training.seed, o.device.storage(), nullptr, c.discriminator);
  say(o, "  training step, %lld x %lld samples: %s; without sharing of memory: %s\n",
      static_cast<long long>(step.batch()), static_cast<long long>(step.samples()),
      mebibytes(step.planned_bytes()).c_str(), mebibytes(step.unshared_bytes()).c_str());
  out["memory"]["training_step"] = {{"batch_size", step.batch()},
                                    {"samples", step.samples()},
                                    {"bytes", step.planned_bytes()},
                                    {"unshared_bytes", step.unshared_bytes()}};
}

/// Operations, bytes and the lower bound on the time for every layer of a training step on a device.
void about_cost(const Options& o, const training::RunConfig& c, ordered_json& out) {
  const DeviceCeilings& d = device_ceilings(o.cost);
  const Arithmetic a = arithmetic(o.device.precision);
  const int64_t batch = c.training.batch_size, samples = c.training.segment_length;
  const std::vector<CostRow> costs =
      step_cost(c.codec, c.loss, batch, samples, a, c.discriminator, c.optimizer.ema_decay > 0);
  size_t longest = 28;
  for (const CostRow& r : costs) longest = std::max(longest, r.name.size());
  const int width = static_cast<int>(longest);
  say(o,
      "  minimum time of a training step on %s in %s (%s): copy %.2f TB/s, fp32 %.0f, tf32 %.0f, bf16 %.0f TFLOP/s\n",
      d.name.c_str(), o.device.precision.c_str(), d.source.c_str(), d.copy / 1e12, d.fp32 / 1e12, d.tf32 / 1e12,
      d.bf16 / 1e12);
  say(o, "  %-*s %10s %10s %10s %10s %10s %10s %10s %10s\n", width, "", "forward", "backward", "forward", "backward",
      "forward", "backward", "forward", "backward");
  say(o, "  %-*s %10s %10s %10s %10s %10s %10s %10s %10s\n", width, "layer", "GFLOP", "GFLOP", "MB", "MB", "launches",
      "launches", "us", "us");
  CostRow sum{.name = "sum"};
  double forward = 0, backward = 0;
  ordered_json rows = ordered_json::array();
  const auto of = [](const Work& w, double seconds) {
    return ordered_json{
        {"operations", w.products + w.floats}, {"bytes", w.bytes}, {"launches", w.launches}, {"seconds", seconds}};
  };
  const auto line = [&](const CostRow& r, double f, double b) {
    rows.push_back({{"layer", r.name}, {"forward", of(r.forward, f)}, {"backward", of(r.backward, b)}});
    say(o, "  %-*s %10.3f %10.3f %10.2f %10.2f %10.0f %10.0f %10.2f %10.2f\n", width, r.name.c_str(),
        (r.forward.products + r.forward.floats) / 1e9, (r.backward.products + r.backward.floats) / 1e9,
        r.forward.bytes / 1e6, r.backward.bytes / 1e6, r.forward.launches, r.backward.launches, 1e6 * f, 1e6 * b);
  };
  for (const CostRow& r : costs) {
    const double f = floor_seconds(r.forward, d, a), b = floor_seconds(r.backward, d, a);
    line(r, f, b);
    forward += f, backward += b;
    sum.forward += r.forward, sum.backward += r.backward;
  }
  line(sum, forward, backward);
  say(o, "  %lld x %lld samples: a step takes at least %.3f ms there\n", static_cast<long long>(batch),
      static_cast<long long>(samples), 1e3 * (forward + backward));
  out["cost"] = {
      {"device", d.name}, {"precision", o.device.precision}, {"seconds", forward + backward}, {"layers", rows}};
}

ordered_json json_of(const CodecConfig& c) {
  return {
      {"sample_rate", c.sample_rate},          {"audio_channels", c.audio_channels}, {"segment", c.segment},
      {"segment_stride", c.segment_stride},    {"segment_scale", c.segment_scale},   {"hop", c.hop()},
      {"frame_rate", c.frame_rate()},          {"n_codebooks", c.n_codebooks},       {"codebook_size", c.codebook_size},
      {"nominal_bitrate", c.nominal_bitrate()}};
}

/// The delays of streaming in blocks of one frame.
void about_streaming(const Options& o, const CodecConfig& c, ordered_json& out) {
  if (c.segmented()) {
    const auto rate = static_cast<double>(c.sample_rate);
    say(o, "  no streaming frame by frame: segments of %s s, one every %s s, are coded by themselves\n",
        fixed(static_cast<double>(c.segment) / rate, 2).c_str(),
        fixed(static_cast<double>(c.segment_stride) / rate, 2).c_str());
    out["streaming"] = nullptr;
    return;
  }
  if (c.needs_whole_signal()) {
    say(o, "  no streaming: every frame depends on the whole signal\n");
    out["streaming"] = nullptr;
    return;
  }
  const StreamingLatency encoding = encoding_latency(c), decoding = decoding_latency(c);
  const auto ms = [&](int64_t samples) {
    return 1e3 * static_cast<double>(samples) / static_cast<double>(c.sample_rate);
  };
  say(o, "  streaming: frames of %.2f ms; lookahead of the encoder %.2f ms, of the decoder %.2f ms\n",
      ms(encoding.block), ms(encoding.lookahead), ms(decoding.lookahead));
  if (encoding.start > 0 || decoding.start > 0)
    say(o, "  start of a stream: first codes after %.2f ms of audio, first samples after %.2f ms of codes\n",
        ms(std::max(encoding.start, encoding.block + encoding.lookahead)),
        ms(std::max(decoding.start, decoding.block + decoding.lookahead)));
  const auto json = [&](const StreamingLatency& l) {
    return ordered_json{{"block", l.block}, {"lookahead", l.lookahead}, {"start", l.start}};
  };
  out["streaming"] = {{"encode", json(encoding)}, {"decode", json(decoding)}};
}

/// The CPU, unless the memory on a device is requested.
ContextOptions context_for(const Options& o) { return o.memory ? o.device.context() : ContextOptions{}; }

void about_config(const Options& o, const std::string& name, const training::RunConfig& c, ordered_json& out) {
  const ordered_json costs = complexity(c.codec);
  say(o, "%s: configuration\n  %s\n  %s\n  batch %lld x %lld samples, learning rate %g\n", printable(name).c_str(),
      words(c.codec).c_str(), complexity_line(costs).c_str(), static_cast<long long>(c.training.batch_size),
      static_cast<long long>(c.training.segment_length), c.optimizer.learning_rate);
  out = {{"name", name}, {"kind", "configuration"}};
  out.update(json_of(c.codec));
  out.update(costs);
  about_streaming(o, c.codec, out);
  out["config"] = ordered_json::parse(c.to_json());
  if (!o.cost.empty()) about_cost(o, c, out);
  if (!o.memory) return;
  Context ctx(o.device.context());
  about_memory(o, ctx, c, out);
}

void about_model(const Options& o, const std::string& name, const fs::path& model, training::RunConfig run,
                 ordered_json& out) {
  Context ctx(context_for(o));
  {
    const WeightsFile weights = WeightsFile::read(model);
    Codec codec = load_model(ctx, weights, o.model_options);
    run.codec = codec.config();
    const int64_t values = codec.parameters().effective_elements();
    const auto bytes = static_cast<size_t>(fs::file_size(model));
    say(o, "%s: model %s\n  %s\n  %.2f M values in use, identity %s, file %s\n", printable(name).c_str(),
        printable(model.string()).c_str(), words(run.codec).c_str(), static_cast<double>(values) / 1e6,
        hex(codec.identity()).c_str(), mebibytes(bytes).c_str());
    if (const std::string program = program_of(weights.format()); !program.empty())
      say(o, "  in the form of %s\n", program.c_str());
    if (!out.contains("kind")) out = {{"name", name}, {"kind", "model"}};
    out["model"] = model.string(), out["format"] = str(weights.format());
    out.update(json_of(run.codec));
    about_streaming(o, run.codec, out);
    out["values"] = values, out["identity"] = hex(codec.identity()), out["bytes"] = bytes;
  }
  if (!o.cost.empty()) about_cost(o, run, out);
  if (o.memory) about_memory(o, ctx, run, out);
}

void about_folder(const Options& o, const std::string& name, ordered_json& out) {
  const fs::path folder = name;
  training::RunConfig run;
  // The model of a run is in its checkpoints. Beside model.safetensors, config.json is that of transformers.
  if (fs::is_regular_file(folder / "config.json") && !fs::is_regular_file(folder / "model.safetensors")) {
    run = training::RunConfig::named((folder / "config.json").string());
    say(o, "%s: run\n", printable(name).c_str());
    out = {{"name", name}, {"kind", "run"}, {"checkpoints", ordered_json::array()}};
  }
  for (const int64_t step : list_checkpoints(folder)) {
    char label[64];
    std::snprintf(label, sizeof label, "step-%08lld", static_cast<long long>(step));
    ordered_json found = {{"step", step}};
    try {
      const Checkpoint c = verify_checkpoint(folder / label);
      say(o, "  %s: verified%s\n", label, c.metric ? (", SNR " + fixed(*c.metric, 2) + " dB").c_str() : "");
      found["snr"] = c.metric ? ordered_json(*c.metric) : ordered_json();
    } catch (const Error& e) {
      say(o, "  %s: %s\n", label, printable(e.what()).c_str());
      found["damaged"] = e.what();
    }
    out["checkpoints"].push_back(std::move(found));
  }
  if (!out.is_null() && !out.contains("kind")) out["name"] = name, out["kind"] = "run";
  if (fs::is_regular_file(folder / "manifest.json")) {
    const Checkpoint c = verify_checkpoint(folder);
    say(o, "%s: checkpoint of step %lld, verified%s\n", printable(name).c_str(), static_cast<long long>(c.step),
        c.metric ? (", SNR " + fixed(*c.metric, 2) + " dB").c_str() : "");
    out = {{"name", name}, {"kind", "checkpoint"}, {"step", c.step}};
    out["snr"] = c.metric ? ordered_json(*c.metric) : ordered_json();
  }
  about_model(o, name, training::find_model(folder), run, out);
}

/// What the packets of a stream are made of.
std::string packets_of(const training::StreamFacts& s) {
  const StreamHeader& h = s.header;
  const auto number = [](uint64_t n) { return std::to_string(n); };
  if (h.segment == 0) return number(s.frames) + " frames of " + number(h.hop) + " samples";
  const uint64_t segments = (s.frames + h.packet_frames - 1) / h.packet_frames;
  return number(segments) + (segments == 1 ? " segment" : " segments") + " of up to " + number(h.packet_frames) +
         " frames of " + number(h.hop) + " samples" + (h.scaled ? ", with a scale each" : "");
}

/// The keys of channels that are coded together and of segments, under their names in a configuration.
void add_groups(const StreamHeader& h, ordered_json& out) {
  if (h.joint != 1) out["audio_channels"] = h.joint;
  if (h.segment == 0) return;
  out["segment"] = h.segment, out["segment_stride"] = h.stride, out["segment_scale"] = h.scaled;
}

/// An .ecdc file has no checksum, so it is complete and not verified.
void about_ecdc(const Options& o, const training::StreamFacts& s, const std::string& name, ordered_json& out) {
  const double seconds = static_cast<double>(s.samples) / s.header.model_rate;
  const double bitrate = seconds > 0 ? 8 * static_cast<double>(s.bytes) / seconds : 0;
  say(o, "%s: .ecdc file of EnCodec, complete\n", printable(name).c_str());
  say(o, "  %s, %u Hz, %u channel%s, %llu samples\n", describe_duration(seconds).c_str(), s.header.model_rate,
      s.header.channels, s.header.channels == 1 ? "" : "s", static_cast<unsigned long long>(s.samples));
  say(o, "  %s: %s, %u codebooks of %u\n", ecdc_models[s.header.segment != 0 ? 1 : 0].name, packets_of(s).c_str(),
      s.header.codebooks, s.header.codebook_size);
  say(o, "  %llu bytes, %s kbit/s (nominal %s)\n", static_cast<unsigned long long>(s.bytes),
      fixed(bitrate / 1000, 2).c_str(), fixed(nominal_bits_per_second(s.header) / 1000, 2).c_str());
  out = {{"name", name},
         {"kind", "ecdc"},
         {"seconds", seconds},
         {"sample_rate", s.header.model_rate},
         {"channels", s.header.channels},
         {"samples", s.samples},
         {"frames", s.frames},
         {"hop", s.header.hop},
         {"n_codebooks", s.header.codebooks},
         {"codebook_size", s.header.codebook_size},
         {"bytes", s.bytes},
         {"bitrate", bitrate},
         {"nominal_bitrate", nominal_bits_per_second(s.header)}};
  add_groups(s.header, out);
}

void about_stream(const Options& o, const std::string& path, const std::string& name, ordered_json& out) {
  const training::StreamFacts s = training::check_stream(path);
  const double seconds = static_cast<double>(s.samples) / s.header.original_rate;
  const double bitrate = seconds > 0 ? 8 * static_cast<double>(s.bytes) / seconds : 0;
  if (s.format == training::StreamFormat::ecdc) return about_ecdc(o, s, name, out);
  say(o, "%s: .nacre stream, verified\n", printable(name).c_str());
  say(o, "  %s, %u Hz, %u channel%s, %llu samples\n", describe_duration(seconds).c_str(), s.header.original_rate,
      s.header.channels, s.header.channels == 1 ? "" : "s", static_cast<unsigned long long>(s.samples));
  say(o, "  model %s at %u Hz: %s, %u codebooks of %u, gain %g\n", hex(s.header.model).c_str(), s.header.model_rate,
      packets_of(s).c_str(), s.header.codebooks, s.header.codebook_size, static_cast<double>(s.header.gain));
  if (s.header.joint != 1) say(o, "  channels are coded %u by %u\n", s.header.joint, s.header.joint);
  say(o, "  %llu bytes, %s kbit/s (nominal %s)\n", static_cast<unsigned long long>(s.bytes),
      fixed(bitrate / 1000, 2).c_str(), fixed(nominal_bits_per_second(s.header) / 1000, 2).c_str());
  out = {{"name", name},
         {"kind", "stream"},
         {"seconds", seconds},
         {"sample_rate", s.header.original_rate},
         {"channels", s.header.channels},
         {"samples", s.samples},
         {"identity", hex(s.header.model)},
         {"model_rate", s.header.model_rate},
         {"frames", s.frames},
         {"hop", s.header.hop},
         {"n_codebooks", s.header.codebooks},
         {"codebook_size", s.header.codebook_size},
         {"gain", s.header.gain},
         {"bytes", s.bytes},
         {"bitrate", bitrate},
         {"nominal_bitrate", nominal_bits_per_second(s.header)}};
  add_groups(s.header, out);
}

void about_audio(const Options& o, const std::string& path, const std::string& name, ordered_json& out) {
  training::AudioReader reader(path, {.salvage = o.salvage});
  std::vector<float> piece;
  float peak = 0;
  double energy = 0;
  int64_t frames = 0;
  while (reader.read(1 << 14, piece) > 0) {
    peak = std::max(peak, training::peak_of(piece));
    for (const float x : piece) energy += static_cast<double>(x) * static_cast<double>(x);
    frames += static_cast<int64_t>(piece.size()) / reader.info().channels;
  }
  for (const std::string& warning : reader.warnings()) warn(name, warning);
  const auto n = static_cast<double>(frames) * reader.info().channels;
  const double seconds = static_cast<double>(frames) / reader.info().sample_rate, rms = std::sqrt(energy / n);
  say(o, "%s: audio\n  %s, %d Hz, %d channel%s, %lld samples, peak %.4f, RMS %.4f%s\n", printable(name).c_str(),
      describe_duration(seconds).c_str(), reader.info().sample_rate, reader.info().channels,
      reader.info().channels == 1 ? "" : "s", static_cast<long long>(frames), static_cast<double>(peak), rms,
      peak < training::silence_peak ? " (silence)" : "");
  out = {{"name", name},
         {"kind", "audio"},
         {"seconds", seconds},
         {"sample_rate", reader.info().sample_rate},
         {"channels", reader.info().channels},
         {"samples", frames},
         {"peak", peak},
         {"rms", rms},
         {"silent", peak < training::silence_peak}};
}

/// Copies standard input to an unnamed file, so that its kind can be detected before it is read.
void about_standard_input(const Options& o, ordered_json& out) {
  const std::string name = "standard input";
  const training::Descriptor spool = training::unnamed_file();
  training::copy_all(STDIN_FILENO, spool.get(), name, "temporary file");
  if (::lseek(spool.get(), 0, SEEK_SET) != 0 || ::dup2(spool.get(), STDIN_FILENO) < 0)
    training::throw_errno("temporary file", "cannot rewind");
  const training::Thing found = training::thing_of(training::head_of(STDIN_FILENO));
  if (found == training::Thing::stream || found == training::Thing::ecdc) return about_stream(o, "-", name, out);
  if (found == training::Thing::weights || found == training::Thing::json)
    throw Error(ErrorKind::input,
                name + ": " + training::mistaken(found, training::Thing::audio) +
                    "; nacre info reads only audio and streams from standard input, other files by name");
  about_audio(o, "-", name, out);
}

void about(const Options& o, const std::string& name, ordered_json& out) {
  if (name == "-") return about_standard_input(o, out);
  std::error_code failed;
  const fs::file_status status = fs::status(name, failed);
  const std::vector<std::string> ready = CodecConfig::names();
  if (!fs::exists(status) && std::find(ready.begin(), ready.end(), name) != ready.end())
    return about_config(o, name, training::RunConfig::named(name), out);
  if (fs::is_directory(status)) return about_folder(o, name, out);
  if (!fs::exists(status))
    throw Error(ErrorKind::io, name + ": cannot open: " + (failed ? failed.message() : "No such file or directory") +
                                   "; expected a file, a folder or one of " + listed(ready) +
                                   did_you_mean(name, ready));
  // Detected by content where possible, so that a wrong file extension does not matter.
  using training::Thing;
  const Thing found = training::thing_at(name);
  if (found == Thing::stream || found == Thing::ecdc) return about_stream(o, name, name, out);
  if (found == Thing::weights) return about_model(o, name, name, {}, out);
  if (found == Thing::json) return about_config(o, name, training::RunConfig::named(name), out);
  if (found != Thing::audio) {
    if (name.ends_with(".nacre") || name.ends_with(".ecdc")) return about_stream(o, name, name, out);
    if (name.ends_with(".safetensors")) return about_model(o, name, name, {}, out);
    if (name.ends_with(".json")) return about_config(o, name, training::RunConfig::named(name), out);
  }
  about_audio(o, name, name, out);
}

/// The available devices, and the ops that can run on them.
void about_devices(const Options& o, ordered_json& out) {
  const CudaInventory found = cuda_inventory();
  const Context cpu;
  out["cpu"] = {{"threads", cpu.threads()}, {"instruction_set", cpu.instruction_set()}};
  out["cuda"] = {{"runtime", found.runtime}, {"driver", found.driver}, {"missing", found.missing}};
  out["libraries"] = ordered_json::array(), out["cards"] = ordered_json::array();
  say(o, "cpu: %d threads, %s\n  all ops run here\n", cpu.threads(), cpu.instruction_set());
  if (!found.missing.empty()) say(o, "cuda: not available: %s\n", found.missing.c_str());
  if (!found.runtime.empty())
    say(o, "cuda: built with CUDA %s; %s\n", found.runtime.c_str(),
        found.driver.empty() ? "no driver" : ("driver for CUDA " + found.driver).c_str());
  std::string without;  // ops that cannot run, named as in NACRE_OPS
  for (const CudaInventory::Library& l : found.libraries) {
    out["libraries"].push_back(
        {{"name", l.name}, {"version", l.version}, {"used_by", l.used_by}, {"missing", l.missing}});
    const std::string use = l.used_by.empty() ? "only for benchmarks" : "for " + l.used_by;
    say(o, "  %s, %s: %s\n", l.name.c_str(), use.c_str(),
        l.missing.empty() ? l.version.c_str() : ("missing (" + l.missing + ")").c_str());
    if (!l.missing.empty() && !l.used_by.empty())
      without += (without.empty() ? "" : ", ") + l.used_by + " (no " + l.name + ")";
  }
  for (size_t i = 0; i < found.cards.size(); ++i) {
    const CudaInventory::Card& c = found.cards[i];
    out["cards"].push_back({{"device", "cuda:" + std::to_string(i)},
                            {"name", c.name},
                            {"capability", c.capability},
                            {"multiprocessors", c.multiprocessors},
                            {"memory", c.memory},
                            {"free", c.free},
                            {"unusable", c.unusable}});
    const auto gibibytes = [](size_t bytes) { return fixed(static_cast<double>(bytes) / (1 << 30), 1) + " GiB"; };
    if (!c.name.empty())
      say(o, "cuda:%zu: %s, compute capability %s, %d multiprocessors, %s%s, %zu KiB of shared memory per block\n", i,
          c.name.c_str(), c.capability.c_str(), c.multiprocessors, gibibytes(c.memory).c_str(),
          c.free > 0 ? (" (" + gibibytes(c.free) + " free)").c_str() : "", c.shared_per_block >> 10);
    else
      say(o, "cuda:%zu:\n", i);
    if (!c.unusable.empty())
      say(o, "  no op runs here: the device %s\n", c.unusable.c_str());
    else if (!without.empty())
      say(o, "  all ops run here, except: %s\n", without.c_str());
    else
      say(o, "  all ops run here\n");
  }
  say(o, "ops: %s\n", NACRE_OP_NAMES);
  out["ops"] = NACRE_OP_NAMES;
}

/// Every key that a configuration can have.
void about_keys(const Options& o, ordered_json& out) {
  std::vector<training::KeyRow> rows = training::configuration_keys();
  for (const training::KeyRow& r : rows)
    out.push_back({{"name", r.name},
                   {"type", r.type},
                   {"default", ordered_json::parse(r.default_value)},
                   {"range", r.range},
                   {"help", r.help}});
  rows.insert(rows.begin(), {"key", "type", "default", "range", "meaning"});
  size_t name = 0, type = 0, value = 0, range = 0;
  for (const training::KeyRow& r : rows) {
    name = std::max(name, r.name.size()), type = std::max(type, r.type.size());
    value = std::max(value, r.default_value.size()), range = std::max(range, r.range.size());
  }
  const auto cell = [](const std::string& text, size_t width) {
    return text + std::string(width + 2 - text.size(), ' ');
  };
  for (const training::KeyRow& r : rows)
    say(o, "%s%s%s%s%s\n", cell(r.name, name).c_str(), cell(r.type, type).c_str(), cell(r.default_value, value).c_str(),
        cell(r.range, range).c_str(), r.help.c_str());
}

int info(const Options& o) {
  (void)program_bytes();
  if (!o.configs && !o.systems && !o.keys && !o.devices && o.inputs.empty())
    throw Error(ErrorKind::usage,
                "info: expected a file, a folder, - for standard input, --configs, --systems, --keys or --devices");
  const auto only_with = [](const CLI::Option* option, bool useful, const char* with) {
    if (option->count() > 0 && !useful)
      throw Error(ErrorKind::usage, option->get_name() + " has no effect without " + with);
  };
  only_with(o.device.device_option, o.memory, "--memory");
  only_with(o.device.threads_option, o.memory, "--memory");
  only_with(o.device.precision_option, o.memory || !o.cost.empty(), "--memory or --cost");
  if (std::count(o.inputs.begin(), o.inputs.end(), "-") > 1)
    throw Error(ErrorKind::usage, "standard input (-) can be given only once");
  ordered_json all = ordered_json::object();
  if (o.devices) about_devices(o, all["devices"]);
  if (o.configs)
    for (const std::string& name : CodecConfig::names()) {
      all["configurations"].push_back({});
      about_config(o, name, training::RunConfig::named(name), all["configurations"].back());
    }
  if (o.systems) {
    all["systems"] = systems();
    say(o, "%s", systems_table(all["systems"]).c_str());
  }
  if (o.keys) about_keys(o, all["keys"]);
  int code = 0;
  size_t failed = 0;
  for (const std::string& name : o.inputs) {
    ordered_json one;
    try {
      about(o, name, one);
      all["inputs"].push_back(std::move(one));
    } catch (const Error& e) {
      std::fflush(stdout);
      complain(e.what());
      ++failed;
      if (code == 0) code = o.inputs.size() > 1 ? 3 : e.exit_code();
    }
  }
  if (o.json) {
    if (!o.inputs.empty()) {
      if (!all.contains("inputs")) all["inputs"] = ordered_json::array();
      all["failed"] = failed;
    }
    print_json(all);
  }
  return code;
}

}  // namespace

Command add_info(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("inputs", o->inputs,
                 "runs, checkpoints, models (safetensors), configurations (built-in name, or JSON file), "
                 ".nacre streams, .ecdc files, audio files; - for audio or a stream on standard input")
      ->type_name("PATH");
  app.add_flag("--configs", o->configs, "list the built-in configurations");
  app.add_flag("--systems", o->systems,
               "compare the built-in configurations: bitrate, size, multiply-adds, latency, exchange of weights");
  app.add_flag("--keys", o->keys,
               "list every key of a configuration: type, default (for a JSON file without the key), range and meaning");
  app.add_flag("--devices", o->devices,
               "list the available devices, the CUDA driver and libraries, and the ops that can run on each device");
  app.add_flag("--memory", o->memory, "for models and configurations: memory that inference and a training step need");
  app.add_option(
         "--cost", o->cost,
         "for models and configurations: operations, bytes, launches and minimum time of each pass of a training step "
         "on this device, in --precision fp32, tf32 or bf16")
      ->type_name("DEVICE")
      ->check(one_of(device_names()));
  o->model_options.add_to(app);
  app.add_flag("--salvage", o->salvage, std::string("for audio files: ") + salvage_help);
  app.add_flag("--json", o->json, "print one JSON object to standard output");
  o->device.stores_bf16 = true;
  o->device.add_to(app, "With --memory or --cost");
  app.footer("Streams and checkpoints are read to the end and verified.");
  return [o] { return info(*o); };
}

}  // namespace nacre::program
