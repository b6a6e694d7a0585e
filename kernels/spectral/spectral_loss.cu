#include "nacre/ops/spectral_loss.h"

#include <optional>

#include "spectral/spectral_fused.cuh"

// Scales run one after the other in the same work areas. There are three ways:
//
//   fused      windows of a power of two from 32 to 4096: one kernel (spectral_fused.cu), overlap-add
//   by rows    other windows: frames of both signals, one cuFFT of all, losses and gradients of the spectra
//              (spectral_rows.cu), one inverse cuFFT of the gradients, overlap-add
//   plain      as by rows, with two kernels of this file in place of spectral_rows, for frames that do not fit into a
//              block
//
// Let F be the bytes of one signal's frames (window / hop times the signal); their spectra are as large. Bytes moved by
// a scale with one gradient:
//
//   fused            2 F (gradient frames written and read), and the signals
//   around cuFFT    12 F: frames 2 F written; forward 2 F read, 2 F written; rows 2 F read, F written; inverse F read,
//                   F written; overlap-add F read
//
// A second gradient adds 2 F (4 F around cuFFT). For 72 x 16896 samples and hop = window / 4, F is 19.5 MB. A fused
// scale moves 55 MB in 13 us at the copy rate (250 MB in 58 us around cuFFT); nine scales take 0.12 ms in 21 launches
// (0.52 ms in 48).
namespace nacre::cuda {
namespace {

constexpr int threads = 256;
constexpr int cells_per_thread = 8;
constexpr int64_t block_cells = int64_t{threads} * cells_per_thread;

// ---- plain kernels: one over bands, one over bins

/// Mel bands of all frames: losses, and the slope of each band. A block has 2048 adjacent cells (band of a frame), a
/// thread every 256th of them.
template <bool powers>
__global__ void __launch_bounds__(threads) spectral_bands_kernel(ScaleView s) {
  NACRE_SHARED(double, buffer, threads / 32);
  float difference = 0, log_difference = 0;
  for (int i = 0; i < cells_per_thread; ++i) {
    const int64_t cell = blockIdx.x * block_cells + i * threads + threadIdx.x, row = cell / s.bands;
    if (row >= s.rows) break;
    const int64_t band = cell - row * s.bands;
    // Magnitudes are computed again for every band that covers the bin (at most two): cheaper than to store them.
    float m = 0, n = 0;
    for (int32_t k = s.by_band.first[band]; k < s.by_band.first[band + 1]; ++k) {
      const int64_t bin = s.by_band.column[k];
      const Complex x = load_complex(s.spectra, row * s.bins + bin);
      const Complex y = load_complex(s.spectra, (s.rows + row) * s.bins + bin);
      m += s.by_band.weight[k] * (powers ? power(x) : magnitude(x));
      n += s.by_band.weight[k] * (powers ? power(y) : magnitude(y));
    }
    const Compared c = powers       ? compare_powers(m, n, s.weights[2], s.weights[3], s.floor, s.logs[1])
                       : s.weighted ? compare_weighted(m, n, s.weights[2], s.weights[3], s.floor, s.logs[1], s.excess,
                                                       frame_weight(s, row))
                                    : compare(m, n, s.weights[2], s.weights[3], s.floor, s.logs[1]);
    difference += c.difference, log_difference += c.log_difference;
    s.slopes[cell] = c.slope;
  }
  store_term_sums<threads>(s, 2, static_cast<double>(difference), static_cast<double>(log_difference), buffer);
}

/// Bins of all frames: losses of the magnitudes, and both gradients, which overwrite the two spectra. Runs after
/// spectral_bands_kernel (spectral_norms), whose slopes it reads and which needs the spectra as they were.
template <bool powers>
__global__ void __launch_bounds__(threads) spectral_cells_kernel(ScaleView s) {
  NACRE_SHARED(double, buffer, threads / 32);
  float difference = 0, log_difference = 0;
  const int64_t cells = s.rows * s.bins;
  for (int i = 0; i < cells_per_thread; ++i) {
    const int64_t cell = blockIdx.x * block_cells + i * threads + threadIdx.x;
    if (cell >= cells) break;
    // Adjacent threads have adjacent cells: coalesced. Each spectrum is read once and, with gradients, overwritten.
    const int64_t row = cell / s.bins, bin = cell - row * s.bins;
    const Complex x = load_complex(s.spectra, cell);
    const float m = magnitude(x);
    const bool inside = bin > 0 && bin < s.bins - 1;
    float* slot = s.spectra;  // of the first requested gradient
    if (s.stft) {
      const float n = magnitude(load_complex(s.spectra, cells + cell));
      const Compared c = compare(m, n, s.weights[0], s.weights[1], s.floor, s.logs[0]);
      difference += c.difference, log_difference += c.log_difference;
      if (s.gradient[0]) {
        store_gradient(slot, cell, x, m, c.slope, inside);
        slot += 2 * cells;
      }
    }
    if (s.gradient[1]) {
      float slope = 0;
      for (int32_t k = s.by_bin.first[bin]; k < s.by_bin.first[bin + 1]; ++k)
        slope += s.by_bin.weight[k] * s.slopes[row * s.bands + s.by_bin.column[k]];
      if constexpr (powers)
        store_scaled(slot, cell, x, 2 * slope, inside);
      else
        store_gradient(slot, cell, x, m, slope, inside);
    }
  }
  if (s.stft)
    store_term_sums<threads>(s, 0, static_cast<double>(difference), static_cast<double>(log_difference), buffer);
}

void spectral_bins_and_bands(Context& ctx, const ScaleView& s) {
  const unsigned bands = blocks_for(s.rows * s.bands, block_cells), cells = blocks_for(s.rows * s.bins, block_cells);
  if (s.mel && s.norms)
    spectral_norms(ctx, s);
  else if (s.mel)
    launch(ctx, {.name = "spectral_bands", .grid = bands, .block = threads},
           s.power ? spectral_bands_kernel<true> : spectral_bands_kernel<false>, s);
  if (s.stft || s.gradient[1])
    launch(ctx, {.name = "spectral_cells", .grid = cells, .block = threads},
           s.power ? spectral_cells_kernel<true> : spectral_cells_kernel<false>, s);
}

// ---- weights and sums

/// Parameters of a scale for the kernels of weights and sums.
struct Terms {
  Framing frame;
  double weight[4], cells[4];  ///< of the terms: weight, and cells per frame
  int64_t parts[4];            ///< number of sums of each term in `partials`
  float* partials;
  int64_t stride;  ///< between the terms' sums
};
/// Results of all scales. `share` is the weight of one |difference| in the loss.
struct Results {
  double* share;   ///< [scales][4]
  double* sum;     ///< [scales][4]
  float* weights;  ///< [scales][4]: weight of one |difference| in the slopes
};

/// One block per scale. share = weight / (counted frames x cells per frame), so that each term is a mean. The slopes of
/// logarithms have the factor log10(e) = 0.4343 of the derivative of log10. The number of counted frames comes from
/// `lengths`, which only the device has.
__global__ void __launch_bounds__(threads)
    spectral_weights_kernel(const Terms* all, const int32_t* lengths, Results r) {
  NACRE_SHARED(int64_t, buffer, threads / 32);
  const Terms& t = all[blockIdx.x];
  int64_t rows = 0;
  for (int64_t b = threadIdx.x; b < t.frame.batch; b += threads) rows += counted_part(t.frame, lengths, b).frames;
  rows = block_sum<threads>(rows, buffer);
  if (threadIdx.x >= 4) return;
  const int i = static_cast<int>(threadIdx.x);
  const double share = rows > 0 ? t.weight[i] / (static_cast<double>(rows) * t.cells[i]) : 0;
  r.share[blockIdx.x * 4 + i] = share;
  r.weights[blockIdx.x * 4 + i] = static_cast<float>(i % 2 == 0 ? share : share * 0.43429448190325182765);
}
/// Thread t adds parts t, t + 256, ... in order, so the sum is fixed by the shape.
/// One block per scale and term.
__global__ void __launch_bounds__(threads) spectral_sums_kernel(const Terms* all, Results r) {
  NACRE_SHARED(double, buffer, threads / 32);
  const Terms& t = all[blockIdx.x];
  const float* const parts = t.partials + 2 * t.stride * blockIdx.y;
  const double sum = add_partials(parts, t.parts[blockIdx.y], static_cast<int>(threadIdx.x), threads);
  const double total = block_sum<threads>(sum, buffer);
  if (threadIdx.x == 0) r.sum[blockIdx.x * 4 + blockIdx.y] = total;
}
/// losses [2] = the STFT terms and the mel terms of all scales, in the order of the scales.
__global__ void spectral_losses_kernel(Results r, int scales, float* losses) {
  if (threadIdx.x >= 2) return;
  double loss = 0;
  for (int s = 0; s < scales; ++s)
    for (int i = 4 * s + 2 * static_cast<int>(threadIdx.x), end = i + 2; i < end; ++i) loss += r.share[i] * r.sum[i];
  losses[threadIdx.x] = static_cast<float>(loss);
}

// ---- plans

struct Sparse {
  Sparse(Context& ctx, const SparseRows& a)
      : first(table(ctx, a.first)), column(table(ctx, a.column)), weight(table(ctx, a.weight)) {}
  DeviceRows view() const { return {pointer<int32_t>(first), pointer<int32_t>(column), pointer<float>(weight)}; }
  Memory first, column, weight;
};

/// The tables of one scale on the device, its way, and its parameters for the kernels. Pointers to work areas are set
/// by Device.
struct Scale {
  Scale(Context& ctx, const SpectralPlan::Impl& p, const SpectralPlan::Impl::Scale& s)
      : hann(table(ctx, s.transform.hann())),
        by_band(ctx, s.bank.by_band),
        by_bin(ctx, s.bank.by_bin),
        twiddles(table(ctx, s.transform.twiddles())),
        cosine(table(ctx, s.transform.cosine())),
        sine(table(ctx, s.transform.sine())),
        tables{pointer<float>(twiddles), pointer<float>(cosine), pointer<float>(sine)} {
    frame = framing(p.signal, s.geometry(p.config.padding), pointer<float>(hann));
    frame.trail = static_cast<int>(s.trail);
    view.rows = p.signal.batch * s.frames, view.bins = s.transform.bins(), view.bands = s.config.mels;
    view.by_band = by_band.view(), view.by_bin = by_bin.view();
    view.floor = p.config.floor;
    view.stft = s.stft(), view.mel = s.mel(), view.power = s.mel() && s.power(), view.norms = s.mel() && s.norms();
    view.weighted = s.mel() && p.weighted(), view.excess = p.config.mel_excess;
    transients = view.weighted && p.config.mel_transient != 0;
    view.logs[0] = s.config.log_magnitude != 0, view.logs[1] = s.config.mel_log != 0;
    // The way is chosen once per scale, by shape and device: fused if a kernel exists and fits, else by rows if a block
    // holds whole frames, else plain. The number of partial sums follows from it.
    stft_parts = mel_parts = spectral_fused_parts(limits(ctx), view);
    fused = stft_parts > 0;
    by_rows = !fused && spectral_rows_supports(limits(ctx), view);
    if (by_rows) stft_parts = mel_parts = spectral_rows_parts(view);
    if (!fused && !by_rows)
      stft_parts = blocks_for(view.rows * view.bins, block_cells),
      mel_parts = view.norms ? view.rows : blocks_for(view.rows * view.bands, block_cells);
    if (!fused) both.emplace(ctx, s.config.window, 2 * view.rows), one.emplace(ctx, s.config.window, view.rows);
    view.parts = std::max(stft_parts, mel_parts);
  }
  Memory hann;
  Sparse by_band, by_bin;
  Memory twiddles, cosine, sine;
  FusedTables tables;
  std::optional<Fft> both, one;  ///< for 2 * rows and for rows transforms; unused by the fused kernel
  Framing frame{};
  ScaleView view{};
  bool fused = false, by_rows = false;    ///< which way, see above; else plain
  bool transients = false;                ///< frames have weights
  int64_t stft_parts = 0, mel_parts = 0;  ///< sums in `partials`
};

// Work areas have the size of the largest scale; partial sums and weights are per scale, because spectral_sums reads
// them all at the end.
struct Device : DevicePlan {
  Device(Context& ctx, const SpectralPlan::Impl& p) {
    int64_t frame_floats = 0, spectrum_floats = 0, slope_floats = 0, weight_floats = 0, parts = 0;
    for (const SpectralPlan::Impl::Scale& s : p.scales) {
      if (!s.stft() && !s.mel()) continue;
      const Scale& made = scales.emplace_back(ctx, p, s);
      frame_floats = std::max(frame_floats, 2 * made.view.rows * s.config.window);
      if (!made.fused) spectrum_floats = std::max(spectrum_floats, 2 * made.view.rows * made.view.bins * 2);
      if (!made.fused && !made.by_rows) slope_floats = std::max(slope_floats, made.view.rows * made.view.bands);
      if (made.transients) weight_floats = std::max(weight_floats, made.view.rows);
      parts += 4 * made.view.parts;
    }
    const auto floats = [&](int64_t n) { return Memory(ctx, static_cast<size_t>(n) * sizeof(float)); };
    rows = floats(frame_floats), spectra = floats(spectrum_floats), slopes = floats(slope_floats);
    frame_weights = floats(weight_floats);
    partials = floats(2 * parts);
    results = floats(static_cast<int64_t>(scales.size()) * (2 * 4 + 2 * 4 + 4));
    const int64_t n = static_cast<int64_t>(scales.size());
    result.share = pointer<double>(results);
    result.sum = result.share + 4 * n;
    result.weights = reinterpret_cast<float*>(result.sum + 4 * n);
    // partials: per scale [4][parts] doubles, as pairs of floats. Terms go to the device once, since plans do not
    // change.
    std::vector<Terms> all;
    float* next = pointer<float>(partials);
    for (size_t i = 0, at = 0; i < p.scales.size(); ++i) {
      const SpectralScale& c = p.scales[i].config;
      if (!p.scales[i].stft() && !p.scales[i].mel()) continue;
      Scale& s = scales[at];
      s.view.spectra = pointer<float>(spectra), s.view.slopes = pointer<float>(slopes);
      if (s.transients) s.view.frames = pointer<float>(frame_weights);
      s.view.weights = result.weights + 4 * at++;
      s.view.partials = next, next += 8 * s.view.parts;
      const double power = static_cast<double>(p.config.log_power), bins = static_cast<double>(s.view.bins),
                   bands = p.scales[i].mel_cells();
      const int64_t stft_parts = s.view.stft ? s.stft_parts : 0, mel_parts = s.view.mel ? s.mel_parts : 0;
      all.push_back({s.frame,
                     {static_cast<double>(c.magnitude), static_cast<double>(c.log_magnitude) * power,
                      static_cast<double>(c.mel_magnitude), p.scales[i].mel_log()},
                     {bins, bins, bands, bands},
                     {stft_parts, stft_parts, mel_parts, mel_parts},
                     s.view.partials,
                     s.view.parts});
    }
    terms = table(ctx, all);
  }
  std::vector<Scale> scales;  ///< the scales with a nonzero weight
  Memory rows, spectra, slopes, frame_weights, partials, results, terms;
  Results result{};
};

}  // namespace

std::unique_ptr<DevicePlan> plan(Context& ctx, const SpectralPlan::Impl& p) { return std::make_unique<Device>(ctx, p); }

void spectral_loss(Context& ctx, const SpectralLoss& a) {
  Device& d = static_cast<Device&>(*a.plan.impl().on_device);
  // The number of counted frames is known on the device alone, so the weights come from a kernel, and the call can be
  // captured. The first scale with a gradient overwrites dstft or dmel, the others add (`written`).
  const unsigned scales = static_cast<unsigned>(d.scales.size());
  const int32_t* const lengths = a.lengths.data;
  float* const rows = pointer<float>(d.rows);
  const SpectralConfig& config = a.plan.config();
  launch(ctx, {.name = "spectral_weights", .grid = scales, .block = threads}, spectral_weights_kernel,
         pointer<Terms>(d.terms), lengths, d.result);
  const View<float> gradients[2] = {a.dstft, a.dmel};
  bool written[2] = {false, false};
  for (Scale& s : d.scales) {
    ScaleView v = s.view;
    v.gradient[0] = v.stft && a.dstft, v.gradient[1] = v.mel && a.dmel;
    const bool any = v.gradient[0] || v.gradient[1];
    if (s.transients)
      spectral_transients(ctx, s.frame, a.target.data, lengths, config.mel_transient, config.transient_rise,
                          pointer<float>(d.frame_weights));
    if (s.fused) {
      spectral_fused(ctx, v, s.frame, s.tables, a.estimate.data, a.target.data, lengths, rows);
    } else {
      make_frames(ctx, s.frame, a.estimate.data, a.target.data, lengths, rows);
      s.both->forward(ctx, rows, v.spectra);
      if (s.by_rows)
        spectral_rows(ctx, v);
      else
        spectral_bins_and_bands(ctx, v);
      if (any) (v.gradient[0] && v.gradient[1] ? *s.both : *s.one).inverse(ctx, v.spectra, rows);
    }
    if (!any) continue;
    // The frames of the requested gradients lie one after the other in `rows`.
    Overlap wanted[2] = {};
    const float* from = rows;
    int n = 0;
    for (int i = 0; i < 2; ++i) {
      if (!v.gradient[i]) continue;
      wanted[n++] = {from, gradients[i].data, written[i]};
      written[i] = true;
      from += v.rows * s.frame.window;
    }
    add_frames(ctx, s.frame, wanted[0], wanted[1], lengths);
  }
  for (int i = 0; i < 2; ++i)
    if (gradients[i] && !written[i]) ctx.zero(gradients[i]);
  launch(ctx, {.name = "spectral_sums", .grid = {scales, 4, 1}, .block = threads}, spectral_sums_kernel,
         pointer<Terms>(d.terms), d.result);
  launch(ctx, {.name = "spectral_losses", .block = 32}, spectral_losses_kernel, d.result, static_cast<int>(scales),
         a.losses.data);
}

}  // namespace nacre::cuda
