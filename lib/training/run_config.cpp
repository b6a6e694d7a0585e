#include "nacre/training/run_config.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "data/sniff.h"
#include "files/spelling.h"
#include "files/text.h"
#include "nacre/files/atomic_file.h"

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
            {"salvage", t.salvage},
            {"held_out_folders", t.held_out_folders},
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
  if (v.is_number_integer()) return "an integer of 64 bits";
  if (v.is_number()) return "a number";
  if (v.is_string()) return "a string";
  if (v.is_array()) return "a list of integers";
  return "an object";
}
/// As messages show it: short, whatever is in it.
std::string shown(const json& v) {
  const std::string text = v.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= 120 ? text : text.substr(0, 60) + "...";
}
/// May `found` stand where `usual` stands?
bool fits(const json& found, const json& usual) {
  // The seed alone has more than 63 bits; what is larger than an int64_t must not become a negative one.
  const auto fits_int64 = [](const json& x) {
    return x.is_number_integer() && (!x.is_number_unsigned() || x.get<uint64_t>() <= INT64_MAX);
  };
  if (usual.is_number_unsigned()) return found.is_number_integer();
  if (usual.is_number_integer()) return fits_int64(found);
  if (usual.is_number()) return found.is_number();
  if (usual.is_array()) return found.is_array() && std::all_of(found.begin(), found.end(), fits_int64);
  return found.type() == usual.type();
}

std::vector<std::string> names_of(const json& object) {
  std::vector<std::string> names;
  for (const auto& [name, value] : object.items()) names.push_back(name);
  return names;
}

void expect_section(const json& config, const std::string& section) {
  if (config.contains(section)) return;
  // Somebody may have left the section away.
  for (const auto& [name, keys] : config.items())
    if (keys.contains(section))
      throw Error(ErrorKind::usage, "config: " + in_quotes(section) + " is no section but a key of " + name + ": " +
                                        name + "." + section);
  const std::vector<std::string> sections = names_of(config);
  throw Error(ErrorKind::usage, "config: section " + in_quotes(section) + " is unknown; there are " +
                                    listed(sections, "and") + did_you_mean(section, sections));
}

void put(json& config, const std::string& section, const std::string& key, const json& value) {
  expect_section(config, section);
  json& keys = config[section];
  if (!keys.contains(key)) {
    const std::string what = "config: key " + in_quotes(section + "." + key) + " is unknown";
    if (const std::string near = nearest(key, names_of(keys)); !near.empty())
      throw Error(ErrorKind::usage, what + "; did you mean '" + section + "." + near + "'?");
    for (const auto& [other, its_keys] : config.items())
      if (its_keys.contains(key)) throw Error(ErrorKind::usage, what + "; did you mean '" + other + "." + key + "'?");
    throw Error(ErrorKind::usage, what + "; there are " + listed(names_of(keys), "and"));
  }
  if (!fits(value, keys[key]))
    throw Error(ErrorKind::usage,
                "config: " + section + "." + key + " is " + shown(value) + ", expected " + kind(keys[key]));
  keys[key] = value;
}

/// Line and column of a byte, both from 1, columns in characters.
std::string place_of(std::string_view text, size_t byte) {
  const std::string_view before = text.substr(0, std::min(byte, text.size()));
  const size_t line = before.rfind('\n');
  const std::string_view last = line == std::string_view::npos ? before : before.substr(line + 1);
  const auto column = std::count_if(last.begin(), last.end(), [](char c) { return (c & 0xc0) != 0x80; });
  return "line " + std::to_string(1 + std::count(before.begin(), before.end(), '\n')) + ", column " +
         std::to_string(1 + column);
}

/// What the JSON library found, without its own numbering of places.
std::string reason_of(const json::parse_error& e) {
  const std::string text = e.what();
  size_t at = text.find("syntax error");
  if (at == std::string::npos) at = text.find(": ");
  const size_t dash = text.find(" - ", at == std::string::npos ? 0 : at);
  return dash == std::string::npos ? "a syntax error" : text.substr(dash + 3);
}

/// For the parser: of a key that an object has twice, one value would be lost without a word.
json::parser_callback_t no_key_twice() {
  return [keys = std::vector<std::set<std::string>>()](int, json::parse_event_t event, json& parsed) mutable {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second)
      throw Error(ErrorKind::usage, "config: key " + in_quotes(parsed.get<std::string>()) + " is there twice");
    return true;
  };
}

RunConfig parse(json c) {
  RunConfig r;
  const auto word = [&](const char* section, const char* key, const std::string& a, const std::string& b) {
    const std::string found = c[section][key].get<std::string>();
    if (found != a && found != b)
      throw Error(ErrorKind::usage, std::string("config: ") + section + "." + key + " is " + in_quotes(found) +
                                        ", expected " + a + " or " + b + did_you_mean(found, {a, b}));
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
  r.training.salvage = t["salvage"];
  r.training.held_out_folders = t["held_out_folders"];
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
  const auto need = [](bool ok, const char* key, const auto& value, const std::string& expected) {
    if (!ok)
      throw Error(ErrorKind::usage,
                  std::string("training.") + key + " is " + json(value).dump() + ", expected " + expected);
  };
  const TrainingConfig& t = training;
  need(t.batch_size >= 1 && t.batch_size <= 65536, "batch_size", t.batch_size, "1 to 65536");
  need(t.num_epochs >= 1 && t.num_epochs <= 100000000, "num_epochs", t.num_epochs, "1 to 100000000");
  need(t.segment_length >= codec.hop() && t.segment_length <= (int64_t{1} << 30), "segment_length", t.segment_length,
       std::to_string(codec.hop()) + " (one hop of the codec) to " + std::to_string(int64_t{1} << 30));
  need(t.max_steps >= 0, "max_steps", t.max_steps, "0 (no limit) or more");
  need(t.schedule_steps >= 0, "schedule_steps", t.schedule_steps, "0 (as many as the epochs have) or more");
  need(t.warmup_steps >= 0, "warmup_steps", t.warmup_steps, "0 or more");
  need(t.final_rate >= 0 && t.final_rate <= 1, "final_rate", t.final_rate, "0 to 1");
  need(t.valid_fraction >= 0 && t.valid_fraction < 1, "valid_fraction", t.valid_fraction, "0 to below 1");
  need(t.valid_seconds > 0, "valid_seconds", t.valid_seconds, "above 0");
  need(t.checkpoint_minutes > 0, "checkpoint_minutes", t.checkpoint_minutes, "above 0");
  need(t.codebook_start_rows >= 0 && t.codebook_start_rows <= 10000000, "codebook_start_rows", t.codebook_start_rows,
       "0 (codebooks start from random numbers) to 10000000");
  need(t.codebook_average_rows >= 0 && t.codebook_average_rows <= 1000000000, "codebook_average_rows",
       t.codebook_average_rows, "0 to 1000000000");
  need(t.codebook_average_rows == 0 || t.codebook_start_rows > 0, "codebook_average_rows", t.codebook_average_rows,
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
    given = json::parse(text, no_key_twice(), true, true);
  } catch (const json::parse_error& e) {
    const size_t at = e.byte > 0 ? e.byte - 1 : 0;  // the library counts from 1
    throw Error(ErrorKind::usage, "config: " + place_of(text, at) + ": not JSON: " + reason_of(e));
  } catch (const json::out_of_range& e) {
    const std::string what = e.what();
    throw Error(ErrorKind::usage, "config: a number is beyond what 64 bits hold" + what.substr(std::min(what.size(), what.rfind(": "))));
  }
  if (!given.is_object()) throw Error(ErrorKind::usage, "config: not a JSON object");
  json merged = as_written(base);
  for (const auto& [section, keys] : given.items()) {
    expect_section(merged, section);
    if (!keys.is_object()) throw Error(ErrorKind::usage, "config: section " + in_quotes(section) + " is not an object");
    for (const auto& [key, value] : keys.items()) put(merged, section, key, value);
  }
  return parse(merged);
}
RunConfig RunConfig::from_json(const std::string& text) { return from_json(text, RunConfig{}); }

RunConfig RunConfig::named(const std::string& name) {
  RunConfig c;
  const std::vector<std::string> names = CodecConfig::names();
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    namespace fs = std::filesystem;
    std::error_code failed;
    const fs::file_status status = fs::status(name, failed);
    if (fs::is_directory(status))
      throw Error(ErrorKind::io, name + ": is a folder, expected a JSON file" +
                                     (fs::exists(fs::path(name) / "config.json", failed)
                                          ? ", such as this run's " + (fs::path(name) / "config.json").string()
                                          : ""));
    if (fs::exists(status)) {
      const std::vector<std::byte> bytes = read_file(name, 1u << 20);
      const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      const std::string other = mistaken(thing_of(text), Thing::json);
      if (!other.empty()) throw Error(ErrorKind::usage, name + ": " + other);
      try {
        return from_json(text);
      } catch (const Error& e) {
        throw Error(ErrorKind::usage, name + ": " + e.what());
      }
    }
    if (name.find('/') != std::string::npos || name.ends_with(".json"))
      throw Error(ErrorKind::io, name + ": cannot open: " + std::strerror(failed ? failed.value() : ENOENT) +
                                     "; a configuration is a JSON file or one of " + listed(names));
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

Setting setting(const std::string& assignment) {
  const size_t equals = assignment.find('='), dot = assignment.find('.');
  const std::string source = "--set " + in_quotes(assignment);
  if (equals == std::string::npos)
    throw Error(ErrorKind::usage, source + ": expected section.key=value, such as loss.mel=2");
  if (dot == std::string::npos || dot > equals) {
    // A key that has one section alone tells which.
    const std::string key = assignment.substr(0, equals);
    const json known = as_json(RunConfig{});
    for (const auto& [section, keys] : known.items())
      if (keys.contains(key))
        throw Error(ErrorKind::usage,
                    source + ": expected section.key=value; did you mean '" + section + "." + key + "'?");
    throw Error(ErrorKind::usage, source + ": expected section.key=value, such as loss.mel=2");
  }
  return {.key = assignment.substr(0, equals),
          .value = assignment.substr(equals + 1),
          .source = assignment.size() <= 120 ? "--set " + assignment : source};
}

void RunConfig::set(const std::string& assignment) { set(std::vector<Setting>{setting(assignment)}); }

void RunConfig::set(const std::vector<Setting>& settings) {
  json merged = as_written(*this);
  for (const Setting& s : settings) {
    json value = json::parse(s.value, nullptr, false);
    if (value.is_discarded()) value = s.value;
    const size_t dot = s.key.find('.');
    try {
      put(merged, s.key.substr(0, dot), s.key.substr(dot + 1), value);
    } catch (const Error& e) {
      throw Error(e.kind(), s.source + ": " + e.what());
    }
  }
  try {
    *this = parse(merged);
  } catch (const Error& e) {
    // Whose key the message names; a key that is part of a longer one is not named.
    const std::string what = e.what();
    const auto names = [&](const Setting& s) {
      const size_t at = what.find(s.key);
      if (at == std::string::npos) return false;
      const char after = at + s.key.size() < what.size() ? what[at + s.key.size()] : ' ';
      return after != '_' && std::isalnum(static_cast<unsigned char>(after)) == 0;
    };
    const auto culprit = std::find_if(settings.rbegin(), settings.rend(), names);
    if (culprit != settings.rend()) throw Error(e.kind(), culprit->source + ": " + what);
    throw Error(e.kind(), settings.size() == 1 ? settings[0].source + ": " + what : what);
  }
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
