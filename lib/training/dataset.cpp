#include "nacre/training/dataset.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <exception>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>

#include "../text.h"
#include "folder_scan.h"
#include "nacre/context.h"
#include "nacre/training/audio.h"
#include "sniff.h"

namespace nacre::training {
namespace {

/// FNV-1a, then mixed: neighbouring names must not stay neighbours.
class Hash {
 public:
  void text(const std::string& s) {
    for (const char c : s) byte(static_cast<unsigned char>(c));
    byte(0);
  }
  void number(uint64_t x) {
    for (int i = 0; i < 8; ++i) byte(static_cast<unsigned char>(x >> (8 * i) & 255));
  }
  uint64_t value() const {
    uint64_t x = state_;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
  }

 private:
  void byte(unsigned char c) { state_ = (state_ ^ c) * 0x100000001B3ull; }
  uint64_t state_ = 0xCBF29CE484222325ull;
};

/// Decodes a file to what the model sees, and fills in the clip. Throws Error(input or io) without the path in front.
std::vector<float> decode(const std::string& path, int rate, int64_t min_samples, Clip& clip) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw Error(ErrorKind::io, path + ": cannot open: " + std::strerror(errno));
  if (!S_ISREG(status.st_mode)) throw Error(ErrorKind::input, path + ": not a regular file");
  clip.bytes = static_cast<uint64_t>(status.st_size);
  clip.modified = static_cast<int64_t>(status.st_mtim.tv_sec) * 1000000000 + status.st_mtim.tv_nsec;
  AudioReader reader(path);
  clip.sample_rate = reader.info().sample_rate;
  clip.channels = reader.info().channels;
  clip.frames = 0;
  Resampler resampler(clip.sample_rate, rate);
  std::vector<float> piece, out;
  while (const int64_t n = reader.read(1 << 15, piece)) {
    clip.frames += n;
    resampler.process(clip.channels == 1 ? piece : to_mono(piece, clip.channels), out);
  }
  resampler.finish(out);
  const float peak = peak_of(out);
  if (peak < silence_peak) throw Error(ErrorKind::input, path + ": silent");
  if (static_cast<int64_t>(out.size()) < min_samples)
    throw Error(ErrorKind::input, path + ": too short: " + std::to_string(out.size()) + " samples at " +
                                      std::to_string(rate) + " Hz, expected at least " + std::to_string(min_samples));
  clip.gain = peak_gain(peak);
  for (float& v : out) v *= clip.gain;
  clip.samples = static_cast<int64_t>(out.size());
  out.shrink_to_fit();
  return out;
}

std::string list_bad(const std::vector<BadFile>& bad, int64_t files, size_t most, const char* first, const char* next) {
  if (bad.empty()) return "0 of " + std::to_string(files) + " files skipped";
  std::string text = std::to_string(bad.size()) + " of " + std::to_string(files) + " files skipped:";
  for (size_t i = 0; i < bad.size() && i < most; ++i)
    text += (i == 0 ? first : next) + printable(bad[i].path) + ": " + printable(bad[i].reason);
  if (bad.size() > most) text += next + ("and " + std::to_string(bad.size() - most)) + " more";
  return text;
}
/// In one line, as errors are.
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
  std::vector<BadFile> bad = {};
  std::vector<int64_t> training = {}, held_out = {};
  int64_t ignored = 0;
  uint64_t total_bytes = 0;

  // The cache: most recently used in front.
  struct Entry {
    Samples samples;
    std::list<int64_t>::iterator place;
  };
  std::mutex mutex = {};
  std::vector<Entry> cache = {};
  std::list<int64_t> recent = {};
  uint64_t cached_bytes = 0;

  void scan();
  void split();
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
  std::vector<std::string> reasons(n);
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> kept{0};
  std::exception_ptr failure;
  int64_t done = 0;
  const auto work = [&] {
    for (size_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) {
      const std::string path = folder + "/" + found.files[i];
      try {
        all[i].path = found.files[i];
        auto samples = decode(path, options.sample_rate, options.min_samples, all[i]);
        const uint64_t bytes = samples.size() * sizeof(float);
        if (kept.fetch_add(bytes) + bytes <= options.cache_bytes)
          decoded[i] = std::make_shared<const std::vector<float>>(std::move(samples));
      } catch (const Error& e) {
        reasons[i] = e.what();
        if (reasons[i].starts_with(path + ": ")) reasons[i].erase(0, path.size() + 2);
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
    std::vector<std::jthread> threads;
    const int wanted = options.threads > 0 ? options.threads : usable_cores();
    try {
      for (int t = 1; t < wanted && static_cast<size_t>(t) < n; ++t) threads.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads: those there are do the work
    }
    work();
  }
  if (failure) std::rethrow_exception(failure);

  for (size_t i = 0; i < n; ++i)
    if (!reasons[i].empty()) bad.push_back({found.files[i], reasons[i]});
  std::sort(bad.begin(), bad.end(), [](const BadFile& a, const BadFile& b) { return a.path < b.path; });
  const int64_t bad_files = static_cast<int64_t>(bad.size());
  if (bad_files == files)
    throw Error(ErrorKind::input, folder + ": no usable audio in this folder: " + bad_in_one_line(bad, files));
  if (bad_files > options.max_bad_files &&
      static_cast<double>(bad_files) > options.max_bad_fraction * static_cast<double>(files))
    throw Error(ErrorKind::input, folder + ": too many bad files: " + bad_in_one_line(bad, files));

  for (size_t i = 0; i < n; ++i) {
    if (!reasons[i].empty()) continue;
    clips.push_back(std::move(all[i]));
    total_bytes += static_cast<uint64_t>(clips.back().samples) * sizeof(float);
    cache.push_back({});
    if (decoded[i]) keep(static_cast<int64_t>(clips.size()) - 1, decoded[i]);
    decoded[i].reset();
  }
}

void Dataset::Impl::split() {
  if (!options.held_out.empty()) {
    for (std::string entry : options.held_out) {
      while (entry.size() > 1 && entry.back() == '/') entry.pop_back();
      bool any = false;
      for (Clip& c : clips)
        if (is_under(c.path, entry)) any = c.held_out = true;
      if (!any)
        throw Error(ErrorKind::usage, folder + ": held-out entry '" + entry + "' names no usable file in this folder");
    }
  } else {
    bool any = false;
    for (Clip& c : clips)
      if (("/" + c.path).find("/" + options.held_out_folder + "/") != std::string::npos) any = c.held_out = true;
    if (!any && clips.size() >= 2 && options.valid_fraction > 0) {
      std::vector<std::pair<uint64_t, size_t>> order;
      for (size_t i = 0; i < clips.size(); ++i) {
        Hash hash;
        hash.text(clips[i].path);
        order.emplace_back(hash.value(), i);
      }
      std::sort(order.begin(), order.end());
      const double wanted = std::nearbyint(options.valid_fraction * static_cast<double>(clips.size()));
      const size_t count = static_cast<size_t>(std::clamp(wanted, 1.0, static_cast<double>(clips.size() - 1)));
      for (size_t i = 0; i < count; ++i) clips[order[i].second].held_out = true;
    }
  }
  for (size_t i = 0; i < clips.size(); ++i)
    (clips[i].held_out ? held_out : training).push_back(static_cast<int64_t>(i));
  if (training.empty())
    throw Error(ErrorKind::input, folder + ": every usable file is held out, nothing is left to train on");
}

void Dataset::Impl::keep(int64_t clip, const Samples& samples) {
  Entry& entry = cache[static_cast<size_t>(clip)];
  const uint64_t bytes = samples->size() * sizeof(float);
  if (entry.samples || bytes > options.cache_bytes) return;
  while (cached_bytes + bytes > options.cache_bytes) {
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
int64_t Dataset::ignored_files() const { return impl_->ignored; }
double Dataset::training_seconds() const { return impl_->seconds(impl_->training); }
double Dataset::held_out_seconds() const { return impl_->seconds(impl_->held_out); }
bool Dataset::in_memory() const { return impl_->total_bytes <= impl_->options.cache_bytes; }
int Dataset::sample_rate() const { return impl_->options.sample_rate; }

uint64_t Dataset::fingerprint() const {
  Hash hash;
  hash.number(static_cast<uint64_t>(impl_->options.sample_rate));
  for (const Clip& c : impl_->clips) {
    hash.text(c.path);
    hash.number(c.bytes);
    hash.number(static_cast<uint64_t>(c.frames));
    hash.number(static_cast<uint64_t>(c.sample_rate));
    hash.number(c.held_out ? 1 : 0);
  }
  return hash.value();
}

Dataset::Samples Dataset::load(int64_t clip) const {
  Impl& m = *impl_;
  if (clip < 0 || clip >= static_cast<int64_t>(m.clips.size()))
    throw Error(ErrorKind::usage, "dataset: clip " + std::to_string(clip) + " of " + std::to_string(m.clips.size()));
  {
    const std::lock_guard lock(m.mutex);
    auto& entry = m.cache[static_cast<size_t>(clip)];
    if (entry.samples) {
      m.recent.splice(m.recent.begin(), m.recent, entry.place);
      return entry.samples;
    }
  }
  const Clip& known = m.clips[static_cast<size_t>(clip)];
  Clip now;
  auto samples = std::make_shared<const std::vector<float>>(
      decode(m.folder + "/" + known.path, m.options.sample_rate, m.options.min_samples, now));
  if (now.bytes != known.bytes || now.modified != known.modified || now.samples != known.samples)
    throw Error(ErrorKind::input, m.folder + "/" + known.path + ": changed since training began");
  const std::lock_guard lock(m.mutex);
  m.keep(clip, samples);
  return samples;
}

std::string describe_bad(const std::vector<BadFile>& bad, int64_t files, size_t most) {
  return list_bad(bad, files, most, "\n  ", "\n  ");
}

}  // namespace nacre::training
