#pragma once
// A codec's whole training step in double: composed of the references of the ops, wired by the names of DAC's
// checkpoints, differentiated by walking the forward pass backwards.
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "nacre/codec/codec_config.h"
#include "reference/conv1d.h"
#include "reference/elu.h"
#include "reference/leaky_relu.h"
#include "reference/rvq.h"
#include "reference/snake.h"
#include "reference/spectral.h"
#include "reference/tanh.h"
#include "reference/waveform_loss.h"
#include "reference/weight_norm.h"

namespace nacre::test {

class CodecReference {
 public:
  using Values = std::vector<double>;
  CodecConfig config;
  SpectralConfig spectral;
  double waveform_weight = 1, stft_weight = 1, mel_weight = 1, vq_weight = 1, codebook_weight = 1;
  std::map<std::string, Values> parameters, gradients;  ///< as files hold them
  bool orthogonal = false;
  int64_t batch = 1, samples = 1;
  Values audio;
  std::vector<int32_t> lengths, stages, codes;  ///< codes [batch][frames][stages], given
  /// Every result of every layer, both ways, is disturbed by this much of itself and of its tensor's root mean square:
  /// what a computation with that rounding error may give.
  double noise = 0;
  std::mt19937_64 rng;

  struct Losses {
    double waveform = 0, stft = 0, mel = 0, commitment = 0, codebook = 0, total = 0;
  } losses;
  Values estimate;
  RvqReference quantizer;

  /// From now on run() is a function whose ordinary derivative is the gradient of a training step: stop-gradient values
  /// and the straight-through offset stay what they are here.
  void freeze() {
    frozen_ = false;
    run(false);
    quantizer.freeze();
    frozen_e_ = quantizer.frozen_e, frozen_codes_ = quantizer.frozen_codes;
    offset_.resize(quantizer.z.size());
    for (size_t i = 0; i < offset_.size(); ++i) offset_[i] = quantizer.y[i] - quantizer.z[i];
    frozen_ = true;
  }

  double run(bool backward) {
    tensors_.clear(), tape_.clear(), gradients.clear();
    Tensor* x = make(samples, 1);
    x->value = audio;
    x = decode(quantise(encode(x)));
    estimate = x->value;
    const auto [rate, stft_rate] = std::pair{waveform_weight, stft_weight};
    const std::vector<int64_t> valid(lengths.begin(), lengths.end());
    const auto wave = nacre::reference::waveform_loss(x->value, audio, valid, samples, false);
    const auto spectra = reference::spectral_loss(spectral, batch, samples, x->value, audio, lengths, backward);
    losses = {wave.loss, spectra.losses[0], spectra.losses[1], quantizer.commitment, quantizer.codebook_loss, 0};
    losses.total =
        rate * losses.waveform + stft_rate * losses.stft + mel_weight * losses.mel + vq_weight * losses.commitment;
    if (config.quantizer == QuantizerKind::factorised) losses.total += codebook_weight * losses.codebook;
    if (!backward) return losses.total;
    for (size_t i = 0; i < x->slope.size(); ++i)
      x->slope[i] =
          rate * wave.gradient[i] + stft_rate * spectra.gradients[0][i] + mel_weight * spectra.gradients[1][i];
    disturb(x->slope);
    for (size_t i = tape_.size(); i-- > 0;) tape_[i]();
    return losses.total;
  }

 private:
  struct Tensor {
    int64_t time, channels;
    Values value, slope;
  };
  std::deque<Tensor> tensors_;
  std::vector<std::function<void()>> tape_;
  bool frozen_ = false;
  Values frozen_e_, frozen_codes_, offset_;

  Tensor* make(int64_t time, int64_t channels) {
    const size_t n = static_cast<size_t>(batch * time * channels);
    tensors_.push_back({time, channels, Values(n), Values(n)});
    return &tensors_.back();
  }
  void disturb(Values& v) {
    if (noise == 0) return;
    double squares = 0;
    for (const double x : v) squares += x * x;
    const double size = std::sqrt(squares / static_cast<double>(std::max<size_t>(v.size(), 1)));
    std::uniform_real_distribution<double> draw(-1, 1);
    for (double& x : v) x += noise * draw(rng) * (std::fabs(x) + size);
  }
  void add(const std::string& name, const Values& values) {
    Values& sum = gradients[name];
    sum.resize(values.size());
    for (size_t i = 0; i < values.size(); ++i) sum[i] += values[i];
  }
  static void add(Values& sum, const Values& values) {
    for (size_t i = 0; i < values.size(); ++i) sum[i] += values[i];
  }

  /// The effective weight [rows][taps][inner] of name.weight_v, in a file [rows][inner][taps].
  Values weight(const std::string& name, int64_t taps) const {
    const Values &v = parameters.at(name + ".weight_v"), &g = parameters.at(name + ".weight_g");
    const size_t length = v.size() / g.size(), k = static_cast<size_t>(taps), inner = length / k;
    Values w(v.size());
    for (size_t r = 0; r < g.size(); ++r) {
      const Values row =
          nacre::reference::weight_norm({v.begin() + long(r * length), v.begin() + long((r + 1) * length)}, g[r]);
      for (size_t i = 0; i < inner; ++i)
        for (size_t t = 0; t < k; ++t) w[r * length + t * inner + i] = row[i * k + t];
    }
    return w;
  }
  void add_weight(const std::string& name, int64_t taps, const Values& dw) {
    const Values &v = parameters.at(name + ".weight_v"), &g = parameters.at(name + ".weight_g");
    const size_t length = v.size() / g.size(), k = static_cast<size_t>(taps), inner = length / k;
    Values dv, dg;
    for (size_t r = 0; r < g.size(); ++r) {
      Values row(length);
      for (size_t i = 0; i < inner; ++i)
        for (size_t t = 0; t < k; ++t) row[i * k + t] = dw[r * length + t * inner + i];
      const auto d = nacre::reference::weight_norm_gradient(
          {v.begin() + long(r * length), v.begin() + long((r + 1) * length)}, g[r], row);
      dv.insert(dv.end(), d.dv.begin(), d.dv.end());
      dg.push_back(d.dg);
    }
    disturb(dv), disturb(dg);
    add(name + ".weight_v", dv), add(name + ".weight_g", dg);
  }
  Values column_sums(const Values& v, int64_t channels) {
    Values sum(static_cast<size_t>(channels));
    for (size_t i = 0; i < v.size(); ++i) sum[i % sum.size()] += v[i];
    disturb(sum);
    return sum;
  }

  Tensor* conv(const std::string& name, Tensor* x, int64_t taps, int64_t stride, int64_t dilation, int64_t padding,
               Tensor* residual = nullptr) {
    const Values& bias = parameters.at(name + ".bias");
    const int64_t out = static_cast<int64_t>(bias.size());
    const ::reference::Conv1d c{batch, x->time, x->channels, out, taps, stride, dilation, 1, padding, padding, false};
    Tensor* y = make(c.length(), out);
    const Values w = weight(name, taps);
    y->value = c.forward(x->value, w);
    for (size_t i = 0; i < y->value.size(); ++i)
      y->value[i] += bias[i % bias.size()] + (residual != nullptr ? residual->value[i] : 0);
    disturb(y->value);
    tape_.push_back([this, name, x, y, residual, c, w, taps] {
      if (residual != nullptr) add(residual->slope, y->slope);
      add_weight(name, taps, c.weight_gradient(x->value, y->slope));
      add(name + ".bias", column_sums(y->slope, y->channels));
      add(x->slope, c.input_gradient(y->slope, w));
      disturb(x->slope);
    });
    return y;
  }
  /// The convolution from y to x, backwards.
  Tensor* transposed(const std::string& name, Tensor* x, int64_t stride) {
    const int64_t taps = 2 * stride, padding = (stride + 1) / 2;
    const Values& bias = parameters.at(name + ".bias");
    Tensor* y = make(x->time * stride, static_cast<int64_t>(bias.size()));
    // What output padding adds at the end of y was never read by the convolution, unless it was by its last frame.
    const ::reference::Conv1d c{batch, y->time, y->channels, x->channels, taps, stride, 1, 1, padding, padding, false};
    if (c.length() != x->time) throw std::logic_error(name + ": not the mirror image");
    const Values w = weight(name, taps);
    y->value = c.input_gradient(x->value, w);
    for (size_t i = 0; i < y->value.size(); ++i) y->value[i] += bias[i % bias.size()];
    disturb(y->value);
    tape_.push_back([this, name, x, y, c, w, taps] {
      add_weight(name, taps, c.weight_gradient(y->slope, x->value));
      add(name + ".bias", column_sums(y->slope, y->channels));
      add(x->slope, c.forward(y->slope, w));
      disturb(x->slope);
    });
    return y;
  }

  Tensor* activation(const std::string& name, Tensor* x, ActivationKind kind) {
    Tensor* y = make(x->time, x->channels);
    const size_t channels = static_cast<size_t>(x->channels);
    const bool with_beta = kind == ActivationKind::snake_beta, snake = with_beta || kind == ActivationKind::snake;
    const auto at = [=, this](size_t i) {
      return nacre::reference::SnakeParameters{parameters.at(name + ".alpha")[i % channels],
                                               with_beta ? parameters.at(name + ".beta")[i % channels] : 0, with_beta,
                                               with_beta};
    };
    for (size_t i = 0; i < x->value.size(); ++i) {
      const double v = x->value[i];
      y->value[i] = snake                                ? nacre::reference::snake(v, at(i))
                    : kind == ActivationKind::elu        ? nacre::reference::elu_value(v, 1.0)
                    : kind == ActivationKind::leaky_relu ? nacre::reference::leaky_relu_value(v, 0.1)
                                                         : nacre::reference::tanh_value(v);
    }
    disturb(y->value);
    tape_.push_back([=, this] {
      Values dalpha(channels), dbeta(channels);
      for (size_t i = 0; i < x->value.size(); ++i) {
        const double dy = y->slope[i], out = y->value[i];
        if (snake) {
          const auto s = nacre::reference::snake_slopes(x->value[i], at(i));
          x->slope[i] += dy * s.x, dalpha[i % channels] += dy * s.alpha, dbeta[i % channels] += dy * s.beta;
        } else {
          x->slope[i] += dy * (kind == ActivationKind::elu          ? nacre::reference::elu_slope(out, 1.0)
                               : kind == ActivationKind::leaky_relu ? nacre::reference::leaky_relu_slope(out, 0.1)
                                                                    : nacre::reference::tanh_slope(out));
        }
      }
      disturb(x->slope), disturb(dalpha), disturb(dbeta);
      if (snake) add(name + ".alpha", dalpha);
      if (with_beta) add(name + ".beta", dbeta);
    });
    return y;
  }

  Tensor* unit(const std::string& name, Tensor* x, int64_t dilation) {
    const int64_t taps = config.kernel_size;
    Tensor* h = activation(name + ".block.0", x, config.activation);
    h = conv(name + ".block.1", h, taps, 1, dilation, (taps - 1) / 2 * dilation);
    h = activation(name + ".block.2", h, config.activation);
    return conv(name + ".block.3", h, 1, 1, 1, 0, x);
  }
  static std::string numbered(const std::string& name, size_t i) { return name + std::to_string(i); }

  Tensor* encode(Tensor* x) {
    const int64_t edge = (config.kernel_size - 1) / 2;
    const std::string at = "encoder.block.";
    x = conv(at + "0", x, config.kernel_size, 1, 1, edge);
    size_t i = 1;
    for (const int64_t rate : config.encoder_rates) {
      const std::string block = numbered(at, i++) + ".block.";
      size_t j = 0;
      for (const int64_t d : config.dilations) x = unit(numbered(block, j++), x, d);
      x = activation(numbered(block, j), x, config.activation);
      x = conv(numbered(block, j + 1), x, 2 * rate, rate, 1, (rate + 1) / 2);
    }
    x = activation(numbered(at, i), x, config.activation);
    return conv(numbered(at, i + 1), x, 3, 1, 1, 1);
  }
  Tensor* decode(Tensor* x) {
    const int64_t edge = (config.kernel_size - 1) / 2;
    const std::string at = "decoder.model.";
    x = conv(at + "0", x, config.kernel_size, 1, 1, edge);
    size_t i = 1;
    for (const int64_t rate : config.decoder_rates) {
      const std::string block = numbered(at, i++) + ".block.";
      x = transposed(block + "1", activation(block + "0", x, config.activation), rate);
      size_t j = 2;
      for (const int64_t d : config.dilations) x = unit(numbered(block, j++), x, d);
    }
    x = conv(numbered(at, i + 1), activation(numbered(at, i), x, config.activation), config.kernel_size, 1, 1, edge);
    return config.output_tanh ? activation(numbered(at, i + 2), x, ActivationKind::tanh) : x;
  }

  std::string stage(int64_t i, const std::string& part) const {
    return "quantizer.quantizers." + std::to_string(i) + part;
  }
  Values stacked(const std::string& part) const {
    Values all;
    for (int64_t i = 0; i < config.n_codebooks; ++i) {
      const Values& one = parameters.at(stage(i, part));
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  }
  Values piece(const Values& all, int64_t i) {
    const long n = static_cast<long>(all.size()) / static_cast<long>(config.n_codebooks);
    Values one(all.begin() + i * n, all.begin() + (i + 1) * n);
    disturb(one);
    return one;
  }

  Tensor* quantise(Tensor* z) {
    RvqReference& q = quantizer;
    q = {};
    q.factorised = config.quantizer == QuantizerKind::factorised;
    q.rows = batch * z->time, q.stages = config.n_codebooks, q.codes = config.codebook_size;
    q.dim = config.code_dim(), q.latent = z->channels;
    q.commitment_weight = vq_weight, q.codebook_weight = q.factorised ? codebook_weight : 0;
    q.orthogonal = orthogonal && !q.factorised;
    q.z = z->value;
    q.codebooks = stacked(q.factorised ? ".codebook.weight" : ".codebook.embed");
    if (q.factorised) {
      for (int64_t i = 0; i < q.stages; ++i) {
        const Values in = weight(stage(i, ".in_proj"), 1), out = weight(stage(i, ".out_proj"), 1);
        q.in_weight.insert(q.in_weight.end(), in.begin(), in.end());
        q.out_weight.insert(q.out_weight.end(), out.begin(), out.end());
      }
      q.in_bias = stacked(".in_proj.bias"), q.out_bias = stacked(".out_proj.bias");
    }
    q.chosen.assign(codes.begin(), codes.end());
    const int64_t hop = config.hop();
    for (int64_t row = 0; row < q.rows; ++row) {
      const size_t b = static_cast<size_t>(row / z->time);
      q.valid.push_back(row % z->time < (lengths[b] + hop - 1) / hop);
      q.used.push_back(stages[b]);
    }
    if (frozen_) q.frozen_e = frozen_e_, q.frozen_codes = frozen_codes_;
    q.forward();
    Tensor* y = make(z->time, z->channels);
    y->value = q.y;
    if (frozen_ && !q.factorised)
      for (size_t i = 0; i < y->value.size(); ++i) y->value[i] = z->value[i] + offset_[i];
    disturb(y->value);
    tape_.push_back([this, z, y, &q] {
      q.dy = y->slope;
      q.backward();
      disturb(q.dz);
      add(z->slope, q.dz);
      if (!q.factorised) return;
      for (int64_t i = 0; i < q.stages; ++i) {
        add(stage(i, ".codebook.weight"), piece(q.dcodebooks, i));
        add_weight(stage(i, ".in_proj"), 1, piece(q.din_weight, i));
        add_weight(stage(i, ".out_proj"), 1, piece(q.dout_weight, i));
        add(stage(i, ".in_proj.bias"), piece(q.din_bias, i));
        add(stage(i, ".out_proj.bias"), piece(q.dout_bias, i));
      }
    });
    return y;
  }
};

}  // namespace nacre::test
