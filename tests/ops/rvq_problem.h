#pragma once
// One problem of rvq, its buffers and its double reference, for the tests of rvq.
#include "harness.h"
#include "nacre/ops/rvq.h"
#include "reference/rvq.h"

namespace nacre::test::rvq {

struct Size {
  int64_t batch, frames, latent, dim, codes, stages;  // dim 0: codes have the latent's dimension
};
inline const Size sizes[] = {
    {1, 1, 1, 0, 1, 1},        // the smallest
    {1, 1, 1, 1, 1, 1},        // the smallest with projections
    {1, 1, 64, 0, 128, 8},     // one frame: the streaming case
    {1, 1, 64, 8, 128, 8},     // the same with projections
    {2, 25, 64, 0, 64, 8},     // the size of a codec
    {2, 25, 64, 8, 64, 9},     // DAC's stages on a small latent
    {1, 12, 16, 0, 16, 2},     // one tile of rows exactly
    {1, 13, 17, 0, 17, 3},     // one more of everything
    {3, 11, 15, 3, 15, 2},     // one less of everything
    {1, 48, 8, 0, 33, 2},      // exactly the rows of one call
    {1, 49, 8, 4, 33, 2},      // one more
    {5, 3, 7, 5, 9, 4},        // all odd
    {16, 1, 24, 0, 10, 3},     // a batch of single frames
    {16, 1, 24, 6, 10, 3},     // the same with projections
    {1, 301, 2, 0, 5, 2},      // long and narrow: sums over many rows
    {1, 301, 2, 1, 5, 2},      // the same with projections, one channel of code
    {1, 3, 300, 0, 4, 2},      // short and wide
    {1, 3, 257, 9, 4, 3},      // short, wide and odd with projections
    {2, 70, 12, 8, 20, 2},     // three partial sums
    {1, 7, 3, 20, 6, 2},       // a code wider than the latent
    {2, 9, 5, 0, 3, 12},       // many stages, few codes
    {2, 5, 6, 4, 7, 12},       // the same with projections
    {4, 20, 32, 0, 1024, 2},   // many codes
    {1, 17, 30, 0, 1030, 2},   // one row more, and more codes, than CUDA scores in one pass
    {1, 19, 256, 8, 1030, 2},  // the same with projections: a channel per thread
    {1, 10, 300, 8, 20, 2},    // one of CUDA's groups and a row; weights padded to 512 channels
    {1, 3, 1024, 8, 5, 2},     // DAC's latent
    {1, 3, 1030, 8, 5, 2},     // wider than CUDA's groups
    {1, 1200, 5, 8, 4, 2},     // two groups per block, ten chunks of the gradients' rows
};

inline std::vector<double> doubles(const Buffer<float>& b) {
  std::vector<double> out;
  for (int64_t i = 0; i < b.size(); ++i) out.push_back(b[i]);
  return out;
}

// means: as some, and losses are means over the stages used; mean_of_all: as none, and losses are means.
enum Masks { none, some, means, mean_of_all, nothing_valid };
inline bool masked(Masks m) { return m != none && m != mean_of_all; }
inline bool takes_means(Masks m) { return m == means || m == mean_of_all; }
/// Means do not depend on the codes, so the slow samples with many of them are left out.
inline bool wanted(Size n, Masks m) { return !takes_means(m) || n.codes <= 100; }

// One problem: the inputs, and all outputs of the forward pass.
struct Problem {
  Size n;
  Case c;
  bool factorised;
  int64_t rows, dim;
  Shape zs, books;
  Buffer<float>&z, &codebooks, &in_weight, &in_bias, &out_weight, &out_bias;
  Buffer<int32_t>&stages, &frames;
  Buffer<float>& y;
  Buffer<int32_t>& codes;
  Buffer<float>&quantised, &losses;
  Masks masks;
  Buffer<float>* products = nullptr;  // of compute_products()

  Problem(Device device, Size s, Masks m, int threads = 2, double level = 1)
      : n(s),
        c(s.dim > 0 ? "rvq factorised" : "rvq latent", device, {s.batch, s.frames, 1, s.latent}, threads),
        factorised(s.dim > 0),
        rows(s.batch * s.frames),
        dim(s.dim > 0 ? s.dim : s.latent),
        zs{s.batch, s.frames, 1, s.latent},
        books{s.stages, s.codes, 1, dim},
        z(c.random("z", zs, -level, level)),
        codebooks(c.random("codebooks", books, -0.7, 0.7)),
        in_weight(c.random("in_weight", {s.stages, dim, 1, s.latent}, -1, 1)),
        in_bias(c.random("in_bias", {s.stages, 1, 1, dim}, -0.1, 0.1)),
        out_weight(c.random("out_weight", {s.stages, s.latent, 1, dim}, -0.3, 0.3)),
        out_bias(c.random("out_bias", {s.stages, 1, 1, s.latent}, -0.1, 0.1)),
        stages(c.integers<int32_t>("stages", {1, 1, 1, s.batch}, 0, static_cast<int>(s.stages))),
        frames(c.integers<int32_t>("frames", {1, 1, 1, s.batch}, m == nothing_valid ? 0 : 1,
                                   m == nothing_valid ? 0 : static_cast<int>(s.frames))),
        y(c.output("y", zs)),
        codes(c.output<int32_t>("codes", {s.batch, s.frames, 1, s.stages})),
        quantised(c.output("quantised", {s.stages, rows, 1, dim})),
        losses(c.output("losses", {1, 1, 1, 2})),
        masks(m) {
    // Every stage applies the weights once. Small weights keep the values bounded.
    const double scale = 1 / std::sqrt(static_cast<double>(s.latent));
    std::vector<float> w = in_weight.before();
    for (float& v : w) v *= static_cast<float>(scale);
    in_weight.write(w);
  }
  RvqProjections projections() const {
    if (!factorised) return {};
    RvqProjections p{.in_weight = in_weight, .in_bias = in_bias, .out_weight = out_weight, .out_bias = out_bias};
    if (products != nullptr) p.products = *products;
    return p;
  }
  /// From here on the forward pass uses products.
  void compute_products() {
    auto& to = c.output("products", rvq_products_shape(n.stages, dim));
    rvq_products(
        c.ctx,
        {.projections = projections(), .y = to, .scratch = c.scratch(rvq_products_scratch(n.stages, dim, n.latent))});
    products = &to;
  }
  RvqForward arguments() {
    RvqForward a{.z = z,
                 .codebooks = codebooks,
                 .projections = projections(),
                 .y = y,
                 .codes = codes,
                 .quantised = quantised,
                 .losses = losses,
                 .scratch = c.scratch(rvq_forward_scratch(c.ctx, zs, books, factorised, 1, products != nullptr))};
    if (masked(masks)) a.stages = stages, a.frames = frames;
    a.mean = takes_means(masks);
    return a;
  }
  /// Codes of the latent's dimension, with the orthogonal gradient.
  RvqBackward orthogonal_arguments(View<const float> dy, View<float> dz, float commitment_weight) {
    RvqBackward a{.z = z,
                  .codebooks = codebooks,
                  .codes = codes,
                  .quantised = quantised,
                  .dy = dy,
                  .dz = dz,
                  .scratch = c.scratch(rvq_backward_scratch(c.ctx, zs, books, false)),
                  .commitment_weight = commitment_weight,
                  .orthogonal = true};
    if (masked(masks)) a.stages = stages, a.frames = frames;
    return a;
  }
  RvqReference reference() {
    RvqReference r;
    r.rows = rows, r.stages = n.stages, r.codes = n.codes, r.dim = dim, r.latent = n.latent, r.factorised = factorised;
    r.z = doubles(z), r.codebooks = doubles(codebooks);
    if (factorised) {
      r.in_weight = doubles(in_weight), r.in_bias = doubles(in_bias);
      r.out_weight = doubles(out_weight), r.out_bias = doubles(out_bias);
    }
    for (int32_t k : codes.read()) r.chosen.push_back(k);
    for (int64_t row = 0; row < rows; ++row) {
      r.used.push_back(!masked(masks) ? n.stages : static_cast<int64_t>(stages[row / n.frames]));
      r.valid.push_back(!masked(masks) || row % n.frames < static_cast<int64_t>(frames[row / n.frames]));
    }
    r.mean = takes_means(masks);
    r.dy.assign(z.before().size(), 0.0);
    return r;
  }
  // An upper limit for the roundings on a path from an input to a result: two projections and a few sums per stage,
  // then the sum over rows and elements.
  double roundings() const {
    return static_cast<double>(2 * n.stages * (n.latent + dim + 6) + rows + n.stages * dim + 8);
  }
};

inline double check(Problem& p, Buffer<float>& found, const RvqReference::Vector& wanted,
                    const RvqReference::Vector& size) {
  const auto expected = [&](int64_t i) { return wanted[static_cast<size_t>(i)]; };
  const auto allowance = [&](int64_t i) { return p.roundings() * ulp * size[static_cast<size_t>(i)] + 1e-37; };
  const double worst = p.c.expect<float>(found, expected, allowance);
  std::vector<double> planted;
  for (float v : found.read()) planted.push_back(v);
  const size_t where = static_cast<size_t>(std::max_element(size.begin(), size.end()) - size.begin());
  planted[where] += 10 * allowance(static_cast<int64_t>(where));
  CHECK(worst_ratio(planted, expected, allowance) > 1);
  return worst;
}

}  // namespace nacre::test::rvq
