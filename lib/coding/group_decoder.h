#pragma once
// One group of channels of a stream on its way from packets to samples of the output.
#include <cstdint>
#include <optional>
#include <vector>

#include "coding/conceal.h"
#include "coding/section.h"
#include "nacre/codec/windowed.h"
#include "nacre/data/audio.h"

namespace nacre::training {

/// Of frames of codes for the first `there` codebooks, those of the first `kept` ones.
void first_codebooks(const CodecConfig&, std::span<const int32_t> codes, int64_t there, int64_t kept,
                     std::vector<int32_t>& out);

class GroupDecoder {
 public:
  /// `out` receives the samples of the section, `channels` channels interleaved, and behind its end some more.
  /// codebooks: how many of the stream's are decoded. conceal: lost packets may come.
  GroupDecoder(Codec&, const StreamHeader&, const Section&, size_t channels, int rate, int64_t codebooks, bool conceal,
               std::vector<float>& out);
  GroupDecoder(const GroupDecoder&) = delete;
  GroupDecoder& operator=(const GroupDecoder&) = delete;
  /// The group's next packet. Packets in front of the section are passed, so they may be left out.
  void push(const StreamPacket&);
  void finish();

 private:
  std::span<const int32_t> codes_of(const StreamPacket&);
  void take(std::span<const float> samples);
  void drop_front();

  StreamHeader header_;
  Section section_;
  size_t channels_;
  const Codec& codec_;
  int64_t codebooks_;
  size_t columns_;  // codes per frame
  std::optional<LossEnvelope> envelope_;
  Resampler resampler_;
  WindowedDecoder decoder_;
  std::vector<float>& out_;
  std::vector<int32_t> codes_, last_frame_;
  std::vector<float> concealed_, mixed_;
  float last_scale_ = 1;
  bool last_lost_ = false;
  int64_t at_;     // the model's sample that the decoder gives next
  int64_t early_;  // output samples per channel in front of the section that are still to come
};

}  // namespace nacre::training
