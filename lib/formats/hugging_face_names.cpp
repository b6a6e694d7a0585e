// The names of DacModel in transformers. They differ from those of descript-audio-codec, which are ours.
#include <charconv>
#include <optional>

#include "nacre/formats/weights_file.h"

namespace nacre {
namespace {

constexpr size_t units = 3;  // residual units of a block, in both programs
constexpr const char* parts_of_unit[] = {"snake1", "conv1", "snake2", "conv2"};

/// Removes "12." from the front of `name`.
std::optional<size_t> take_index(std::string_view& name) {
  size_t index = 0;
  const auto [end, failed] = std::from_chars(name.data(), name.data() + name.size(), index);
  const auto digits = static_cast<size_t>(end - name.data());
  if (failed != std::errc() || digits == name.size() || name[digits] != '.') return std::nullopt;
  name.remove_prefix(digits + 1);
  return index;
}

bool take_word(std::string_view& name, std::string_view word) {
  if (!name.starts_with(word)) return false;
  name.remove_prefix(word.size());
  return true;
}

/// The rest of a name inside of a block, whose units begin at `first`: "UNIT.block.PART.LEAF" or "LAYER.LEAF".
std::string in_block(std::string_view rest, size_t first, size_t snake, size_t conv, const char* conv_name) {
  const auto index = take_index(rest);
  if (!index) return "";
  if (*index >= first && *index < first + units) {
    if (!take_word(rest, "block.")) return "";
    const auto part = take_index(rest);
    if (!part || *part >= std::size(parts_of_unit)) return "";
    return "res_unit" + std::to_string(*index - first + 1) + "." + parts_of_unit[*part] + "." + std::string(rest);
  }
  if (*index == snake) return "snake1." + std::string(rest);
  if (*index == conv) return conv_name + std::string(".") + std::string(rest);
  return "";
}

}  // namespace

std::string hugging_face_name(std::string_view name, size_t encoder_strides, size_t decoder_strides) {
  if (name.starts_with("quantizer.quantizers.")) return std::string(name);
  std::string_view rest = name;
  const bool encoder = take_word(rest, "encoder.block.");
  if (!encoder && !take_word(rest, "decoder.model.")) return "";
  const std::string half = encoder ? "encoder." : "decoder.";
  const size_t strides = encoder ? encoder_strides : decoder_strides;
  const auto index = take_index(rest);
  if (!index) return "";
  if (*index == 0) return half + "conv1." + std::string(rest);
  // Ours number all layers of a half: the first convolution, one block per stride, an activation, the last convolution.
  // Theirs give the three single layers names of their own and number the blocks from 0.
  if (*index == strides + 1) return half + "snake1." + std::string(rest);
  if (*index == strides + 2) return half + "conv2." + std::string(rest);
  if (*index > strides || !take_word(rest, "block.")) return "";
  const std::string inside =
      encoder ? in_block(rest, 0, units, units + 1, "conv1") : in_block(rest, 2, 0, 1, "conv_t1");
  return inside.empty() ? "" : half + "block." + std::to_string(*index - 1) + "." + inside;
}

}  // namespace nacre
