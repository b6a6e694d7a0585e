#include "nacre/ops/stft.h"

#include <utility>
#include <vector>

#include "runtime/host.h"
#include "spectral/spectral_plans.h"

// stft on the CPU, and what both devices share: checks, plans and the number of frames (contract: nacre/ops/stft.h;
// twin: stft.cu). Row b frames + f is frame f of item b. Sixteen rows form a part, one frame per lane of
// FrameTransform.
//   forward    pad the signals; per part: transform, then one row of the spectrum per lane
//   adjoint    per part: adjoint transform to windowed frames in `rows`; then overlap-add to padded signals, then the
//              padding folded back into dx
// `sums` holds the padded input of the forward direction and the overlap-added output of the adjoint. A call overwrites
// it, so a plan serves one call at a time.
namespace nacre {
namespace cuda {
std::unique_ptr<DevicePlan> plan(Context&, const StftPlan::Impl&);
void stft_forward(Context&, const StftForward&);
void stft_adjoint(Context&, const StftAdjoint&);
}  // namespace cuda

namespace {

constexpr int64_t L = frame_lanes;

/// Throws for what stft_frames() and the plan do not support. FrameTransform checks the window itself.
void check_geometry(const char* op, int64_t time, const StftGeometry& g) {
  if (time < 1 || g.hop < 1)
    throw_usage(op,
                "time is " + std::to_string(time) + " and hop is " + std::to_string(g.hop) + ", both must be positive");
  if (g.aligned && (g.hop > g.window || (g.window - g.hop) % 2 != 0))
    throw_usage(op, "window is " + std::to_string(g.window) + " and hop is " + std::to_string(g.hop) +
                        ", aligned frames need an even difference that is not negative");
  if (g.inside && g.aligned) throw_usage(op, "inside and aligned are both set, expected at most one of them");
  if (g.inside && time < g.window)
    throw_usage(op, "time is " + std::to_string(time) + " and window is " + std::to_string(g.window) +
                        ", frames inside the signal need at least one window of samples");
}

// One frame's spectrum: from re, im [bins][lane] to row [bins][re, im], and back. The pointers are those of bin 0 of a
// lane. Accesses are L floats apart, but a spectrum is read or written once, little beside the transform.
void take_lane(const float* re, const float* im, int64_t bins, float* row) {
  for (int64_t k = 0; k < bins; ++k) row[2 * k] = re[k * L], row[2 * k + 1] = im[k * L];
}
void put_lane(const float* row, int64_t bins, float* re, float* im) {
  for (int64_t k = 0; k < bins; ++k) re[k * L] = row[2 * k], im[k * L] = row[2 * k + 1];
}

}  // namespace

int64_t stft_frames(int64_t time, const StftGeometry& g) {
  check_geometry("stft_frames", time, g);
  if (g.inside) return (time - g.window) / g.hop + 1;
  return g.aligned ? (time - 1) / g.hop + 1 : time / g.hop + 1;
}

// A plan on the device has its memory in `on_device`; `first`, `rows`, `sums` and `areas` stay empty. On the CPU each
// thread has an area of [transform's work | re | im].
StftPlan::Impl::Impl(Context& ctx, Shape s, StftGeometry g)
    : signal(s), geometry(g), transform("stft", g.window, g.normalised) {
  check_geometry("stft", s.time, g);
  if (s.batch < 1 || s.width != 1 || s.channels != 1)
    throw_usage("stft", "signal is " + str(s) + ", expected [batch, time, 1, 1]");
  frames = stft_frames(s.time, g);
  padded = {
      .batch = s.batch, .time = s.time, .left = stft_lead(g), .right = stft_trail(s.time, g), .padding = g.padding};
  threads = ctx.threads();
  if constexpr (with_cuda)
    if (on_cuda(ctx)) {
      if (s.time > longest_signal)
        throw_usage("stft", "time is " + std::to_string(s.time) + ", expected at most 2^28 on CUDA");
      on_device = cuda::plan(ctx, *this);
      return;
    }
  // Multiples of 64 floats, so that threads share no cache line.
  area = (transform.work() + 2 * transform.bins() * L + 63) / 64 * 64;
  for (int64_t b = 0; b <= s.batch; ++b) first.push_back(b * frames);
  rows = Memory(ctx, static_cast<size_t>(s.batch * frames * g.window) * sizeof(float));
  sums = Memory(ctx, static_cast<size_t>(padded.elements()) * sizeof(float));
  areas = Memory(ctx, static_cast<size_t>(threads * area) * sizeof(float));
}

namespace {

/// The area of one running part; see parallel_parts for `slot`.
float* work_area(const StftPlan::Impl& p, int slot) { return reinterpret_cast<float*>(p.areas.data()) + slot * p.area; }

}  // namespace

StftPlan::StftPlan(Context& ctx, Shape signal, StftGeometry g) : impl_(std::make_unique<Impl>(ctx, signal, g)) {}
StftPlan::StftPlan(StftPlan&&) noexcept = default;
StftPlan& StftPlan::operator=(StftPlan&&) noexcept = default;
StftPlan::~StftPlan() = default;
Shape StftPlan::signal() const noexcept { return impl_->signal; }
Shape StftPlan::spectrum() const noexcept { return impl_->spectrum(); }
StftGeometry StftPlan::geometry() const noexcept { return impl_->geometry; }

// A plan has areas for as many threads as its context had. A context with more would use areas that do not exist.
static void check(const char* op, const Context& ctx, const StftPlan& plan) {
  if (on_cuda(ctx) != static_cast<bool>(plan.impl().on_device))
    throw_usage(op, "plan was made for another device than " + str(ctx.device()));
  if (!on_cuda(ctx) && ctx.threads() > plan.impl().threads)
    throw_usage(op, "plan was made for " + std::to_string(plan.impl().threads) + " threads, the context has " +
                        std::to_string(ctx.threads()));
}

void stft_forward(Context& ctx, const StftForward& a) {
  const StftPlan::Impl& p = a.plan.impl();
  expect_shape("stft_forward", "x", a.x, p.signal);
  expect_shape("stft_forward", "spectrum", a.spectrum, p.spectrum());
  check("stft_forward", ctx, a.plan);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::stft_forward(ctx, a);
  pad_signals(ctx, p.padded, a.x.data, {}, p.sums_data());
  const int64_t rows = p.signal.batch * p.frames, bins = p.transform.bins();
  parallel_parts(ctx, (rows + L - 1) / L, [&](int64_t part, int slot) {
    float *work = work_area(p, slot), *re = work + p.transform.work(), *im = re + bins * L;
    const float* frames[L];
    for (int64_t j = 0; j < L; ++j) {
      // Lanes beyond the last frame repeat it; their spectra are not stored.
      const int64_t row = std::min(part * L + j, rows - 1);
      frames[j] = p.sums_data() + row / p.frames * p.padded.stride() + row % p.frames * p.geometry.hop;
    }
    p.transform.forward(frames, re, im, work);
    for (int64_t j = 0; j < std::min(L, rows - part * L); ++j)
      take_lane(re + j, im + j, bins, a.spectrum.data + (part * L + j) * 2 * bins);
  });
}

void stft_adjoint(Context& ctx, const StftAdjoint& a) {
  const StftPlan::Impl& p = a.plan.impl();
  expect_shape("stft_adjoint", "dspectrum", a.dspectrum, p.spectrum());
  expect_shape("stft_adjoint", "dx", a.dx, p.signal);
  check("stft_adjoint", ctx, a.plan);
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::stft_adjoint(ctx, a);
  const int64_t rows = p.signal.batch * p.frames, bins = p.transform.bins(), N = p.geometry.window;
  parallel_parts(ctx, (rows + L - 1) / L, [&](int64_t part, int slot) {
    float *work = work_area(p, slot), *re = work + p.transform.work(), *im = re + bins * L;
    float* frames[L];
    for (int64_t j = 0; j < L; ++j) {
      const int64_t row = std::min(part * L + j, rows - 1);
      // Lanes beyond the last frame repeat it; null pointers keep their frames from being stored.
      put_lane(a.dspectrum.data + row * 2 * bins, bins, re + j, im + j);
      frames[j] = part * L + j < rows ? p.rows_data() + row * N : nullptr;
    }
    p.transform.adjoint(re, im, frames, work);
  });
  // overlap_add() adds, so the sums begin with zeros. The right padding has the samples that the last frame reaches.
  ctx.zero(View<float>(p.sums_data(), {.channels = p.padded.elements()}));
  overlap_add(ctx, p.padded, p.rows_data(), p.first.data(), N, p.geometry.hop, p.padded.left, p.padded.right,
              p.sums_data());
  fold_padding(ctx, p.padded, p.sums_data(), {}, a.dx.data, a.add_dx);
}

}  // namespace nacre
