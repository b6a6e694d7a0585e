// The checkpoints of a run. A checkpoint is a folder of files with a manifest, and atomic_file.h makes the folder
// appear as a whole. This file adds what the manifest says, verification, the order of the checkpoints, and rotation.
//
// A manifest is one JSON object in two parts of text:
//   {"crc32c": "89abcdef",           the CRC-32C of every byte behind this line
//     "format": 1, "step": 80, "selection": {"metric": .., "better": ".."},
//     "files": {NAME: {"bytes": .., "crc32c": ..}}, and the caller's keys}
//
// save() keeps this order: files, manifest with their checksums, verification of what was written, rename, and only
// then the removal of older checkpoints. A failure in front of the rename leaves all checkpoints as they were.
#include "nacre/files/checkpoint_store.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <system_error>

#include "files/file_calls.h"
#include "files/run_lock.h"
#include "files/text.h"
#include "nacre/error.h"
#include "nacre/files/crc32c.h"

namespace nacre {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

namespace {

constexpr std::string_view manifest_name = "manifest.json";
constexpr std::string_view step_prefix = "step-";
constexpr int manifest_format = 1;
// A damaged or foreign file must not exhaust memory before its CRC is compared.
constexpr uint64_t max_manifest_bytes = uint64_t{1} << 26;
constexpr std::string_view own_keys[] = {"crc32c", "format", "step", "selection", "files"};
// The first line of a manifest holds the CRC of everything after it and is compared as text.
constexpr std::string_view crc_before = "{\"crc32c\": \"", crc_after = "\",\n";

/// Eight hexadecimal digits, the most significant first.
std::string hex8(uint32_t value) {
  constexpr char digits[] = "0123456789abcdef";
  std::string out(8, '0');
  for (size_t i = 0; i < 8; ++i) out[i] = digits[value >> (28 - 4 * i) & 15];
  return out;
}

uint32_t crc_of(std::string_view text) { return crc32c(std::as_bytes(std::span(text.data(), text.size()))); }

std::string folder_name(int64_t step) {
  const std::string digits = std::to_string(step);
  // Eight digits, so that names sort like steps in a listing. Higher steps get longer names.
  return std::string(step_prefix) + std::string(digits.size() < 8 ? 8 - digits.size() : 0, '0') + digits;
}

/// The step in a checkpoint's folder name, or -1 for other names.
int64_t step_of(const std::string& name) {
  if (!name.starts_with(step_prefix)) return -1;
  int64_t step = -1;
  const char* end = name.data() + name.size();
  const auto result = std::from_chars(name.data() + step_prefix.size(), end, step);
  // Comparing the name refuses other spellings ("step-5"), so that every step has one folder at most.
  return result.ec == std::errc() && result.ptr == end && step >= 0 && folder_name(step) == name ? step : -1;
}

/// For every defect of a checkpoint. The searches catch it and go on with another checkpoint.
[[noreturn]] void damaged(const fs::path& path, const std::string& what) {
  throw Error(ErrorKind::input, path.string() + ": " + what);
}

/// Parses what a caller gives to save() or judge(). A key of the store in it would replace the store's value and is
/// refused.
Json manifest_of_caller(const std::string& text) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorKind::usage, std::string("checkpoint: the manifest is not valid JSON: ") + e.what());
  }
  if (!json.is_object()) throw Error(ErrorKind::usage, "checkpoint: the manifest is not a JSON object");
  for (const auto key : own_keys)
    if (json.contains(key))
      throw Error(ErrorKind::usage, "checkpoint: the manifest's key " + in_quotes(key) + " is reserved for the store");
  return json;
}

/// The whole text of a manifest. The caller's keys follow those of the store.
std::string manifest_text(int64_t step, const Json& caller, std::optional<double> metric, bool higher_is_better,
                          const Json& files) {
  Json json;
  json["format"] = manifest_format;
  json["step"] = step;
  // JSON has no NaN. Without a selection the checkpoint is never the best.
  if (metric && !std::isnan(*metric))
    json["selection"] = {{"metric", *metric}, {"better", higher_is_better ? "higher" : "lower"}};
  json["files"] = files;
  for (const auto& [key, value] : caller.items()) json[key] = value;
  // The CRC covers the text and not its values, so that any change of a byte is found. The first line is written apart
  // from the object, because the CRC must not cover itself; together they are valid JSON.
  const std::string rest = json.dump(2).substr(2) + "\n";  // without "{\n"
  return std::string(crc_before) + hex8(crc_of(rest)) + std::string(crc_after) + rest;
}

/// Reads a manifest without the files, and checks its own CRC.
Json read_manifest(const fs::path& checkpoint) {
  const fs::path path = checkpoint / manifest_name;
  const std::vector<std::byte> bytes = read_file(path, max_manifest_bytes);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const size_t first_line = crc_before.size() + 8 + crc_after.size();
  // std::min keeps substr() from throwing for a file that is shorter than the first line.
  const std::string_view rest = text.substr(std::min(text.size(), first_line));
  if (text.size() < first_line ||
      !text.starts_with(std::string(crc_before) + hex8(crc_of(rest)) + std::string(crc_after)))
    damaged(path, "its CRC does not match");
  try {
    Json json = Json::parse(text);
    // Compared after the CRC, so the bytes are as they were written, in another format.
    if (json.at("format").get<int64_t>() != manifest_format)
      damaged(path, "has format " + json["format"].dump() + ", this program reads " + std::to_string(manifest_format));
    return json;
  } catch (const nlohmann::json::exception& e) {
    damaged(path, e.what());
  }
}

/// The metric of the selection. A metric that is infinite was written as null and counts as none.
std::optional<double> metric_of(const Json& manifest) {
  if (!manifest.contains("selection") || !manifest["selection"].at("metric").is_number()) return {};
  return manifest["selection"]["metric"].get<double>();
}

/// Like verify_checkpoint(), but accepts any folder name, such as a temporary one. Reads every file that the manifest
/// lists once; other files in the folder are not looked at.
Checkpoint verify(const fs::path& path) {
  Json json = read_manifest(path);
  Checkpoint checkpoint;
  checkpoint.path = path;
  try {
    checkpoint.step = json.at("step").get<int64_t>();
    checkpoint.metric = metric_of(json);
    for (const auto& [name, expected] : json.at("files").items()) {
      // A name with '/' would make the program read outside of the folder.
      if (name.empty() || name.find('/') != std::string::npos)
        damaged(path / manifest_name, in_quotes(name) + " is not a file name");
      const FileRecord found = measure_file(path / name);
      const auto bytes = expected.at("bytes").get<uint64_t>();
      // The length comes first, because it says more than a CRC about a file that is cut off.
      if (found.bytes != bytes)
        damaged(path / name, "has " + std::to_string(found.bytes) + " bytes, expected " + std::to_string(bytes));
      if (hex8(found.crc) != expected.at("crc32c").get<std::string>())
        damaged(path / name, "its CRC is " + hex8(found.crc) + ", expected " + expected["crc32c"].get<std::string>());
    }
  } catch (const nlohmann::json::exception& e) {
    damaged(path / manifest_name, e.what());
  }
  // What remains is what the caller gave to save().
  for (const auto key : own_keys) json.erase(std::string(key));
  checkpoint.manifest = json.dump();
  return checkpoint;
}

/// A checkpoint by its manifest, whose files have not been read.
struct Ranked {
  int64_t step = 0;
  double metric = 0;
};

/// The checkpoints that have a metric, best first. Unreadable manifests go to `unreadable`, if given, and are otherwise
/// skipped.
std::vector<Ranked> rank(const fs::path& run, std::vector<DamagedCheckpoint>* unreadable) {
  std::vector<Ranked> ranked;
  bool higher = false;
  // In increasing order, so `higher` is that of the newest checkpoint with a metric at the end.
  for (int64_t step : list_checkpoints(run)) {
    const fs::path path = run / folder_name(step);
    try {
      const Json manifest = read_manifest(path);
      if (const auto metric = metric_of(manifest)) {
        ranked.push_back({step, *metric});
        higher = manifest["selection"].value("better", "lower") == "higher";  // the newest one decides
      }
    } catch (const Error& e) {
      if (unreadable != nullptr) unreadable->push_back({path, e.what()});
    } catch (const nlohmann::json::exception& e) {
      if (unreadable != nullptr) unreadable->push_back({path, e.what()});
    }
  }
  std::sort(ranked.begin(), ranked.end(), [higher](const Ranked& a, const Ranked& b) {
    // Metrics are never NaN (manifest_text), so this is a strict order.
    if (a.metric != b.metric) return higher ? a.metric > b.metric : a.metric < b.metric;
    return a.step > b.step;
  });
  return ranked;
}

}  // namespace

std::vector<int64_t> list_checkpoints(const fs::path& run) {
  std::vector<int64_t> steps;
  std::error_code problem;
  fs::directory_iterator entries(run, problem);
  // Folders that were set aside and temporaries have other names and are left out.
  for (; !problem && entries != fs::directory_iterator(); entries.increment(problem))
    if (const int64_t step = step_of(entries->path().filename().string()); step >= 0) steps.push_back(step);
  if (problem) throw Error(ErrorKind::io, run.string() + ": could not list the checkpoints: " + problem.message());
  std::sort(steps.begin(), steps.end());
  return steps;
}

Checkpoint verify_checkpoint(const fs::path& path) {
  Checkpoint checkpoint = verify(path);
  fs::path name = path.filename();
  if (name.empty()) name = path.parent_path().filename();  // "run/step-00000080/"
  if (const int64_t step = step_of(name.string()); step >= 0 && step != checkpoint.step)
    damaged(path, "its manifest is of step " + std::to_string(checkpoint.step));
  return checkpoint;
}

CheckpointSearch newest_checkpoint(const fs::path& run) {
  CheckpointSearch search;
  const auto steps = list_checkpoints(run);
  // Only the newest ones are read: usually one checkpoint, however many there are.
  for (auto step = steps.rbegin(); step != steps.rend() && !search.found; ++step) {
    const fs::path path = run / folder_name(*step);
    try {
      search.found = verify_checkpoint(path);
    } catch (const Error& e) {
      search.damaged.push_back({path, e.what()});
    }
  }
  return search;
}

CheckpointSearch best_checkpoint(const fs::path& run) {
  CheckpointSearch search;
  // Best first. Usually one checkpoint is read, however many there are. Those whose manifest cannot be read are in
  // search.damaged already.
  for (const Ranked& r : rank(run, &search.damaged)) {
    const fs::path path = run / folder_name(r.step);
    try {
      search.found = verify_checkpoint(path);
      break;
    } catch (const Error& e) {
      search.damaged.push_back({path, e.what()});
    }
  }
  return search;
}

struct CheckpointStore::Impl {
  fs::path run;
  CheckpointStoreOptions options;
  std::unique_ptr<RunLock> lock;  // held as long as this object exists

  /// Renames a checkpoint so that it is no longer listed as one. Returns the new path.
  fs::path set_aside(const fs::path& checkpoint, const std::string& prefix) const {
    const std::string name = prefix + checkpoint.filename().string();
    fs::path aside = run / name;
    // The same step may be set aside more than once, and rename() would replace an older folder if it is empty.
    for (int i = 2; fs::exists(fs::symlink_status(aside)); ++i) aside = run / (name + "-" + std::to_string(i));
    if (file_calls().rename(checkpoint.c_str(), aside.c_str()) < 0)
      throw Error(ErrorKind::io, checkpoint.string() + ": could not be renamed to set it aside: " +
                                     std::error_code(errno, std::generic_category()).message());
    return aside;
  }

  /// Removes the checkpoints that are neither among the last keep_last ones nor the best, the oldest first, and adds
  /// each to `saved` when it is gone. May throw between two of them; the next call removes the rest.
  void rotate(Saved& saved) {
    const auto steps = list_checkpoints(run);
    std::set<int64_t> keep;
    for (size_t i = 0; i < steps.size(); ++i)
      if (steps.size() - i <= static_cast<size_t>(options.keep_last)) keep.insert(steps[i]);
    // The best one is found by manifests alone. Its files were compared when it was saved.
    if (const auto ranked = rank(run, nullptr); !ranked.empty()) keep.insert(ranked.front().step);
    for (int64_t step : steps) {
      if (keep.contains(step)) continue;
      remove_folder_atomically(run / folder_name(step));
      saved.removed.push_back(step);
    }
  }
};

CheckpointStore::CheckpointStore(fs::path run, CheckpointStoreOptions options) : impl_(std::make_unique<Impl>()) {
  if (options.keep_last < 2)
    throw Error(ErrorKind::usage, "keep_last is " + std::to_string(options.keep_last) + ", expected at least 2");
  std::error_code problem;
  fs::create_directories(run, problem);
  if (problem) throw Error(ErrorKind::io, run.string() + ": could not create the folder: " + problem.message());
  impl_->run = std::move(run);
  impl_->options = options;
  impl_->lock = std::make_unique<RunLock>(impl_->run / "run.lock");
  // Only after the lock is taken: without it, a temporary could belong to another run that is writing.
  remove_leftovers(impl_->run);
  for (const int64_t step : list_checkpoints(impl_->run)) remove_leftovers(impl_->run / folder_name(step));
}

CheckpointStore::~CheckpointStore() = default;
const fs::path& CheckpointStore::run() const { return impl_->run; }
bool CheckpointStore::locked() const { return impl_->lock->held(); }

CheckpointStore::Saved CheckpointStore::save(int64_t step, const CheckpointContent& content) {
  if (step < 0) throw Error(ErrorKind::usage, "checkpoint: step " + std::to_string(step) + " is negative");
  // rotate() keeps the greatest steps, so the new one must be the greatest. All checks of the request precede the first
  // write.
  if (const auto steps = list_checkpoints(impl_->run); !steps.empty() && steps.back() >= step)
    throw Error(ErrorKind::usage, impl_->run.string() + ": has a checkpoint of step " + std::to_string(steps.back()) +
                                      " already, cannot add step " + std::to_string(step));
  const Json caller = manifest_of_caller(content.manifest);
  // The manifest's own name counts as taken. The views point into content.files.
  std::set<std::string_view> names{manifest_name};
  for (const auto& file : content.files) {
    if (!is_utf8(file.name))
      throw Error(ErrorKind::usage, "checkpoint: file name " + in_quotes(file.name) + " is not valid UTF-8");
    if (!names.insert(file.name).second)
      throw Error(ErrorKind::usage, "checkpoint: there are two files named " + in_quotes(file.name));
  }

  Saved saved;
  saved.path = impl_->run / folder_name(step);
  // If anything up to commit() throws, the destructor removes the temporary folder, and all checkpoints are as before.
  AtomicDirectory folder(saved.path);
  Json files = Json::object();
  for (const auto& file : content.files) {
    const FileRecord r = folder.write(file.name, file.write);
    files[r.name] = {{"bytes", r.bytes}, {"crc32c", hex8(r.crc)}};
  }
  const std::string manifest = manifest_text(step, caller, content.metric, impl_->options.higher_is_better, files);
  // The manifest is written last, when all checksums are known.
  folder.write(std::string(manifest_name),
               [&](const ByteSink& sink) { sink(std::as_bytes(std::span(manifest.data(), manifest.size()))); });
  // The written data is compared with its checksums before the checkpoint becomes visible and before an older one is
  // removed.
  verify(folder.temporary());
  folder.commit();
  try {
    impl_->rotate(saved);
  } catch (const std::exception& e) {
    // The new checkpoint is in place, so this is no failure. The next save tries again.
    saved.warning = e.what();
  }
  return saved;
}

CheckpointStore::Saved CheckpointStore::judge(int64_t step, const std::string& manifest, std::optional<double> metric) {
  const Json caller = manifest_of_caller(manifest);
  Saved saved;
  saved.path = impl_->run / folder_name(step);
  // The list of files is taken over with its checksums; the files themselves are not read.
  const Json now = read_manifest(saved.path);
  if (!now.contains("files")) damaged(saved.path / manifest_name, "lists no files");
  // One rename inside of a folder that is in place: readers find the old manifest or the new one, and either fits the
  // files.
  write_file_atomically(saved.path / manifest_name,
                        manifest_text(step, caller, metric, impl_->options.higher_is_better, now["files"]));
  try {
    impl_->rotate(saved);
  } catch (const std::exception& e) {
    saved.warning = e.what();
  }
  return saved;
}

CheckpointSearch CheckpointStore::resume() {
  CheckpointSearch search = newest_checkpoint(impl_->run);
  // Damaged checkpoints are kept, because a person may still recover something. Under their old names they would make
  // save() refuse these steps.
  // Only checkpoints newer than the one found are here, because the search ends at the first that is whole.
  for (auto& d : search.damaged) d.path = impl_->set_aside(d.path, "damaged-");
  return search;
}

std::vector<fs::path> CheckpointStore::set_aside_after(int64_t step) {
  std::vector<fs::path> aside;
  for (const int64_t later : list_checkpoints(impl_->run))
    if (later > step) aside.push_back(impl_->set_aside(impl_->run / folder_name(later), "unused-"));
  return aside;
}

}  // namespace nacre
