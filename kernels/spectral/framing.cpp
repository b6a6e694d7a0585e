#include "spectral/framing.h"

#include <cstring>

#include "runtime/host.h"

// Padding, overlap-add and folding of signals on the CPU (the contracts are in framing.h; the twin on the device is
// spectral_frames.cu). A padded signal is one row of `left` samples, the signal and `right` samples, so that each frame
// is a contiguous part of it.
// pad_signals() reads samples, overlap_add() and fold_padding() are its adjoint: first each sample of the padded row
// adds its frames, then each sample of the signal adds the padded positions that repeat it.
namespace nacre {
namespace {

/// to[i] += from[i]
NACRE_CLONES void add_to(float* __restrict to, const float* __restrict from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

}  // namespace

int64_t reflected(int64_t i, int64_t time) {
  if (time == 1) return 0;
  // The reflected signal is periodic: forward through all samples, then back without the two ends.
  const int64_t period = 2 * (time - 1);
  i %= period;
  if (i < 0) i += period;
  return i < time ? i : period - i;
}

int64_t valid_samples(View<const int32_t> lengths, int64_t b, int64_t time) {
  return lengths ? std::clamp<int64_t>(lengths[b], 0, time) : time;
}

void pad_signals(const Context& ctx, const PaddedSignals& s, const float* x, View<const int32_t> lengths, float* to) {
  parallel_ranges(ctx, s.batch, 1 + 65536 / (s.stride() + 1), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t valid = valid_samples(lengths, b, s.time);
      const float* from = x + b * s.time;
      float* row = to + b * s.stride() + s.left;
      // The samples first, with zeros from the item's length on, then the paddings, which repeat what is now in the
      // row.
      std::memcpy(row, from, static_cast<size_t>(valid) * sizeof(float));
      std::memset(row + valid, 0, static_cast<size_t>(s.time - valid) * sizeof(float));
      const bool reflect = s.padding == StftPadding::reflect;
      for (int64_t i = 1; i <= s.left; ++i) row[-i] = reflect ? row[reflected(-i, s.time)] : 0.0f;
      for (int64_t i = 0; i < s.right; ++i) row[s.time + i] = reflect ? row[reflected(s.time + i, s.time)] : 0.0f;
    }
  });
}

void pad_right(const Context& ctx, const PaddedSignals& s, int64_t trail, float* padded) {
  parallel_ranges(ctx, s.batch, 1 + 65536 / (s.right + 1), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      float* row = padded + b * s.stride() + s.left;
      // Reflections read only samples of the signal, at offsets from 0 to time - 1, which this function does not
      // change.
      const int64_t copied = s.padding == StftPadding::reflect ? std::min(trail, s.right) : 0;
      for (int64_t i = 0; i < copied; ++i) row[s.time + i] = row[reflected(s.time + i, s.time)];
      std::memset(row + s.time + copied, 0, static_cast<size_t>(s.right - copied) * sizeof(float));
    }
  });
}

void overlap_add(const Context& ctx, const PaddedSignals& s, const float* frames, const int64_t* first, int64_t window,
                 int64_t hop, int64_t lead, int64_t trail, float* sum) {
  // A unit of work is 4096 samples of one item (16 KiB), not a frame: frames overlap, but no two units write the same
  // sample, and each sample adds its frames in ascending order.
  constexpr int64_t chunk = 4096;
  // Positions count from the start of the padded row: frame f begins at start + f hop. Positions from `extent` on get
  // nothing.
  const int64_t extent = s.left + s.time + trail, chunks = (extent + chunk - 1) / chunk, start = s.left - lead;
  parallel_ranges(ctx, s.batch * chunks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t b = part / chunks, from = part % chunks * chunk, to = std::min(from + chunk, extent);
      const int64_t rows = first[b + 1] - first[b], before = from - start - window;
      // From the first frame that ends after `from` to the last one that starts before `to`.
      for (int64_t f = before < 0 ? 0 : before / hop + 1; f < rows && start + f * hop < to; ++f) {
        const int64_t frame_begin = start + f * hop, low = std::max(frame_begin, from),
                      high = std::min(frame_begin + window, to);
        add_to(sum + b * s.stride() + low, frames + (first[b] + f) * window + (low - frame_begin), high - low);
      }
    }
  });
}

void fold_padding(const Context& ctx, const PaddedSignals& s, const float* sum, View<const int32_t> lengths, float* dx,
                  bool add) {
  parallel_ranges(ctx, s.batch, 1 + 65536 / (s.stride() + 1), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t valid = valid_samples(lengths, b, s.time);
      const float* row = sum + b * s.stride() + s.left;
      float* to = dx + b * s.time;
      if (add) {
        add_to(to, row, valid);
      } else {
        std::memcpy(to, row, static_cast<size_t>(valid) * sizeof(float));
        std::memset(to + valid, 0, static_cast<size_t>(s.time - valid) * sizeof(float));
      }
      // The adjoint of reflection: a padded position adds to the sample that it repeats, left side first. Samples from
      // the item's length on are constant zeros and have no gradient.
      if (s.padding == StftPadding::zero) continue;
      for (int64_t i = 1; i <= s.left; ++i)
        if (const int64_t t = reflected(-i, s.time); t < valid) to[t] += row[-i];
      for (int64_t i = 0; i < s.right; ++i)
        if (const int64_t t = reflected(s.time + i, s.time); t < valid) to[t] += row[s.time + i];
    }
  });
}

}  // namespace nacre
