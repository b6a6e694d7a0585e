#include "nacre/formats/weights_file.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "files/pickle.h"
#include "files/text.h"
#include "nacre/error.h"

namespace nacre {
namespace {

namespace fs = std::filesystem;
constexpr const char* config_key = "nacre.codec";
constexpr uint64_t most_config_bytes = 1 << 20;

/// The forms of weight normalisation: the ends of the names of a layer's gain and direction. In the last form, one
/// tensor holds their product.
struct Form {
  const char *gain, *direction;
};
constexpr std::array<Form, 3> forms{{{"weight_g", "weight_v"},
                                     {"parametrizations.weight.original0", "parametrizations.weight.original1"},
                                     {"weight", "weight"}}};
constexpr size_t fused = 2;

/// Models that were published, told apart by what their tensors show.
struct Published {
  std::vector<int64_t> strides;
  int64_t n_codebooks, sample_rate;
};
const std::vector<Published>& published() {
  static const std::vector<Published> all{
      {{2, 4, 8, 8}, 9, 44100}, {{2, 4, 8, 8}, 18, 44100}, {{2, 4, 5, 8}, 32, 24000}, {{2, 4, 5, 8}, 12, 16000}};
  return all;
}

/// Removes the prefixes that wrappers of a model put before its names.
std::string_view without_prefix(std::string_view name) {
  for (bool found = true; found;) {
    found = false;
    for (const std::string_view prefix : {"module.", "generator.", "model."})
      if (name.starts_with(prefix)) name.remove_prefix(prefix.size()), found = true;
  }
  return name;
}

bool ends_with(std::string_view name, const std::string& layer_and_dot, const char* end) {
  return name == layer_and_dot + end;
}

/// The number of different blocks "PREFIX.N." among the names.
template <class Named>
size_t blocks(const Named& named, std::string_view prefix) {
  size_t count = 0;
  std::string last;
  for (auto at = named.lower_bound(prefix); at != named.end() && at->first.starts_with(prefix); ++at) {
    const std::string index = at->first.substr(prefix.size(), at->first.find('.', prefix.size()) - prefix.size());
    if (index != last) ++count, last = index;
  }
  return count;
}

std::string joined(const std::vector<int64_t>& v) {
  std::string out;
  for (const int64_t x : v) out += (out.empty() ? "" : ", ") + std::to_string(x);
  return out;
}

}  // namespace

const char* str(WeightsFormat f) noexcept {
  switch (f) {
    case WeightsFormat::nacre:
      return "nacre";
    case WeightsFormat::descript:
      return "descript";
    case WeightsFormat::hugging_face:
      return "hf";
    case WeightsFormat::other:
      return "other";
  }
  return "?";
}

WeightsFile WeightsFile::read(const fs::path& path) {
  std::vector<std::byte> bytes = read_file(path, SafetensorsOptions{}.max_file_bytes);
  const std::string_view head(reinterpret_cast<const char*>(bytes.data()), std::min<size_t>(bytes.size(), 64));
  if (is_pytorch_file(head))
    throw Error(ErrorKind::input,
                path.string() + ": " + pytorch_file_text + ", expected a model (safetensors); " + pytorch_file_advice);
  return {path, Safetensors::parse(std::move(bytes), path.string(), {.allow_nonfinite = false})};
}

WeightsFile::WeightsFile(fs::path path, Safetensors file) : path_(std::move(path)), file_(std::move(file)) {
  for (const StoredTensor& t : file_.tensors())
    if (!named_.emplace(without_prefix(t.name), &t).second)
      throw Error(ErrorKind::input, path_.string() + ": two tensors are " + in_quotes(without_prefix(t.name)) +
                                        " without the prefixes module., generator. and model.");
  recognise();
  if (format_ != WeightsFormat::nacre) refuse_mixtures();
}

void WeightsFile::recognise() {
  std::array<size_t, forms.size()> count{};
  bool units = false;
  for (const auto& [name, tensor] : named_) {
    units = units || name.find(".res_unit") != std::string::npos;
    for (size_t i = 0; i < forms.size(); ++i)
      if (name.ends_with("." + std::string(forms[i].direction)) && tensor->shape.size() == 3) ++count[i];
  }
  form_ = static_cast<int>(std::max_element(count.begin(), count.end()) - count.begin());
  const auto has = [&](const std::string& prefix) {
    const auto at = named_.lower_bound(prefix);
    return at != named_.end() && at->first.starts_with(prefix);
  };
  if (file_.metadata().contains(config_key)) {
    format_ = WeightsFormat::nacre;
  } else if (units) {
    format_ = WeightsFormat::hugging_face;
    encoder_strides_ = blocks(named_, "encoder.block."), decoder_strides_ = blocks(named_, "decoder.block.");
    const fs::path beside = path_.parent_path() / "config.json";
    std::error_code failed;
    if (fs::is_regular_file(beside, failed)) {
      const std::vector<std::byte> text = read_file(beside, most_config_bytes);
      told_.assign(reinterpret_cast<const char*>(text.data()), text.size());
    }
  } else if (has("encoder.block.0.") && has("decoder.model.0.") && has("quantizer.quantizers.0.codebook.weight")) {
    format_ = WeightsFormat::descript;
    if (const auto kwargs = file_.metadata().find(kwargs_metadata_key); kwargs != file_.metadata().end())
      told_ = kwargs->second;
  }
}

void WeightsFile::refuse_mixtures() const {
  std::map<std::string, std::string> form_of;  // layer -> the tensor that decides its form
  for (const auto& [name, tensor] : named_)
    for (size_t i = 0; i < forms.size(); ++i)
      for (const char* end : {forms[i].gain, forms[i].direction}) {
        if (!name.ends_with("." + std::string(end))) continue;
        const std::string layer = name.substr(0, name.size() - std::string_view(end).size());
        const auto [known, added] = form_of.emplace(layer, name);
        const bool same =
            ends_with(known->second, layer, forms[i].gain) || ends_with(known->second, layer, forms[i].direction);
        if (!added && !same)
          throw Error(ErrorKind::input, path_.string() + ": " + layer.substr(0, layer.size() - 1) +
                                            " mixes two forms of weight normalisation: " + known->second + " and " +
                                            name);
      }
}

bool WeightsFile::tells_sample_rate() const noexcept { return format_ == WeightsFormat::nacre || !told_.empty(); }

std::string WeightsFile::name_of(const std::string& name) const {
  std::string mapped = name;
  if (format_ == WeightsFormat::hugging_face)
    if (std::string theirs = hugging_face_name(name, encoder_strides_, decoder_strides_); !theirs.empty())
      mapped = std::move(theirs);
  if (format_ == WeightsFormat::nacre) return mapped;
  const Form& form = forms[static_cast<size_t>(form_)];
  for (const auto& [ours, theirs] : {std::pair{forms[0].gain, form.gain}, {forms[0].direction, form.direction}})
    if (mapped.ends_with("." + std::string(ours)))
      return mapped.substr(0, mapped.size() - std::string_view(ours).size()) + theirs;
  return mapped;
}

WeightsFile::Place WeightsFile::find(const std::string& name) const {
  std::string mapped = name;
  if (format_ == WeightsFormat::hugging_face) {
    mapped = hugging_face_name(name, encoder_strides_, decoder_strides_);
    if (mapped.empty()) return {};
  }
  const auto at = [&](const std::string& wanted) -> const StoredTensor* {
    const auto found = named_.find(wanted);
    return found != named_.end() ? found->second : nullptr;
  };
  if (const StoredTensor* t = at(mapped)) return {t, false};
  if (format_ == WeightsFormat::nacre) return {};
  for (const bool gain : {true, false}) {
    const std::string_view end = gain ? forms[0].gain : forms[0].direction;
    if (!mapped.ends_with("." + std::string(end))) continue;
    const std::string layer = mapped.substr(0, mapped.size() - end.size());
    for (size_t i = 1; i < forms.size(); ++i)
      if (const StoredTensor* t = at(layer + (gain ? forms[i].gain : forms[i].direction)))
        return {t, gain && i == fused};
  }
  return {};
}

bool WeightsFile::fits(const Place& place, const std::string& name, const std::vector<int64_t>& shape) noexcept {
  const std::vector<int64_t>& found = place.tensor->shape;
  if (place.norms) return !found.empty() && !shape.empty() && found[0] == shape[0];
  if (found == shape) return true;
  return name.ends_with(".alpha") && shape.size() == 3 && found.size() == 1 && found[0] == shape[1];
}

std::vector<float> WeightsFile::values(const Place& place) {
  std::vector<float> all = to_floats(*place.tensor);
  if (!place.norms) return all;
  const auto rows = static_cast<size_t>(place.tensor->shape.empty() ? 1 : place.tensor->shape[0]);
  const size_t length = rows > 0 ? all.size() / rows : 0;
  std::vector<float> norms(rows);
  for (size_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (const float v : std::span(all).subspan(r * length, length)) sum += static_cast<double>(v) * v;
    norms[r] = static_cast<float>(std::sqrt(sum));
  }
  return norms;
}

// ---- the configuration

std::vector<int64_t> WeightsFile::shape_of(const std::string& name) const {
  const Place place = find(name);
  if (place.tensor == nullptr) throw Error(ErrorKind::input, "there is no tensor " + name_of(name));
  const size_t rank = name.ends_with(".codebook.weight") ? 2 : 3;
  if (place.tensor->shape.size() != rank)
    throw Error(ErrorKind::input, place.tensor->name + " is " + str(*place.tensor) + ", expected " +
                                      std::to_string(rank) + " dimensions");
  return place.tensor->shape;
}

CodecConfig WeightsFile::config_by_shapes() const try {
  CodecConfig c;
  const std::vector<int64_t> first = shape_of("encoder.block.0.weight_v");
  c.encoder_dim = first[0], c.kernel_size = first[2];
  // The kernel of a strided layer has twice as many taps as its stride.
  const auto strides = [&](const std::string& half, const std::string& unit, const std::string& conv) {
    std::vector<int64_t> all;
    for (size_t i = 1; find(half + std::to_string(i) + unit).tensor != nullptr; ++i) {
      const std::string name = half + std::to_string(i) + conv;
      const int64_t taps = shape_of(name)[2];
      if (taps % 2 != 0)
        throw Error(ErrorKind::input, find(name).tensor->name + " has " + std::to_string(taps) +
                                          " taps, expected an even number, twice the stride");
      all.push_back(taps / 2);
    }
    return all;
  };
  c.encoder_rates = strides("encoder.block.", ".block.0.block.1.weight_v", ".block.4.weight_v");
  c.decoder_rates = strides("decoder.model.", ".block.2.block.1.weight_v", ".block.1.weight_v");
  c.decoder_dim = shape_of("decoder.model.0.weight_v")[0];
  const std::vector<int64_t> books = shape_of("quantizer.quantizers.0.codebook.weight");
  c.codebook_size = books[0], c.codebook_dim = books[1];
  c.n_codebooks = 1;
  while (find("quantizer.quantizers." + std::to_string(c.n_codebooks) + ".codebook.weight").tensor != nullptr)
    ++c.n_codebooks;
  return c;
} catch (const Error& e) {
  throw Error(ErrorKind::input, path_.string() + ": has no \"" + config_key +
                                    "\" in its metadata, and its tensors do not tell the configuration: " + e.what() +
                                    "; --config gives it");
}

CodecConfig WeightsFile::config_by_keys(const std::string& source) const {
  const nlohmann::json all = nlohmann::json::parse(told_, nullptr, false);
  if (!all.is_object()) throw Error(ErrorKind::input, source + ": is not a JSON object");
  const bool hf = format_ == WeightsFormat::hugging_face;
  const auto refuse = [&](const std::string& key, const std::string& expected) {
    throw Error(ErrorKind::input, source + ": " + key + " is " + all.at(key).dump() + ", expected " + expected);
  };
  const auto given = [&](const char* key) { return all.contains(key) && !all.at(key).is_null(); };
  const auto take = [&](const char* key, int64_t& value) {
    if (!given(key)) return;
    if (!all.at(key).is_number_integer()) refuse(key, "an integer");
    value = all.at(key).get<int64_t>();
  };
  const auto take_list = [&](const char* key, std::vector<int64_t>& value) {
    if (!given(key)) return false;
    const nlohmann::json& list = all.at(key);
    if (!list.is_array() || !std::all_of(list.begin(), list.end(), [](const auto& x) { return x.is_number_integer(); }))
      refuse(key, "a list of integers");
    value = list.get<std::vector<int64_t>>();
    return true;
  };
  if (hf && given("model_type") && all.at("model_type") != "dac") refuse("model_type", "\"dac\"");
  // The defaults of both programs, for keys that are absent.
  CodecConfig c;
  c.sample_rate = hf ? 16000 : 44100;
  c.encoder_rates = {2, 4, 8, 8}, c.decoder_rates = {8, 8, 4, 2};
  c.n_codebooks = 9;
  take(hf ? "sampling_rate" : "sample_rate", c.sample_rate);
  take(hf ? "encoder_hidden_size" : "encoder_dim", c.encoder_dim);
  take(hf ? "decoder_hidden_size" : "decoder_dim", c.decoder_dim);
  take("n_codebooks", c.n_codebooks);
  take("codebook_size", c.codebook_size);
  take("codebook_dim", c.codebook_dim);
  // The hop follows from the strides. Published files have a hop_length that contradicts them.
  take_list(hf ? "downsampling_ratios" : "encoder_rates", c.encoder_rates);
  if (!take_list(hf ? "upsampling_ratios" : "decoder_rates", c.decoder_rates) && hf)
    c.decoder_rates.assign(c.encoder_rates.rbegin(), c.encoder_rates.rend());
  if (given("quantizer_dropout")) {
    const nlohmann::json& p = all.at("quantizer_dropout");
    if (!p.is_number() && !p.is_boolean()) refuse("quantizer_dropout", "a number");
    c.quantizer_dropout = p.is_boolean() ? (p.get<bool>() ? 1.0 : 0.0) : p.get<double>();
  }
  return c;
}

CodecConfig WeightsFile::config(int64_t sample_rate) const {
  const std::string name = path_.string();
  if (format_ == WeightsFormat::other)
    throw Error(ErrorKind::input,
                name + ": has no \"" + config_key +
                    "\" in its metadata, because it was not written by nacre, and its tensors are not "
                    "those of DAC; give its configuration (--config of the program)");
  try {
    if (format_ == WeightsFormat::nacre) return CodecConfig::from_json(file_.metadata().at(config_key));
    const std::string beside = format_ == WeightsFormat::hugging_face
                                   ? (path_.parent_path() / "config.json").string()
                                   : name + ": metadata \"" + kwargs_metadata_key + "\"";
    CodecConfig c = told_.empty() ? config_by_shapes() : config_by_keys(beside);
    // A latent of another width than encoder_dim * 2^strides is in no configuration of DacModel.
    if (const Place place = find("decoder.model.0.weight_v");
        place.tensor != nullptr && place.tensor->shape.size() == 3)
      c.latent_dim = place.tensor->shape[1];
    if (sample_rate > 0) {
      c.sample_rate = sample_rate;
    } else if (told_.empty()) {
      const auto known = std::find_if(published().begin(), published().end(), [&](const Published& p) {
        return p.strides == c.encoder_rates && p.n_codebooks == c.n_codebooks;
      });
      if (known == published().end())
        throw Error(ErrorKind::input,
                    name + ": has no \"" + config_key + "\" in its metadata, and no published model has its strides (" +
                        joined(c.encoder_rates) + ") with its number of codebooks (" + std::to_string(c.n_codebooks) +
                        "), so its sample rate is unknown; --sample-rate gives it, or --config the configuration");
      c.sample_rate = known->sample_rate;
    }
    c.check();
    return c;
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::usage) throw;
    throw Error(ErrorKind::input, name + ": " + e.what());
  }
}

}  // namespace nacre
