#include "coding/group_decoder.h"

#include <algorithm>

#include "coding/groups.h"

namespace nacre::training {
namespace {

/// The codes of the first `kept` of `codebooks` codebooks, frame by frame.
void first_codebooks(std::span<const int32_t> codes, size_t codebooks, size_t kept, std::vector<int32_t>& out) {
  out.resize(codes.size() / codebooks * kept);
  for (size_t i = 0; i < out.size(); ++i) out[i] = codes[i / kept * codebooks + i % kept];
}

}  // namespace

GroupDecoder::GroupDecoder(Codec& codec, const StreamHeader& header, const Section& section, size_t channels, int rate,
                           int64_t codebooks, bool conceal, std::vector<float>& out)
    : header_(header),
      section_(section),
      channels_(channels),
      codebooks_(static_cast<size_t>(codebooks)),
      resampler_(static_cast<int>(header.model_rate), rate, static_cast<int>(channels)),
      decoder_(
          codec, [this](std::span<const float> samples) { take(samples); }, 0, codebooks),
      out_(out),
      last_frame_(codebooks_, 0),
      at_(static_cast<int64_t>(first_sample(header, static_cast<uint64_t>(section.frame_first)))),
      early_(section.first - section.resampled_first) {
  if (conceal) envelope_.emplace(static_cast<int>(header.model_rate));
}

/// Codes of the codebooks in use. The last frame that was there stands for every lost one: its sound goes on while the
/// envelope falls.
std::span<const int32_t> GroupDecoder::codes_of(const StreamPacket& packet) {
  if (packet.lost) {
    codes_.resize(packet.frames * codebooks_);
    for (size_t i = 0; i < codes_.size(); ++i) codes_[i] = last_frame_[i % codebooks_];
    return codes_;
  }
  if (codebooks_ == header_.codebooks) return packet.codes;
  first_codebooks(packet.codes, header_.codebooks, codebooks_, codes_);
  return codes_;
}

void GroupDecoder::push(const StreamPacket& packet) {
  const auto begin = static_cast<int64_t>(packet.first_frame), frames = static_cast<int64_t>(packet.frames);
  const int64_t from = std::clamp<int64_t>(section_.frame_first - begin, 0, frames),
                to = std::clamp<int64_t>(section_.frame_end - begin, from, frames);
  std::span<const int32_t> codes = codes_of(packet);
  if (envelope_) {
    // A segment's time ends where the next one begins. A section begins with a segment.
    const bool segmented = header_.segment != 0;
    envelope_->add(segmented ? header_.stride : frames * header_.hop, packet.lost);
    envelope_->skip(segmented ? (from == frames ? header_.stride : 0) : from * header_.hop);
    last_lost_ = packet.lost;
    if (!packet.lost) {
      const auto last = codes.last(codebooks_);
      last_frame_.assign(last.begin(), last.end());
      last_scale_ = packet.scale;
    }
  }
  decoder_.push(codes.subspan(static_cast<size_t>(from) * codebooks_, static_cast<size_t>(to - from) * codebooks_),
                packet.lost ? last_scale_ : packet.scale);
}

void GroupDecoder::take(std::span<const float> samples) {
  if (envelope_) {
    concealed_.assign(samples.begin(), samples.end());
    envelope_->apply(concealed_, header_.joint);
    samples = concealed_;
  }
  const size_t joint = header_.joint;
  const auto size = static_cast<int64_t>(samples.size() / joint);
  const int64_t from = std::clamp<int64_t>(section_.model_first - at_, 0, size),
                to = std::clamp<int64_t>(section_.model_end - at_, from, size);
  at_ += size;
  samples = samples.subspan(static_cast<size_t>(from) * joint, static_cast<size_t>(to - from) * joint);
  resampler_.process(channels_of(samples, joint, channels_, mixed_), out_);
  drop_front();
}

void GroupDecoder::finish() {
  // The end of the last segment.
  if (envelope_ && header_.segment != 0) envelope_->add(header_.segment, last_lost_);
  decoder_.finish();
  resampler_.finish(out_);
  drop_front();
}

void GroupDecoder::drop_front() {
  // While samples are to be dropped, there are none of the section.
  const int64_t n = std::min(early_, static_cast<int64_t>(out_.size() / channels_));
  out_.erase(out_.begin(), out_.begin() + n * static_cast<int64_t>(channels_));
  early_ -= n;
}

}  // namespace nacre::training
