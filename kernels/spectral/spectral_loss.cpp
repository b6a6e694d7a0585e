#include "nacre/ops/spectral_loss.h"

#include <cmath>
#include <utility>

#include "runtime/elementwise.h"
#include "runtime/host.h"
#include "runtime/vector_math.h"
#include "spectral/spectral_plans.h"

// spectral_loss on the CPU, and the plan of both devices (contract: nacre/ops/spectral_loss.h; twin: spectral_loss.cu).
// Per scale, sixteen counted frames form a block, one frame per lane of FrameTransform. A block transforms both
// signals, compares bins and bands, and transforms the gradients back to frames (Block::run); its arrays [bin][lane]
// stay in the work area of a thread. Each block writes four partial sums, which are added in order. The gradients'
// frames of a scale are overlap-added to padded sums, and after all scales the padding is folded back.
// The chain of derivatives: `compare` and its variants give a = d loss / d |X| (or d |X|^2); for bands, the transposed
// filter bank turns the slopes of bands into those of bins; scale_spectrum gives the gradient of the spectrum, and the
// adjoint transform that of the frame.
namespace nacre {
namespace cuda {
std::unique_ptr<DevicePlan> plan(Context&, const SpectralPlan::Impl&);
void spectral_loss(Context&, const SpectralLoss&);
}

namespace {

constexpr int64_t L = frame_lanes;

// m = |X|
NACRE_CLONES void magnitudes(const float* __restrict re, const float* __restrict im, float* __restrict m, int64_t n) {
  for (int64_t i = 0; i < n; ++i) m[i] = std::sqrt(re[i] * re[i] + im[i] * im[i]);
}

// a = derivative by m of linear |m - n| + logarithmic |log10 max(m, floor) - log10 max(n, floor)|; sums += the two sums
// of absolute differences. Unused lanes have zeros in m and n and add nothing.
NACRE_CLONES void compare(const float* __restrict m, const float* __restrict n, float* __restrict a, int64_t rows,
                          float linear, float logarithmic, float floor, double* __restrict sums) {
  constexpr int64_t block = 16;  // rows added in float before the sum continues in double
  for (int64_t r0 = 0; r0 < rows; r0 += block) {
    float difference[L] = {}, log_difference[L] = {};
    for (int64_t r = r0; r < std::min(r0 + block, rows); ++r)
      for (int64_t j = 0; j < L; ++j) {
        const float x = m[r * L + j], y = n[r * L + j], d = x - y;
        const float cx = x < floor ? floor : x, cy = y < floor ? floor : y;
        difference[j] += std::fabs(d);
        log_difference[j] += std::fabs(vec::log10(cx) - vec::log10(cy));
        const float slope = d > 0 ? linear : d < 0 ? -linear : 0.0f;
        const float log_slope = cx > cy ? logarithmic : cx < cy ? -logarithmic : 0.0f;
        a[r * L + j] = slope + (x < floor ? 0.0f : log_slope) / cx;
      }
    // Lanes in order, blocks of rows in order: fixed by the shape alone.
    for (int64_t j = 0; j < L; ++j) sums[0] += static_cast<double>(difference[j]);
    for (int64_t j = 0; j < L; ++j) sums[1] += static_cast<double>(log_difference[j]);
  }
}

// p = |X|^2
NACRE_CLONES void powers(const float* __restrict re, const float* __restrict im, float* __restrict p, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = re[i] * re[i] + im[i] * im[i];
}
NACRE_CLONES void square(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] *= x[i];
}

// As compare, of linear |m - n| + logarithmic (log10(floor + m) - log10(floor + n))^2, for powers (MelKind::power).
// Here the floor is added, so that the logarithm has a slope everywhere.
NACRE_CLONES void compare_powers(const float* __restrict m, const float* __restrict n, float* __restrict a,
                                 int64_t rows, float linear, float logarithmic, float floor, double* __restrict sums) {
  constexpr int64_t block = 16;
  for (int64_t r0 = 0; r0 < rows; r0 += block) {
    float difference[L] = {}, log_square[L] = {};
    for (int64_t r = r0; r < std::min(r0 + block, rows); ++r)
      for (int64_t j = 0; j < L; ++j) {
        const float x = m[r * L + j], y = n[r * L + j], d = x - y, cx = floor + x;
        const float e = vec::log10(cx) - vec::log10(floor + y);
        difference[j] += std::fabs(d);
        log_square[j] += e * e;
        const float slope = d > 0 ? linear : d < 0 ? -linear : 0.0f;
        a[r * L + j] = slope + 2 * logarithmic * e / cx;
      }
    for (int64_t j = 0; j < L; ++j) sums[0] += static_cast<double>(difference[j]);
    for (int64_t j = 0; j < L; ++j) sums[1] += static_cast<double>(log_square[j]);
  }
}

// As compare, with the logarithms of lane j counted weight[j] times, and excess times more where m is above n.
NACRE_CLONES void compare_weighted(const float* __restrict m, const float* __restrict n, float* __restrict a,
                                   int64_t rows, float linear, float logarithmic, float floor, float excess,
                                   const float* __restrict weight, double* __restrict sums) {
  constexpr int64_t block = 16;
  for (int64_t r0 = 0; r0 < rows; r0 += block) {
    float difference[L] = {}, log_difference[L] = {};
    for (int64_t r = r0; r < std::min(r0 + block, rows); ++r)
      for (int64_t j = 0; j < L; ++j) {
        const float x = m[r * L + j], y = n[r * L + j], d = x - y;
        const float cx = x < floor ? floor : x, cy = y < floor ? floor : y;
        const float times = weight[j] * (cx > cy ? excess : 1.0f);
        difference[j] += std::fabs(d);
        log_difference[j] += times * std::fabs(vec::log10(cx) - vec::log10(cy));
        const float slope = d > 0 ? linear : d < 0 ? -linear : 0.0f;
        const float log_slope = cx > cy ? logarithmic : cx < cy ? -logarithmic : 0.0f;
        a[r * L + j] = slope + (x < floor ? 0.0f : times * log_slope) / cx;
      }
    for (int64_t j = 0; j < L; ++j) sums[0] += static_cast<double>(difference[j]);
    for (int64_t j = 0; j < L; ++j) sums[1] += static_cast<double>(log_difference[j]);
  }
}

// As compare, of linear |m - n|_1 + logarithmic |log10(floor + m) - log10(floor + n)|_2 over the rows of a lane
// (MelKind::norms). The slope of the second term needs the norm of the whole lane, so `a` first holds the differences
// of the logarithms, and a second pass turns them into slopes.
NACRE_CLONES void compare_norms(const float* __restrict m, const float* __restrict n, float* __restrict a, int64_t rows,
                                float linear, float logarithmic, float floor, double* __restrict sums) {
  constexpr int64_t block = 16;
  double squares[L] = {};
  for (int64_t r0 = 0; r0 < rows; r0 += block) {
    float difference[L] = {}, square[L] = {};
    for (int64_t r = r0; r < std::min(r0 + block, rows); ++r)
      for (int64_t j = 0; j < L; ++j) {
        const float x = m[r * L + j], y = n[r * L + j];
        const float e = vec::log10(floor + x) - vec::log10(floor + y);
        difference[j] += std::fabs(x - y);
        square[j] += e * e;
        a[r * L + j] = e;
      }
    for (int64_t j = 0; j < L; ++j) sums[0] += static_cast<double>(difference[j]);
    for (int64_t j = 0; j < L; ++j) squares[j] += static_cast<double>(square[j]);
  }
  // The slope of a norm is e / norm, and 0 where all is equal.
  float scale[L];
  for (int64_t j = 0; j < L; ++j) {
    const double norm = std::sqrt(squares[j]);
    sums[1] += norm;
    scale[j] = norm > 0 ? logarithmic / static_cast<float>(norm) : 0.0f;
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < L; ++j) {
      const float x = m[r * L + j], d = x - n[r * L + j];
      const float slope = d > 0 ? linear : d < 0 ? -linear : 0.0f;
      a[r * L + j] = slope + a[r * L + j] * scale[j] / (floor + x);
    }
}

// Sum of (h x)^2 over n samples: 16 sums in float, added in double. Their order depends on n alone.
NACRE_CLONES double windowed_energy(const float* __restrict h, const float* __restrict x, int64_t n) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int64_t j = 0; j < 16; ++j) {
      const float v = h[i + j] * x[i + j];
      lanes[j] += v * v;
    }
  for (; i < n; ++i) {
    const float v = h[i] * x[i];
    lanes[i % 16] += v * v;
  }
  double sum = 0;
  for (const float lane : lanes) sum += static_cast<double>(lane);
  return sum;
}

// d = 2 a X: the gradient of the spectrum if a is the slope of |X|^2.
NACRE_CLONES void double_spectrum(const float* __restrict a, const float* __restrict re, const float* __restrict im,
                                  float* __restrict dre, float* __restrict dim, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dre[i] = 2 * a[i] * re[i], dim[i] = 2 * a[i] * im[i];
}

// d = a X / |X|, or 0 if |X| = 0: the gradient of the spectrum if a is the slope of |X|. At 0 the magnitude has no
// derivative; 0 is one of its subgradients.
NACRE_CLONES void scale_spectrum(const float* __restrict a, const float* __restrict m, const float* __restrict re,
                                 const float* __restrict im, float* __restrict dre, float* __restrict dim, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float r = m[i] == 0.0f ? 0.0f : a[i] / m[i];
    dre[i] = re[i] * r, dim[i] = im[i] * r;
  }
}

}  // namespace

static void check_config(const SpectralConfig& c, Shape s) {
  const char* op = "spectral_loss";
  if (s.batch < 1 || s.time < 1 || s.width != 1 || s.channels != 1)
    throw_usage(op, "signal is " + str(s) + ", expected [batch, time, 1, 1]");
  if (!(c.floor >= 1e-30f) || !(c.floor <= 1e30f))
    throw_usage(op, "floor is " + std::to_string(c.floor) + ", expected a positive number, for example 1e-5");
  if (!(c.mel_excess >= 1) || !(c.mel_excess <= 1e3f) || !(c.mel_transient >= 0) || !(c.mel_transient <= 1e3f))
    throw_usage(op, "mel_excess is " + std::to_string(c.mel_excess) + " and mel_transient is " +
                        std::to_string(c.mel_transient) + ", expected 1 to 1000 and 0 to 1000");
  if (!(c.transient_rise >= 0.1f) || !(c.transient_rise <= 100))
    throw_usage(op, "transient_rise is " + std::to_string(c.transient_rise) + " dB, expected 0.1 to 100");
  for (const SpectralScale& scale : c.scales) {
    if (scale.mels > 0 && scale.mel_kind != MelKind::log && (c.mel_excess != 1 || c.mel_transient != 0))
      throw_usage(op, "mel_excess is " + std::to_string(c.mel_excess) + " and mel_transient is " +
                          std::to_string(c.mel_transient) + ", expected 1 and 0 without MelKind::log");
    if (scale.hop < 1 || scale.mels < 0)
      throw_usage(op, "hop is " + std::to_string(scale.hop) + " and mels is " + std::to_string(scale.mels) +
                          ", expected hop >= 1 and mels >= 0");
    if (scale.aligned && (scale.hop > scale.window || (scale.window - scale.hop) % 2 != 0))
      throw_usage(op, "window is " + std::to_string(scale.window) + " and hop is " + std::to_string(scale.hop) +
                          ", aligned frames need an even difference that is not negative");
  }
}

SpectralPlan::Impl::Impl(Context& ctx, Shape s, SpectralConfig c) : signal(s), config(std::move(c)) {
  check_config(config, s);
  // One padded copy of each signal serves all scales: its padding is that of the scale which reaches furthest.
  padded = {.batch = s.batch, .time = s.time, .padding = config.padding};
  int64_t frame_samples = 0;
  for (const SpectralScale& scale : config.scales) {
    Scale made{scale, FrameTransform("spectral_loss", scale.window), {}, 0, 0, 0};
    const StftGeometry geometry = made.geometry(config.padding);
    const int64_t reach = stft_trail(s.time, geometry);  // of the last frame
    made.frames = stft_frames(s.time, geometry);
    made.lead = stft_lead(geometry);
    // Aligned frames see at most as much padding behind the signal as before it; what they reach beyond is zero.
    made.trail = scale.aligned ? std::min(reach, made.lead) : reach;
    if (scale.mels > 0) {
      auto dense = mel_filter_bank(config.sample_rate, scale.window, scale.mels, config.fmin, config.fmax,
                                   config.mel_scale, config.area_normalised);
      // 1 / sum h^2, where sum h^2 = 3 / 8 window, is part of the weights.
      if (made.power())
        for (std::vector<double>& row : dense)
          for (double& weight : row) weight /= 0.375 * static_cast<double>(scale.window);
      made.bank = MelBank(dense);
    }
    padded.left = std::max(padded.left, made.lead), padded.right = std::max(padded.right, reach);
    bins = std::max(bins, made.transform.bins()), bands = std::max(bands, scale.mels);
    work = std::max(work, made.transform.work());
    rows = std::max(rows, s.batch * made.frames);
    frame_samples = std::max(frame_samples, s.batch * made.frames * scale.window);
    scales.push_back(std::move(made));
  }
  threads = ctx.threads();
  if constexpr (with_cuda)
    if (on_cuda(ctx)) {
      if (s.time > longest_signal)
        throw_usage("spectral_loss", "time is " + std::to_string(s.time) + ", expected at most 2^28 on CUDA");
      on_device = cuda::plan(ctx, *this);
      return;
    }
  parts = (rows + L - 1) / L;
  first.resize(static_cast<size_t>(s.batch + 1));
  partials.resize(static_cast<size_t>(parts * 4));
  // A thread's work area, as Block::run takes it: the transform's, seven arrays of bins, three of bands. Sizes are
  // multiples of 64 floats, so that threads share no cache line.
  area = work + 7 * bins * L + 3 * bands * L;

  const auto rounded = [](int64_t n) { return (n + 63) / 64 * 64; };
  area = rounded(area);
  const int64_t sizes[] = {padded.elements(), padded.elements(), padded.elements(), padded.elements(),
                           frame_samples,     frame_samples,     threads * area};
  // One allocation for all arrays. The order of the sizes is that of the pointers below.
  int64_t total = 0;
  for (const int64_t size : sizes) total += rounded(size);
  memory = Memory(ctx, static_cast<size_t>(total) * sizeof(float));
  float* next = reinterpret_cast<float*>(memory.data());
  const int64_t* size = sizes;
  for (float** p : {&estimate, &target, &sums[0], &sums[1], &frames[0], &frames[1], &areas})
    *p = next, next += rounded(*size++);
}

SpectralPlan::SpectralPlan(Context& ctx, Shape signal, SpectralConfig config)
    : impl_(std::make_unique<Impl>(ctx, signal, std::move(config))) {}
SpectralPlan::SpectralPlan(SpectralPlan&&) noexcept = default;
SpectralPlan& SpectralPlan::operator=(SpectralPlan&&) noexcept = default;
SpectralPlan::~SpectralPlan() = default;
Shape SpectralPlan::signal() const noexcept { return impl_->signal; }
const SpectralConfig& SpectralPlan::config() const noexcept { return impl_->config; }

namespace {

/// Blocks of sixteen counted frames of one scale. Row plan.first[b] + f is frame f of item b; frames that do not count
/// have no row. A block has adjacent rows, which may be of several items.
struct Block {
  const SpectralPlan::Impl& plan;
  const SpectralPlan::Impl::Scale& scale;
  int64_t rows;      // counted frames of the scale
  float weights[4];  // weight of one |difference| in the gradients: magnitude, log magnitude, mel magnitude, mel log
  const bool gradient[2];

  /// Where the frames of a block begin in the padded copies; null for lanes beyond the last row.
  void frame_pointers(int64_t part, const float** estimate, const float** target) const {
    const PaddedSignals& s = plan.padded;
    int64_t row = part * L;
    // The item of the block's first row by search, those of the others by stepping on: a block may span items.
    int64_t b = std::upper_bound(plan.first.begin(), plan.first.end(), row) - plan.first.begin() - 1;
    for (int64_t j = 0; j < L; ++j, ++row) {
      if (row >= rows) {
        estimate[j] = target[j] = nullptr;
        continue;
      }
      while (row >= plan.first[static_cast<size_t>(b + 1)]) ++b;
      const int64_t f = row - plan.first[static_cast<size_t>(b)];
      const int64_t at = b * s.stride() + s.left - scale.lead + f * scale.config.hop;
      estimate[j] = plan.estimate + at, target[j] = plan.target + at;
    }
  }

  /// weight[j] = 1 + mel_transient min(max((level of frame j - level of the frame before) / transient_rise, 0), 1), for
  /// the logarithms of lane j. The level is 10 log10(quiet_power + sum (h x)^2 / sum h^2) of the target, in dB. The
  /// first frame of an item, which has none before it, and unused lanes have weight 1.
  void frame_weights(int64_t part, const float* const* target, float* weight) const {
    std::fill_n(weight, L, 1.0f);
    const SpectralConfig& c = plan.config;
    if (c.mel_transient == 0) return;
    const int64_t window = scale.config.window, hop = scale.config.hop;
    const float* const h = scale.transform.hann().data();
    const auto level = [&](const float* x) {
      const float power = static_cast<float>(windowed_energy(h, x, window) / (0.375 * static_cast<double>(window)));
      return 10 * vec::log10(quiet_power + power);
    };
    // Frames of a block follow each other but where an item begins, so each level serves two frames.
    float before = 0;
    for (int64_t j = 0; j < L && target[j]; ++j) {
      const float now = level(target[j]);
      if (!std::binary_search(plan.first.begin(), plan.first.end(), part * L + j)) {
        if (j == 0) before = level(target[j] - hop);
        const float rise = (now - before) / c.transient_rise;
        // Not std::clamp: a level that is not a number must give a weight that is none.
        weight[j] = 1 + c.mel_transient * (rise < 0 ? 0.0f : rise > 1 ? 1.0f : rise);
      }
      before = now;
    }
  }

  /// Losses of one block to sums [4]: magnitudes, their logarithms, bands, their logarithms. Gradients of the frames to
  /// plan.frames[0] (STFT terms) and [1] (mel terms), windowed by the adjoint transform.
  void run(int64_t part, float* area, double* sums) const {
    // Forward transforms of target and estimate, comparison, gradients, adjoint transforms: all in the work area, which
    // stays in cache. The target comes first, because only its magnitudes are needed: dre and dim are free again.
    const int64_t bins = scale.transform.bins(), n = bins * L, bands = scale.config.mels;
    const float floor = plan.config.floor;
    const auto take = [&area](int64_t size) { return std::exchange(area, area + size); };
    float *work = take(plan.work), *re = take(n), *im = take(n), *dre = take(n), *dim = take(n);
    float *m = take(n), *target_m = take(n), *a = take(n);
    const float *estimate[L], *target[L];
    frame_pointers(part, estimate, target);
    const bool power = scale.mel() && scale.power();
    // m and target_m are powers from the start if only the mel term reads them.
    const auto measure = power && !scale.stft() ? powers : magnitudes;
    scale.transform.forward(target, dre, dim, work);
    measure(dre, dim, target_m, n);
    scale.transform.forward(estimate, re, im, work);
    measure(re, im, m, n);

    // The gradient of one loss in a spectrum, transformed to its frames. dre and dim are overwritten, so the two losses
    // go one after the other.
    const auto to_frames = [&](int which) {
      if (which == 1 && power)
        double_spectrum(a, re, im, dre, dim, n);
      else
        scale_spectrum(a, m, re, im, dre, dim, n);
      float* frames[L];
      for (int64_t j = 0; j < L; ++j) {
        const int64_t row = part * L + j;
        frames[j] = row < rows ? plan.frames[which] + row * scale.config.window : nullptr;
      }
      scale.transform.adjoint(dre, dim, frames, work);
    };
    if (scale.stft()) {
      compare(m, target_m, a, bins, weights[0], weights[1], floor, sums);
      if (gradient[0]) to_frames(0);
    }
    if (scale.mel()) {
      if (power && scale.stft()) square(m, n), square(target_m, n);
      float *mel = take(bands * L), *target_mel = take(bands * L), *dmel = take(bands * L);
      multiply_lanes(scale.bank.by_band, m, mel);
      multiply_lanes(scale.bank.by_band, target_m, target_mel);
      if (plan.weighted()) {
        float weight[L];
        frame_weights(part, target, weight);
        compare_weighted(mel, target_mel, dmel, bands, weights[2], weights[3], floor, plan.config.mel_excess, weight,
                         sums + 2);
      } else {
        const auto of_bands = power ? compare_powers : scale.norms() ? compare_norms : compare;
        of_bands(mel, target_mel, dmel, bands, weights[2], weights[3], floor, sums + 2);
      }
      if (gradient[1]) {
        multiply_lanes(scale.bank.by_bin, dmel, a);
        to_frames(1);
      }
    }
  }
};

// Counted frames: all if all samples are valid, else those that begin (f hop) before the end of the valid samples.
int64_t counted_frames(const SpectralPlan::Impl::Scale& scale, int64_t valid, int64_t time) {
  return valid == time ? scale.frames : (valid + scale.config.hop - 1) / scale.config.hop;
}

}  // namespace

void spectral_loss(Context& ctx, const SpectralLoss& a) {
  const char* op = "spectral_loss";
  SpectralPlan::Impl& p = a.plan.impl();
  expect_shape(op, "estimate", a.estimate, p.signal);
  expect_shape(op, "target", a.target, p.signal);
  if (a.lengths && a.lengths.elements() != p.signal.batch)
    throw_shape(op, "lengths", a.lengths.shape, {.batch = p.signal.batch});
  if (!a.losses || a.losses.elements() != 2) throw_shape(op, "losses", a.losses.shape, {.batch = 2});
  expect_shape_or_empty(op, "dstft", a.dstft, p.signal);
  expect_shape_or_empty(op, "dmel", a.dmel, p.signal);
  if (on_cuda(ctx) != static_cast<bool>(p.on_device))
    throw_usage(op, "plan was made for another device than " + str(ctx.device()));
  if constexpr (with_cuda)
    if (on_cuda(ctx)) return cuda::spectral_loss(ctx, a);
  if (ctx.threads() > p.threads)
    throw_usage(op, "plan was made for " + std::to_string(p.threads) + " threads, the context has " +
                        std::to_string(ctx.threads()));

  const PaddedSignals& s = p.padded;
  const View<float> gradients[2] = {a.dstft, a.dmel};
  pad_signals(ctx, s, a.estimate.data, a.lengths, p.estimate);
  pad_signals(ctx, s, a.target.data, a.lengths, p.target);
  for (int i = 0; i < 2; ++i)
    if (gradients[i]) ctx.zero(View<float>(p.sums[i], {.channels = s.elements()}));

  // Scales run one after the other in the same work areas. Per scale: the rows of each item, blocks of sixteen rows in
  // parallel, the partial sums in order of blocks, overlap-add of the gradients' frames before the next scale
  // overwrites them.
  double losses[2] = {0, 0};
  int64_t trail = s.right;  // of the padded copies
  for (const SpectralPlan::Impl::Scale& scale : p.scales) {
    int64_t rows = 0;
    for (int64_t b = 0; b < s.batch; ++b) {
      p.first[static_cast<size_t>(b)] = rows;
      rows += counted_frames(scale, valid_samples(a.lengths, b, s.time), s.time);
    }
    p.first[static_cast<size_t>(s.batch)] = rows;
    if (rows == 0 || !(scale.stft() || scale.mel())) continue;

    // Aligned frames end in zeros, others in padding.
    if (const int64_t wanted = scale.config.aligned ? scale.trail : s.right; wanted != trail) {
      trail = wanted;
      for (float* padded : {p.estimate, p.target}) pad_right(ctx, s, trail, padded);
    }

    // Each term is a mean over the counted cells. `share` is the weight of one |difference| in the loss; in the
    // gradients log10 brings the factor log10(e) = 1 / ln(10).
    const double cells = static_cast<double>(rows * scale.transform.bins());
    const double mel_cells = static_cast<double>(rows) * scale.mel_cells();
    const double power = static_cast<double>(p.config.log_power);
    const double share[4] = {static_cast<double>(scale.config.magnitude) / cells,
                             static_cast<double>(scale.config.log_magnitude) * power / cells,
                             static_cast<double>(scale.config.mel_magnitude) / mel_cells, scale.mel_log() / mel_cells};
    const double log10_e = 0.43429448190325182765;
    const Block block{p,
                      scale,
                      rows,
                      {static_cast<float>(share[0]), static_cast<float>(share[1] * log10_e),
                       static_cast<float>(share[2]), static_cast<float>(share[3] * log10_e)},
                      {static_cast<bool>(gradients[0]), static_cast<bool>(gradients[1])}};
    const int64_t parts = (rows + L - 1) / L;
    parallel_parts(ctx, parts, [&](int64_t part, int slot) {
      double* sums = p.partials.data() + part * 4;
      std::fill_n(sums, 4, 0.0);
      block.run(part, p.areas + slot * p.area, sums);
    });
    for (int64_t part = 0; part < parts; ++part)
      for (size_t i = 0; i < 4; ++i) losses[i / 2] += share[i] * p.partials[static_cast<size_t>(part) * 4 + i];
    // A gradient whose term this scale does not have was not written to frames[i].
    const bool present[2] = {scale.stft(), scale.mel()};
    for (int i = 0; i < 2; ++i)
      if (gradients[i] && present[i])
        overlap_add(ctx, s, p.frames[i], p.first.data(), scale.config.window, scale.config.hop, scale.lead, scale.trail,
                    p.sums[i]);
  }
  for (int i = 0; i < 2; ++i) {
    if (gradients[i]) fold_padding(ctx, s, p.sums[i], a.lengths, gradients[i].data, false);
    a.losses[i] = static_cast<float>(losses[i]);
  }
}

}  // namespace nacre
