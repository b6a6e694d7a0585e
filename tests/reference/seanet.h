#pragma once
// SoundStream's encoder and decoder in double, from the description of its layers (docs/systems.md).
#include "nacre/systems/codec_config.h"
#include "reference/layers.h"

namespace nacre::test {

/// The layers of one half in double, and their names. Every layer has a number, activations included.
class SeanetReference {
 public:
  /// labels: of the items, for CodecConfig::denoise.
  SeanetReference(const CodecConfig& c, std::string half, std::vector<int32_t> labels = {})
      : c_(c), half_(std::move(half)), labels_(std::move(labels)) {}

  Layer encoder() {
    add(conv(next(), c_.kernel_size));
    for (const int64_t rate : c_.encoder_rates) {
      units();
      between();
      add(conv(next(), 2 * rate, rate));
    }
    recurrence();
    if (c_.denoise == Denoise::encoder) add(film("encoder.film", labels_));
    if (c_.latent_convolutions) between(), add(conv(next(), 3));
    return net_;
  }
  Layer decoder() {
    if (c_.latent_convolutions) add(conv(next(), c_.kernel_size));
    if (c_.denoise == Denoise::decoder) add(film("decoder.film", labels_));
    recurrence();
    for (const int64_t rate : c_.decoder_rates) {
      between();
      const int64_t rest = (c_.upsampling_strides - 1) * rate, right = c_.causal ? rest : rest / 2;
      add(conv_transpose1d(next() + ".conv", c_.upsampling_strides * rate,
                           {.stride = rate, .left = rest - right, .right = right}, 0, form()));
      units();
    }
    between();
    add(conv(next(), c_.kernel_size));
    if (c_.output_tanh) next(), add(tanh);
    return net_;
  }

 private:
  std::string next() { return half_ + ".layers." + std::to_string(count_++); }
  void add(Layer layer) { net_ << std::move(layer); }
  WeightForm form() const { return c_.norm == Norm::weight ? WeightForm::normalised : WeightForm::plain; }
  bool before() const { return c_.activation_order == ActivationOrder::before; }

  Layer conv(const std::string& name, int64_t taps, int64_t stride = 1, int64_t dilation = 1) const {
    const int64_t rest = (taps - 1) * dilation + 1 - stride, right = c_.causal ? 0 : rest / 2;
    return conv1d(name + ".conv", taps,
                  {.stride = stride, .dilation = dilation, .left = rest - right, .right = right, .padding = c_.padding},
                  form());
  }
  void units() {
    for (size_t i = 0; i < c_.dilations.size(); ++i) {
      const std::string name = next();
      const int64_t same = c_.residual_kernel_size > 0 ? c_.residual_kernel_size : c_.kernel_size,
                    taps = c_.residual_kernel_sizes.empty() ? same : c_.residual_kernel_sizes[i];
      const auto at = [&](int k) { return name + ".block." + std::to_string(k); };
      Chain branch;
      if (before())
        branch << elu << conv(at(1), taps, 1, c_.dilations[i]) << elu << conv(at(3), 1);
      else
        branch << conv(at(0), taps, 1, c_.dilations[i]) << elu << conv(at(2), 1) << elu;
      if (c_.shortcut == Shortcut::identity) {
        add(residual(branch));
      } else {
        const Layer skip = conv(name + ".shortcut", 1);
        add([=](Tape& t, Node* x) { return sum(t, {{1, branch(t, x)}, {1, skip(t, x)}}); });
      }
    }
  }
  void between() {
    if (before()) next(), add(elu);
  }
  void recurrence() {
    if (c_.lstm_layers > 0) add(lstm(next() + ".lstm", c_.lstm_layers));
  }

  CodecConfig c_;
  std::string half_;
  std::vector<int32_t> labels_;
  Chain net_;
  int count_ = 0;
};

}  // namespace nacre::test
