// The names of the package encodec and of EncodecModel in transformers. Those of transformers are ours, except for the
// quantizer's.
#include <charconv>

#include "nacre/formats/weights_file.h"

namespace nacre {
namespace {

constexpr std::string_view our_stages = "quantizer.quantizers.";

std::string replaced(std::string text, std::string_view from, const std::string& to) {
  if (const size_t at = text.find(from); at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}

}  // namespace

std::string hugging_face_encodec_name(std::string_view name) {
  return replaced(std::string(name), our_stages, "quantizer.layers.");
}

std::string encodec_name(std::string_view name, const std::set<size_t>& transposed) {
  if (name.starts_with(our_stages))
    return replaced(replaced(std::string(name), our_stages, "quantizer.vq.layers."), ".codebook.", "._codebook.");
  const bool decoder = name.starts_with("decoder.layers.");
  if (!decoder && !name.starts_with("encoder.layers.")) return std::string(name);
  const std::string_view rest = name.substr(std::string_view("decoder.layers.").size());
  size_t layer = 0;
  std::from_chars(rest.data(), rest.data() + rest.size(), layer);
  const std::string conv = decoder && transposed.contains(layer) ? "convtr" : "conv";
  std::string theirs = replaced(std::string(name), ".layers.", ".model.");
  // A convolution is inside of a module that holds its normalisation, too, which is inside of one that pads.
  if (theirs.find(".norm.") != std::string::npos) return replaced(theirs, ".norm.", "." + conv + ".norm.");
  return replaced(theirs, ".conv.", "." + conv + "." + conv + ".");
}

}  // namespace nacre
