// CropSampler draws crops by a counter-based generator (Philox), so every crop follows from seed, step, index and
// attempt, without a state to save. fill_batch() reads them. Prefetcher fills batches of coming steps in threads.
#include "nacre/data/sampler.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "data/some_crop.h"
#include "nacre/data/noise.h"
#include "nacre/random.h"

namespace nacre::training {
namespace {

/// First random stream of the sampler. Each index of the batch uses two streams from here on.
// "crop" in ASCII.
constexpr uint64_t crop_streams = uint64_t{0x63726F70} << 32;

std::vector<int64_t> lengths_of(const Dataset& dataset) {
  std::vector<int64_t> lengths;
  for (const int64_t i : dataset.training()) lengths.push_back(dataset.clips()[static_cast<size_t>(i)].samples);
  return lengths;
}

}  // namespace

CropSampler::CropSampler(const Dataset& dataset, int64_t segment, int64_t batch, uint64_t seed)
    : CropSampler(dataset.training(), lengths_of(dataset), segment, batch, seed) {}

CropSampler::CropSampler(std::vector<int64_t> clips, std::span<const int64_t> lengths, int64_t segment, int64_t batch,
                         uint64_t seed)
    : clips_(std::move(clips)), segment_(segment), batch_(batch), seed_(seed) {
  if (segment < 1) throw Error(ErrorKind::usage, "sampler: segment is " + std::to_string(segment) + ", expected >= 1");
  if (batch < 1) throw Error(ErrorKind::usage, "sampler: batch is " + std::to_string(batch) + ", expected >= 1");
  if (clips_.empty() || clips_.size() != lengths.size())
    throw Error(ErrorKind::usage, "sampler: " + std::to_string(clips_.size()) + " clips with " +
                                      std::to_string(lengths.size()) + " lengths");
  int64_t total = 0;
  for (const int64_t n : lengths) {
    if (n < 1) throw Error(ErrorKind::usage, "sampler: a clip without samples");
    // Running sums: a clip is drawn by its share of all samples, with one search by halves.
    ends_.push_back(total += n);
  }
}

Crop CropSampler::at(int64_t step, int64_t index, int64_t attempt) const {
  // Each index of the batch has one stream for the clip and one for the offset. The counter holds the step, and the
  // attempt in its top 16 bits.
  const uint64_t counter = static_cast<uint64_t>(step) ^ static_cast<uint64_t>(attempt) << 48;
  const uint64_t stream = crop_streams + 2 * static_cast<uint64_t>(index);
  const auto at = static_cast<int64_t>(Philox{seed_, stream}.below(counter, static_cast<uint64_t>(ends_.back())));
  // The first clip whose running sum exceeds the number that was drawn from all samples.
  const auto i = static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), at) - ends_.begin());
  const int64_t length = ends_[i] - (i == 0 ? 0 : ends_[i - 1]);
  // A short clip is taken whole; fill_batch() pads it.
  if (length <= segment_) return {clips_[i], 0, length};
  const uint64_t starts = static_cast<uint64_t>(length - segment_ + 1);
  return {clips_[i], static_cast<int64_t>(Philox{seed_, stream + 1}.below(counter, starts)), segment_};
}

int64_t CropSampler::steps_per_epoch() const {
  const int64_t step = segment_ * batch_;
  return std::max<int64_t>(1, (ends_.back() + step - 1) / step);
}

Crop read_some_crop(const Dataset& dataset, const CropSampler& sampler, int64_t step, int64_t index,
                    std::span<float> to, std::vector<BadFile>& lost) {
  // A file may vanish during a run that takes days. Another draw takes its place, by the attempt's number and not by
  // time, so a resumed run draws the same. If a whole disk is gone, the run ends.
  constexpr int64_t attempts = 100;
  for (int64_t attempt = 0;; ++attempt) {
    const Crop crop = sampler.at(step, index, attempt);
    try {
      dataset.read(crop.clip, crop.offset, to.first(static_cast<size_t>(crop.length * dataset.channels())));
      return crop;
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::input && e.kind() != ErrorKind::io) throw;
      if (attempt + 1 == attempts)
        throw Error(ErrorKind::io, dataset.folder() + ": " + std::to_string(attempts) +
                                       " files in a row could no longer be read, the last one because of: " + e.what());
      lost.push_back({dataset.clips()[static_cast<size_t>(crop.clip)].path, e.what()});
    }
  }
}

void fill_batch(const Dataset& dataset, const CropSampler& sampler, int64_t step, Batch& out, const NoiseMixer* noise) {
  const auto row = static_cast<size_t>(sampler.segment() * dataset.channels()),
             batch = static_cast<size_t>(sampler.batch());
  out.step = step;
  out.samples.resize(batch * row);
  out.crops.resize(batch);
  out.targets.resize(noise != nullptr ? batch * row : 0);
  out.clean_target.resize(noise != nullptr ? batch : 0);
  // The buffers keep their size from batch to batch.
  out.lost.clear();
  for (size_t i = 0; i < batch; ++i) {
    const std::span<float> to = std::span(out.samples).subspan(i * row, row);
    const Crop crop = read_some_crop(dataset, sampler, step, static_cast<int64_t>(i), to, out.lost);
    std::fill(to.begin() + crop.length * dataset.channels(), to.end(), 0.0f);
    out.crops[i] = crop;
    if (noise == nullptr) continue;
    // The padding of a short clip stays silent.
    const std::span<float> target = std::span(out.targets).subspan(i * row, row);
    const auto length = static_cast<size_t>(crop.length * dataset.channels());
    out.clean_target[i] =
        noise->mix(step, static_cast<int64_t>(i), to.first(length), target.first(length), out.lost) ? 1 : 0;
    std::fill(target.begin() + crop.length * dataset.channels(), target.end(), 0.0f);
  }
}

struct Prefetcher::Impl {
  /// A thread takes an empty slot, fills it and marks it ready. The slot becomes empty again when the consumer asks for
  /// the next step. There are depth + 1 slots, because the consumer holds one of them.
  enum class State : uint8_t { empty, filling, ready };
  struct Slot {
    State state = State::empty;
    Batch batch = {};
    std::exception_ptr failure = {};
  };

  const Dataset& dataset;
  const CropSampler& sampler;
  const NoiseMixer* noise;
  std::mutex mutex = {};
  std::condition_variable room = {}, ready = {};
  std::vector<Slot> slots;   // step s uses slot s % size
  int64_t to_fill, to_give;  // next step for a thread, next step for the consumer
  bool holding = false;      // the consumer still reads the slot of to_give - 1
  bool stopping = false;
  std::vector<std::jthread> threads = {};

  Impl(const Dataset& d, const CropSampler& s, const PrefetchOptions& o, const NoiseMixer* n)
      : dataset(d),
        sampler(s),
        noise(n),
        slots(static_cast<size_t>(o.depth) + 1),
        to_fill(o.first_step),
        to_give(o.first_step) {}
  // The threads are joined by their own destructors. `threads` is the last member, so they end before anything that
  // they use is destroyed.
  ~Impl() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    room.notify_all();
  }

  Slot& slot(int64_t step) { return slots[static_cast<size_t>(step) % slots.size()]; }

  void work() {
    // Held except during a wait and while a batch is filled.
    std::unique_lock lock(mutex);
    for (;;) {
      room.wait(lock, [&] { return stopping || slot(to_fill).state == State::empty; });
      if (stopping) return;
      // Steps are given out in order, so with one thread or many every step is filled once. The contents depend on the
      // step alone.
      const int64_t step = to_fill++;
      Slot& mine = slot(step);
      mine.state = State::filling;
      // No other thread accesses a slot in the state `filling`.
      lock.unlock();
      std::exception_ptr failure;
      try {
        fill_batch(dataset, sampler, step, mine.batch, noise);
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      mine.failure = failure;
      mine.state = State::ready;
      // Steps after a failure are never requested.
      if (failure) stopping = true;
      ready.notify_one();
      room.notify_one();
      // All other threads wake up and end.
      if (failure) room.notify_all();
    }
  }
};

Prefetcher::Prefetcher(const Dataset& dataset, const CropSampler& sampler, PrefetchOptions options,
                       const NoiseMixer* noise) {
  if (options.threads < 1 || options.depth < 1 || options.first_step < 0)
    throw Error(ErrorKind::usage, "prefetch: threads and depth must be at least 1, first_step at least 0");
  impl_ = std::make_unique<Impl>(dataset, sampler, options, noise);
  try {
    for (int t = 0; t < options.threads; ++t) impl_->threads.emplace_back([m = impl_.get()] { m->work(); });
  } catch (const std::system_error& e) {
    // Fewer threads than asked for are enough.
    if (impl_->threads.empty())
      throw Error(ErrorKind::memory, std::string("prefetch: could not start a thread (") + e.what() +
                                         "); raise the limits of memory and processes (ulimit -v, ulimit -u)");
  }
}
Prefetcher::~Prefetcher() = default;

const Batch& Prefetcher::next() {
  Impl& m = *impl_;
  std::unique_lock lock(m.mutex);
  if (m.holding) {
    m.slot(m.to_give - 1).state = Impl::State::empty;
    m.holding = false;
    m.room.notify_one();
  }
  Impl::Slot& slot = m.slot(m.to_give);
  m.ready.wait(lock, [&] { return slot.state == Impl::State::ready; });
  // The batches before the failed one have been given out already.
  if (slot.failure) std::rethrow_exception(slot.failure);
  ++m.to_give;
  m.holding = true;
  return slot.batch;
}

}  // namespace nacre::training
