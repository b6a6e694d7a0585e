#pragma once
// Implementation of StftPlan and SpectralPlan, for their CPU and CUDA files. A plan of a CUDA context has its device
// data in `on_device` and no work areas for threads.
#include <algorithm>
#include <memory>
#include <vector>

#include "nacre/ops/spectral_loss.h"
#include "nacre/ops/stft.h"
#include "spectral/frame_transform.h"
#include "spectral/framing.h"
#include "spectral/mel.h"

namespace nacre {

inline constexpr int64_t longest_signal = int64_t{1} << 28;  ///< on CUDA
inline constexpr float quiet_power = 1e-6f;                  ///< added to the mean power of a frame before its level

/// Base of a plan's device data.
struct DevicePlan {
  virtual ~DevicePlan() = default;
};

struct StftPlan::Impl {
  Shape signal;
  StftGeometry geometry;
  FrameTransform transform;
  PaddedSignals padded;
  /// Frames of one item, threads of the context, and floats of a thread's area.
  int64_t frames = 0, threads = 1, area = 0;
  std::vector<int64_t> first;  ///< [batch + 1]: first row of every item in `rows`
  Memory rows, sums, areas;    ///< [batch frames][window], padded signals, [threads][area]
  std::unique_ptr<DevicePlan> on_device;

  Impl(Context&, Shape, StftGeometry);
  float* rows_data() const { return reinterpret_cast<float*>(rows.data()); }
  float* sums_data() const { return reinterpret_cast<float*>(sums.data()); }
  Shape spectrum() const { return {signal.batch, frames, transform.bins(), 2}; }
};

struct SpectralPlan::Impl {
  struct Scale {
    SpectralScale config;
    FrameTransform transform;
    MelBank bank;
    int64_t frames, lead, trail;  ///< frame f starts at f hop - lead; samples from time + trail on are zero
    StftGeometry geometry(StftPadding padding) const { return {config.window, config.hop, padding, config.aligned}; }
    bool stft() const { return config.magnitude != 0 || config.log_magnitude != 0; }
    bool mel() const { return config.mels > 0 && (config.mel_magnitude != 0 || config.mel_log != 0); }
    bool power() const { return config.mel_kind == MelKind::power; }
    bool norms() const { return config.mel_kind == MelKind::norms; }
    /// The mel terms are divided by as many cells per frame. A kernel's logarithms are to base 10, those of norms to e.
    double mel_cells() const { return norms() ? 1 : static_cast<double>(std::max<int64_t>(config.mels, 1)); }
    double mel_log() const { return static_cast<double>(config.mel_log) * (norms() ? 2.302585092994045684 : 1); }
  };
  Shape signal;
  SpectralConfig config;
  bool weighted() const { return config.mel_excess != 1 || config.mel_transient != 0; }
  std::vector<Scale> scales;
  PaddedSignals padded;
  /// bins, bands, work, rows: those of the scale that has most. area: floats of a thread's work area. parts: blocks of
  /// sixteen rows.
  int64_t threads = 1, bins = 0, bands = 0, work = 0, area = 0, rows = 0, parts = 0;
  std::vector<int64_t> first;    ///< [batch + 1]: first row of every item at the current scale
  std::vector<double> partials;  ///< [parts][4]
  Memory memory;
  // Parts of `memory`: both padded signals, the padded gradients, the gradients of all frames, the work areas of
  // threads.
  float *estimate = nullptr, *target = nullptr, *sums[2] = {}, *frames[2] = {}, *areas = nullptr;
  std::unique_ptr<DevicePlan> on_device;

  Impl(Context&, Shape, SpectralConfig);
};

}  // namespace nacre
