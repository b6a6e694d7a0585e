// nacre info
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>

#include "jobs.h"
#include "nacre/cost.h"
#include "nacre/safetensors.h"
#include "nacre/training/checkpoint_store.h"
#include "nacre/training/progress.h"
#include "nacre/training/trainer.h"
#include "nacre/training_step.h"
#include "nacre/windowed.h"

namespace nacre::program {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::vector<std::string> inputs;
  bool configs = false, memory = false, devices = false;
  std::string cost;  // a device's name
  DeviceOptions device;
};

std::string words(const CodecConfig& c) {
  std::string rates;
  for (const int64_t r : c.encoder_rates) rates += (rates.empty() ? "" : " x ") + std::to_string(r);
  return std::to_string(c.sample_rate) + " Hz, hop " + std::to_string(c.hop()) + " (" + rates + "), " +
         fixed(c.frame_rate(), 2) + " frames/s, " + std::to_string(c.n_codebooks) + " codebooks of " +
         std::to_string(c.codebook_size) + (c.quantizer == QuantizerKind::ema ? " (EMA)" : " (factorised)") + ", " +
         fixed(c.nominal_bitrate() / 1000, 2) + " kbit/s";
}

std::string mebibytes(size_t bytes) {
  return std::to_string(bytes) + " bytes (" + fixed(static_cast<double>(bytes) / (1 << 20), 1) + " MiB)";
}

/// What this process had in memory at the first call: the program and its libraries, before there is a model.
size_t program_bytes() {
  static const size_t at_first = [] {
    size_t total = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> total >> resident;
    return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  }();
  return at_first;
}

/// The most that `nacre encode` or `decode` has in memory: while a model's file is read, or while a window is coded. On a
/// GPU, what of it lies on the host. Within a few percent of what processes had (docs/performance.md).
size_t process_bytes(Context& ctx, const CodecConfig& config, Codec::Use use) {
  constexpr size_t huge_page = size_t{2} << 20;  // large blocks are rounded up: parameters, weights, a plan
  const Device host{};
  const size_t before = memory_use(host).now;
  Codec codec(ctx, config);
  size_t file = 0, widest = 0;
  codec.parameters().each_tensor(ctx, [&](const std::string&, const std::vector<int64_t>&, std::span<const float> v) {
    file += v.size_bytes();
    widest = std::max(widest, v.size_bytes());
  });
  // Tensors travel one by one, codebooks all at once; what that took stays with the process.
  const size_t codebooks =
      sizeof(float) * static_cast<size_t>(config.n_codebooks * config.codebook_size * config.code_dim());
  const size_t base = program_bytes() + 2 * widest + std::max(widest, codebooks) + huge_page;
  const size_t model = memory_use(host).now - before;
  const int64_t samples = default_window_frames(config) * config.hop();
  codec.reserve_inference(1, samples, use);
  const size_t plan = memory_use(host).now - before - model;
  const size_t buffers =
      4 * static_cast<size_t>(samples) * sizeof(float);  // as read, resampled, in the window, on its way
  return base + model + std::max(file, plan + huge_page / 2 + buffers);
}

/// What the plans take, for inference on one window and for one training step.
void print_memory(Context& ctx, const training::RunConfig& c) {
  const int64_t frames = default_window_frames(c.codec);
  const size_t encoding = process_bytes(ctx, c.codec, Codec::Use::encode);
  const size_t decoding = process_bytes(ctx, c.codec, Codec::Use::decode);
  std::printf("  the whole process: nacre encode %s; nacre decode %s\n", mebibytes(encoding).c_str(),
              mebibytes(decoding).c_str());
  {
    Codec codec(ctx, c.codec);
    codec.reserve_inference(1, frames * c.codec.hop());
    std::printf("  inference, windows of %.2f s: %s; nothing shared: %s\n",
                static_cast<double>(frames) / c.codec.frame_rate(), mebibytes(codec.reserved_bytes()).c_str(),
                mebibytes(codec.unshared_bytes()).c_str());
  }
  TrainingStep step(ctx, c.codec, c.loss, c.optimizer, c.training.batch_size, c.training.segment_length,
                    c.training.seed);
  std::printf("  training step, %lld x %lld samples: %s; nothing shared: %s\n", static_cast<long long>(step.batch()),
              static_cast<long long>(step.samples()), mebibytes(step.planned_bytes()).c_str(),
              mebibytes(step.unshared_bytes()).c_str());
}

/// FLOP, bytes and the floor of every layer of a training step on a device.
void print_cost(const Options& o, const training::RunConfig& c) {
  const DeviceCeilings& d = device_ceilings(o.cost);
  const Arithmetic a = arithmetic(o.device.precision);
  const int64_t batch = c.training.batch_size, samples = c.training.segment_length;
  std::printf("  floor of a training step on %s in %s (%s): copy %.2f TB/s, fp32 %.0f, tf32 %.0f, bf16 %.0f TFLOP/s\n",
              d.name.c_str(), o.device.precision.c_str(), d.source.c_str(), d.copy / 1e12, d.fp32 / 1e12, d.tf32 / 1e12,
              d.bf16 / 1e12);
  std::printf("  %-28s %10s %10s %10s %10s %10s %10s\n", "", "forward", "backward", "forward", "backward", "forward",
              "backward");
  std::printf("  %-28s %10s %10s %10s %10s %10s %10s\n", "layer", "GFLOP", "GFLOP", "MB", "MB", "us", "us");
  CostRow sum{.name = "sum"};
  double forward = 0, backward = 0;
  const auto line = [](const CostRow& r, double f, double b) {
    std::printf("  %-28s %10.3f %10.3f %10.2f %10.2f %10.2f %10.2f\n", r.name.c_str(),
                (r.forward.products + r.forward.floats) / 1e9, (r.backward.products + r.backward.floats) / 1e9,
                r.forward.bytes / 1e6, r.backward.bytes / 1e6, 1e6 * f, 1e6 * b);
  };
  const auto add = [](CostRow::Work& to, const CostRow::Work& w) {
    to.products += w.products, to.floats += w.floats, to.bytes += w.bytes;
  };
  for (const CostRow& r : step_cost(c.codec, c.loss, batch, samples, a)) {
    const double f = floor_seconds(r.forward, d, a), b = floor_seconds(r.backward, d, a);
    line(r, f, b);
    forward += f, backward += b;
    add(sum.forward, r.forward), add(sum.backward, r.backward);
  }
  line(sum, forward, backward);
  std::printf("  %lld x %lld samples: no step can take less than %.3f ms there\n", static_cast<long long>(batch),
              static_cast<long long>(samples), 1e3 * (forward + backward));
}

void about_config(const Options& o, const std::string& name, const training::RunConfig& c) {
  std::printf("%s: configuration\n  %s\n  batch %lld x %lld samples, learning rate %g\n", name.c_str(),
              words(c.codec).c_str(), static_cast<long long>(c.training.batch_size),
              static_cast<long long>(c.training.segment_length), c.optimizer.learning_rate);
  if (!o.cost.empty()) print_cost(o, c);
  if (!o.memory) return;
  Context ctx(o.device.context());
  print_memory(ctx, c);
}

void about_model(const Options& o, const std::string& name, const fs::path& model, training::RunConfig run) {
  Context ctx(o.device.context());
  {
    Codec codec = Codec::load(ctx, model);
    run.codec = codec.config();
    std::printf("%s: model %s\n  %s\n  %.2f M values in use, identity %s, file %s\n", name.c_str(), model.c_str(),
                words(run.codec).c_str(), static_cast<double>(codec.parameters().effective_elements()) / 1e6,
                hex(codec.identity()).c_str(), mebibytes(static_cast<size_t>(fs::file_size(model))).c_str());
  }
  if (!o.cost.empty()) print_cost(o, run);
  if (o.memory) print_memory(ctx, run);
}

void about_folder(const Options& o, const std::string& name) {
  const fs::path folder = name;
  training::RunConfig run;
  if (fs::is_regular_file(folder / "config.json")) {
    run = training::RunConfig::named((folder / "config.json").string());
    std::printf("%s: run\n", name.c_str());
  }
  for (const int64_t step : list_checkpoints(folder)) {
    char label[64];
    std::snprintf(label, sizeof label, "step-%08lld", static_cast<long long>(step));
    try {
      const Checkpoint c = verify_checkpoint(folder / label);
      std::printf("  %s: verified%s\n", label, c.metric ? (", SNR " + fixed(*c.metric, 2) + " dB").c_str() : "");
    } catch (const Error& e) {
      std::printf("  %s: %s\n", label, e.what());
    }
  }
  if (fs::is_regular_file(folder / "manifest.json")) {
    const Checkpoint c = verify_checkpoint(folder);
    std::printf("%s: checkpoint of step %lld, verified%s\n", name.c_str(), static_cast<long long>(c.step),
                c.metric ? (", SNR " + fixed(*c.metric, 2) + " dB").c_str() : "");
  }
  about_model(o, name, training::find_model(folder), run);
}

void about_stream(const std::string& name) {
  const training::StreamFacts s = training::check_stream(name);
  const double seconds = static_cast<double>(s.samples) / s.header.original_rate;
  std::printf("%s: .nacre stream, verified\n", name.c_str());
  std::printf("  %s, %u Hz, %u channel%s, %llu samples\n", training::describe_duration(seconds).c_str(),
              s.header.original_rate, s.header.channels, s.header.channels == 1 ? "" : "s",
              static_cast<unsigned long long>(s.samples));
  std::printf("  model %s at %u Hz: %llu frames of %u samples, %u codebooks of %u, gain %g\n",
              hex(s.header.model).c_str(), s.header.model_rate, static_cast<unsigned long long>(s.frames), s.header.hop,
              s.header.codebooks, s.header.codebook_size, static_cast<double>(s.header.gain));
  std::printf("  %llu bytes, %s kbit/s (nominal %s)\n", static_cast<unsigned long long>(s.bytes),
              fixed(seconds > 0 ? 8e-3 * static_cast<double>(s.bytes) / seconds : 0, 2).c_str(),
              fixed(nominal_bits_per_second(s.header) / 1000, 2).c_str());
}

void about_audio(const std::string& name) {
  training::AudioReader reader(name);
  std::vector<float> piece;
  float peak = 0;
  double energy = 0;
  int64_t frames = 0;
  while (reader.read(1 << 14, piece) > 0) {
    peak = std::max(peak, training::peak_of(piece));
    for (const float x : piece) energy += static_cast<double>(x) * static_cast<double>(x);
    frames += static_cast<int64_t>(piece.size()) / reader.info().channels;
  }
  const auto n = static_cast<double>(frames) * reader.info().channels;
  std::printf("%s: audio\n  %s, %d Hz, %d channel%s, %lld samples, peak %.4f, RMS %.4f%s\n", name.c_str(),
              training::describe_duration(static_cast<double>(frames) / reader.info().sample_rate).c_str(),
              reader.info().sample_rate, reader.info().channels, reader.info().channels == 1 ? "" : "s",
              static_cast<long long>(frames), static_cast<double>(peak), std::sqrt(energy / n),
              peak < training::silence_peak ? " (silence)" : "");
}

void about(const Options& o, const std::string& name) {
  const std::vector<std::string> ready = CodecConfig::names();
  if (!fs::exists(name) && std::find(ready.begin(), ready.end(), name) != ready.end())
    return about_config(o, name, training::RunConfig::named(name));
  if (fs::is_directory(name)) return about_folder(o, name);
  if (!fs::exists(name))
    throw Error(ErrorKind::io,
                name + ": no such file, folder or ready configuration (nacre info --configs lists those)");
  // By content where it can be told, so that a wrong ending does not mislead.
  char head[9] = {};
  std::ifstream(name, std::ios::binary).read(head, 9);
  const std::string start(head, 9);
  if (start.starts_with("\x89NACRE") || name.ends_with(".nacre")) return about_stream(name);
  if (start[8] == '{' || name.ends_with(".safetensors")) return about_model(o, name, name, {});
  if (start[0] == '{' || name.ends_with(".json")) return about_config(o, name, training::RunConfig::named(name));
  about_audio(name);
}

/// What is there to run on, and which ops will.
void print_devices() {
  const CudaInventory found = cuda_inventory();
  const Context cpu;
  std::printf("cpu: %d threads, %s\n  all ops run here\n", cpu.threads(), cpu.instruction_set());
  if (!found.missing.empty()) std::printf("cuda: none: %s\n", found.missing.c_str());
  if (!found.runtime.empty())
    std::printf("cuda: built with CUDA %s; %s\n", found.runtime.c_str(),
                found.driver.empty() ? "no driver" : ("driver for CUDA " + found.driver).c_str());
  std::string without;  // ops, as they stand in NACRE_OPS
  for (const CudaInventory::Library& l : found.libraries) {
    const std::string use = l.used_by.empty() ? "for benches alone" : "for " + l.used_by;
    std::printf("  %s, %s: %s\n", l.name.c_str(), use.c_str(),
                l.missing.empty() ? l.version.c_str() : ("missing (" + l.missing + ")").c_str());
    if (!l.missing.empty() && !l.used_by.empty())
      without += (without.empty() ? "" : ", ") + l.used_by + " (no " + l.name + ")";
  }
  for (size_t i = 0; i < found.cards.size(); ++i) {
    const CudaInventory::Card& c = found.cards[i];
    const auto gibibytes = [](size_t bytes) { return fixed(static_cast<double>(bytes) / (1 << 30), 1) + " GiB"; };
    if (!c.name.empty())
      std::printf("cuda:%zu: %s, compute capability %s, %d multiprocessors, %s%s, %zu KiB of shared memory per block\n",
                  i, c.name.c_str(), c.capability.c_str(), c.multiprocessors, gibibytes(c.memory).c_str(),
                  c.free > 0 ? (" (" + gibibytes(c.free) + " free)").c_str() : "", c.shared_per_block >> 10);
    else
      std::printf("cuda:%zu:\n", i);
    if (!c.unusable.empty())
      std::printf("  no op runs here: it %s\n", c.unusable.c_str());
    else if (!without.empty())
      std::printf("  ops run here, but for: %s\n", without.c_str());
    else
      std::printf("  all ops run here\n");
  }
  std::printf("ops: %s\n", NACRE_OP_NAMES);
}

int info(const Options& o) {
  (void)program_bytes();
  if (!o.configs && !o.devices && o.inputs.empty())
    throw Error(ErrorKind::usage, "info: expected a file, --configs or --devices");
  if (o.devices) print_devices();
  if (o.configs)
    for (const std::string& name : CodecConfig::names()) about_config(o, name, training::RunConfig::named(name));
  int code = 0;
  for (const std::string& name : o.inputs) {
    try {
      about(o, name);
    } catch (const Error& e) {
      std::fflush(stdout);
      std::fprintf(stderr, "nacre: %s\n", e.what());
      if (code == 0) code = o.inputs.size() > 1 ? 3 : e.exit_code();
    }
  }
  return code;
}

}  // namespace

Command add_info(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("inputs", o->inputs,
                 "runs, checkpoints, models (safetensors), configurations (a ready one's name, or JSON), .nacre "
                 "streams, audio files");
  app.add_flag("--configs", o->configs, "list the ready configurations");
  app.add_flag("--devices", o->devices,
               "list what there is to run on: cards, driver, CUDA's libraries, and which ops will run where");
  app.add_flag("--memory", o->memory, "of models and configurations: what inference and a training step need");
  app.add_option("--cost", o->cost,
                 "of models and configurations: operations, bytes and the least time of each layer of a training "
                 "step on a device (h200, h100, a100, rtx4090), in --precision fp32, tf32 or bf16");
  o->device.add_to(app);
  app.footer("Streams and checkpoints are read to the end and verified.");
  return [o] { return info(*o); };
}

}  // namespace nacre::program
