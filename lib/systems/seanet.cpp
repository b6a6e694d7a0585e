// Layers of seanet.h. Lengths: PaddedConv has ceil(time / stride) outputs, TrimmedConvTranspose time * stride.
#include "systems/seanet.h"

#include <algorithm>

#include "nn/sum.h"

namespace nacre::systems {
namespace {

// The norm that Conv1d has. Norms of outputs are layers of these classes, because their names in checkpoints differ:
// <name>.norm beside <name>.conv.
Norm norm_of_weight(const CodecConfig& c) { return c.norm == Norm::weight ? Norm::weight : Norm::none; }

std::optional<GroupNorm> norm_of_output(Parameters& p, const CodecConfig& c, const std::string& name,
                                        int64_t channels) {
  if (c.norm != Norm::group && c.norm != Norm::layer) return std::nullopt;
  return GroupNorm(p, name + ".norm", channels, 1, c.norm == Norm::group ? NormOver::item : NormOver::position);
}

// Padding of (taps - 1) dilation + 1 - stride positions in all: with it n stride inputs have n outputs. Causal
// convolutions have it in front; others have half of it, rounded down, behind.
Conv1dGeometry padded(const CodecConfig& c, int64_t taps, int64_t stride, int64_t dilation) {
  const int64_t all = (taps - 1) * dilation + 1 - stride, right = c.causal ? 0 : all / 2;
  return {.stride = stride, .dilation = dilation, .left = all - right, .right = right, .padding = c.padding};
}

/// What a transposed convolution has beyond time * stride positions.
Trim trimmed(const CodecConfig& c, int64_t all) {
  const int64_t right = c.causal ? all : all / 2;
  return {.left = all - right, .right = right};
}

/// The name of a unit's layer. Activations come first, or the convolutions do.
std::string part(const std::string& name, ActivationOrder order, int of_before, int of_after) {
  return name + ".block." + std::to_string(order == ActivationOrder::before ? of_before : of_after);
}

}  // namespace

std::vector<int64_t> encoder_widths(const CodecConfig& c) {
  if (!c.encoder_channels.empty()) return c.encoder_channels;
  std::vector<int64_t> widths{c.encoder_dim};
  for (size_t i = 0; i < c.encoder_rates.size(); ++i) widths.push_back(2 * widths.back());
  return widths;
}
std::vector<int64_t> decoder_widths(const CodecConfig& c) {
  if (!c.decoder_channels.empty()) return c.decoder_channels;
  std::vector<int64_t> widths{c.decoder_dim};
  for (size_t i = 0; i < c.decoder_rates.size(); ++i) widths.push_back(widths.back() / 2);
  return widths;
}

PaddedConv::PaddedConv(Parameters& p, const CodecConfig& c, const std::string& name, int64_t in, int64_t out,
                       int64_t taps, int64_t stride, int64_t dilation)
    : conv_(p, name + ".conv", in, out, taps, padded(c, taps, stride, dilation), norm_of_weight(c), BiasStart::uniform),
      norm_(norm_of_output(p, c, name, out)) {}

Flow PaddedConv::plan(Plan& p, Flow x, Flow residual) const {
  // The padding at the right end completes the last stride, so that a partial one has an output, too.
  const int64_t time = x.shape.time, stride = conv_.geometry().stride, positions = (time + stride - 1) / stride;
  const Conv1d conv = conv_.padded_right(positions * stride - time);
  const Conv1dGeometry& g = conv.geometry();
  const int64_t least = std::max(g.left, g.right) + 1;
  // A signal that is too short to be reflected is extended with zeros first, and the result is cut. The length of a
  // block is not that of the signal.
  const bool extend = !p.streaming() && g.padding == Padding::reflect && time < least;
  const Flow longer = extend ? rows_of(p, x, 0, least) : x;
  // With a norm the residual is added behind it.
  const Flow y = rows_of(p, conv.plan(p, longer, norm_ ? Flow{} : residual), 0, positions);
  return norm_ ? norm_->plan(p, y, residual) : y;
}

TrimmedConvTranspose::TrimmedConvTranspose(Parameters& p, const CodecConfig& c, const std::string& name, int64_t in,
                                           int64_t out, int64_t stride, int64_t strides)
    : stride_(stride),
      trim_(trimmed(c, (strides - 1) * stride)),
      norm_(norm_of_output(p, c, name, out)),
      conv_(p, name + ".conv", in, out, strides * stride, stride, norm_ ? Trim{} : trim_, norm_of_weight(c)) {}

Flow TrimmedConvTranspose::plan(Plan& p, Flow x) const {
  const Flow y = conv_.plan(p, x);
  // With a norm, the convolution's own trim is empty (see the constructor), and the cut comes last.
  return norm_ ? rows_of(p, norm_->plan(p, y), trim_.left, x.shape.time * stride_) : y;
}

SeanetUnit::SeanetUnit(Parameters& p, const CodecConfig& c, const std::string& name, const UnitShape& u)
    : name_(name),
      order_(u.order),
      first_(p, part(name, u.order, 0, 1), u.order == ActivationOrder::before ? u.channels : u.branch, c.activation),
      wide_(p, c, part(name, u.order, 1, 0), u.channels, u.branch, u.taps, 1, u.dilation),
      second_(p, part(name, u.order, 2, 3), u.order == ActivationOrder::before ? u.branch : u.channels, c.activation),
      narrow_(p, c, part(name, u.order, 3, 2), u.branch, u.channels, 1) {
  if (c.shortcut == Shortcut::convolution) shortcut_.emplace(p, c, name + ".shortcut", u.channels, u.channels, 1);
}

Flow SeanetUnit::plan(Plan& p, Flow x) const {
  const Flow skip = shortcut_ ? shortcut_->plan(p, x) : x;
  if (order_ == ActivationOrder::before)
    return narrow_.plan(p, second_.plan(p, wide_.plan(p, first_.plan(p, x))), skip);
  return sum_of(p, name_ + ".sum", second_.plan(p, narrow_.plan(p, first_.plan(p, wide_.plan(p, x)))), skip);
}

void add_lstm(Chain& layers, Numbered& number, Parameters& p, const CodecConfig& c, int64_t channels) {
  if (c.lstm_layers > 0) layers << Lstm(p, number.next() + ".lstm", channels, c.lstm_layers);
}

}  // namespace nacre::systems
