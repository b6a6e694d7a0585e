#pragma once
// Layers that EnCodec and SoundStream share (SEANet: Tagliasacchi et al. 2020, arXiv 2009.02095): convolutions whose
// padding depends on the configuration, and residual units of them.
#include <optional>
#include <string>
#include <vector>

#include "nacre/nn/layers.h"
#include "nacre/systems/codec_config.h"

namespace nacre::systems {

/// Channels of the convolutions of one half of SoundStream, from its first layer to its last.
std::vector<int64_t> encoder_widths(const CodecConfig&);
std::vector<int64_t> decoder_widths(const CodecConfig&);

/// A convolution whose output has time / stride positions, rounded up. Causal: all padding is on the left, but for what
/// completes the last position.
class PaddedConv {
 public:
  PaddedConv(Parameters& p, const CodecConfig& c, const std::string& name, int64_t in, int64_t out, int64_t taps,
             int64_t stride = 1, int64_t dilation = 1);
  /// y = conv(x) + residual. The residual may be absent; only a convolution of one tap takes one.
  Flow plan(Plan& p, Flow x, Flow residual) const;
  Flow plan(Plan& p, Flow x) const { return plan(p, x, {}); }

 private:
  Conv1d conv_;
  std::optional<GroupNorm> norm_;
};

/// A transposed convolution of `strides` * stride taps whose output has time * stride positions. Causal: the rest is
/// cut off at the right end. The norm, if any, sees what is cut off.
class TrimmedConvTranspose {
 public:
  TrimmedConvTranspose(Parameters& p, const CodecConfig& c, const std::string& name, int64_t in, int64_t out,
                       int64_t stride, int64_t strides = 2);
  Flow plan(Plan& p, Flow x) const;

 private:
  int64_t stride_;
  Trim trim_;
  std::optional<GroupNorm> norm_;
  ConvTranspose1d conv_;
};

/// What a residual unit is made of.
struct UnitShape {
  int64_t channels = 0, branch = 0;  ///< of the unit, and between its two convolutions
  int64_t taps = 0, dilation = 1;    ///< of the first convolution; the second one has one tap
  ActivationOrder order = ActivationOrder::before;
};
/// ActivationOrder::before: activation -> conv -> activation -> conv of one tap -> + shortcut;
/// after: conv -> activation -> conv of one tap -> activation -> + shortcut. Its layers are <name>.block.<i>, in the
/// order in which they run, and <name>.shortcut.
class SeanetUnit {
 public:
  SeanetUnit(Parameters& p, const CodecConfig& c, const std::string& name, const UnitShape&);
  Flow plan(Plan& p, Flow x) const;

 private:
  std::string name_;
  ActivationOrder order_;
  Activation first_;
  PaddedConv wide_;
  Activation second_;
  PaddedConv narrow_;
  std::optional<PaddedConv> shortcut_;
};

/// The layers of one half. Every layer, activations included, has a number.
class Numbered {
 public:
  explicit Numbered(const char* half) : half_(half) {}
  std::string next() { return half_ + std::string(".layers.") + std::to_string(count_++); }

 private:
  const char* half_;
  int count_ = 0;
};

/// The LSTM of a configuration, if it has one.
void add_lstm(Chain& layers, Numbered& number, Parameters& p, const CodecConfig& c, int64_t channels);

}  // namespace nacre::systems
