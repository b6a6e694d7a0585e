#pragma once
// TensorBoard event files: scalars, images, audio and text. Each object writes a new file, because a reader stops at an
// incomplete record, and a killed run may have left one.
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "nacre/log/image.h"
#include "nacre/log/json_log.h"

namespace nacre::training {

struct EventOptions {
  /// If not negative, readers drop the points at this step and later ones, which an earlier start of the run wrote.
  int64_t resume_step = -1;
  LogFailure failed = {};
};

/// Every call writes one record at once. As with JsonLog, a failure is reported once and never stops training. Later
/// records go to a new file.
class EventWriter {
 public:
  /// Makes the folder if necessary. Throws Error(io) if that or the first record fails.
  explicit EventWriter(std::string folder, EventOptions = {});
  ~EventWriter();
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  void scalar(std::string_view tag, int64_t step, double value);
  /// TensorBoard keeps ten images and ten sounds per tag, so the tag should contain the number of the sample.
  void image(std::string_view tag, int64_t step, const Image&);
  void audio(std::string_view tag, int64_t step, std::span<const float> interleaved, int sample_rate, int channels = 1);
  /// Text in Markdown.
  void text(std::string_view tag, int64_t step, std::string_view markdown);
  /// The path of the current file.
  const std::string& path() const;
  /// The number of records lost so far.
  int64_t lost() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::training
