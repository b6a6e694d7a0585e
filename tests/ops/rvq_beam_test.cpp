// rvq_forward with more than one hypothesis per row.
#include "harness.h"
#include "nacre/ops/rvq.h"
#include "reference/rvq.h"
#if defined(NACRE_EMULATED)
#include "runtime/runtime.h"
#endif

using namespace nacre;
using namespace nacre::test;

namespace {

struct Size {
  int64_t batch, frames, dim, codes, stages, beam;
};
const Size sizes[] = {
    {1, 1, 1, 1, 1, 2},       // the smallest
    {1, 1, 1, 1, 4, 64},      // one code, many hypotheses
    {1, 7, 1, 3, 5, 64},      // one channel; more hypotheses than codes or pairs of codes
    {2, 9, 4, 6, 4, 1},       // one hypothesis: the nearest codes
    {1, 12, 8, 16, 3, 4},     // one tile of rows exactly
    {1, 13, 8, 17, 3, 3},     // one more of everything
    {3, 11, 15, 15, 2, 16},   // one less of everything
    {1, 25, 5, 33, 6, 2},     // a block of codes and one more; two hypotheses
    {2, 9, 4, 130, 3, 12},    // hypotheses fill tiles exactly
    {1, 4, 7, 9, 6, 17},      // one hypothesis more than CUDA scores in one pass
    {1, 3, 3, 40, 3, 64},     // the maximum
    {1, 5, 40, 1030, 3, 16},  // more codes than CUDA scores in one pass
    {1, 3, 520, 4, 3, 64},    // residuals exceed shared memory
    {1, 3, 1030, 5, 2, 4},    // wider than the tiles of the greedy search
    {1, 4, 1, 1030, 3, 16},   // nine distances: more ties of a row than CUDA holds
    {1, 9, 1, 1030, 3, 2},    // the same with eight rows
    {1, 2, 1, 1030, 3, 40},   // the same in a second pass of hypotheses
    {1, 3, 300, 300, 2, 3},   // a codebook that the CPU searches in two parts
};

enum Masks { none, some };

std::vector<double> doubles(const Buffer<float>& b) {
  std::vector<double> out;
  for (int64_t i = 0; i < b.size(); ++i) out.push_back(b[i]);
  return out;
}

struct Problem {
  Size n;
  Case c;
  int64_t rows;
  Shape zs, books;
  Buffer<float>&z, &codebooks;
  Buffer<int32_t>&stages, &frames;
  Buffer<float>& y;
  Buffer<int32_t>& codes;
  Buffer<float>&quantised, &losses;
  Masks masks;

  /// With grid values, energies are multiples of 1/2 below 2^22 and exact in float. Ties are ties on every device, and
  /// the codes equal those of the reference exactly.
  Problem(Device device, Size s, bool grid, Masks m = none, int threads = 2)
      : n(s),
        c("rvq beam", device, {s.batch, s.frames, 1, s.dim}, threads),
        rows(s.batch * s.frames),
        zs{s.batch, s.frames, 1, s.dim},
        books{s.stages, s.codes, 1, s.dim},
        z(grid ? c.integers<float>("z", zs, -8, 8) : c.random("z", zs, -1, 1)),
        codebooks(grid ? c.integers<float>("codebooks", books, -4, 4) : c.random("codebooks", books, -0.7, 0.7)),
        stages(c.integers<int32_t>("stages", {1, 1, 1, s.batch}, 0, static_cast<int>(s.stages))),
        frames(c.integers<int32_t>("frames", {1, 1, 1, s.batch}, 0, static_cast<int>(s.frames))),
        y(c.output("y", zs)),
        codes(c.output<int32_t>("codes", {s.batch, s.frames, 1, s.stages})),
        quantised(c.output("quantised", {s.stages, rows, 1, s.dim})),
        losses(c.output("losses", {1, 1, 1, 2})),
        masks(m) {}
  RvqForward arguments() {
    RvqForward a{.z = z,
                 .codebooks = codebooks,
                 .y = y,
                 .codes = codes,
                 .quantised = quantised,
                 .losses = losses,
                 .scratch = c.scratch(rvq_forward_scratch(c.ctx, zs, books, false, n.beam)),
                 .beam = n.beam};
    if (masks == some) a.stages = stages, a.frames = frames;
    return a;
  }
  std::vector<double> row(int64_t r) const {
    std::vector<double> out;
    for (int64_t d = 0; d < n.dim; ++d) out.push_back(z[r * n.dim + d]);
    return out;
  }
  int64_t used(int64_t r) const { return masks == none ? n.stages : static_cast<int64_t>(stages[r / n.frames]); }
  bool valid(int64_t r) const { return masks == none || r % n.frames < static_cast<int64_t>(frames[r / n.frames]); }
  std::vector<int32_t> expected(int64_t beam, bool last_first = false, bool keeps_greedy = true) const {
    const std::vector<double> all = doubles(codebooks);
    const BeamReference reference{all, n.stages, n.codes, n.dim, beam, last_first, keeps_greedy};
    std::vector<int32_t> out;
    for (int64_t r = 0; r < rows; ++r)
      for (const int32_t k : reference.search(row(r), used(r))) out.push_back(k);
    return out;
  }
};

void grid_case(Device device, Size n, Masks masks) {
  INFO(n.beam << " of " << n.codes << " codes, " << n.stages << " stages, " << n.dim << " channels");
  Problem p(device, n, true, masks);
  rvq_forward(p.c.ctx, p.arguments());
  const std::vector<int32_t> codes = p.expected(n.beam);
  p.c.expect_equal<int32_t>(p.codes, codes);

  // All other results follow from the codes exactly: sums of integers, and one division.
  std::vector<float> y(size_t(p.rows * n.dim), 0.0f), quantised(size_t(n.stages * p.rows * n.dim));
  double sum = 0, elements = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    std::vector<double> residual = p.row(r);
    if (p.valid(r)) elements += double(n.dim);
    for (int64_t s = 0; s < n.stages; ++s)
      for (int64_t d = 0; d < n.dim; ++d) {
        const double q = p.codebooks[(s * n.codes + codes[size_t(r * n.stages + s)]) * n.dim + d];
        quantised[size_t((s * p.rows + r) * n.dim + d)] = float(residual[size_t(d)]);
        residual[size_t(d)] -= q;
        if (s < p.used(r)) y[size_t(r * n.dim + d)] += float(q);
        if (s < p.used(r) && p.valid(r)) sum += residual[size_t(d)] * residual[size_t(d)];
      }
  }
  const float loss = elements > 0 ? float(sum / elements) : 0;
  p.c.expect_equal<float>(p.quantised, quantised);
  p.c.expect_equal<float>(p.y, y);
  p.c.expect_equal<float>(p.losses, {loss, loss});

  RvqForward encode = p.arguments();
  auto& encoded = p.c.output<int32_t>("encoded", p.codes.shape());
  encode.codes = encoded, encode.quantised = {}, encode.losses = {};
  rvq_forward(p.c.ctx, encode);
  p.c.expect_equal<int32_t>(encoded, codes);
  p.c.expect_equal<float>(p.y, y);
}

std::vector<int32_t> codes_of(Problem& p) {
  rvq_forward(p.c.ctx, p.arguments());
  return p.codes.read();
}

/// Half the squared error of row r after `stages` stages; -1: all.
double energy_of(const Problem& p, const std::vector<int32_t>& codes, int64_t r, int64_t stages = -1) {
  std::vector<double> residual = p.row(r);
  double sum = 0;
  for (int64_t d = 0; d < p.n.dim; ++d) {
    for (int64_t s = 0; s < (stages < 0 ? p.n.stages : stages); ++s)
      residual[size_t(d)] -= p.codebooks[(s * p.n.codes + codes[size_t(r * p.n.stages + s)]) * p.n.dim + d];
    sum += residual[size_t(d)] * residual[size_t(d)] / 2;
  }
  return sum;
}

}  // namespace

TEST_CASE("rvq_forward keeps the hypotheses that its reference keeps", "[rvq]") {
  for (Device device : devices())
    for (Size n : sizes)
      for (Masks masks : {none, some}) grid_case(device, n, masks);
}

#if defined(NACRE_EMULATED)
TEST_CASE("a beam's blocks take more rows than one turn of all blocks", "[rvq][rtx3090]") {
  for (Device device : devices()) {
    if (device.kind == Device::cpu) continue;
    // A block of sixteen hypotheses takes one row at a time, and two blocks run per multiprocessor.
    const int64_t blocks = 2 * cuda::limits(Context({.device = device})).multiprocessors;
    grid_case(device, {1, blocks + 3, 1, 5, 2, 16}, none);
  }
}

TEST_CASE("a beam takes the rung that shape and device allow", "[rvq][a100][rtx3090]") {
  const Device device{Device::cuda};
  if (const auto all = devices(); std::find(all.begin(), all.end(), device) == all.end()) return;
  const auto launches = [&](Size n, const char* name) {
    Problem p(device, n, true);
    rvq_forward(p.c.ctx, p.arguments());
    return cuda::runtime(p.c.ctx).launches(name);
  };
  CHECK(launches({1, 3, 20, 5, 2, 1}, "rvq_forward_latent") == 1);
  CHECK(launches({1, 3, 20, 5, 2, 4}, "rvq_beam") == 1);
  CHECK(launches({1, 3, 20, 5, 2, 4}, "rvq_forward_given") == 1);
  CHECK(launches({1, 1, 1400, 5, 2, 4}, "rvq_beam") == 0);
  CHECK(launches({1, 1, 1400, 5, 2, 4}, "rvq_beam_long") == 1);
  // 99 KiB hold the residuals of two stages up to 556 channels.
  const bool room = cuda::limits(Context({.device = device})).shared_per_block > 99 << 10;
  CHECK(launches({1, 1, 560, 5, 2, 16}, room ? "rvq_beam" : "rvq_beam_long") == 1);
}
#endif

TEST_CASE("the cases of the beam tell its rules apart", "[rvq]") {
  int fewer = 0, ties = 0, stages = 0, greedy = 0;
  for (Size n : sizes) {
    Problem p(devices().front(), n, true, some);
    const std::vector<int32_t> codes = p.expected(n.beam);
    if (n.beam > 1 && codes != p.expected(n.beam - 1)) ++fewer;
    if (codes != p.expected(n.beam, true)) ++ties;
    if (codes != p.expected(n.beam, false, false)) ++greedy;
    p.masks = none;
    if (codes != p.expected(n.beam)) ++stages;
  }
  CHECK(fewer > 3);
  CHECK(ties > 3);
  CHECK(greedy > 0);
  CHECK(stages > 0);  // most items use all of their stages, or none
}

TEST_CASE("a beam of every sequence finds the best one", "[rvq]") {
  for (Device device : devices())
    for (const Size n : {Size{1, 60, 5, 3, 4, 27}, Size{1, 60, 3, 8, 3, 64}, Size{1, 60, 17, 40, 2, 40}}) {
      Problem p(device, n, false);
      const std::vector<int32_t> codes = codes_of(p);
      Size one = n;
      one.beam = 1;
      Problem greedy(device, one, false);
      greedy.z.write(p.z.before()), greedy.codebooks.write(p.codebooks.before());
      const std::vector<int32_t> nearest = codes_of(greedy);
      bool noticed = false;
      for (int64_t r = 0; r < p.rows; ++r) {
        int64_t sequences = 1;
        for (int64_t s = 0; s < n.stages; ++s) sequences *= n.codes;
        double best = INFINITY;
        for (int64_t i = 0; i < sequences; ++i) {
          std::vector<int32_t> sequence(codes.size());
          for (int64_t s = 0, rest = i; s < n.stages; ++s, rest /= n.codes)
            sequence[size_t(r * n.stages + s)] = int32_t(rest % n.codes);
          best = std::min(best, energy_of(p, sequence, r));
        }
        // Residuals and codes are at most m per channel, where m is the sum of the largest |z| and |code| of every
        // stage. The terms of a score are at most 2 m^2 per channel, with (2 dim + 4) roundings. A residual of the last
        // stage is off by one rounding of m per stage and channel, times |r - c| <= m. Two scores are compared.
        const double m = 1 + 0.7 * double(n.stages);
        const double allowance = 2 * ulp * (double(2 * n.dim + 4) * 2 + double(n.stages)) * double(n.dim) * m * m;
        CHECK(energy_of(p, codes, r) <= best + allowance);
        noticed = noticed || energy_of(p, nearest, r) > best + allowance;
      }
      CHECK(noticed);  // the nearest codes are not the best ones
    }
}

TEST_CASE("a beam is never worse than the nearest codes", "[rvq]") {
  // Grid values: energies are exact in float and in double, so the comparison has no tolerance.
  for (const Size n : {Size{3, 40, 2, 12, 6, 2}, Size{3, 40, 3, 16, 6, 4}, Size{3, 40, 2, 12, 8, 8},
                       Size{3, 40, 2, 90, 8, 64}, Size{1, 8, 2, 12, 6, 2}}) {
    int worse = 0;  // rows whose best hypotheses alone would have been worse
    for (const Masks masks : {none, some}) {
      Size one = n;
      one.beam = 1;
      for (Device device : devices()) {
        INFO(n.beam << " of " << n.codes << " codes, " << n.stages << " stages, masks " << masks);
        Problem p(device, n, true, masks), greedy(device, one, true, masks);
        greedy.z.write(p.z.before()), greedy.codebooks.write(p.codebooks.before());
        greedy.stages.write(p.stages.before());
        const std::vector<int32_t> codes = codes_of(p), nearest = codes_of(greedy);
        for (int64_t r = 0; r < p.rows; ++r)
          CHECK(energy_of(p, codes, r, p.used(r)) <= energy_of(p, nearest, r, p.used(r)));
        if (device != devices().front()) continue;
        const std::vector<int32_t> best_only = p.expected(n.beam, false, false);
        for (int64_t r = 0; r < p.rows; ++r)
          if (energy_of(p, best_only, r, p.used(r)) > energy_of(p, nearest, r, p.used(r))) ++worse;
      }
    }
    CHECK(worse > 0);
  }
}

TEST_CASE("a beam keeps nearest codes that every other hypothesis beats for a while", "[rvq]") {
  // One channel, z = 0. Stage 1: 10, or 20. Stage 2: -19, or -20, which undoes 20. Stage 3: 9, or 30. The nearest codes
  // leave -10, 9, 0. After stage 2 all pairs of 20 and -20 are better than 9; the best of them leaves 0 and then -9.
  for (Device device : devices())
    for (const int64_t beam : {2, 4, 8, 64}) {
      INFO("beam " << beam);
      Problem p(device, {3, 3, 1, beam, 3, beam}, true, some);
      std::vector<float> books;
      for (const auto& [first, others] : {std::pair{10.0f, 20.0f}, {-19.0f, -20.0f}, {9.0f, 30.0f}}) {
        books.push_back(first);
        books.insert(books.end(), size_t(beam - 1), others);
      }
      p.codebooks.write(books);
      p.z.write(std::vector<float>(9, 0.0f));
      p.stages.write({3, 2, 1}), p.frames.write({3, 3, 3});
      const std::vector<int32_t> nearest = {0, 0, 0}, undone = {1, 1, 0};
      const std::vector<int32_t> codes = codes_of(p);
      for (size_t r = 0; r < 9; ++r)
        CHECK(std::vector<int32_t>(codes.begin() + 3 * r, codes.begin() + 3 * (r + 1)) ==
              (r / 3 == 1 ? undone : nearest));
      // All of the energy is gone, and after stage 2, and what the nearest code of stage 1 leaves.
      const std::vector<float> y = p.y.read();
      for (size_t r = 0; r < 9; ++r) CHECK(y[r] == (r / 3 == 2 ? 10.0f : 0.0f));
    }
}

TEST_CASE("a beam's nearest code is that of beam 1 where scores round to the same", "[rvq]") {
  // z = (1, 1), energy 1. Half distances: 8388607.5 of (2, -4095), twice, and 8388607 of (1, -4095). With the energy
  // both become 2^23, by rounding, a tie that goes to the first codes. The nearest code, the last, leaves (0, 4096),
  // the others (-1, 4096). Of these, (64, 4096) leaves 2048 and 2112 in float. All other operations are exact.
  for (Device device : devices()) {
    for (const int64_t frames : {1, 9}) {  // read in place, and packed
      Problem p(device, {1, frames, 2, 3, 2, 2}, true), one(device, {1, frames, 2, 3, 2, 1}, true);
      for (Problem* q : {&p, &one}) {
        q->z.write(std::vector<float>(size_t(2 * frames), 1.0f));
        q->codebooks.write({2, -4095, 2, -4095, 1, -4095, 64, 4096, -3000, -3000, -3000, -3000});
      }
      const std::vector<int32_t> codes = codes_of(p);
      CHECK(codes == codes_of(one));
      CHECK(codes[0] == 2);
      CHECK(codes[1] == 0);
    }
  }
}

TEST_CASE("a beam lowers the mean energy of what is left", "[rvq]") {
  // Between two beams this does not hold for every row: a hypothesis that is dropped could have been the best.
  for (Device device : devices()) {
    double before = INFINITY;
    for (const int64_t beam : {1, 4, 16}) {
      Problem p(device, {4, 60, 12, 32, 5, beam}, false);
      const std::vector<int32_t> codes = codes_of(p);
      double mean = 0;
      for (int64_t r = 0; r < p.rows; ++r) mean += energy_of(p, codes, r) / double(p.rows);
      CHECK(mean < before);
      before = mean;
    }
  }
}

TEST_CASE("a beam's codes are the same on every device, for any threads, and row by row", "[rvq]") {
  for (const Size n : {Size{2, 31, 24, 70, 4, 4}, Size{1, 14, 40, 1024, 3, 16}, Size{1, 9, 33, 50, 3, 50},
                       Size{1, 5, 300, 30, 3, 64}}) {
    std::vector<int32_t> first;
    for (Device device : devices()) {
      const bool fused = std::string(Context({.device = {Device::cpu}}).instruction_set()) != "baseline";
      std::vector<int32_t> own;
      std::vector<std::vector<float>> results;
      for (const int threads : device.kind == Device::cpu ? std::vector<int>{1, 2, 3} : std::vector<int>{2}) {
        Problem p(device, n, false, some, threads);
        const RvqForward a = p.arguments();
        rvq_forward(p.c.ctx, a);  // starts the thread pool
        AllocationCounter counter;
        rvq_forward(p.c.ctx, a);
        CHECK(counter.count() == 0);
        if (own.empty()) {
          own = p.codes.read();
          results = {p.y.read(), p.quantised.read(), p.losses.read()};
        }
        p.c.expect_equal<int32_t>(p.codes, own);
        p.c.expect_equal<float>(p.y, results[0]);
        p.c.expect_equal<float>(p.quantised, results[1]);
        p.c.expect_equal<float>(p.losses, results[2]);
      }
      // CUDA fuses each product with its sum, as the CPU does if it can.
      if (first.empty()) first = own;
      if (fused) CHECK(own == first);

      Problem p(device, n, false);
      const std::vector<int32_t> codes = codes_of(p);
      const std::vector<float> y = p.y.read();
      auto& one = p.c.output<int32_t>("one frame's codes", {1, 1, 1, n.stages});
      auto& one_y = p.c.output("one frame", {1, 1, 1, n.dim});
      for (int64_t r = 0; r < p.rows; r += 3) {
        RvqForward a = p.arguments();
        a.z = View<const float>(p.z.data() + r * n.dim, one_y.shape());
        a.y = one_y, a.codes = one, a.quantised = {}, a.losses = {};
        rvq_forward(p.c.ctx, a);
        p.c.expect_equal<int32_t>(one, {codes.begin() + r * n.stages, codes.begin() + (r + 1) * n.stages});
        p.c.expect_equal<float>(one_y, {y.begin() + r * n.dim, y.begin() + (r + 1) * n.dim});
      }
    }
  }
}

TEST_CASE("a beam and numbers that are none", "[rvq]") {
  for (Device device : devices())
    for (const int64_t beam : {2, 16, 40}) {
      const Size n{1, 15, 6, 21, 3, beam};
      Problem p(device, n, true);
      const std::vector<int32_t> before = codes_of(p);
      std::vector<float> z = p.z.before();
      z[size_t(4 * n.dim + 2)] = NAN;
      z[size_t(5 * n.dim)] = 1e30f;  // its energy overflows
      z[size_t(14 * n.dim + 5)] = INFINITY;
      p.z.write(z);
      const std::vector<int32_t> codes = codes_of(p);
      for (int64_t i = 0; i < p.rows * n.stages; ++i) {
        const int64_t r = i / n.stages;
        CHECK(codes[size_t(i)] == (r == 4 || r == 5 || r == 14 ? 0 : before[size_t(i)]));
      }
      // A code with NaN is chosen only if there is no other.
      Problem q(device, n, true);
      std::vector<float> books = q.codebooks.before();
      for (int64_t k = 0; k < n.codes; k += 2) books[size_t((n.codes + k) * n.dim + k % n.dim)] = NAN;
      q.codebooks.write(books);
      const std::vector<int32_t> odd = codes_of(q);
      for (size_t i = 1; i < odd.size(); i += size_t(n.stages)) CHECK(odd[i] % 2 == 1);
      for (float& v : books) v = NAN;
      q.codebooks.write(books);
      for (const int32_t k : codes_of(q)) CHECK(k == 0);
    }
}

TEST_CASE("rvq_forward names a beam that it cannot have", "[rvq]") {
  Problem p(devices().front(), {2, 3, 8, 16, 2, 4}, true);
  RvqForward a = p.arguments();
  for (const int64_t beam : {int64_t{0}, int64_t{-1}, max_rvq_beam + 1}) {
    a.beam = beam;
    CHECK_THROWS_WITH(rvq_forward(p.c.ctx, a),
                      Catch::Contains("rvq_forward: beam is " + std::to_string(beam) + ", expected 1 to 64"));
  }
  a.beam = 4, a.metric = VqMetric::cosine;
  CHECK_THROWS_WITH(rvq_forward(p.c.ctx, a), Catch::Contains("beam is 4, expected 1 with the cosine metric"));
  a.metric = VqMetric::euclidean;
  auto &weight = p.c.zeros("weight", {2, 8, 1, 8}), &bias = p.c.zeros("bias", {2, 1, 1, 8});
  a.projections = {.in_weight = weight, .in_bias = bias, .out_weight = weight, .out_bias = bias};
  CHECK_THROWS_WITH(rvq_forward(p.c.ctx, a), Catch::Contains("beam is 4, expected 1 with projections"));
  a = p.arguments();
  a.scratch = p.c.scratch(rvq_forward_scratch(p.c.ctx, p.zs, p.books, false));
  CHECK_THROWS_WITH(rvq_forward(p.c.ctx, a), Catch::Contains("rvq_forward: scratch"));
}
