// A group of channels from packets to output samples: packet, codes in use, WindowedDecoder, envelope of losses, the
// section's model samples, mean of signals that stand for one channel, Resampler, output. Each stage passes on what it
// has, and the members say how far it is.
// The section begins at a place where the sample grids of both rates meet, in front of its first sample. The resampled
// samples up to there, early_ of them, are dropped (drop_front()).
#include "coding/group_decoder.h"

#include <algorithm>

#include "coding/groups.h"

namespace nacre::training {

void first_codebooks(const CodecConfig& c, std::span<const int32_t> codes, int64_t there, int64_t kept,
                     std::vector<int32_t>& out) {
  const auto frame = static_cast<size_t>(c.codes_per_frame(there));
  out.clear();
  for (size_t at = 0; at < codes.size(); at += frame)
    for (size_t i = 0; i < frame; ++i)
      if (c.codebook_of(static_cast<int64_t>(i), there) < kept) out.push_back(codes[at + i]);
}

GroupDecoder::GroupDecoder(Codec& codec, const StreamHeader& header, const Section& section, size_t channels, int rate,
                           int64_t codebooks, bool conceal, std::vector<float>& out)
    : header_(header),
      section_(section),
      channels_(channels),
      codec_(codec),
      codebooks_(codebooks),
      columns_(static_cast<size_t>(codec.config().codes_per_frame(codebooks))),
      resampler_(static_cast<int>(header.model_rate), rate, static_cast<int>(channels)),
      decoder_(
          codec, [this](std::span<const float> samples) { take(samples); }, 0, codebooks),
      out_(out),
      last_frame_(columns_, 0),
      at_(static_cast<int64_t>(first_sample(header, static_cast<uint64_t>(section.frame_first)))),
      early_(section.first - section.resampled_first) {
  if (conceal) envelope_.emplace(static_cast<int>(header.model_rate));
}

/// Codes of the codebooks in use. The last frame that was there stands for every lost one: its sound goes on while the
/// envelope falls.
std::span<const int32_t> GroupDecoder::codes_of(const StreamPacket& packet) {
  if (packet.lost) {
    codes_.resize(packet.frames * columns_);
    for (size_t i = 0; i < codes_.size(); ++i) codes_[i] = last_frame_[i % columns_];
    return codes_;
  }
  if (columns_ == header_.codebooks) return packet.codes;
  first_codebooks(codec_.config(), packet.codes, codec_.config().codebooks_of(header_.codebooks), codebooks_, codes_);
  return codes_;
}

void GroupDecoder::push(const StreamPacket& packet) {
  // [from, to) are the frames of this packet that the section decodes; empty for a packet in front of it or behind it.
  const auto begin = static_cast<int64_t>(packet.first_frame), frames = static_cast<int64_t>(packet.frames);
  const int64_t from = std::clamp<int64_t>(section_.frame_first - begin, 0, frames),
                to = std::clamp<int64_t>(section_.frame_end - begin, from, frames);
  std::span<const int32_t> codes = codes_of(packet);
  if (envelope_) {
    // A segment's time ends where the next one begins. A section begins with a segment.
    const bool segmented = header_.segment != 0;
    // Also for packets in front of the section: the gain at its beginning depends on the losses before.
    envelope_->add(segmented ? header_.stride : frames * header_.hop, packet.lost);
    envelope_->skip(segmented ? (from == frames ? header_.stride : 0) : from * header_.hop);
    last_lost_ = packet.lost;
    if (!packet.lost) {
      const auto last = codes.last(columns_);
      last_frame_.assign(last.begin(), last.end());
      last_scale_ = packet.scale;
    }
  }
  decoder_.push(codes.subspan(static_cast<size_t>(from) * columns_, static_cast<size_t>(to - from) * columns_),
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
  // at_ counts every sample of the decoder, also those outside of the section, which are dropped here.
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
