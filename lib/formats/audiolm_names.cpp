// The names of SoundStream in audiolm-pytorch. Ours number all layers of a half in a row; theirs number its blocks.
#include <charconv>

#include "formats/audiolm_exchange.h"
#include "nacre/formats/weights_file.h"

namespace nacre {

std::string audiolm_name(std::string_view name, size_t strides) {
  constexpr std::string_view our_stages = "quantizer.quantizers.", our_book = ".codebook.";
  if (name.starts_with(our_stages)) {
    const std::string_view rest = name.substr(our_stages.size());
    const size_t book = rest.find(our_book);
    if (book == std::string_view::npos) return "";
    return std::string(audiolm_stages) + std::string(rest.substr(0, book)) + "._codebook." +
           std::string(rest.substr(book + our_book.size()));
  }
  const bool encoder = name.starts_with("encoder.layers.");
  if (!encoder && !name.starts_with("decoder.layers.")) return "";
  name.remove_prefix(std::string_view("encoder.layers.").size());
  size_t layer = 0;
  const auto [end, failed] = std::from_chars(name.data(), name.data() + name.size(), layer);
  if (failed != std::errc()) return "";
  const std::string_view rest = name.substr(static_cast<size_t>(end - name.data()));  // ".conv.bias"
  const std::string half = encoder ? "encoder." : "decoder.";
  constexpr size_t length = audiolm_units + 1;  // layers of a block
  if (layer == 0) return half + "0" + std::string(rest);
  // Layer 0 is the first convolution. Behind it, each block has `length` layers of ours, and the last convolution
  // follows the last block.
  const size_t block = (layer - 1) / length, part = (layer - 1) % length;
  if (block == strides && part == 0) return half + std::to_string(strides + 1) + std::string(rest);
  if (block >= strides) return "";
  constexpr std::string_view in_unit = ".block.";
  // The strided convolution is behind the units, and the transposed one in front of them.
  const bool unit = encoder ? part < audiolm_units : part > 0;
  if (unit != rest.starts_with(in_unit)) return "";
  const std::string in_block = half + std::to_string(block + 1) + "." + std::to_string(part);
  return in_block + (unit ? ".fn." + std::string(rest.substr(in_unit.size())) : std::string(rest));
}

}  // namespace nacre
