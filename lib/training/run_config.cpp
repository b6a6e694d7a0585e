// The configuration of a run as text: JSON files, presets, and single settings ("section.key=value"). The keys of a
// section are a list of Fields (files/fields.h), each with the address of its value, its type and its limits. Reading,
// writing, comparing and the list of keys all go through these lists, so a key is declared in one place. Limits that
// concern several sections are in RunConfig::check().
#include "nacre/training/run_config.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "data/sniff.h"
#include "files/fields.h"
#include "files/spelling.h"
#include "files/text.h"
#include "nacre/files/atomic_file.h"
#include "nacre/systems/system.h"

namespace nacre::training {
namespace {

using nlohmann::json;

/// The sections by name, sorted. The fields hold addresses in c, which must outlive them and must not move.
std::map<std::string, Fields> sections_of(RunConfig& c) {
  return {{"codec", fields_of(c.codec)},
          {"discriminator", fields_of(c.discriminator)},
          {"loss", fields_of(c.loss)},
          {"optimizer", fields_of(c.optimizer)},
          {"training", fields_of(c.training)}};
}

json as_json(RunConfig c) {
  // 0 means a width that follows from other keys. It is written out, so that equal models have equal text.
  c.codec.latent_dim = c.codec.latent();
  json j;
  for (const auto& [section, keys] : sections_of(c)) j[section] = written(keys);
  return j;
}

/// Throws Error(usage) if there is no such section.
const Fields& section_of(const std::map<std::string, Fields>& all, const std::string& section) {
  if (const auto found = all.find(section); found != all.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [name, keys] : all) {
    // The word may be a key whose section was omitted.
    if (find(keys, section) != nullptr)
      throw Error(ErrorKind::usage, "config: " + in_quotes(section) + " is not a section but a key of " + name + ": " +
                                        name + "." + section);
    names.push_back(name);
  }
  throw Error(ErrorKind::usage, "config: section " + in_quotes(section) + " is unknown; the sections are " +
                                    listed(names, "and") + did_you_mean(section, names));
}

/// Sets one key. An unknown one throws Error(usage), with the nearest key of the section, else the section that has it,
/// else all keys.
void put(const std::map<std::string, Fields>& all, const std::string& section, const std::string& key,
         const json& value) {
  const Fields& keys = section_of(all, section);
  if (const Field* f = find(keys, key)) {
    // Messages about words of the codec do not begin with "config: ".
    const bool own = section == "codec" && !f->limits.words.empty() && value.is_string();
    return read(*f, value, (own ? "" : "config: ") + section + ".");
  }
  const std::string what = "config: key " + in_quotes(section + "." + key) + " is unknown";
  if (const std::string near = nearest(key, keys_of(keys)); !near.empty())
    throw Error(ErrorKind::usage, what + "; did you mean '" + section + "." + near + "'?");
  for (const auto& [other, its_keys] : all)
    if (find(its_keys, key)) throw Error(ErrorKind::usage, what + "; did you mean '" + other + "." + key + "'?");
  throw Error(ErrorKind::usage, what + "; the keys are " + listed(keys_of(keys), "and"));
}

/// Line and column of a byte, both counted from 1; columns count characters.
std::string place_of(std::string_view text, size_t byte) {
  const std::string_view before = text.substr(0, std::min(byte, text.size()));
  const size_t line = before.rfind('\n');
  const std::string_view last = line == std::string_view::npos ? before : before.substr(line + 1);
  // Bytes 10xxxxxx continue a character of UTF-8.
  const auto column = std::count_if(last.begin(), last.end(), [](char c) { return (c & 0xc0) != 0x80; });
  return "line " + std::to_string(1 + std::count(before.begin(), before.end(), '\n')) + ", column " +
         std::to_string(1 + column);
}

/// The JSON library's reason, without its own description of the position.
std::string reason_of(const json::parse_error& e) {
  const std::string text = e.what();
  size_t at = text.find("syntax error");
  if (at == std::string::npos) at = text.find(": ");
  const size_t dash = text.find(" - ", at == std::string::npos ? 0 : at);
  return dash == std::string::npos ? "a syntax error" : text.substr(dash + 3);
}

/// Parser callback that refuses an object with the same key twice. Otherwise one of the values would be lost silently.
json::parser_callback_t no_key_twice() {
  // One set per object that is open, the innermost last. The callback itself keeps everything (true).
  return [keys = std::vector<std::set<std::string>>()](int, json::parse_event_t event, json& parsed) mutable {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second)
      throw Error(ErrorKind::usage, "config: key " + in_quotes(parsed.get<std::string>()) + " appears twice");
    return true;
  };
}

}  // namespace

void RunConfig::check() const {
  codec.check();
  loss.check(codec.sample_rate);
  discriminator.check();
  optimizer.check();
  TrainingConfig t = training;
  check_limits("training", fields_of(t), shortest);
  constexpr int64_t longest_segment = int64_t{1} << 30;
  if (t.segment_length < codec.hop() || t.segment_length > longest_segment)
    refuse("training.segment_length", std::to_string(t.segment_length),
           std::to_string(codec.hop()) + " (one hop of the codec) to " + std::to_string(longest_segment));
  // A segment whose channels cancel is divided by 1e-8. Without a norm over the segment, such a one ruins the averages
  // of optimizer and codebooks.
  if (codec.segment_scale && codec.norm != Norm::group)
    refuse("codec.segment_scale", "true", "false in training unless codec.norm is group");
  if (t.codebook_average_rows > 0 && t.codebook_start_rows == 0)
    refuse("training.codebook_average_rows", std::to_string(t.codebook_average_rows),
           "0 where codebook_start_rows is 0");
  if (t.noise_gain[0] > t.noise_gain[1])
    refuse("training.noise_gain", "[" + std::to_string(t.noise_gain[0]) + "," + std::to_string(t.noise_gain[1]) + "]",
           "the lower gain first");
  if (loss.adversarial > 0) {
    if (discriminator.periods.empty() && discriminator.windows.empty() && discriminator.stft_windows.empty() &&
        discriminator.scales.empty() && discriminator.residual_windows.empty() && !discriminator.waveform)
      throw Error(ErrorKind::usage,
                  "loss.adversarial: needs a discriminator, but discriminator.periods, discriminator.windows, "
                  "discriminator.stft_windows, discriminator.scales and discriminator.residual_windows are empty and "
                  "discriminator.waveform is false");
    for (const int64_t period : discriminator.periods)
      if (period >= t.segment_length)
        refuse("discriminator.periods", std::to_string(period),
               "less than training.segment_length, " + std::to_string(t.segment_length));
    for (const auto& [key, windows] : {std::pair{"discriminator.stft_windows", &discriminator.stft_windows},
                                       {"discriminator.residual_windows", &discriminator.residual_windows}})
      for (const int64_t window : *windows)
        if (window > t.segment_length)
          refuse(key, std::to_string(window),
                 "at most training.segment_length, " + std::to_string(t.segment_length) +
                     ", because frames lie inside the segment; use longer segments or shorter windows");
    // The first layer reflects 7 samples.
    for (const int64_t scale : discriminator.scales)
      if (8 * scale > t.segment_length)
        refuse("discriminator.scales", std::to_string(scale),
               "at most an eighth of training.segment_length, " + std::to_string(t.segment_length));
  }
  // Spectra reflect up to half a window at each end of the segment.
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
    given = json::parse(text, no_key_twice(), true, true);  // with exceptions; comments are allowed
  } catch (const json::parse_error& e) {
    const size_t at = e.byte > 0 ? e.byte - 1 : 0;  // the library counts bytes from 1
    throw Error(ErrorKind::usage, "config: " + place_of(text, at) + ": invalid JSON: " + reason_of(e));
  } catch (const json::out_of_range& e) {
    const std::string what = e.what();
    throw Error(ErrorKind::usage, "config: a number is out of the range of 64 bits" +
                                      what.substr(std::min(what.size(), what.rfind(": "))));
  }
  if (!given.is_object()) throw Error(ErrorKind::usage, "config: not a JSON object");
  // Keys that the text leaves out keep the base's values. The limits are checked once all are set, because some concern
  // several keys.
  RunConfig c = base;
  const std::map<std::string, Fields> all = sections_of(c);
  for (const auto& [section, keys] : given.items()) {
    section_of(all, section);
    if (!keys.is_object()) throw Error(ErrorKind::usage, "config: section " + in_quotes(section) + " is not an object");
    for (const auto& [key, value] : keys.items()) put(all, section, key, value);
  }
  c.check();
  return c;
}
RunConfig RunConfig::from_json(const std::string& text) { return from_json(text, RunConfig{}); }

/// A preset if there is one of this name, else a file.
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
  // An unknown name that does not look like a path throws here, with the names of all presets.
  const Preset& ready = preset(name);
  c.codec = ready.codec;
  std::vector<Setting> settings;
  for (const auto& [key, value] : ready.settings) settings.push_back({key, value, "preset " + in_quotes(name)});
  c.set(settings);
  return c;
}

Setting setting(const std::string& assignment) {
  const size_t equals = assignment.find('='), dot = assignment.find('.');
  const std::string source = "--set " + in_quotes(assignment);
  if (equals == std::string::npos)
    throw Error(ErrorKind::usage, source + ": expected section.key=value, such as loss.mel=2");
  if (dot == std::string::npos || dot > equals) {
    // A key that exists in only one section identifies that section.
    const std::string key = assignment.substr(0, equals);
    RunConfig c;
    for (const auto& [section, keys] : sections_of(c))
      if (find(keys, key))
        throw Error(ErrorKind::usage,
                    source + ": expected section.key=value; did you mean '" + section + "." + key + "'?");
    throw Error(ErrorKind::usage, source + ": expected section.key=value, such as loss.mel=2");
  }
  return {.key = assignment.substr(0, equals),
          .value = assignment.substr(equals + 1),
          .source = assignment.size() <= 120 ? "--set " + assignment : source};
}

void RunConfig::set(const std::string& assignment) { set(std::vector<Setting>{setting(assignment)}); }

/// All settings or none: a copy is changed and checked as a whole, so their order does not matter to limits that
/// concern several keys.
void RunConfig::set(const std::vector<Setting>& settings) {
  RunConfig c = *this;
  const std::map<std::string, Fields> all = sections_of(c);
  for (const Setting& s : settings) {
    // What is not JSON is a string, so that words need no quotes.
    json value = json::parse(s.value, nullptr, false);
    if (value.is_discarded()) value = s.value;
    const size_t dot = s.key.find('.');
    try {
      put(all, s.key.substr(0, dot), s.key.substr(dot + 1), value);
    } catch (const Error& e) {
      throw Error(e.kind(), s.source + ": " + e.what());
    }
  }
  try {
    c.check();
  } catch (const Error& e) {
    // Find the settings whose key the message names. A key that is only part of a longer one does not count.
    const std::string what = e.what();
    const auto names = [&](const Setting& s) {
      const size_t at = what.find(s.key);
      if (at == std::string::npos) return false;
      const char after = at + s.key.size() < what.size() ? what[at + s.key.size()] : ' ';
      return after != '_' && std::isalnum(static_cast<unsigned char>(after)) == 0;
    };
    // From the end, because of two settings of one key the later one holds.
    const auto culprit = std::find_if(settings.rbegin(), settings.rend(), names);
    if (culprit != settings.rend()) throw Error(e.kind(), culprit->source + ": " + what);
    throw Error(e.kind(), settings.size() == 1 ? settings[0].source + ": " + what : what);
  }
  *this = std::move(c);
}

std::vector<KeyRow> configuration_keys() {
  RunConfig c;
  std::vector<KeyRow> rows;
  for (const auto& [section, keys] : sections_of(c))
    for (const Field& f : keys) rows.push_back({section + "." + f.key, f.type(), written(f).dump(), f.range(), f.help});
  return rows;
}

std::vector<std::string> differences(const RunConfig& before, const RunConfig& after) {
  // Both have all keys, so those of one are those of the other.
  const json a = as_json(before), b = as_json(after);
  std::vector<std::string> found;
  for (const auto& [section, keys] : a.items())
    for (const auto& [key, value] : keys.items())
      if (b[section][key] != value)
        found.push_back(section + "." + key + ": " + value.dump() + " -> " + b[section][key].dump());
  return found;
}

}  // namespace nacre::training
