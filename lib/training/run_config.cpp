#include "nacre/training/run_config.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "nacre/atomic_file.h"

namespace nacre::training {
namespace {

using nlohmann::json;

json as_json(const RunConfig& c) {
  const LossConfig& l = c.loss;
  const OptimizerConfig& o = c.optimizer;
  const TrainingConfig& t = c.training;
  return {{"codec", json::parse(c.codec.to_json())},
          {"loss",
           {{"waveform", l.waveform},
            {"stft", l.stft},
            {"mel", l.mel},
            {"vq", l.vq},
            {"orthogonal", l.orthogonal},
            {"balanced", l.balanced},
            {"balancer_decay", l.balancer_decay},
            {"windows", l.windows},
            {"mels", l.mels},
            {"mel_scale", l.mel_scale == MelScale::slaney ? "slaney" : "htk"}}},
          {"optimizer",
           {{"learning_rate", o.learning_rate},
            {"beta1", o.beta1},
            {"beta2", o.beta2},
            {"eps", o.eps},
            {"weight_decay", o.weight_decay},
            {"clip", o.clip},
            {"ema_decay", o.ema_decay}}},
          {"training",
           {{"batch_size", t.batch_size},
            {"num_epochs", t.num_epochs},
            {"segment_length", t.segment_length},
            {"max_steps", t.max_steps},
            {"seed", t.seed},
            {"start", t.start == Start::transform ? "transform" : "random"},
            {"schedule", t.schedule == Schedule::constant ? "constant" : "cosine"},
            {"schedule_steps", t.schedule_steps},
            {"warmup_steps", t.warmup_steps},
            {"final_rate", t.final_rate},
            {"valid_fraction", t.valid_fraction},
            {"valid_seconds", t.valid_seconds},
            {"checkpoint_minutes", t.checkpoint_minutes},
            {"codebook_start_rows", t.codebook_start_rows},
            {"codebook_average_rows", t.codebook_average_rows}}}};
}

/// With a latent width that still follows from the other keys, where nobody chose one: later keys may change those.
json as_written(const RunConfig& c) {
  json j = as_json(c);
  j["codec"]["latent_dim"] = c.codec.latent_dim;
  return j;
}

const char* kind(const json& v) {
  if (v.is_boolean()) return "true or false";
  if (v.is_number_integer()) return "an integer";
  if (v.is_number()) return "a number";
  if (v.is_string()) return "a string";
  if (v.is_array()) return "a list";
  return "an object";
}
/// May `found` stand where `usual` stands?
bool fits(const json& found, const json& usual) {
  if (usual.is_number_integer()) return found.is_number_integer();
  if (usual.is_number()) return found.is_number();
  if (usual.is_array())
    return found.is_array() &&
           std::all_of(found.begin(), found.end(), [](const json& x) { return x.is_number_integer(); });
  return found.type() == usual.type();
}

void expect_section(const json& config, const std::string& section) {
  if (!config.contains(section))
    throw Error(ErrorKind::usage,
                "config: section \"" + section + "\" is unknown; there are codec, loss, optimizer, training");
}

void put(json& config, const std::string& section, const std::string& key, const json& value) {
  expect_section(config, section);
  json& keys = config[section];
  if (!keys.contains(key)) {
    std::string known;
    for (const auto& [k, v] : keys.items()) known += (known.empty() ? "" : ", ") + k;
    throw Error(ErrorKind::usage, "config: key \"" + section + "." + key + "\" is unknown; there are " + known);
  }
  if (!fits(value, keys[key]))
    throw Error(ErrorKind::usage,
                "config: " + section + "." + key + " is " + value.dump() + ", expected " + kind(keys[key]));
  keys[key] = value;
}

RunConfig parse(json c) {
  RunConfig r;
  const auto word = [&](const char* section, const char* key, const std::string& a, const std::string& b) {
    const std::string found = c[section][key].get<std::string>();
    if (found != a && found != b)
      throw Error(ErrorKind::usage, std::string("config: ") + section + "." + key + " is \"" + found +
                                        "\", expected \"" + a + "\" or \"" + b + "\"");
    return found == a;
  };
  r.codec = CodecConfig::from_json(c["codec"].dump());
  const json &l = c["loss"], &o = c["optimizer"], &t = c["training"];
  r.loss.waveform = l["waveform"];
  r.loss.stft = l["stft"];
  r.loss.mel = l["mel"];
  r.loss.vq = l["vq"];
  r.loss.orthogonal = l["orthogonal"];
  r.loss.balanced = l["balanced"];
  r.loss.balancer_decay = l["balancer_decay"];
  r.loss.windows = l["windows"].get<std::vector<int64_t>>();
  r.loss.mels = l["mels"].get<std::vector<int64_t>>();
  r.loss.mel_scale = word("loss", "mel_scale", "slaney", "htk") ? MelScale::slaney : MelScale::htk;
  r.optimizer.learning_rate = o["learning_rate"];
  r.optimizer.beta1 = o["beta1"];
  r.optimizer.beta2 = o["beta2"];
  r.optimizer.eps = o["eps"];
  r.optimizer.weight_decay = o["weight_decay"];
  r.optimizer.clip = o["clip"];
  r.optimizer.ema_decay = o["ema_decay"];
  r.training.batch_size = t["batch_size"];
  r.training.num_epochs = t["num_epochs"];
  r.training.segment_length = t["segment_length"];
  r.training.max_steps = t["max_steps"];
  if (t["seed"].is_number_unsigned()) {
    r.training.seed = t["seed"];
  } else {
    throw Error(ErrorKind::usage, "config: training.seed is " + t["seed"].dump() + ", expected 0 or more");
  }
  r.training.start = word("training", "start", "transform", "random") ? Start::transform : Start::random;
  r.training.schedule = word("training", "schedule", "constant", "cosine") ? Schedule::constant : Schedule::cosine;
  r.training.schedule_steps = t["schedule_steps"];
  r.training.warmup_steps = t["warmup_steps"];
  r.training.final_rate = t["final_rate"];
  r.training.valid_fraction = t["valid_fraction"];
  r.training.valid_seconds = t["valid_seconds"];
  r.training.checkpoint_minutes = t["checkpoint_minutes"];
  r.training.codebook_start_rows = t["codebook_start_rows"];
  r.training.codebook_average_rows = t["codebook_average_rows"];
  r.check();
  return r;
}

}  // namespace

void RunConfig::check() const {
  codec.check();
  loss.check(codec.sample_rate);
  optimizer.check();
  const auto need = [](bool ok, const char* key, double value, const std::string& expected) {
    if (!ok) {
      json v = value;
      throw Error(ErrorKind::usage, std::string("training.") + key + " is " + v.dump() + ", expected " + expected);
    }
  };
  const TrainingConfig& t = training;
  const auto d = [](int64_t x) { return static_cast<double>(x); };
  need(t.batch_size >= 1 && t.batch_size <= 65536, "batch_size", d(t.batch_size), "1 to 65536");
  need(t.num_epochs >= 1 && t.num_epochs <= 100000000, "num_epochs", d(t.num_epochs), "at least 1");
  need(t.segment_length >= codec.hop() && t.segment_length <= (int64_t{1} << 30), "segment_length", d(t.segment_length),
       "at least one hop of the codec, " + std::to_string(codec.hop()) + " samples");
  need(t.max_steps >= 0, "max_steps", d(t.max_steps), "0 (no limit) or more");
  need(t.schedule_steps >= 0, "schedule_steps", d(t.schedule_steps), "0 (as many as the epochs have) or more");
  need(t.warmup_steps >= 0, "warmup_steps", d(t.warmup_steps), "0 or more");
  need(t.final_rate >= 0 && t.final_rate <= 1, "final_rate", t.final_rate, "0 to 1");
  need(t.valid_fraction >= 0 && t.valid_fraction < 1, "valid_fraction", t.valid_fraction, "0 to below 1");
  need(t.valid_seconds > 0, "valid_seconds", t.valid_seconds, "above 0");
  need(t.checkpoint_minutes > 0, "checkpoint_minutes", t.checkpoint_minutes, "above 0");
  need(t.codebook_start_rows >= 0 && t.codebook_start_rows <= 10000000, "codebook_start_rows", d(t.codebook_start_rows),
       "0 (codebooks start from random numbers) to 10000000");
  need(t.codebook_average_rows >= 0 && t.codebook_average_rows <= 1000000000, "codebook_average_rows",
       d(t.codebook_average_rows), "0 to 1000000000");
  need(t.codebook_average_rows == 0 || t.codebook_start_rows > 0, "codebook_average_rows", d(t.codebook_average_rows),
       "0 where codebook_start_rows is 0");
  const int64_t longest = *std::max_element(loss.windows.begin(), loss.windows.end());
  if (longest / 2 >= t.segment_length)
    throw Error(ErrorKind::usage, "loss.windows: a window of " + std::to_string(longest) +
                                      " samples needs a segment longer than half of it; training.segment_length is " +
                                      std::to_string(t.segment_length));
}

std::string RunConfig::to_json() const { return as_json(*this).dump(2); }

RunConfig RunConfig::from_json(const std::string& text, const RunConfig& base) {
  if (text.size() > (1u << 20)) throw Error(ErrorKind::usage, "config: larger than 1 MiB");
  json given;
  try {
    given = json::parse(text, nullptr, true, true);
  } catch (const json::parse_error& e) {
    throw Error(ErrorKind::usage, "config: not JSON at byte " + std::to_string(e.byte));
  }
  if (!given.is_object()) throw Error(ErrorKind::usage, "config: not a JSON object");
  json merged = as_written(base);
  for (const auto& [section, keys] : given.items()) {
    expect_section(merged, section);
    if (!keys.is_object()) throw Error(ErrorKind::usage, "config: section \"" + section + "\" is not an object");
    for (const auto& [key, value] : keys.items()) put(merged, section, key, value);
  }
  return parse(merged);
}
RunConfig RunConfig::from_json(const std::string& text) { return from_json(text, RunConfig{}); }

RunConfig RunConfig::named(const std::string& name) {
  RunConfig c;
  const std::vector<std::string> names = CodecConfig::names();
  if (std::find(names.begin(), names.end(), name) == names.end() && std::filesystem::is_regular_file(name)) {
    const std::vector<std::byte> bytes = read_file(name, 1u << 20);
    try {
      return from_json(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    } catch (const Error& e) {
      throw Error(ErrorKind::usage, name + ": " + e.what());
    }
  }
  c.codec = CodecConfig::named(name);
  if (name == "speech-16k-small") {
    c.training.batch_size = 8;
    c.training.segment_length = 4000;
  }
  if (name.rfind("speech-", 0) == 0) {
    // Small batches give noisy gradients, which disturb the filter bank at higher rates (docs/decisions.md).
    c.optimizer.learning_rate = 1e-4;
    c.loss.orthogonal = true;
    // Codebooks get better with the number of frames they see; without backward passes frames cost little.
    c.training.codebook_start_rows = 60000;
    c.training.codebook_average_rows = 320000;
  }
  if (name.rfind("dac-", 0) == 0) {
    c.loss.windows = {32, 64, 128, 256, 512, 1024, 2048};
    c.loss.mels = {5, 10, 20, 40, 80, 160, 320};
  }
  return c;
}

void RunConfig::set(const std::string& assignment) {
  const size_t equals = assignment.find('='), dot = assignment.find('.');
  if (equals == std::string::npos || dot == std::string::npos || dot > equals)
    throw Error(ErrorKind::usage, "--set " + assignment + ": expected section.key=value, such as loss.mel=2");
  const std::string section = assignment.substr(0, dot), key = assignment.substr(dot + 1, equals - dot - 1),
                    text = assignment.substr(equals + 1);
  json value = json::parse(text, nullptr, false);
  if (value.is_discarded()) value = text;
  json merged = as_written(*this);
  put(merged, section, key, value);
  *this = parse(merged);
}

std::vector<std::string> differences(const RunConfig& before, const RunConfig& after) {
  const json a = as_json(before), b = as_json(after);
  std::vector<std::string> found;
  for (const auto& [section, keys] : a.items())
    for (const auto& [key, value] : keys.items())
      if (b[section][key] != value)
        found.push_back(section + "." + key + ": " + value.dump() + " -> " + b[section][key].dump());
  return found;
}

}  // namespace nacre::training
