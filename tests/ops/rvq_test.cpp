#include "ops/rvq_problem.h"
#if defined(NACRE_EMULATED)
#include "runtime/runtime.h"
#endif

using namespace nacre;
using namespace nacre::test;
using namespace nacre::test::rvq;

namespace {

void forward_case(Device device, Size n, Masks masks, bool products = false) {
  Problem p(device, n, masks);
  if (products) p.compute_products();
  rvq_forward(p.c.ctx, p.arguments());
  RvqReference r = p.reference(), size = r;
  r.forward();
  size.absolute();
  size.forward();
  check(p, p.quantised, r.e, size.e);
  check(p, p.y, r.y, size.y);
  const double loss = r.elements() > 0 ? r.commitment : 0, loss_size = r.elements() > 0 ? size.commitment : 0;
  check(p, p.losses, {loss, loss}, {loss_size, loss_size});

  // Each stage is checked bit for bit. The codes follow from the quantised values. Residuals and sums are those of
  // plain float operations.
  const std::vector<float> e = p.quantised.read(), y = p.y.read();
  const std::vector<int32_t> codes = p.codes.read();
  std::vector<float> sum(y.size());
  for (int64_t i = 0; i < n.stages; ++i) {
    const Shape xs{1, p.rows, 1, p.dim}, book{1, n.codes, 1, p.dim};
    const View<const float> x(p.quantised.data() + i * p.rows * p.dim, xs),
        codebook(p.codebooks.data() + i * n.codes * p.dim, book);
    auto& stage = p.c.output<int32_t>("stage codes", {1, p.rows, 1, 1});
    auto& q = p.c.output("stage rows", xs);
    vq_nearest(
        p.c.ctx,
        {.x = x, .codebook = codebook, .codes = stage, .scratch = p.c.scratch(vq_nearest_scratch(p.c.ctx, xs, book))});
    vq_gather(p.c.ctx, {.codebook = codebook, .codes = stage, .y = q});
    std::vector<int32_t> column;
    for (int64_t row = 0; row < p.rows; ++row) column.push_back(codes[static_cast<size_t>(row * n.stages + i)]);
    p.c.expect_equal<int32_t>(stage, column);
    if (p.factorised) continue;
    const std::vector<float> rows = q.read();
    size_t wrong = 0;
    for (size_t j = 0; j < rows.size(); ++j) {
      const size_t at = static_cast<size_t>(i) * rows.size() + j;
      if (i + 1 < n.stages && e[at + rows.size()] != e[at] - rows[j]) ++wrong;
      if (i < r.used[j / static_cast<size_t>(p.dim)]) sum[j] = i == 0 ? rows[j] : sum[j] + rows[j];
    }
    CHECK(wrong == 0);
  }
  if (!p.factorised) p.c.expect_equal<float>(p.y, sum);

  // Decoding gives the same bits, if all items use all stages.
  auto& decoded = p.c.output("decoded", p.zs);
  rvq_decode(p.c.ctx,
             {.codes = p.codes,
              .codebooks = p.codebooks,
              .projections = p.projections(),
              .y = decoded,
              .scratch = p.c.scratch(rvq_decode_scratch(p.c.ctx, p.codes.shape(), p.zs, p.books, p.factorised))});
  if (!masked(masks)) p.c.expect_equal<float>(decoded, y);

  // Encoding does not save what training needs. Its codes are the same.
  RvqForward encode = p.arguments();
  auto& encoded = p.c.output<int32_t>("encoded", p.codes.shape());
  encode.codes = encoded, encode.quantised = {}, encode.losses = {};
  rvq_forward(p.c.ctx, encode);
  p.c.expect_equal<int32_t>(encoded, codes);
  p.c.expect_equal<float>(p.y, y);
  if (!products) return;
  auto& codes_alone = p.c.output<int32_t>("codes alone", p.codes.shape());
  encode.codes = codes_alone, encode.y = {};
  rvq_forward(p.c.ctx, encode);
  p.c.expect_equal<int32_t>(codes_alone, codes);
}

struct Gradients {
  Buffer<float>&dz, &dcodebooks, &din_weight, &din_bias, &dout_weight, &dout_bias;
};

void backward_case(Device device, Size n, Masks masks) {
  Problem p(device, n, masks);
  rvq_forward(p.c.ctx, p.arguments());
  auto &dy = p.c.random("dy", p.zs, -1, 1), &dz = p.c.output("dz", p.zs);
  // Gradients are accumulated (+=). The outputs start with other values, which are subtracted again below.
  auto &dcodebooks = p.c.random("dcodebooks", p.books, -0.1, 0.1),
       &din_weight = p.c.random("din_weight", p.in_weight.shape(), -0.1, 0.1),
       &din_bias = p.c.random("din_bias", p.in_bias.shape(), -0.1, 0.1),
       &dout_weight = p.c.random("dout_weight", p.out_weight.shape(), -0.1, 0.1),
       &dout_bias = p.c.random("dout_bias", p.out_bias.shape(), -0.1, 0.1);
  RvqBackward a{.z = p.z,
                .codebooks = p.codebooks,
                .projections = p.projections(),
                .codes = p.codes,
                .quantised = p.quantised,
                .dy = dy,
                .dz = dz,
                .dcodebooks = dcodebooks,
                .scratch = p.c.scratch(rvq_backward_scratch(p.c.ctx, p.zs, p.books, p.factorised)),
                .commitment_weight = 0.8f,
                .codebook_weight = 1.3f};
  if (p.factorised)
    a.din_weight = din_weight, a.din_bias = din_bias, a.dout_weight = dout_weight, a.dout_bias = dout_bias;
  if (masked(masks)) a.stages = p.stages, a.frames = p.frames;
  a.mean = takes_means(masks);
  rvq_backward(p.c.ctx, a);

  RvqReference r = p.reference(), size;
  r.dy = doubles(dy);
  r.commitment_weight = a.commitment_weight, r.codebook_weight = a.codebook_weight;
  size = r;
  r.backward();
  size.absolute();
  size.backward();
  const auto with_start = [](const Buffer<float>& b, RvqReference::Vector v, bool absolute) {
    for (size_t i = 0; i < v.size(); ++i) v[i] += absolute ? std::fabs(b[int64_t(i)]) : b[int64_t(i)];
    return v;
  };
  const auto check_sum = [&](Buffer<float>& b, const RvqReference::Vector& v, const RvqReference::Vector& s) {
    check(p, b, with_start(b, v, false), with_start(b, s, true));
  };
  check(p, dz, r.dz, size.dz);
  check_sum(dcodebooks, r.dcodebooks, size.dcodebooks);
  if (p.factorised) {
    check_sum(din_weight, r.din_weight, size.din_weight);
    check_sum(din_bias, r.din_bias, size.din_bias);
    check_sum(dout_weight, r.dout_weight, size.dout_weight);
    check_sum(dout_bias, r.dout_bias, size.dout_bias);
  }

  auto& added = p.c.random("dz +=", p.zs, -1, 1);
  RvqBackward more = a;
  more.dz = added, more.add_dz = true, more.dcodebooks = {};
  more.din_weight = more.din_bias = more.dout_weight = more.dout_bias = {};
  rvq_backward(p.c.ctx, more);
  check_sum(added, r.dz, size.dz);
}

/// Differs from backward_case in dz only. The sizes of its terms are those of dz without the projection, and those of
/// the errors of e and of b in the product b e.
void orthogonal_case(Device device, Size n, Masks masks) {
  Problem p(device, n, masks);
  rvq_forward(p.c.ctx, p.arguments());
  auto &dy = p.c.random("dy", p.zs, -1, 1), &dz = p.c.output("dz", p.zs);
  RvqBackward a = p.orthogonal_arguments(dy, dz, 0.8f);
  rvq_backward(p.c.ctx, a);

  RvqReference r = p.reference();
  r.dy = doubles(dy);
  r.commitment_weight = a.commitment_weight;
  RvqReference sizes_of = r;
  r.orthogonal = true;
  r.backward();
  sizes_of.absolute();
  sizes_of.backward();
  const RvqReference::Vector e = r.error(), e_size = sizes_of.error();
  double squares = 0, b_size = 0;
  const double b = RvqReference::factor_of(r.dy, e);
  for (size_t i = 0; i < e.size(); ++i) squares += e[i] * e[i];
  for (size_t i = 0; i < e.size() && squares > 0; ++i)
    b_size += (std::fabs(r.dy[i]) + 2 * std::fabs(b * e[i])) * std::fabs(e_size[i]) / squares;
  RvqReference::Vector size = sizes_of.dz;
  for (size_t i = 0; i < size.size(); ++i) size[i] += std::fabs(b * e_size[i]) + std::fabs(e[i]) * b_size;
  check(p, dz, r.dz, size);

  auto& added = p.c.random("dz +=", p.zs, -1, 1);
  RvqBackward more = a;
  more.dz = added, more.add_dz = true;
  rvq_backward(p.c.ctx, more);
  RvqReference::Vector sum = r.dz;
  for (size_t i = 0; i < sum.size(); ++i) {
    sum[i] += static_cast<double>(added[int64_t(i)]);
    size[i] += std::fabs(static_cast<double>(added[int64_t(i)]));
  }
  check(p, added, sum, size);
}

}  // namespace

TEST_CASE("rvq_forward follows its double reference, and is its stages one by one", "[rvq]") {
  for (Device device : devices())
    for (Size n : sizes)
      for (Masks masks : {none, some, means, mean_of_all})
        for (bool products : {false, true})
          if (wanted(n, masks) && (n.dim > 0 || !products)) forward_case(device, n, masks, products);
}

TEST_CASE("rvq_backward follows its double reference", "[rvq]") {
  for (Device device : devices())
    for (Size n : sizes)
      for (Masks masks : {none, some, means, mean_of_all})
        if (wanted(n, masks)) backward_case(device, n, masks);
  // More rows than a CUDA block lists at once, for more codes than it serves.
  for (Device device : devices()) backward_case(device, {2, 2100, 3, 0, 11, 2}, some);
}

TEST_CASE("rvq_backward without the quantisation error follows its double reference", "[rvq]") {
  std::vector<Size> latent{{1, 600, 9, 0, 30, 2},
                           {3, 700, 3, 0, 20, 3}};  // several parts of the sums, on either device
  for (Size n : sizes)
    if (n.dim == 0) latent.push_back(n);
  for (Device device : devices()) {
    for (Size n : latent)
      for (Masks masks : {none, some}) orthogonal_case(device, n, masks);
    orthogonal_case(device, {2, 9, 8, 0, 16, 3}, nothing_valid);
  }
}

TEST_CASE("rvq_backward without the quantisation error: the blocks' second turn, and errors near zero", "[rvq]") {
  for (Device device : devices()) {
    // There are more elements than 1024 blocks have threads. The results of a forward pass are made up.
    const Shape zs{1, 132000, 1, 2};
    Case c("rvq latent, many rows", device, zs);
    auto &quantised = c.random("quantised", zs, -1, 1), &code = c.random("code", {1, 1, 1, 2}, -0.5, 0.5),
         &long_dy = c.random("dy", zs, -1, 1), &long_dz = c.output("dz", zs);
    auto& zeros = c.integers<int32_t>("codes", {1, zs.time, 1, 1}, 0, 0);
    rvq_backward(c.ctx, {.z = quantised,
                         .codebooks = code,
                         .codes = zeros,
                         .quantised = quantised,
                         .dy = long_dy,
                         .dz = long_dz,
                         .scratch = c.scratch(rvq_backward_scratch(c.ctx, zs, code.shape(), false)),
                         .commitment_weight = 0,
                         .orthogonal = true});
    RvqReference::Vector e = doubles(quantised);
    for (size_t i = 0; i < e.size(); ++i) e[i] = static_cast<double>(code[int64_t(i % 2)]) - e[i];
    const double b = RvqReference::factor_of(doubles(long_dy), e);
    const auto expected = [&](int64_t i) { return static_cast<double>(long_dy[i]) - b * e[size_t(i)]; };
    // One rounding each of e, of b, of their product (unless it is fused), and of dz.
    const auto allowed = [&](int64_t i) { return 4 * ulp * (std::fabs(long_dy[i]) + std::fabs(b * e[size_t(i)])); };
    c.expect<float>(long_dz, expected, allowed);

    // b = 1e39 overflows a float, but b e is no larger than dy.
    Problem p(device, {1, 1, 2, 0, 1, 1}, none);
    p.z.write({1e-39f, 0.0f}), p.codebooks.write({0.0f, 0.0f});
    rvq_forward(p.c.ctx, p.arguments());
    auto &dy = p.c.values("dy", p.zs, {1.0f, 1.0f}), &dz = p.c.output("dz", p.zs);
    rvq_backward(p.c.ctx, p.orthogonal_arguments(dy, dz, 0));
    p.c.expect_equal<float>(dz, {1.0f, 1.0f});
  }
}

TEST_CASE("without the quantisation error nothing of the gradient points along it", "[rvq]") {
  for (Device device : devices())
    for (Masks masks : {none, some}) {
      Problem p(device, {4, 150, 16, 0, 64, 4}, masks);
      p.stages.write({1, 4, 2, 3});
      rvq_forward(p.c.ctx, p.arguments());
      const RvqReference r = [&] {
        RvqReference of = p.reference();
        of.forward();
        return of;
      }();
      const RvqReference::Vector e = r.error();
      // The gradient of a squared error, weighted by channel, plus noise. A large part of it is along e.
      std::vector<float> gradient = p.c.random("noise", p.zs, -0.05, 0.05).before();
      for (size_t i = 0; i < e.size(); ++i) gradient[i] += static_cast<float>(e[i] * (1 + double(i % 16) / 8));
      auto &dy = p.c.values("dy", p.zs, gradient), &dz = p.c.output("dz", p.zs);
      RvqBackward a = p.orthogonal_arguments(dy, dz, 0);
      rvq_backward(p.c.ctx, a);
      const double before = RvqReference::factor_of(doubles(dy), e);
      CHECK(before > 0.5);
      RvqReference::Vector left;
      for (float v : dz.read()) left.push_back(static_cast<double>(v));
      double squares = 0, taking_part = 0;
      for (const double x : e) squares += x * x, taking_part += x != 0;
      REQUIRE(squares > 0.1 * 0.1 * taking_part);
      // There are two roundings of 2^-24 in b and in each dz, and the error of e: four residuals, each rounded to 2^-24
      // of at most |z| = 1, while the error's root mean square is above 0.1.
      CHECK(std::fabs(RvqReference::factor_of(left, e)) < (4 + 4 / 0.1) * ulp * before);
      a.orthogonal = false;
      rvq_backward(p.c.ctx, a);
      p.c.expect_equal<float>(dz, gradient);
    }
}

TEST_CASE("rvq follows its double reference where shared memory is short", "[rvq][a100][rtx3090]") {
  // 99 KiB hold the residuals of 16 rows, but not their y. They hold one group of rows, where more rows than one group
  // per multiprocessor would use two.
  for (Device device : devices())
    for (const Size n : {Size{1, 17, 1000, 0, 20, 2}, Size{1, 1200, 520, 8, 4, 1}}) {
      forward_case(device, n, none);
      backward_case(device, n, none);
    }
}

#if defined(NACRE_EMULATED)
TEST_CASE("rvq takes the rung that shape and device allow", "[rvq][a100][rtx3090][rtx4090]") {
  const Device device{Device::cuda};
  if (const auto all = devices(); std::find(all.begin(), all.end(), device) == all.end()) return;
  const auto launches = [&](Size n, const char* name, bool products = false) {
    Problem p(device, n, none);
    if (products) p.compute_products();
    rvq_forward(p.c.ctx, p.arguments());
    return cuda::runtime(p.c.ctx).launches(name);
  };
  CHECK(launches({1, 3, 20, 8, 5, 2}, "rvq_forward_factorised") == 1);
  CHECK(launches({1, 3, 20, 7, 5, 2}, "rvq_forward") == 1);
  CHECK(launches({1, 3, 20, 8, 5, 2}, "rvq_search", true) == 1);
  CHECK(launches({1, 3, 1030, 8, 5, 2}, "rvq_search", true) == 1);
  CHECK(launches({1, 3, 20, 7, 5, 2}, "rvq_forward_small", true) == 1);
  CHECK(launches({1, 3, 20, 0, 5, 2}, "rvq_forward_latent") == 1);
  CHECK(launches({1, 3, 1030, 0, 5, 2}, "rvq_forward") == 1);
  const bool room = cuda::limits(Context({.device = device})).shared_per_block > 99 << 10;
  CHECK(launches({1, 3, 1000, 0, 5, 2}, room ? "rvq_forward_latent" : "rvq_forward_latent_long") == 1);
}
#endif

TEST_CASE("the reference of rvq_backward is the slope of its objective", "[rvq]") {
  for (Size n : {Size{2, 3, 5, 0, 7, 3}, Size{2, 3, 5, 2, 7, 3}})
    for (Masks masks : {none, some}) {
      Problem p(devices().front(), n, masks);
      auto& dy = p.c.random("dy", p.zs, -1, 1);
      rvq_forward(p.c.ctx, p.arguments());
      RvqReference r = p.reference();
      r.dy = doubles(dy);
      r.commitment_weight = 0.8, r.codebook_weight = 1.3;
      r.freeze();
      r.backward();
      const RvqReference at = r;
      const auto slopes = [&](RvqReference::Vector RvqReference::*input, const RvqReference::Vector& gradient) {
        double worst = 0;
        for (size_t i = 0; i < gradient.size(); ++i) {
          const double step = 1e-5;
          RvqReference up = at, down = at;
          (up.*input)[i] += step;
          (down.*input)[i] -= step;
          worst = std::max(worst, std::fabs((up.objective() - down.objective()) / (2 * step) - gradient[i]));
        }
        // The objective is a polynomial of size one. A step costs step^2, and rounding costs 1e-16 / step.
        CHECK(worst < 1e-8);
      };
      slopes(&RvqReference::z, at.dz);
      slopes(&RvqReference::codebooks, at.dcodebooks);
      slopes(&RvqReference::in_weight, at.din_weight);
      slopes(&RvqReference::in_bias, at.din_bias);
      slopes(&RvqReference::out_weight, at.dout_weight);
      slopes(&RvqReference::out_bias, at.dout_bias);
    }
}

TEST_CASE("rvq without a valid frame, and on silence", "[rvq]") {
  for (Device device : devices())
    for (Size n : {Size{2, 9, 8, 0, 16, 3}, Size{2, 9, 8, 4, 16, 3}}) {
      forward_case(device, n, nothing_valid);
      backward_case(device, n, nothing_valid);
      Problem p(device, n, none, 2, 0);  // every frame has the same zeros
      rvq_forward(p.c.ctx, p.arguments());
      const std::vector<int32_t> codes = p.codes.read();
      for (size_t i = 0; i < codes.size(); ++i) CHECK(codes[i] == codes[i % static_cast<size_t>(n.stages)]);
      for (float v : p.y.read()) CHECK(std::isfinite(v));
      for (float v : p.losses.read()) CHECK(std::isfinite(v));
    }
}

TEST_CASE("a frame's codes do not depend on its neighbours", "[rvq]") {
  for (Device device : devices())
    for (Size n :
         {Size{1, 51, 40, 0, 64, 3}, Size{1, 51, 40, 8, 64, 3}, Size{1, 51, 37, 5, 64, 3}, Size{1, 51, 37, 0, 90, 2}})
      for (int64_t few : {1, 2, 3, 8, 9, -1, -3, -9}) {
        // Negative: with products.
        if (few < 0 && n.dim == 0) continue;
        Problem p(device, n, none);
        if (few < 0) p.compute_products(), few = -few;
        rvq_forward(p.c.ctx, p.arguments());
        const std::vector<float> all = p.y.read(), e = p.quantised.read();
        const std::vector<int32_t> codes = p.codes.read();
        RvqForward a = p.arguments();
        for (int64_t t = 0; t < n.frames; t += few) {
          const int64_t end = std::min(t + few, n.frames);
          const Shape part{1, end - t, 1, n.latent};
          auto& y = p.c.output("few frames", part);
          auto& some = p.c.output<int32_t>("few frames' codes", {1, end - t, 1, n.stages});
          a.z = View<const float>(p.z.data() + t * n.latent, part);
          auto& inputs = p.c.output("few frames' e", {n.stages, end - t, 1, p.dim});
          a.y = y, a.codes = some, a.quantised = inputs, a.losses = {};
          rvq_forward(p.c.ctx, a);
          std::vector<float> of_these;
          for (int64_t i = 0; i < n.stages; ++i)
            of_these.insert(of_these.end(), e.begin() + (i * p.rows + t) * p.dim,
                            e.begin() + (i * p.rows + end) * p.dim);
          p.c.expect_equal<float>(inputs, of_these);
          p.c.expect_equal<float>(y, {all.begin() + t * n.latent, all.begin() + end * n.latent});
          p.c.expect_equal<int32_t>(some, {codes.begin() + t * n.stages, codes.begin() + end * n.stages});
        }
      }
}

TEST_CASE("rvq packs no codebook for few frames on the CPU", "[rvq]") {
  Context ctx({.threads = 1});
  constexpr Shape books{4, 256, 1, 16};
  for (const int64_t frames : {1, 8})
    CHECK(rvq_forward_scratch(ctx, {1, frames, 1, 16}, books, false).elements() < books.elements() / books.batch);
  CHECK(rvq_forward_scratch(ctx, {1, 9, 1, 16}, books, false).elements() > books.elements());
}

TEST_CASE("rvq does not allocate and does not depend on threads", "[rvq]") {
  for (Device device : devices())
    for (auto [n, products] : {std::pair{Size{3, 171, 24, 0, 40, 4}, false},
                               {Size{3, 71, 24, 8, 40, 4}, false},
                               {Size{3, 71, 24, 8, 40, 4}, true}}) {
      std::vector<int32_t> codes;
      std::vector<std::vector<float>> first;
      for (int threads : {1, 2, 3}) {
        Problem p(device, n, some, threads);
        if (products) p.compute_products();
        auto &dy = p.c.random("dy", p.zs, -1, 1), &dz = p.c.output("dz", p.zs), &decoded = p.c.output("y", p.zs);
        auto &dcodebooks = p.c.zeros("dcodebooks", p.books), &din_weight = p.c.zeros("din", p.in_weight.shape()),
             &dout_weight = p.c.zeros("dout", p.out_weight.shape());
        const RvqForward forward = p.arguments();
        RvqBackward backward{.z = p.z,
                             .codebooks = p.codebooks,
                             .projections = p.projections(),
                             .stages = p.stages,
                             .frames = p.frames,
                             .codes = p.codes,
                             .quantised = p.quantised,
                             .dy = dy,
                             .dz = dz,
                             .dcodebooks = dcodebooks,
                             .scratch = p.c.scratch(rvq_backward_scratch(p.c.ctx, p.zs, p.books, p.factorised)),
                             .orthogonal = !p.factorised};
        if (p.factorised) backward.din_weight = din_weight, backward.dout_weight = dout_weight;
        const RvqDecode decode{
            .codes = p.codes,
            .codebooks = p.codebooks,
            .projections = p.projections(),
            .y = decoded,
            .scratch = p.c.scratch(rvq_decode_scratch(p.c.ctx, p.codes.shape(), p.zs, p.books, p.factorised))};
        rvq_forward(p.c.ctx, forward);  // starts the thread pool
        const RvqProducts again{.projections = p.projections(),
                                .y = products ? View<float>(*p.products) : View<float>{},
                                .scratch = p.c.scratch(rvq_products_scratch(n.stages, p.dim, n.latent))};
        AllocationCounter counter;
        if (products) rvq_products(p.c.ctx, again);
        rvq_forward(p.c.ctx, forward);
        rvq_backward(p.c.ctx, backward);
        rvq_decode(p.c.ctx, decode);
        CHECK(counter.count() == 0);
        const std::vector<Buffer<float>*> outputs{&p.y,     &p.quantised, &p.losses,   &dz,
                                                  &decoded, &dcodebooks,  &din_weight, &dout_weight};
        if (threads == 1) {
          codes = p.codes.read();
          for (auto* b : outputs) first.push_back(b->read());
        }
        p.c.expect_equal<int32_t>(p.codes, codes);
        for (size_t i = 0; i < outputs.size(); ++i) p.c.expect_equal<float>(*outputs[i], first[i]);
      }
    }
}

TEST_CASE("rvq_decode takes the first stages only", "[rvq]") {
  for (Device device : devices())
    for (Size n : {Size{2, 9, 8, 0, 16, 5}, Size{2, 9, 8, 4, 16, 5}}) {
      Problem p(device, n, some);
      p.stages.write({2, 2});
      rvq_forward(p.c.ctx, p.arguments());
      std::vector<int32_t> two;
      const std::vector<int32_t> all = p.codes.read();
      for (size_t i = 0; i < all.size(); ++i)
        if (i % 5 < 2) two.push_back(all[i]);
      auto& codes = p.c.values<int32_t>("two", {2, 9, 1, 2}, two);
      auto& y = p.c.output("decoded", p.zs);
      RvqDecode a{.codes = codes,
                  .codebooks = p.codebooks,
                  .projections = p.projections(),
                  .y = y,
                  .scratch = p.c.scratch(rvq_decode_scratch(p.c.ctx, codes.shape(), p.zs, p.books, p.factorised))};
      rvq_decode(p.c.ctx, a);
      p.c.expect_equal<float>(y, p.y.read());
      // Codes out of range are clamped to the nearest valid one, and nothing outside is read.
      codes.write(std::vector<int32_t>(36, 1 << 30));
      rvq_decode(p.c.ctx, a);
      codes.write(std::vector<int32_t>(36, 15));
      const std::vector<float> last = y.read();
      rvq_decode(p.c.ctx, a);
      p.c.expect_equal<float>(y, last);
    }
}

TEST_CASE("rvq ops name what does not fit", "[rvq]") {
  Problem p(devices().front(), {2, 3, 8, 4, 16, 2}, none);
  RvqForward a = p.arguments();
  a.projections.in_bias = {};
  CHECK_THROWS_WITH(rvq_forward(p.c.ctx, a), Catch::Contains("rvq_forward: projections.in_bias"));
  a = p.arguments();
  a.projections = {};
  CHECK_THROWS_WITH(rvq_forward(p.c.ctx, a),
                    Catch::Contains("rvq_forward: codebooks is [2, 16, 1, 4], expected [2, 16, 1, 8]"));
  a = p.arguments();
  a.stages = p.codes;
  CHECK_THROWS_WITH(rvq_forward(p.c.ctx, a), Catch::Contains("rvq_forward: stages is [2, 3, 1, 2], expected 2 elem"));
  a = p.arguments();
  a.scratch = {};
  CHECK_THROWS_WITH(rvq_forward(p.c.ctx, a), Catch::Contains("rvq_forward: scratch"));
  CHECK_THROWS_WITH(rvq_backward(p.c.ctx, {.z = p.z,
                                           .codebooks = p.codebooks,
                                           .projections = p.projections(),
                                           .codes = p.codes,
                                           .quantised = p.z,
                                           .dy = p.y,
                                           .dz = p.y}),
                    Catch::Contains("rvq_backward: quantised"));
  CHECK_THROWS_WITH(rvq_backward(p.c.ctx, {.z = p.z,
                                           .codebooks = p.codebooks,
                                           .projections = p.projections(),
                                           .codes = p.codes,
                                           .quantised = p.quantised,
                                           .dy = p.z,
                                           .dz = p.y,
                                           .scratch = p.c.scratch(rvq_backward_scratch(p.c.ctx, p.zs, p.books, true)),
                                           .orthogonal = true}),
                    Catch::Contains("rvq_backward: orthogonal is true, expected false with projections"));
  CHECK_THROWS_WITH(rvq_decode(p.c.ctx, {.codes = View<const int32_t>(p.codes.data(), {1, 3, 1, 2}),
                                         .codebooks = p.codebooks,
                                         .projections = p.projections(),
                                         .y = p.y,
                                         .scratch = p.c.scratch({1, 1, 1, 4000})}),
                    Catch::Contains("rvq_decode: codes is [1, 3, 1, 2], expected [2, 3, 1, 2]"));
}
