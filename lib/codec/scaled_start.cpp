// Random initial values of a larger scale. The header describes them. Parameters are recognised by name and by the
// shape in the file, so the start serves every topology whose layers have PyTorch's names.
#include "nacre/codec/scaled_start.h"

#include <cmath>
#include <set>

namespace nacre {
namespace {

/// Multiplies all values of a parameter, in double, rounded once.
void multiply(Context& ctx, const Parameter& p, double factor) {
  std::vector<float> values(static_cast<size_t>(p.value.elements()));
  ctx.read<float>(p.value, values);
  for (float& v : values) v = static_cast<float>(factor * static_cast<double>(v));
  ctx.write<float>(values, p.value);
}

bool of_half(const std::string& name) { return name.starts_with("encoder.") || name.starts_with("decoder."); }

/// The layer's name if this is the weight of a convolution, [first, second, taps] in the file; else empty.
std::string convolution_of(const Parameter& p) {
  const std::string& name = p.names.front();
  if (!of_half(name) || p.stored.size() != 3) return {};
  for (const char* end : {".weight_v", ".weight"})
    if (name.ends_with(end)) return name.substr(0, name.size() - std::string(end).size());
  return {};
}

}  // namespace

void scaled_start(Context& ctx, Parameters& parameters) {
  // Two passes: a bias or a gain alone does not tell whether its layer is a convolution.
  std::set<std::string> layers;
  for (const Parameter& p : parameters.all())
    if (const std::string layer = convolution_of(p); !layer.empty()) layers.insert(layer);
  for (const Parameter& p : parameters.all()) {
    const std::string& name = p.names.front();
    const size_t dot = name.rfind('.');
    if (!layers.contains(name.substr(0, dot))) continue;
    const std::string part = name.substr(dot);
    // With weight normalisation the gain is multiplied, and the direction stays. A layer has either that or .weight.
    if (part == ".weight_v") continue;
    multiply(ctx, p, part == ".bias" ? 0 : std::sqrt(3.0));
  }
  // Effective weights follow from the new gains.
  parameters.refresh(ctx);
}

}  // namespace nacre
