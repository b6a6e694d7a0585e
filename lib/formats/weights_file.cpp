// Weights of several programs under the names of this library. The steps: recognise() tells the program and the form of
// weight normalisation from the names, find() maps a name of ours to the file's tensor and says how to take its values,
// and config() makes the configuration, from metadata, from config.json, or from shapes.
// The names of each program are in its own file (hugging_face_names.cpp, encodec_names.cpp, audiolm_names.cpp), and so
// are the configurations of EnCodec and SoundStream (encodec_config.cpp, audiolm_config.cpp). Those of DAC are here.
#include "nacre/formats/weights_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "files/pickle.h"
#include "files/text.h"
#include "formats/told_config.h"
#include "nacre/error.h"

namespace nacre {
namespace {

namespace fs = std::filesystem;
constexpr const char* config_key = "nacre.codec";
constexpr uint64_t most_config_bytes = 1 << 20;

/// The forms of weight normalisation: the ends of the names of a layer's gain and direction. In the last form, one
/// tensor holds their product.
struct Form {
  // g and v of w = g v / |v|.
  const char *gain, *direction;
};
constexpr std::array<Form, 3> forms{{{"weight_g", "weight_v"},
                                     {"parametrizations.weight.original0", "parametrizations.weight.original1"},
                                     {"weight", "weight"}}};
// The index of that form.
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

/// The number whose digits begin at `at`, or 0.
size_t number_at(const std::string& text, size_t at) {
  size_t number = 0;
  std::from_chars(text.data() + at, text.data() + text.size(), number);
  return number;
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
    case WeightsFormat::hugging_face_encodec:
      return "hf";
    case WeightsFormat::encodec:
      return "encodec";
    case WeightsFormat::audiolm:
      return "audiolm";
    case WeightsFormat::other:
      return "other";
  }
  return "?";
}

const char* program_of(WeightsFormat f) noexcept {
  switch (f) {
    case WeightsFormat::descript:
      return "descript-audio-codec";
    case WeightsFormat::hugging_face:
      return "transformers (DacModel)";
    case WeightsFormat::hugging_face_encodec:
      return "transformers (EncodecModel)";
    case WeightsFormat::encodec:
      return "encodec";
    case WeightsFormat::audiolm:
      return "audiolm-pytorch";
    case WeightsFormat::nacre:
    case WeightsFormat::other:
      break;
  }
  return "";
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
    // Pointers to the elements of file_'s list of tensors, which stay where they are if a WeightsFile is moved.
    if (!named_.emplace(without_prefix(t.name), &t).second)
      throw Error(ErrorKind::input, path_.string() + ": two tensors are " + in_quotes(without_prefix(t.name)) +
                                        " without the prefixes module., generator. and model.");
  recognise();
  if (format_ != WeightsFormat::nacre) refuse_mixtures();
  if (format_ == WeightsFormat::audiolm) refuse_parts_of_audiolm();
}

/// Sets format_, form_, told_, and what the names of the format need (strides, transposed layers). Metadata of
/// this library come before any names.
void WeightsFile::recognise() {
  std::array<size_t, forms.size()> count{};
  bool units = false;
  for (const auto& [name, tensor] : named_) {
    units = units || name.find(".res_unit") != std::string::npos;
    for (size_t i = 0; i < forms.size(); ++i)
      // Weights of convolutions have three axes. Other tensors named "weight" are not counted.
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
  } else if (has("encoder.block.0.") && has("decoder.model.0.") && has("quantizer.quantizers.0.codebook.weight")) {
    format_ = WeightsFormat::descript;
  } else if (has("encoder.layers.0.conv.") && has("decoder.layers.0.conv.") &&
             has("quantizer.layers.0.codebook.embed")) {
    format_ = WeightsFormat::hugging_face_encodec;
  } else if (has("encoder.model.0.conv.conv.") && has("quantizer.vq.layers.0._codebook.embed")) {
    format_ = WeightsFormat::encodec;
    const std::string_view decoder = "decoder.model.", inside = ".convtr.";
    for (auto at = named_.lower_bound(decoder); at != named_.end() && at->first.starts_with(decoder); ++at)
      if (at->first.find(inside) != std::string::npos) transposed_.insert(number_at(at->first, decoder.size()));
  } else if (has("encoder.0.conv.") && has("encoder.1.0.fn.0.conv.") && has("decoder.0.conv.")) {
    format_ = WeightsFormat::audiolm;
    // The first and the last block are single convolutions.
    encoder_strides_ = std::max<size_t>(blocks(named_, "encoder."), 2) - 2;
    decoder_strides_ = std::max<size_t>(blocks(named_, "decoder."), 2) - 2;
  }
  if (format_ == WeightsFormat::hugging_face || format_ == WeightsFormat::hugging_face_encodec) {
    const fs::path beside = path_.parent_path() / "config.json";
    std::error_code failed;
    if (fs::is_regular_file(beside, failed)) {
      const std::vector<std::byte> text = read_file(beside, most_config_bytes);
      told_.assign(reinterpret_cast<const char*>(text.data()), text.size());
    }
  } else if (format_ != WeightsFormat::nacre && format_ != WeightsFormat::other) {
    if (const auto kwargs = file_.metadata().find(kwargs_metadata_key); kwargs != file_.metadata().end())
      told_ = kwargs->second;
  }
}

/// A layer whose tensors belong to two forms would be read in part from each.
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

bool WeightsFile::of_dac() const noexcept {
  return format_ == WeightsFormat::hugging_face || format_ == WeightsFormat::descript;
}
bool WeightsFile::of_encodec() const noexcept {
  return format_ == WeightsFormat::hugging_face_encodec || format_ == WeightsFormat::encodec;
}

/// The file's name of a tensor, with the first form of weight normalisation; "" if the program has no such tensor.
std::string WeightsFile::mapped(const std::string& name) const {
  switch (format_) {
    case WeightsFormat::hugging_face:
      return hugging_face_name(name, encoder_strides_, decoder_strides_);
    case WeightsFormat::hugging_face_encodec:
      return hugging_face_encodec_name(name);
    case WeightsFormat::encodec:
      return encodec_name(name, transposed_);
    case WeightsFormat::audiolm:
      return audiolm_name(name, name.starts_with("encoder.") ? encoder_strides_ : decoder_strides_);
    case WeightsFormat::nacre:
    case WeightsFormat::descript:
    case WeightsFormat::other:
      break;
  }
  return name;
}

std::string WeightsFile::name_of(const std::string& name) const {
  std::string theirs = mapped(name);
  // For messages: a name that the program does not have is told as ours.
  if (theirs.empty()) theirs = name;
  if (format_ == WeightsFormat::nacre) return theirs;
  const Form& form = forms[static_cast<size_t>(form_)];
  for (const auto& [ours, end] : {std::pair{forms[0].gain, form.gain}, {forms[0].direction, form.direction}})
    if (theirs.ends_with("." + std::string(ours)))
      return theirs.substr(0, theirs.size() - std::string_view(ours).size()) + end;
  return theirs;
}

WeightsFile::Place WeightsFile::find(const std::string& name) const {
  const std::string theirs = mapped(name);
  if (theirs.empty()) return {};
  const auto at = [&](const std::string& wanted) -> const StoredTensor* {
    const auto found = named_.find(wanted);
    return found != named_.end() ? found->second : nullptr;
  };
  // The name as it is: with the first form of weight normalisation, or of a tensor without one.
  if (const StoredTensor* t = at(theirs))
    return {t, Place::values,
            format_ == WeightsFormat::audiolm && theirs.find("._codebook.") != std::string::npos &&
                t->shape.size() > 1 && t->shape[0] == 1};
  if (format_ == WeightsFormat::nacre) return {};
  // Then the other forms. Of the last one, both the gain and the direction come from the product: g = |w|, v = w.
  for (const bool gain : {true, false}) {
    const std::string_view end = gain ? forms[0].gain : forms[0].direction;
    if (!theirs.ends_with("." + std::string(end))) continue;
    const std::string layer = theirs.substr(0, theirs.size() - end.size());
    for (size_t i = 1; i < forms.size(); ++i)
      if (const StoredTensor* t = at(layer + (gain ? forms[i].gain : forms[i].direction)))
        return {t, gain && i == fused ? Place::norms : Place::values};
  }
  // Averages of files for inference alone. Half of a pair is no average.
  const std::string book = theirs.substr(0, theirs.rfind('.'));
  if (!of_encodec() || at(book + ".cluster_size") != nullptr || at(book + ".embed_avg") != nullptr) return {};
  for (const auto& [end, take] : {std::pair{".cluster_size", Place::ones}, {".embed_avg", Place::copy}})
    if (theirs.ends_with(end))
      if (const StoredTensor* t = at(book + ".embed")) return {t, take};
  return {};
}

bool WeightsFile::ignored(const StoredTensor& t) const noexcept {
  if (format_ == WeightsFormat::audiolm) {
    const std::string_view name = without_prefix(t.name);
    for (const std::string_view part :
         {"discriminators.", "stft_discriminator.", "mel_spec_transforms.", "encoder_film.", "decoder_film."})
      if (name.starts_with(part)) return true;
    return name.ends_with("._codebook.initted");
  }
  return of_encodec() && std::string_view(t.name).ends_with("codebook.inited");
}

/// Norms and counts have one value per row of the tensor that they are computed from, so only the first axis must
/// agree.
bool WeightsFile::fits(const Place& place, const std::string& name, const std::vector<int64_t>& shape) noexcept {
  std::span<const int64_t> found = place.tensor->shape;
  if (place.headed) found = found.subspan(1);
  if (place.take == Place::norms || place.take == Place::ones)
    return !found.empty() && !shape.empty() && found[0] == shape[0];
  if (std::equal(found.begin(), found.end(), shape.begin(), shape.end())) return true;
  return name.ends_with(".alpha") && shape.size() == 3 && found.size() == 1 && found[0] == shape[1];
}

std::vector<float> WeightsFile::values(const Place& place) {
  std::vector<float> all = to_floats(*place.tensor);
  if (place.take == Place::values || place.take == Place::copy) return all;
  const auto rows = static_cast<size_t>(place.tensor->shape.empty() ? 1 : place.tensor->shape[0]);
  if (place.take == Place::ones) return std::vector<float>(rows, 1.0f);
  const size_t length = rows > 0 ? all.size() / rows : 0;
  std::vector<float> norms(rows);
  for (size_t r = 0; r < rows; ++r) {
    // In double: the norm of a long row in float would lose digits that the file has.
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
  const size_t rank =
      (name.ends_with(".codebook.weight") || name.ends_with(".codebook.embed") ? 2 : 3) + (place.headed ? 1 : 0);
  if (place.tensor->shape.size() != rank)
    throw Error(ErrorKind::input, place.tensor->name + " is " + str(*place.tensor) + ", expected " +
                                      std::to_string(rank) + " dimensions");
  return {place.tensor->shape.begin() + (place.headed ? 1 : 0), place.tensor->shape.end()};
}

/// The strides of convolutions whose kernels have twice as many taps.
std::vector<int64_t> WeightsFile::strides_of(const std::vector<std::string>& convs) const {
  std::vector<int64_t> all;
  for (const std::string& name : convs) {
    const int64_t taps = shape_of(name)[2];
    if (taps % 2 != 0)
      throw Error(ErrorKind::input, find(name).tensor->name + " has " + std::to_string(taps) +
                                        " taps, expected an even number, twice the stride");
    all.push_back(taps / 2);
  }
  return all;
}

/// The number of the quantizer's stages among the tensors.
int64_t WeightsFile::codebooks() const {
  const std::string end = of_dac() ? ".codebook.weight" : ".codebook.embed";
  int64_t count = 0;
  while (find("quantizer.quantizers." + std::to_string(count) + end).tensor != nullptr) ++count;
  return count;
}

CodecConfig WeightsFile::config_by_shapes() const try {
  if (of_encodec()) return encodec_by_shapes();
  if (format_ == WeightsFormat::audiolm) return audiolm_by_shapes();
  CodecConfig c;
  const std::vector<int64_t> first = shape_of("encoder.block.0.weight_v");
  c.encoder_dim = first[0], c.kernel_size = first[2];
  const auto strides = [&](const std::string& half, const std::string& unit, const std::string& conv) {
    std::vector<std::string> convs;
    for (size_t i = 1; find(half + std::to_string(i) + unit).tensor != nullptr; ++i)
      convs.push_back(half + std::to_string(i) + conv);
    return strides_of(convs);
  };
  c.encoder_rates = strides("encoder.block.", ".block.0.block.1.weight_v", ".block.4.weight_v");
  c.decoder_rates = strides("decoder.model.", ".block.2.block.1.weight_v", ".block.1.weight_v");
  c.decoder_dim = shape_of("decoder.model.0.weight_v")[0];
  const std::vector<int64_t> books = shape_of("quantizer.quantizers.0.codebook.weight");
  c.codebook_size = books[0], c.codebook_dim = books[1];
  c.n_codebooks = codebooks();
  return c;
} catch (const Error& e) {
  throw Error(ErrorKind::input, path_.string() + ": has no \"" + config_key +
                                    "\" in its metadata, and its tensors do not tell the configuration: " + e.what() +
                                    "; --config gives it");
}

CodecConfig WeightsFile::config_by_keys(const std::string& source) const {
  if (of_encodec()) return encodec_by_keys(source);
  if (format_ == WeightsFormat::audiolm) return audiolm_by_keys(source);
  const ToldConfig all(source, told_);
  const bool hf = format_ == WeightsFormat::hugging_face;
  if (hf && all.has("model_type") && all.at("model_type") != "dac") all.refuse("model_type", "\"dac\"");
  // The defaults of both programs, for keys that are absent.
  CodecConfig c;
  c.sample_rate = hf ? 16000 : 44100;
  c.encoder_rates = {2, 4, 8, 8}, c.decoder_rates = {8, 8, 4, 2};
  c.n_codebooks = 9;
  all.take(hf ? "sampling_rate" : "sample_rate", c.sample_rate);
  all.take(hf ? "encoder_hidden_size" : "encoder_dim", c.encoder_dim);
  all.take(hf ? "decoder_hidden_size" : "decoder_dim", c.decoder_dim);
  all.take("n_codebooks", c.n_codebooks);
  all.take("codebook_size", c.codebook_size);
  all.take("codebook_dim", c.codebook_dim);
  // The hop follows from the strides. Published files have a hop_length that contradicts them.
  all.take(hf ? "downsampling_ratios" : "encoder_rates", c.encoder_rates);
  if (!all.take(hf ? "upsampling_ratios" : "decoder_rates", c.decoder_rates) && hf)
    c.decoder_rates.assign(c.encoder_rates.rbegin(), c.encoder_rates.rend());
  if (all.has("quantizer_dropout") && all.at("quantizer_dropout").is_boolean())
    c.quantizer_dropout = all.at("quantizer_dropout").get<bool>() ? 1.0 : 0.0;
  else
    all.take("quantizer_dropout", c.quantizer_dropout);
  return c;
}

CodecConfig WeightsFile::config(int64_t sample_rate) const {
  const std::string name = path_.string();
  if (format_ == WeightsFormat::other)
    throw Error(ErrorKind::input,
                name + ": has no \"" + config_key +
                    "\" in its metadata, because it was not written by nacre, and its tensors are not "
                    "those of DAC, EnCodec or SoundStream; give its configuration (--config of the program)");
  try {
    if (format_ == WeightsFormat::nacre) return CodecConfig::from_json(file_.metadata().at(config_key));
    const bool hf = format_ == WeightsFormat::hugging_face || format_ == WeightsFormat::hugging_face_encodec;
    const std::string beside =
        hf ? (path_.parent_path() / "config.json").string() : name + ": metadata \"" + kwargs_metadata_key + "\"";
    // What the program's own configuration says comes first. That of audiolm-pytorch only completes the shapes.
    CodecConfig c = told_.empty() ? config_by_shapes() : config_by_keys(beside);
    // A latent of another width than encoder_dim * 2^strides is in no configuration of DacModel.
    if (const Place place = of_dac() ? find("decoder.model.0.weight_v") : Place{};
        place.tensor != nullptr && place.tensor->shape.size() == 3)
      c.latent_dim = place.tensor->shape[1];
    if (sample_rate > 0) {
      c.sample_rate = sample_rate;
    } else if (told_.empty() && (of_dac() || c.sample_rate == 0)) {
      const auto known = std::find_if(published().begin(), published().end(), [&](const Published& p) {
        return p.strides == c.encoder_rates && p.n_codebooks == c.n_codebooks;
      });
      if (!of_dac() || known == published().end())
        throw Error(ErrorKind::input,
                    name + ": has no \"" + config_key + "\" in its metadata, and no published model has its strides (" +
                        joined(c.encoder_rates) + ") with its number of codebooks (" + std::to_string(c.n_codebooks) +
                        "), so its sample rate is unknown; --sample-rate gives it, or --config the configuration");
      c.sample_rate = known->sample_rate;
    }
    c.check();
    return c;
  } catch (const Error& e) {
    // CodecConfig::check() blames the caller, but here the file has the wrong values.
    if (e.kind() != ErrorKind::usage) throw;
    throw Error(ErrorKind::input, name + ": " + e.what());
  }
}

}  // namespace nacre
