#include "coding/channel_decoder.h"

#include <algorithm>

namespace nacre::training {
namespace {

/// The codes of the first `kept` of `codebooks` codebooks, frame by frame.
void first_codebooks(std::span<const int32_t> codes, size_t codebooks, size_t kept, std::vector<int32_t>& out) {
  out.resize(codes.size() / codebooks * kept);
  for (size_t i = 0; i < out.size(); ++i) out[i] = codes[i / kept * codebooks + i % kept];
}

}  // namespace

ChannelDecoder::ChannelDecoder(Codec& codec, const StreamHeader& header, const Section& section, int rate,
                               int64_t codebooks, bool conceal, std::vector<float>& out)
    : header_(header),
      section_(section),
      codebooks_(static_cast<size_t>(codebooks)),
      resampler_(static_cast<int>(header.model_rate), rate),
      decoder_(
          codec, [this](std::span<const float> samples) { take(samples); }, 0, codebooks),
      out_(out),
      last_frame_(codebooks_, 0),
      at_(section.frame_first * header.hop),
      early_(section.first - section.resampled_first) {
  if (conceal) envelope_.emplace(static_cast<int>(header.model_rate));
}

/// Codes of the codebooks in use. The last frame that was there stands for every lost one: its sound goes on while the
/// envelope falls.
std::span<const int32_t> ChannelDecoder::codes_of(const StreamPacket& packet) {
  if (packet.lost) {
    codes_.resize(packet.frames * codebooks_);
    for (size_t i = 0; i < codes_.size(); ++i) codes_[i] = last_frame_[i % codebooks_];
    return codes_;
  }
  if (codebooks_ == header_.codebooks) return packet.codes;
  first_codebooks(packet.codes, header_.codebooks, codebooks_, codes_);
  return codes_;
}

void ChannelDecoder::push(const StreamPacket& packet) {
  const auto begin = static_cast<int64_t>(packet.first_frame), frames = static_cast<int64_t>(packet.frames);
  const int64_t from = std::clamp<int64_t>(section_.frame_first - begin, 0, frames),
                to = std::clamp<int64_t>(section_.frame_end - begin, from, frames);
  std::span<const int32_t> codes = codes_of(packet);
  if (envelope_) {
    envelope_->add(frames * header_.hop, packet.lost);
    envelope_->skip(from * header_.hop);
    if (!packet.lost) {
      const auto last = codes.last(codebooks_);
      last_frame_.assign(last.begin(), last.end());
    }
  }
  decoder_.push(codes.subspan(static_cast<size_t>(from) * codebooks_, static_cast<size_t>(to - from) * codebooks_));
}

void ChannelDecoder::take(std::span<const float> samples) {
  if (envelope_) {
    concealed_.assign(samples.begin(), samples.end());
    envelope_->apply(concealed_);
    samples = concealed_;
  }
  const auto size = static_cast<int64_t>(samples.size());
  const int64_t from = std::clamp<int64_t>(section_.model_first - at_, 0, size),
                to = std::clamp<int64_t>(section_.model_end - at_, from, size);
  at_ += size;
  resampler_.process(samples.subspan(static_cast<size_t>(from), static_cast<size_t>(to - from)), out_);
  drop_front();
}

void ChannelDecoder::finish() {
  decoder_.finish();
  resampler_.finish(out_);
  drop_front();
}

void ChannelDecoder::drop_front() {
  // While samples are to be dropped, there are none of the section.
  const int64_t n = std::min(early_, static_cast<int64_t>(out_.size()));
  out_.erase(out_.begin(), out_.begin() + n);
  early_ -= n;
}

}  // namespace nacre::training
