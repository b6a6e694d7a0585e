#pragma once
// Implementation of StftPlan and SpectralPlan, for their CPU and CUDA files. A plan of a CUDA context has its device
// data in `on_device` and no work areas for threads.
#include <memory>
#include <vector>

#include "nacre/ops/spectral_loss.h"
#include "nacre/ops/stft.h"
#include "spectral/frame_transform.h"
#include "spectral/framing.h"
#include "spectral/mel.h"

namespace nacre {

inline constexpr int64_t longest_signal = int64_t{1} << 28;  ///< on CUDA

/// Base of a plan's device data.
struct DevicePlan {
  virtual ~DevicePlan() = default;
};

struct StftPlan::Impl {
  Shape signal;
  StftGeometry geometry;
  FrameTransform transform;
  PaddedSignals padded;
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
  };
  Shape signal;
  SpectralConfig config;
  std::vector<Scale> scales;
  PaddedSignals padded;
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
