// A folder as training material. scan() decodes every file once, in several threads, and keeps what fits into the
// cache. split() chooses the held-out files. load() and read() give samples later, from the cache or from the file, and
// refuse a file that has changed since the scan.
// Locks: after the constructor, only the cache changes (cache, recent, cached_bytes), and `mutex` guards it. During the
// scan the same mutex guards the progress.
#include "nacre/data/dataset.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <list>
#include <mutex>
#include <set>
#include <string_view>
#include <system_error>
#include <thread>

#include "data/folder_scan.h"
#include "data/sniff.h"
#include "files/text.h"
#include "nacre/context.h"
#include "nacre/data/material.h"

namespace nacre::training {
namespace {

/// FNV-1a with a final mix, which separates the hashes of similar names.
class Hash {
 public:
  void text(const std::string& s) {
    for (const char c : s) byte(static_cast<unsigned char>(c));
    // The zero byte ends the text, so that two texts in a row have one reading.
    byte(0);
  }
  void number(uint64_t x) {
    for (int i = 0; i < 8; ++i) byte(static_cast<unsigned char>(x >> (8 * i) & 255));
  }
  uint64_t value() const {
    uint64_t x = state_;
    // The final mix of SplitMix64.
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
  }

 private:
  void byte(unsigned char c) { state_ = (state_ ^ c) * 0x100000001B3ull; }
  uint64_t state_ = 0xCBF29CE484222325ull;
};

/// Records the size and modification time, by which a change of the file is noticed.
void note_file(const std::string& path, Clip& clip) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw Error(ErrorKind::io, path + ": cannot open: " + std::strerror(errno));
  if (!S_ISREG(status.st_mode)) throw Error(ErrorKind::input, path + ": not a regular file");
  clip.bytes = static_cast<uint64_t>(status.st_size);
  clip.modified = static_cast<int64_t>(status.st_mtim.tv_sec) * 1000000000 + status.st_mtim.tv_nsec;
}

/// Decodes a file to the samples that the model sees, and fills in the clip. Returns no samples if there are more than
/// `most`.
std::vector<float> decode(const std::string& path, const MaterialOptions& options, int64_t min_samples, int64_t most,
                          Clip& clip, std::string& warning) {
  note_file(path, clip);
  std::vector<float> out;
  const Material m = survey(path, options, &out, most);
  clip.sample_rate = m.sample_rate, clip.channels = m.channels, clip.frames = m.frames;
  clip.samples = m.samples, clip.gain = m.gain, clip.channel = m.channel, clip.exact_header = m.exact_header;
  for (const std::string& w : m.warnings) warning += (warning.empty() ? "" : "; ") + w;
  if (m.silent) throw Error(ErrorKind::input, path + ": silent: it stays within 0.0001 (-80 dB) of its mean");
  if (m.samples < min_samples)
    throw Error(ErrorKind::input, path + ": too short: " + std::to_string(m.samples) + " samples at " +
                                      std::to_string(options.sample_rate) + " Hz, expected at least " +
                                      std::to_string(min_samples));
  // The samples may stay in the cache for the whole run.
  out.shrink_to_fit();
  return out;
}

constexpr std::array<std::string_view, 9> held_out_names{"valid", "validation", "val",      "dev",     "eval",
                                                         "test",  "heldout",    "held_out", "held-out"};

/// The held-out name that a folder's name begins with ("Dev-clean" gives dev), or an empty string.
std::string_view held_out_name(std::string folder) {
  for (char& c : folder)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  for (const std::string_view name : held_out_names)
    if (folder.starts_with(name) &&
        (folder.size() == name.size() || folder[name.size()] == '-' || folder[name.size()] == '_'))
      return name;
  return {};
}

/// The path of the outermost folder with a held-out name; empty if there is none.
struct NamedFolder {
  std::string path;
  bool test = false;
};
NamedFolder named_folder(const std::string& path) {
  for (size_t from = 0, slash = path.find('/'); slash != std::string::npos;
       from = slash + 1, slash = path.find('/', from))
    if (const std::string_view name = held_out_name(path.substr(from, slash - from)); !name.empty())
      return {path.substr(0, slash), name == "test"};
  return {};
}

std::string list_bad(const std::vector<BadFile>& bad, int64_t files, size_t most, const char* first, const char* next) {
  if (bad.empty()) return "0 of " + std::to_string(files) + " files skipped";
  std::string text = std::to_string(bad.size()) + " of " + std::to_string(files) + " files skipped:";
  for (size_t i = 0; i < bad.size() && i < most; ++i)
    text += (i == 0 ? first : next) + printable(bad[i].path) + ": " + printable(bad[i].reason);
  if (bad.size() > most) text += next + ("and " + std::to_string(bad.size() - most)) + " more";
  return text;
}
/// The same on one line, as errors are.
std::string bad_in_one_line(const std::vector<BadFile>& bad, int64_t files) {
  return list_bad(bad, files, 10, " ", "; ");
}

bool is_under(const std::string& path, const std::string& entry) {
  return path == entry || (path.size() > entry.size() && path[entry.size()] == '/' && path.starts_with(entry));
}

}  // namespace

struct Dataset::Impl {
  std::string folder;
  DatasetOptions options;
  std::vector<Clip> clips = {};
  std::vector<BadFile> bad = {}, warned = {};
  std::vector<std::string> held_out_folders = {}, left_out_folders = {};
  std::vector<int64_t> training = {}, held_out = {};
  int64_t ignored = 0;
  uint64_t total_bytes = 0;

  // The cache; the most recently used clip comes first.
  // Of each clip. `place` is valid as long as `samples` is not null.
  struct Entry {
    Samples samples;
    std::list<int64_t>::iterator place;
  };
  std::mutex mutex = {};
  // By clip.
  std::vector<Entry> cache = {};
  std::list<int64_t> recent = {};
  uint64_t cached_bytes = 0;

  void scan();
  void split();
  bool split_by_names();
  MaterialOptions material() const {
    return {.sample_rate = options.sample_rate, .channels = options.channels, .audio = {.salvage = options.salvage}};
  }
  uint64_t channels() const { return static_cast<uint64_t>(options.channels); }
  /// Of one sample of every channel.
  uint64_t sample_bytes() const { return channels() * sizeof(float); }
  const Clip& at(int64_t clip) const;
  std::string path_of(const Clip& clip) const { return folder + "/" + clip.path; }
  void keep(int64_t clip, const Samples&);
  double seconds(const std::vector<int64_t>& part) const;
};

void Dataset::Impl::scan() {
  FolderScan found = scan_folder(folder);
  ignored = found.ignored;
  bad = std::move(found.bad);
  const int64_t files = static_cast<int64_t>(found.files.size() + bad.size());
  if (found.files.empty() && bad.empty())
    throw Error(ErrorKind::input, folder + ": no audio files in this folder (" + std::to_string(ignored) +
                                      " other files); expected .wav, .flac, .ogg, .opus, .mp3 or .aiff" +
                                      about_folder(folder, Thing::audio));

  const size_t n = found.files.size();
  std::vector<Clip> all(n);
  std::vector<Samples> decoded(n);
  std::vector<std::string> reasons(n), warnings(n);
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> kept{0};
  std::exception_ptr failure;
  int64_t done = 0;
  // Threads take the next file from a counter. Each file has its own place in the vectors, so the results do not depend
  // on which thread took it. `mutex` guards `done` and `failure`.
  const auto work = [&] {
    for (size_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) {
      const std::string path = folder + "/" + found.files[i];
      try {
        all[i].path = found.files[i];
        // A file larger than what is left of the cache is decoded for its length and level only.
        const uint64_t room = options.cache_bytes - std::min(options.cache_bytes, kept.load());
        auto samples = decode(path, material(), options.min_samples, static_cast<int64_t>(room / sample_bytes()),
                              all[i], warnings[i]);
        // Of the samples that were kept; 0 if there were more than `room`.
        const uint64_t bytes = samples.size() * sizeof(float);
        // Other threads may have used the room during decoding. The sum is therefore checked again.
        if (kept.fetch_add(bytes) + bytes > options.cache_bytes)
          kept.fetch_sub(bytes);
        else if (bytes > 0)
          decoded[i] = std::make_shared<const std::vector<float>>(std::move(samples));
      } catch (const Error& e) {
        reasons[i] = e.what();
        // The lists of bad files name the path themselves.
        if (reasons[i].starts_with(path + ": ")) reasons[i].erase(0, path.size() + 2);
        // Bad files are collected. Other errors, such as a lack of memory, end the scan: setting `next` leaves the
        // threads nothing to take.
        if (e.kind() != ErrorKind::input && e.kind() != ErrorKind::io) {
          const std::lock_guard lock(mutex);
          failure = std::current_exception();
          next = n;
        }
      } catch (...) {
        const std::lock_guard lock(mutex);
        failure = std::current_exception();
        next = n;
      }
      const std::lock_guard lock(mutex);
      ++done;
      if (options.progress && !failure) {
        try {
          options.progress(done, static_cast<int64_t>(n));
        } catch (...) {
          failure = std::current_exception();
          next = n;
        }
      }
    }
  };
  {
    // This thread works, too, so one fewer is started. The end of this block joins the others.
    std::vector<std::jthread> threads;
    const int wanted = options.threads > 0 ? options.threads : usable_cores();
    try {
      for (int t = 1; t < wanted && static_cast<size_t>(t) < n; ++t) threads.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads are available; the existing ones do the work
    }
    work();
  }
  // All threads have ended here.
  if (failure) std::rethrow_exception(failure);

  for (size_t i = 0; i < n; ++i)
    if (!reasons[i].empty()) bad.push_back({found.files[i], reasons[i]});
  std::sort(bad.begin(), bad.end(), [](const BadFile& a, const BadFile& b) { return a.path < b.path; });
  // Those of the scan of the folder (pipes, unreadable folders) and those of decoding.
  const int64_t bad_files = static_cast<int64_t>(bad.size());
  if (bad_files == files)
    throw Error(ErrorKind::input, folder + ": no usable audio in this folder: " + bad_in_one_line(bad, files));
  // Both limits must be passed: a few bad files are common in a large folder.
  if (bad_files > options.max_bad_files &&
      static_cast<double>(bad_files) > options.max_bad_fraction * static_cast<double>(files))
    throw Error(ErrorKind::input,
                folder + ": too many bad files (--max-bad N skips up to N): " + bad_in_one_line(bad, files));

  for (size_t i = 0; i < n; ++i) {
    if (!reasons[i].empty()) continue;
    if (!warnings[i].empty()) warned.push_back({found.files[i], warnings[i]});
    clips.push_back(std::move(all[i]));
    total_bytes += static_cast<uint64_t>(clips.back().samples) * sample_bytes();
    cache.push_back({});
    // In order of path, so the cache's content does not depend on the threads, as long as all clips fit.
    if (decoded[i]) keep(static_cast<int64_t>(clips.size()) - 1, decoded[i]);
    decoded[i].reset();
  }
}

void Dataset::Impl::split() {
  if (!options.held_out.empty()) {
    for (std::string entry : options.held_out) {
      // is_under() compares paths without a '/' at the end.
      while (entry.size() > 1 && entry.back() == '/') entry.pop_back();
      bool any = false;
      for (Clip& c : clips)
        if (is_under(c.path, entry)) any = c.held_out = true;
      if (!any)
        throw Error(ErrorKind::usage,
                    folder + ": held-out entry '" + entry + "' matches no usable file in this folder");
    }
  } else {
    // Folder names such as "test" come first. Otherwise a fraction of the files is held out, chosen by a hash of each
    // path: it does not depend on the order of the files, and adding files moves few of the others.
    const bool any = options.held_out_folders && split_by_names();
    if (!any && clips.size() >= 2 && options.valid_fraction > 0) {
      std::vector<std::pair<uint64_t, size_t>> order;
      for (size_t i = 0; i < clips.size(); ++i) {
        Hash hash;
        hash.text(clips[i].path);
        order.emplace_back(hash.value(), i);
      }
      std::sort(order.begin(), order.end());
      // At least one file on each side.
      const double wanted = std::nearbyint(options.valid_fraction * static_cast<double>(clips.size()));
      const size_t count = static_cast<size_t>(std::clamp(wanted, 1.0, static_cast<double>(clips.size() - 1)));
      for (size_t i = 0; i < count; ++i) clips[order[i].second].held_out = true;
    }
  }
  for (size_t i = 0; i < clips.size(); ++i)
    if (!clips[i].left_out) (clips[i].held_out ? held_out : training).push_back(static_cast<int64_t>(i));
  if (training.empty())
    throw Error(ErrorKind::input,
                folder + ": every usable file is held out, and none is left to train on" +
                    (held_out_folders.empty() ? "" : "; --set training.held_out_folders=false trains on all folders"));
}

/// Splits by folder names. Returns true if any file is held out.
bool Dataset::Impl::split_by_names() {
  std::vector<NamedFolder> named;
  for (const Clip& c : clips) named.push_back(named_folder(c.path));
  // If there are folders for validation, those for tests stay unused, so that nothing in training is chosen by them.
  const bool judged =
      std::any_of(named.begin(), named.end(), [](const NamedFolder& f) { return !f.path.empty() && !f.test; });
  std::set<std::string> held, left;
  for (size_t i = 0; i < clips.size(); ++i) {
    if (named[i].path.empty()) continue;
    const bool leave = named[i].test && judged;
    (leave ? clips[i].left_out : clips[i].held_out) = true;
    (leave ? left : held).insert(named[i].path);
  }
  held_out_folders.assign(held.begin(), held.end());
  left_out_folders.assign(left.begin(), left.end());
  return !held.empty();
}

/// Adds a clip to the cache, unless it is larger than the whole cache. Invariant: cached_bytes is the sum of the cached
/// clips' sizes and at most options.cache_bytes. The caller holds the mutex or is the only thread.
void Dataset::Impl::keep(int64_t clip, const Samples& samples) {
  Entry& entry = cache[static_cast<size_t>(clip)];
  const uint64_t bytes = samples->size() * sizeof(float);
  if (entry.samples || bytes > options.cache_bytes) return;
  while (cached_bytes + bytes > options.cache_bytes) {
    // Never empty here: without clips, cached_bytes is 0 and `bytes` fits.
    Entry& last = cache[static_cast<size_t>(recent.back())];
    cached_bytes -= last.samples->size() * sizeof(float);
    last.samples.reset();
    recent.pop_back();
  }
  recent.push_front(clip);
  entry = {samples, recent.begin()};
  cached_bytes += bytes;
}

double Dataset::Impl::seconds(const std::vector<int64_t>& part) const {
  int64_t samples = 0;
  for (const int64_t i : part) samples += clips[static_cast<size_t>(i)].samples;
  return static_cast<double>(samples) / options.sample_rate;
}

Dataset::Dataset(std::string folder, DatasetOptions options) {
  if (options.sample_rate < min_sample_rate || options.sample_rate > max_sample_rate)
    throw Error(ErrorKind::usage, "dataset: sample_rate is " + std::to_string(options.sample_rate) + ", expected " +
                                      std::to_string(min_sample_rate) + " to " + std::to_string(max_sample_rate));
  if (options.channels != 1 && options.channels != 2)
    throw Error(ErrorKind::usage, "dataset: channels is " + std::to_string(options.channels) + ", expected 1 or 2");
  if (!(options.valid_fraction >= 0 && options.valid_fraction < 1))
    throw Error(ErrorKind::usage,
                "dataset: valid_fraction is " + std::to_string(options.valid_fraction) + ", expected 0 to below 1");
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  impl_.reset(new Impl{.folder = std::move(folder), .options = std::move(options)});
  impl_->scan();
  impl_->split();
}
Dataset::Dataset(Dataset&&) noexcept = default;
Dataset& Dataset::operator=(Dataset&&) noexcept = default;
Dataset::~Dataset() = default;

const std::string& Dataset::folder() const { return impl_->folder; }
const std::vector<Clip>& Dataset::clips() const { return impl_->clips; }
const std::vector<int64_t>& Dataset::training() const { return impl_->training; }
const std::vector<int64_t>& Dataset::held_out() const { return impl_->held_out; }
const std::vector<BadFile>& Dataset::bad() const { return impl_->bad; }
const std::vector<BadFile>& Dataset::warned() const { return impl_->warned; }
const std::vector<std::string>& Dataset::held_out_folders() const { return impl_->held_out_folders; }
const std::vector<std::string>& Dataset::left_out_folders() const { return impl_->left_out_folders; }
int64_t Dataset::ignored_files() const { return impl_->ignored; }
double Dataset::training_seconds() const { return impl_->seconds(impl_->training); }
double Dataset::held_out_seconds() const { return impl_->seconds(impl_->held_out); }
bool Dataset::in_memory() const { return impl_->total_bytes <= impl_->options.cache_bytes; }
int Dataset::sample_rate() const { return impl_->options.sample_rate; }
int Dataset::channels() const { return impl_->options.channels; }

uint64_t Dataset::fingerprint() const {
  Hash hash;
  // Modification times are left out, because a copy of the folder has others.
  hash.number(static_cast<uint64_t>(impl_->options.sample_rate));
  // Left out for one channel: the fingerprint of runs from before models of two channels.
  if (impl_->options.channels != 1) hash.number(impl_->channels());
  for (const Clip& c : impl_->clips) {
    hash.text(c.path);
    hash.number(c.bytes);
    hash.number(static_cast<uint64_t>(c.frames));
    hash.number(static_cast<uint64_t>(c.sample_rate));
    hash.number(c.held_out ? 1 : c.left_out ? 2 : 0);
  }
  return hash.value();
}

const Clip& Dataset::Impl::at(int64_t clip) const {
  if (clip < 0 || clip >= static_cast<int64_t>(clips.size()))
    throw Error(ErrorKind::usage, "dataset: clip " + std::to_string(clip) + " of " + std::to_string(clips.size()));
  return clips[static_cast<size_t>(clip)];
}

Dataset::Samples Dataset::load(int64_t clip) const {
  Impl& m = *impl_;
  const Clip& known = m.at(clip);
  {
    // Only a hit is served under the lock.
    const std::lock_guard lock(m.mutex);
    auto& entry = m.cache[static_cast<size_t>(clip)];
    if (entry.samples) {
      // Moves the clip to the front; `place` stays valid.
      m.recent.splice(m.recent.begin(), m.recent, entry.place);
      return entry.samples;
    }
  }
  Clip now;
  std::string warning;
  // Decoded without the lock. Two threads may decode the same clip; keep() takes the first. A caller shares ownership,
  // so a clip that leaves the cache stays valid for it.
  auto samples = std::make_shared<const std::vector<float>>(
      decode(m.path_of(known), m.material(), m.options.min_samples, std::numeric_limits<int64_t>::max(), now, warning));
  if (now.bytes != known.bytes || now.modified != known.modified || now.samples != known.samples ||
      now.channels != known.channels)
    throw Error(ErrorKind::input, m.path_of(known) + ": changed since training began");
  const std::lock_guard lock(m.mutex);
  m.keep(clip, samples);
  return samples;
}

void Dataset::read(int64_t clip, int64_t offset, int64_t n, const SampleSink& sink,
                   const std::function<void()>& check) const {
  const Impl& m = *impl_;
  const Clip& known = m.at(clip);
  const std::string path = m.path_of(known);
  if (offset < 0 || n < 0 || n > known.samples - offset)
    throw Error(ErrorKind::usage, "dataset: samples " + std::to_string(offset) + " to " + std::to_string(offset + n) +
                                      " of " + path + ", which has " + std::to_string(known.samples));
  // Otherwise the crop and its surroundings are decoded, even if the clip is in the cache: what a crop holds must not
  // depend on which clips were read before.
  if (in_memory())
    return sink(std::span(*load(clip))
                    .subspan(static_cast<size_t>(offset) * m.channels(), static_cast<size_t>(n) * m.channels()));
  Clip now;
  note_file(path, now);
  // A cheap check before each read: the gain and the length belong to the file as it was scanned.
  if (now.bytes != known.bytes || now.modified != known.modified)
    throw Error(ErrorKind::input, path + ": changed since training began");
  MaterialOptions options = m.material();
  options.check = check;
  read_material(path,
                {.frames = known.frames,
                 .sample_rate = known.sample_rate,
                 .channels = known.channels,
                 .channel = known.channel,
                 .samples = known.samples,
                 .gain = known.gain,
                 .exact_header = known.exact_header},
                options, offset, n, sink);
}

void Dataset::read(int64_t clip, int64_t offset, std::span<float> to) const {
  const size_t channels = impl_->channels();
  if (to.size() % channels != 0)
    throw Error(ErrorKind::usage, "dataset: room for " + std::to_string(to.size()) + " samples of " +
                                      std::to_string(channels) + " channels");
  auto next = to.begin();
  read(clip, offset, static_cast<int64_t>(to.size() / channels),
       [&](std::span<const float> x) { next = std::copy(x.begin(), x.end(), next); });
}

std::string describe_parts(const Dataset& d) {
  const auto files = [](size_t n) { return std::to_string(n) + (n == 1 ? " file" : " files"); };
  const auto named = [](const std::vector<std::string>& folders) {
    std::string text;
    for (size_t i = 0; i < folders.size() && i < 3; ++i) text += (text.empty() ? "" : ", ") + folders[i] + "/";
    if (folders.size() > 3) text += " and " + std::to_string(folders.size() - 3) + " more";
    return text.empty() ? text : " (" + text + ")";
  };
  std::string text = files(d.training().size()) + ", " + describe_duration(d.training_seconds()) + " to train on; " +
                     files(d.held_out().size()) + ", " + describe_duration(d.held_out_seconds()) + " held out" +
                     named(d.held_out_folders());
  const size_t left = d.clips().size() - d.training().size() - d.held_out().size();
  if (left > 0) text += "; " + files(left) + " left out" + named(d.left_out_folders());
  return text;
}

std::string describe_bad(const std::vector<BadFile>& bad, int64_t files, size_t most) {
  return list_bad(bad, files, most, "\n  ", "\n  ");
}

}  // namespace nacre::training
