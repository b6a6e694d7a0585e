#include "nacre/codec/cost.h"

#include <algorithm>

namespace nacre {
namespace {

const std::vector<DeviceCeilings>& known_devices() {
  static const std::vector<DeviceCeilings> all{
      {"h200", "copy and bf16 measured, the rest nominal", 4.3e12, 60e12, 400e12, 790e12},
      {"h100", "nominal, SXM", 3.35e12, 67e12, 495e12, 989e12},
      {"a100", "nominal, 80 GB SXM", 2.04e12, 19.5e12, 156e12, 312e12},
      {"rtx4090", "nominal", 1.01e12, 82.6e12, 82.6e12, 165e12}};
  return all;
}

/// Walks the layers as Encoder and Decoder build them.
class Counter {
 public:
  Counter(const CodecConfig& c, double batch, Arithmetic a)
      : config_(c), batch_(batch), element_(a == Arithmetic::bf16 ? 2 : 4) {}

  /// One convolution; `snake`: an activation before it, `residual`: a sum behind it.
  void convolution(const std::string& name, double time_in, double in, double time_out, double out, double taps,
                   bool snake, bool residual = false, bool needs_dx = true) {
    const double x = batch_ * time_in * in * element_, y = batch_ * time_out * out * element_;
    const double weights = out * taps * in, product = 2 * batch_ * products(time_in, time_out) * weights;
    weights_ += weights;
    CostRow r{.name = name};
    // A sine, its square and a sum forward; sine, cosine and two sums over time backward.
    const double activation = snake ? batch_ * time_in * in : 0;
    r.forward.products = product, r.forward.floats = 20 * activation;
    r.forward.bytes = x + y + weights * element_ + (residual ? y : 0);
    r.backward.products = product * (needs_dx ? 2 : 1), r.backward.floats = 60 * activation;
    // Input gradient: dy, weights, dx (and x, for the slope). Weight gradient: x, dy, dw (float, += reads it too).
    r.backward.bytes = x + y + 8 * weights;
    if (needs_dx) r.backward.bytes += y + weights * element_ + x + (snake ? x : 0) + (residual ? y : 0);
    rows.push_back(r);
  }
  void unit(const std::string& name, double time, double channels) {
    for (size_t i = 0; i < config_.dilations.size(); ++i) {
      const std::string at = name + std::to_string(first_unit + i) + ".block.";
      convolution(at + "1", time, channels, time, channels, static_cast<double>(config_.kernel_size), true);
      convolution(at + "3", time, channels, time, channels, 1, true, true);
    }
  }
  void encoder(double samples) {
    double time = samples, channels = static_cast<double>(config_.encoder_dim);
    convolution("encoder.block.0", time, 1, time, channels, static_cast<double>(config_.kernel_size), false, false,
                false);
    size_t index = 1;
    for (const int64_t rate : config_.encoder_rates) {
      const std::string name = "encoder.block." + std::to_string(index++) + ".block.";
      first_unit = 0;
      unit(name, time, channels);
      const double shorter = time / static_cast<double>(rate);
      convolution(name + std::to_string(config_.dilations.size() + 1), time, channels, shorter, 2 * channels,
                  2 * static_cast<double>(rate), true);
      time = shorter, channels *= 2;
    }
    convolution("encoder.block." + std::to_string(index + 1), time, channels, time,
                static_cast<double>(config_.latent()), 3, true);
  }
  void decoder(double frames) {
    double time = frames, channels = static_cast<double>(config_.decoder_dim);
    convolution("decoder.model.0", time, static_cast<double>(config_.latent()), time, channels,
                static_cast<double>(config_.kernel_size), false);
    size_t index = 1;
    for (const int64_t rate : config_.decoder_rates) {
      const std::string name = "decoder.model." + std::to_string(index++) + ".block.";
      const double longer = time * static_cast<double>(rate);
      convolution(name + "1", time, channels, longer, channels / 2, 2 * static_cast<double>(rate), true);
      time = longer, channels /= 2;
      first_unit = 2;
      unit(name, time, channels);
    }
    convolution("decoder.model." + std::to_string(index + 1), time, channels, time, 1,
                static_cast<double>(config_.kernel_size), true);
  }
  void quantizer(double frames) {
    const double rows_of = batch_ * frames, stages = static_cast<double>(config_.n_codebooks),
                 codes = static_cast<double>(config_.codebook_size), dim = static_cast<double>(config_.code_dim()),
                 latent = static_cast<double>(config_.latent());
    const bool factorised = config_.quantizer == QuantizerKind::factorised;
    CostRow r{.name = "quantizer"};
    const double projections = factorised ? 4 * rows_of * stages * dim * latent : 0;
    r.forward.products = projections, r.forward.floats = 2 * rows_of * stages * codes * dim;  // exact: no tensor cores
    r.backward.products = 3 * projections, r.backward.floats = 4 * rows_of * stages * dim;
    const double books = 4 * stages * codes * dim, z = 4 * rows_of * latent, kept = 4 * rows_of * stages * dim;
    r.forward.bytes = 2 * z + books + kept + 4 * rows_of * stages + (factorised ? 8 * stages * dim * latent : 0);
    r.backward.bytes = 2 * z + 2 * kept + 3 * books + (factorised ? 24 * stages * dim * latent + 2 * z : 0);
    rows.push_back(r);
  }
  void losses(const LossConfig& loss, double samples) {
    for (size_t i = 0; i < loss.windows.size(); ++i) {
      const double window = static_cast<double>(loss.windows[i]), frames = 1 + samples / (window / 4);
      double log2_window = 0;
      for (double w = window; w > 1; w /= 2) ++log2_window;
      // Frames of both signals out and in again, spectra out and in; one gradient spectrum and its frames for each of
      // the two losses.
      const double frame = 4 * batch_ * frames * window;
      CostRow r{.name = "loss.window." + std::to_string(loss.windows[i])};
      r.forward.floats = 2 * 2.5 * window * log2_window * frames * batch_ + 40 * batch_ * frames * window;
      r.forward.bytes = 8 * batch_ * samples + 8 * frame;
      r.backward.floats = 2 * 2.5 * window * log2_window * frames * batch_ + 10 * batch_ * frames * window;
      r.backward.bytes = 8 * frame + 8 * batch_ * samples;
      rows.push_back(r);
    }
    CostRow r{.name = "loss.waveform, balancer"};
    r.forward.bytes = 12 * batch_ * samples, r.forward.floats = 3 * batch_ * samples;
    r.backward.bytes = 28 * batch_ * samples, r.backward.floats = 12 * batch_ * samples;
    rows.push_back(r);
  }
  /// Norms of rows, AdamW, averages, the new weights, and the zeros that gradients start from.
  void optimizer(bool averages) {
    CostRow r{.name = "optimizer"};
    r.backward.bytes = weights_ * (8 + 28 + element_ + (averages ? 8 : 0) + 8);
    r.backward.floats = 30 * weights_;
    rows.push_back(r);
  }
  std::vector<CostRow> rows;
  size_t first_unit = 0;

 private:
  /// Strided and transposed layers alike: one product per position of the shorter side.
  static double products(double time_in, double time_out) { return std::min(time_in, time_out); }
  const CodecConfig& config_;
  double batch_, element_, weights_ = 0;
};

}  // namespace

const DeviceCeilings& device_ceilings(const std::string& name) {
  std::string names;
  for (const DeviceCeilings& d : known_devices()) {
    if (d.name == name) return d;
    names += (names.empty() ? "" : ", ") + d.name;
  }
  throw Error(ErrorKind::usage, "device \"" + name + "\" is not in the table of ceilings; choose one of " + names);
}
std::vector<std::string> device_names() {
  std::vector<std::string> names;
  for (const DeviceCeilings& d : known_devices()) names.push_back(d.name);
  return names;
}

Arithmetic arithmetic(const std::string& name) {
  if (name == "fp32") return Arithmetic::fp32;
  if (name == "tf32") return Arithmetic::tf32;
  if (name == "bf16") return Arithmetic::bf16;
  throw Error(ErrorKind::usage, "precision \"" + name + "\" is unknown; choose fp32, tf32 or bf16");
}

double floor_seconds(const CostRow::Work& w, const DeviceCeilings& d, Arithmetic a) {
  if (a == Arithmetic::fp32) return std::max((w.products + w.floats) / d.fp32, w.bytes / d.copy);
  return std::max({w.products / (a == Arithmetic::tf32 ? d.tf32 : d.bf16), w.floats / d.fp32, w.bytes / d.copy});
}

std::vector<CostRow> step_cost(const CodecConfig& c, const LossConfig& loss, int64_t batch, int64_t samples,
                               Arithmetic a) {
  const int64_t frames = (samples + c.hop() - 1) / c.hop();
  const auto length = static_cast<double>(frames * c.hop());
  Counter counter(c, static_cast<double>(batch), a);
  counter.encoder(length);
  counter.quantizer(static_cast<double>(frames));
  counter.decoder(static_cast<double>(frames));
  counter.losses(loss, length);
  counter.optimizer(true);
  return std::move(counter.rows);
}

}  // namespace nacre
