#pragma once
// TensorBoard event files: curves, pictures, sounds, texts. One object is one start of a program: it makes a new file,
// because a reader stops at a torn record, and a killed run may have left one.
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "nacre/log/image.h"
#include "nacre/log/json_log.h"

namespace nacre::training {

struct EventOptions {
  /// Not negative: readers drop the points at this step and later that an earlier start of the run wrote.
  int64_t resume_step = -1;
  LogFailure failed = {};
};

/// Every call is one record, written at once. As with JsonLog, a failure is told once and never stops training; the
/// records after it go into a new file.
class EventWriter {
 public:
  /// Makes the folder if needed. Throws Error(io) if that or the first record fails.
  explicit EventWriter(std::string folder, EventOptions = {});
  ~EventWriter();
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  void scalar(std::string_view tag, int64_t step, double value);
  /// TensorBoard keeps ten pictures and ten sounds per tag: put the number of the sample in the tag.
  void image(std::string_view tag, int64_t step, const Image&);
  void audio(std::string_view tag, int64_t step, std::span<const float> samples, int sample_rate);
  /// Markdown.
  void text(std::string_view tag, int64_t step, std::string_view markdown);
  /// The file being written.
  const std::string& path() const;
  /// Records lost so far.
  int64_t lost() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::training
