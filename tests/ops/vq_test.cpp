#include "nacre/ops/vq.h"

#include <set>

#include "harness.h"
#include "nacre/random.h"
#include "reference/vq.h"
#if defined(NACRE_EMULATED)
#include "runtime/runtime.h"
namespace nacre::cuda {
void vq_nearest_products_alone(Context&, const VqNearest&, float* half);
}
#endif

using namespace nacre;
using namespace nacre::test;

namespace {

struct Size {
  int64_t rows, dim, codes;
};
const Size sizes[] = {
    {1, 1, 1},        // the smallest
    {1, 1, 2},        // one dimension
    {2, 3, 5},        // less than any vector
    {12, 8, 16},      // exactly one tile of rows and one block of codes
    {13, 8, 17},      // one more of each
    {11, 8, 15},      // one less of each
    {48, 4, 32},      // exactly the rows of one call
    {49, 4, 33},      // one more
    {97, 7, 31},      // odd, two calls and one row
    {1, 64, 1024},    // one frame: the streaming case
    {5, 64, 1000},    // codes do not fill the last block
    {110, 64, 1024},  // the size of a codec
    {61, 8, 1024},    // factorised codes
    {50, 256, 64},    // wide rows
    {3, 1024, 16},    // a latent of DAC
    {1000, 1, 7},     // long and narrow
    {7, 1536, 3},     // short and wide
    {30, 2, 4096},    // many codes, little else
    {25, 33, 63},     // nothing divides anything
    {150, 128, 256},  // an EnCodec latent
    {36, 5, 1},       // one code: all rows choose it
};

std::vector<double> doubles(const Buffer<float>& b) {
  std::vector<double> out;
  for (int64_t i = 0; i < b.size(); ++i) out.push_back(b[i]);
  return out;
}

// The largest excess of a chosen code's half distance over that of any other code, in units of the possible rounding
// error.
double excess(const std::vector<double>& x, const std::vector<double>& book, const std::vector<int32_t>& chosen,
              int64_t dim, bool cosine) {
  // Euclidean: the half norm has 1 + dim roundings and then dim subtractions, a product 1 + dim. Cosine: each factor
  // has the error of its own norm, (dim + 1) / 2 + 3 roundings.
  const double roundings = cosine ? 3.0 * static_cast<double>(dim) + 9 : 2.0 * static_cast<double>(dim) + 2;
  double worst = 0;
  for (size_t r = 0; r < chosen.size(); ++r) {
    const HalfDistances h = half_distances(x.data() + static_cast<int64_t>(r) * dim, book, dim, cosine);
    REQUIRE(chosen[r] >= 0);
    REQUIRE(static_cast<size_t>(chosen[r]) < h.value.size());
    const size_t k = static_cast<size_t>(chosen[r]);
    for (size_t j = 0; j < h.value.size(); ++j)
      worst = std::max(worst, (h.value[k] - h.value[j]) / (roundings * ulp * (h.size[k] + h.size[j]) + 1e-300));
  }
  return worst;
}

void nearest_case(Device device, Size s, VqMetric metric) {
  const Shape shape{1, s.rows, 1, s.dim};
  Case c("vq_nearest", device, shape);
  auto &x = c.random("x", shape, -1, 1), &book = c.random("codebook", {1, s.codes, 1, s.dim}, -1, 1);
  auto& codes = c.output<int32_t>("codes", {1, s.rows, 1, 1});
  auto &y = c.output("y", shape), &sum = c.random("sum", shape, -1, 1);
  vq_nearest(c.ctx, {.x = x,
                     .codebook = book,
                     .codes = codes,
                     .scratch = c.scratch(vq_nearest_scratch(c.ctx, shape, book.shape())),
                     .metric = metric});
  vq_gather(c.ctx, {.codebook = book, .codes = codes, .y = y});
  vq_gather(c.ctx, {.codebook = book, .codes = codes, .y = sum, .add_y = true});
  std::vector<int32_t> found = codes.read();
  INFO(s.rows << " rows, " << s.dim << " channels, " << s.codes << " codes");
  CHECK(excess(doubles(x), doubles(book), found, s.dim, metric == VqMetric::cosine) <= 1);
  const auto chosen = [&](int64_t i) { return book[found[static_cast<size_t>(i / s.dim)] * s.dim + i % s.dim]; };
  c.expect<float>(y, chosen, [](int64_t) { return 0.0; });
  c.expect<float>(
      sum, [&](int64_t i) { return sum[i] + chosen(i); }, [&](int64_t) { return 2 * ulp; });
  if (s.codes < 2 || s.dim < 2) return;
  // A wrong code must be noticed.
  found.back() = (found.back() + 1) % static_cast<int32_t>(s.codes);
  CHECK(excess(doubles(x), doubles(book), found, s.dim, metric == VqMetric::cosine) > 1);
}

}  // namespace

TEST_CASE("vq_nearest finds the nearest code", "[vq]") {
  for (Device device : devices())
    for (Size s : sizes)
      for (VqMetric metric : {VqMetric::euclidean, VqMetric::cosine}) nearest_case(device, s, metric);
}

TEST_CASE("vq_nearest finds the same codes on every device and by every rung", "[vq][a100][rtx3090]") {
  for (VqMetric metric : {VqMetric::euclidean, VqMetric::cosine})
    // Few rows; one tile, and one more; many rows of few channels; more channels than a tile holds in 99 KiB, and in
    // any shared memory.
    for (Size s : {Size{3, 8, 130},
                   {16, 20, 1025},
                   {17, 33, 129},
                   {32768, 4, 3},
                   {32773, 8, 5},
                   {32769, 16, 2},
                   {2, 1300, 3},
                   {2, 1540, 3}}) {
      std::vector<int32_t> first;
      for (Device device : devices()) {
        const Shape shape{1, s.rows, 1, s.dim}, books{1, s.codes, 1, s.dim};
        Case c("vq_nearest devices", device, shape);
        auto &x = c.random("x", shape, -1, 1), &book = c.random("codebook", books, -1, 1);
        auto& codes = c.output<int32_t>("codes", {1, s.rows, 1, 1});
        vq_nearest(c.ctx, {.x = x,
                           .codebook = book,
                           .codes = codes,
                           .scratch = c.scratch(vq_nearest_scratch(c.ctx, shape, books)),
                           .metric = metric});
        INFO(s.rows << " rows, " << s.dim << " channels, " << s.codes << " codes");
        // CUDA fuses each product with its subtraction, as the CPU does if it can.
        const bool fused = std::string(Context({.device = {Device::cpu}}).instruction_set()) != "baseline";
        if (first.empty())
          first = codes.read();
        else if (fused)
          c.expect_equal<int32_t>(codes, first);
#if defined(NACRE_EMULATED)
        if (device.kind == Device::cuda) {
          CHECK(cuda::runtime(c.ctx).launches("vq_nearest_rows") == (s.rows >= 32768 ? 1 : 0));
          const int64_t most_dim = cuda::limits(c.ctx).shared_per_block == 99 << 10 ? 1252 : 1536;
          CHECK(cuda::runtime(c.ctx).launches("vq_nearest") == (s.dim > most_dim ? 1 : 0));
        }
#endif
      }
    }
}

namespace {

// Rows and codes for which approximate scores hardly distinguish the nearest code.
enum class Kind { random, integers, near_ties, duplicates, huge, small, mixed, broken, outlier, last_ };

struct Rows {
  std::vector<float> x, book;
};
Rows rows_of(Kind kind, Size s, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::uniform_int_distribution<int> integer(-2, 1), any(0, 1 << 20);
  Rows r{std::vector<float>(static_cast<size_t>(s.rows * s.dim)),
         std::vector<float>(static_cast<size_t>(s.codes * s.dim))};
  for (auto* v : {&r.x, &r.book})
    for (float& f : *v) f = kind == Kind::integers ? static_cast<float>(integer(rng)) : uniform(rng);
  const auto code = [&](int64_t k) { return r.book.data() + k * s.dim; };
  for (int64_t k = 4; k < s.codes; ++k)
    for (int64_t d = 0; d < s.dim; ++d) {
      // Four clusters whose members differ in their last bits, at near and at distant indices.
      if (kind == Kind::near_ties) code(k)[d] = code(k % 4)[d] * (1 + 0x1p-22f * static_cast<float>(any(rng) % 9 - 4));
      if (kind == Kind::duplicates && k % 3 != 0) code(k)[d] = code(any(rng) % k)[d];
    }
  const float scales[] = {1e-30f, 1e-12f, 1e-3f, 1.0f, 1e5f, 3e18f, 1e25f};
  const auto scale = [&] {
    return kind == Kind::huge    ? 1.5e18f
           : kind == Kind::small ? 1e-21f
           : kind == Kind::mixed ? scales[any(rng) % 7]
                                 : 1.0f;
  };
  for (int64_t i = 0; i < s.rows; ++i) {
    const float by = scale();
    const int64_t like = any(rng) % s.codes;
    for (int64_t d = 0; d < s.dim; ++d) {
      float& v = r.x[static_cast<size_t>(i * s.dim + d)];
      if (kind == Kind::near_ties && i % 2 == 0)
        v = code(like)[d] * (1 + 0x1p-20f * static_cast<float>(any(rng) % 3 - 1));
      v *= by;
    }
  }
  for (int64_t k = 0; k < s.codes; ++k) {
    const float by = kind == Kind::outlier && k == s.codes / 2 ? 1e4f : scale();
    for (int64_t d = 0; d < s.dim; ++d) code(k)[d] *= by;
  }
  const float bad[] = {std::nanf(""), INFINITY, -INFINITY, 3e38f, -0.0f, 1e-42f};
  if (kind == Kind::broken)
    for (auto* v : {&r.x, &r.book})
      for (size_t i = 0; i < v->size(); i += static_cast<size_t>(s.dim) * 3 + 1) (*v)[i] = bad[any(rng) % 6];
  return r;
}

// The search by sums and the search by products give the same codes.
void rungs_case(Device device, Kind kind, Size s, VqMetric metric) {
  const Shape shape{1, s.rows, 1, s.dim}, books{1, s.codes, 1, s.dim};
  Case c("vq_nearest rungs", device, shape);
  const Rows r = rows_of(kind, s, 17 * static_cast<uint64_t>(s.rows) + static_cast<uint64_t>(s.dim));
  auto &x = c.values("x", shape, r.x), &book = c.values("codebook", books, r.book);
  auto &sums = c.output<int32_t>("by sums", {1, s.rows, 1, 1}),
       &products = c.output<int32_t>("by products", {1, s.rows, 1, 1});
  VqNearest a{.x = x,
              .codebook = book,
              .codes = sums,
              .scratch = c.scratch(vq_nearest_scratch(c.ctx, shape, books)),
              .metric = metric,
              .method = VqMethod::sums};
  vq_nearest(c.ctx, a);
#if defined(NACRE_EMULATED)
  if (device.kind == Device::cuda) CHECK(cuda::runtime(c.ctx).launches("vq_nearest_products") == 0);
#endif
  a.codes = products, a.method = VqMethod::products;
  vq_nearest(c.ctx, a);
#if defined(NACRE_EMULATED)
  if (device.kind == Device::cuda)
    CHECK(cuda::runtime(c.ctx).launches("vq_nearest_products") == (s.dim <= 128 ? 1 : 0));
#endif
  INFO("kind " << static_cast<int>(kind) << ": " << s.rows << " rows, " << s.dim << " channels, " << s.codes
               << " codes");
  c.expect_equal<int32_t>(products, sums.read());
}

}  // namespace

TEST_CASE("vq_nearest finds the same codes by sums and by products", "[vq][rtx3090]") {
  for (Device device : devices()) {
    const VqMetric metrics[] = {VqMetric::euclidean, VqMetric::cosine};
    int turn = 0;
    for (int64_t dim : {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 130})
      rungs_case(device, Kind::random, {35, dim, 70}, metrics[turn++ % 2]);
    for (Kind kind = Kind::random; kind != Kind::last_; kind = static_cast<Kind>(static_cast<int>(kind) + 1))
      for (Size s : {Size{150, 8, 200}, {70, 16, 130}, {40, 6, 129}, {32, 32, 130}, {32, 128, 128}})
        rungs_case(device, kind, s, metrics[turn++ % 2]);
    // Incomplete blocks of rows, groups, and stages of codes.
    for (Size s : {Size{1, 8, 1},
                   {512, 8, 63},
                   {513, 8, 65},
                   {383, 16, 257},
                   {385, 14, 255},
                   {257, 24, 129},
                   {256, 64, 128},
                   {20, 8, 1025},
                   {20, 8, 1100},
                   {17, 16, 1000},
                   {9, 64, 513},
                   {9, 90, 200}})
      rungs_case(device, Kind::random, s, VqMetric::euclidean);
  }
}

#if defined(NACRE_EMULATED)
TEST_CASE("vq_nearest leaves few rows to sums", "[vq]") {
  for (Device device : devices()) {
    if (device.kind != Device::cuda) continue;
    for (Size s : {Size{500, 8, 512}, {380, 16, 256}, {250, 32, 256}, {250, 64, 256}, {250, 128, 256}}) {
      const Shape shape{1, s.rows, 1, s.dim}, books{1, s.codes, 1, s.dim};
      Case c("vq_nearest products", device, shape);
      auto &x = c.random("x", shape, -1, 1), &book = c.random("codebook", books, -1, 1);
      auto &sums = c.output<int32_t>("by sums", {1, s.rows, 1, 1}),
           &products = c.output<int32_t>("by products", {1, s.rows, 1, 1});
      VqNearest a{.x = x,
                  .codebook = book,
                  .codes = sums,
                  .scratch = c.scratch(vq_nearest_scratch(c.ctx, shape, books)),
                  .method = VqMethod::sums};
      vq_nearest(c.ctx, a);
      auto& half = c.output("half distances", {1, s.rows, 1, 1});
      a.codes = products;
      cuda::vq_nearest_products_alone(c.ctx, a, half.data());
      const std::vector<int32_t> exact = sums.read(), found = products.read();
      const std::vector<float> halves = half.read();
      cuda::vq_nearest_products_alone(c.ctx, a, nullptr);
      c.expect_equal<int32_t>(products, found);
      int64_t left = 0, wrong = 0;
      for (size_t i = 0; i < found.size(); ++i) {
        left += found[i] == -1;
        wrong += found[i] != -1 && found[i] != exact[i];
        if (found[i] == -1) continue;
        const auto code = [&](int64_t d) { return static_cast<float>(book[exact[i] * s.dim + d]); };
        float h = 0;
        for (int64_t d = 0; d < s.dim; ++d) h = std::fma(code(d), code(d), h);
        h *= 0.5f;
        for (int64_t d = 0; d < s.dim; ++d)
          h = std::fma(-static_cast<float>(x[static_cast<int64_t>(i) * s.dim + d]), code(d), h);
        wrong += halves[i] != h;
      }
      INFO(s.dim << " channels: " << left << " of " << s.rows << " rows left");
      CHECK(wrong == 0);
      // With 128 channels, one row in a hundred has two codes in a lane that lie within the error bound of each other.
      CHECK(left * 20 <= s.rows);
    }
  }
}
#endif

TEST_CASE("vq_nearest is exact on integers and gives ties to the lower index", "[vq]") {
  for (Device device : devices()) {
    const Shape shape{3, 67, 1, 6};
    Case c("vq_nearest integers", device, shape);
    // 200 codes of 4096 possible ones, with coordinates from -2 to 1, have many exact ties.
    auto &x = c.integers("x", shape, -2, 1), &book = c.integers("codebook", {1, 200, 1, 6}, -2, 1);
    auto& codes = c.output<int32_t>("codes", {3, 67, 1, 1});
    vq_nearest(c.ctx, {.x = x,
                       .codebook = book,
                       .codes = codes,
                       .scratch = c.scratch(vq_nearest_scratch(c.ctx, shape, book.shape()))});
    const std::vector<double> xs = doubles(x), books = doubles(book);
    std::vector<int32_t> expected;
    for (int64_t r = 0; r < shape.rows(); ++r) {
      const std::vector<double> h = half_distances(xs.data() + r * 6, books, 6, false).value;
      expected.push_back(static_cast<int32_t>(std::min_element(h.begin(), h.end()) - h.begin()));
    }
    c.expect_equal<int32_t>(codes, expected);
  }
}

TEST_CASE("vq_nearest gives code 0 to rows with NaN and never a code with NaN", "[vq]") {
  for (Device device : devices()) {
    const Shape shape{1, 30, 1, 4};
    Case c("vq_nearest NaN", device, shape);
    auto &x = c.random("x", shape, -1, 1), &book = c.random("codebook", {1, 20, 1, 4}, -1, 1);
    std::vector<float> spoilt = x.before();
    spoilt[7 * 4 + 2] = spoilt[29 * 4] = std::nanf("");
    x.write(spoilt);
    std::vector<float> bad = book.before();
    for (size_t k : {0u, 3u, 19u}) bad[k * 4 + 1] = std::nanf("");
    book.write(bad);
    auto& codes = c.output<int32_t>("codes", {1, 30, 1, 1});
    vq_nearest(c.ctx, {.x = x,
                       .codebook = book,
                       .codes = codes,
                       .scratch = c.scratch(vq_nearest_scratch(c.ctx, shape, book.shape()))});
    const std::vector<int32_t> found = codes.read();
    for (size_t r = 0; r < 30; ++r) {
      if (r == 7 || r == 29)
        CHECK(found[r] == 0);
      else
        CHECK((found[r] > 0 && found[r] != 3 && found[r] < 19));
    }
  }
}

TEST_CASE("vq ops do not allocate and do not depend on threads or neighbours", "[vq]") {
  for (Device device : devices()) {
    const Shape shape{1, 211, 1, 24}, book_shape{2, 50, 1, 24};
    std::vector<int32_t> first;
    std::vector<float> first_book, first_means;
    for (int threads : {1, 2, 3}) {
      Case c("vq threads", device, shape, threads);
      auto &x = c.random("x", {2, 211, 1, 24}, -1, 1), &book = c.random("codebooks", book_shape, -1, 1);
      auto &counts = c.random("counts", {1, 1, 1, 100}, 0, 2), &sums = c.random("sums", book_shape, -1, 1);
      auto &codes = c.output<int32_t>("codes", {1, 211, 1, 1}), &step = c.values<int32_t>("step", {}, {3});
      auto& both = c.integers<int32_t>("stage codes", {1, 211, 1, 2}, 0, 49);
      auto& means = c.output("means", {1, 50, 1, 24});
      const View<const float> rows(x.data(), shape), one(book.data(), {1, 50, 1, 24});
      const View<float> scratch = c.scratch(vq_nearest_scratch(c.ctx, shape, one.shape)),
                        ema_scratch = c.scratch(vq_ema_scratch(c.ctx, x.shape(), book_shape)),
                        means_scratch = c.scratch(vq_kmeans_scratch(c.ctx, shape, one.shape));
      const auto all = [&] {
        vq_nearest(c.ctx, {.x = rows, .codebook = one, .codes = codes, .scratch = scratch});
        vq_kmeans(c.ctx, {.x = rows, .codebook = means, .scratch = means_scratch, .iterations = 3, .seed = 9});
        vq_ema(c.ctx, {.x = x,
                       .codes = both,
                       .codebooks = book,
                       .counts = counts,
                       .sums = sums,
                       .step = step,
                       .scratch = ema_scratch,
                       .dead_below = 0.5f});
      };
      all();  // starts the thread pool
      AllocationCounter counter;
      all();
      CHECK(counter.count() == 0);
      if (threads == 1) first = codes.read(), first_book = book.read(), first_means = means.read();
      c.expect_equal<int32_t>(codes, first);
      c.expect_equal<float>(book, first_book);
      c.expect_equal<float>(means, first_means);
    }
  }
}

namespace {

void ema_case(Device device, int64_t stages, int64_t batch, int64_t time, int64_t codes, int64_t dim, bool padded) {
  const int64_t rows = batch * time;
  const Shape books{stages, codes, 1, dim};
  Case c("vq_ema", device, books);
  auto &x = c.random("x", {stages, rows, 1, dim}, -1, 1), &book = c.output("codebooks", books);
  auto& chosen = c.integers<int32_t>("codes", {batch, time, 1, stages}, 0, static_cast<int>(codes) - 1);
  auto &counts = c.random("counts", {stages, 1, 1, codes}, 0, 2), &sums = c.random("sums", books, -1, 1);
  auto& step = c.values<int32_t>("step", {}, {41});
  auto& frames = c.integers<int32_t>("frames", {1, 1, 1, batch}, 0, static_cast<int>(time));
  VqEma args{.x = x,
             .codes = chosen,
             .batch = batch,
             .codebooks = book,
             .counts = counts,
             .sums = sums,
             .step = step,
             .scratch = c.scratch(vq_ema_scratch(c.ctx, x.shape(), books)),
             .decay = 0.75f,
             .dead_below = 0.4f,
             .eps = 1e-3f,
             .seed = 5};
  if (padded) args.frames = frames;
  std::vector<bool> valid;
  std::vector<int64_t> valid_rows;
  for (int64_t r = 0; r < rows; ++r) {
    valid.push_back(!padded || r % time < static_cast<int64_t>(frames[r / time]));
    if (valid.back()) valid_rows.push_back(r);
  }
  vq_ema(c.ctx, args);
  if (valid_rows.empty()) {
    c.expect_equal<float>(sums, sums.before());
    return;
  }
  std::vector<double> wanted, allowed, wanted_counts, wanted_sums, allowed_sums;
  for (int64_t s = 0; s < stages; ++s) {
    EmaReference ref;
    std::vector<double> rows_of_stage;
    std::vector<int32_t> codes_of_stage;
    for (int64_t i = 0; i < rows * dim; ++i) rows_of_stage.push_back(x[s * rows * dim + i]);
    for (int64_t r = 0; r < rows; ++r) codes_of_stage.push_back(static_cast<int32_t>(chosen[r * stages + s]));
    for (int64_t k = 0; k < codes; ++k) ref.counts.push_back(counts[s * codes + k]);
    for (int64_t i = 0; i < codes * dim; ++i) ref.sums.push_back(sums[s * codes * dim + i]);
    ref.codebook.resize(ref.sums.size());
    ref.step(rows_of_stage, codes_of_stage, valid, dim, args.decay, args.dead_below, args.eps);
    std::vector<double> size = ref.size;
    for (int64_t k : ref.dead) {
      const Philox draw{args.seed, static_cast<uint64_t>(s)};
      const int64_t row = valid_rows[draw.below(static_cast<uint64_t>(41 * codes + k), valid_rows.size())];
      ref.counts[static_cast<size_t>(k)] = 1;
      for (int64_t d = 0; d < dim; ++d) {
        ref.codebook[static_cast<size_t>(k * dim + d)] = ref.sums[static_cast<size_t>(k * dim + d)] =
            rows_of_stage[static_cast<size_t>(row * dim + d)];
        size[static_cast<size_t>(k * dim + d)] = 0;
      }
    }
    for (size_t i = 0; i < ref.codebook.size(); ++i) {
      const double count = ref.counts[i / static_cast<size_t>(dim)];
      wanted.push_back(ref.codebook[i]);
      // The sum of the batch is rounded once and blended by four operations. The count takes four more. The scaling
      // takes three.
      allowed.push_back(12 * ulp * size[i] / (count + static_cast<double>(args.eps)));
      // The same five roundings. The sums of a replaced code are the row itself.
      wanted_sums.push_back(ref.sums[i]);
      allowed_sums.push_back(5 * ulp * size[i]);
    }
    wanted_counts.insert(wanted_counts.end(), ref.counts.begin(), ref.counts.end());
  }
  const auto expected = [&](int64_t i) { return wanted[static_cast<size_t>(i)]; };
  const auto allowance = [&](int64_t i) { return allowed[static_cast<size_t>(i)]; };
  c.expect<float>(book, expected, allowance);
  c.expect<float>(
      counts, [&](int64_t i) { return wanted_counts[static_cast<size_t>(i)]; },
      [&](int64_t i) { return 4 * ulp * wanted_counts[static_cast<size_t>(i)]; });
  c.expect<float>(
      sums, [&](int64_t i) { return wanted_sums[static_cast<size_t>(i)]; },
      [&](int64_t i) { return allowed_sums[static_cast<size_t>(i)]; });
  std::vector<double> planted = wanted;
  const size_t blended = static_cast<size_t>(std::max_element(allowed.begin(), allowed.end()) - allowed.begin());
  planted[blended] += 10 * allowed[blended];
  // A planted error needs an allowance. If a row replaced every code, the result is exact and there is none.
  CHECK((allowed[blended] == 0 || worst_ratio(planted, expected, allowance) > 1));
}

}  // namespace

TEST_CASE("vq_ema follows its double reference", "[vq]") {
  for (Device device : devices())
    for (bool padded : {false, true}) {
      ema_case(device, 1, 1, 1, 1, 1, padded);       // the smallest
      ema_case(device, 1, 1, 50, 4, 3, padded);      // many rows per code
      ema_case(device, 3, 4, 9, 16, 5, padded);      // stages innermost in the codes
      ema_case(device, 2, 3, 7, 100, 8, padded);     // more codes than rows: most are dead
      ema_case(device, 8, 2, 33, 65, 64, padded);    // odd counts, the dimension of a codec
      ema_case(device, 1, 5, 1, 3, 200, padded);     // one frame per item, wider than a chunk of the sum
      ema_case(device, 12, 1, 20, 7, 1, padded);     // fewer codes than slices
      ema_case(device, 2, 16, 100, 32, 16, padded);  // a batch
      ema_case(device, 1, 3, 3000, 9, 2, padded);    // more rows than a CUDA block reads at once, and a second block
      ema_case(device, 2, 1, 4097, 1, 1, padded);    // all rows have one code
    }
}

TEST_CASE("vq_ema changes nothing if a valid row of the first stage is not finite", "[vq]") {
  // 40 codes leave room for more flags than the 32 that lanes read at once.
  const int64_t batch = 2, time = 700, rows = batch * time, dim = 40, codes_of_stage = 40;
  const float infinity = std::numeric_limits<float>::infinity();
  for (Device device : devices())
    // Rows 0 to 649 and 700 to 1299 are valid. Only the first stage is checked.
    for (const auto& [stage, row, channel, value, changes] :
         std::vector<std::tuple<int, int64_t, int64_t, float, bool>>{{0, 0, 0, std::nanf(""), false},
                                                                     {0, 649, 39, infinity, false},
                                                                     {0, 1000, 7, infinity, false},
                                                                     {0, 1299, 39, -infinity, false},
                                                                     {0, 650, 2, infinity, true},
                                                                     {0, 1300, 0, std::nanf(""), true},
                                                                     {1, 3, 1, std::nanf(""), true}}) {
      Case c("vq_ema not finite", device, {});
      auto& x = c.random("x", {2, rows, 1, dim}, -1, 1);
      auto& book = c.random("codebooks", {2, codes_of_stage, 1, dim}, -1, 1);
      auto &counts = c.random("counts", {2, 1, 1, codes_of_stage}, 1, 2),
           &sums = c.random("sums", {2, codes_of_stage, 1, dim}, -1, 1);
      auto &codes = c.integers<int32_t>("codes", {batch, time, 1, 2}, 0, static_cast<int>(codes_of_stage) - 1),
           &step = c.zeros<int32_t>("step", {});
      auto& frames = c.values<int32_t>("frames", {1, 1, 1, batch}, {650, 600});
      std::vector<float> spoilt = x.before();
      spoilt[static_cast<size_t>((stage * rows + row) * dim + channel)] = value;
      x.write(spoilt);
      vq_ema(c.ctx, {.x = x,
                     .codes = codes,
                     .frames = frames,
                     .batch = batch,
                     .codebooks = book,
                     .counts = counts,
                     .sums = sums,
                     .step = step,
                     .scratch = c.scratch(vq_ema_scratch(c.ctx, x.shape(), book.shape()))});
      INFO("stage " << stage << ", row " << row);
      if (changes) {
        CHECK(counts.read() != counts.before());
        const std::vector<float> moved = book.read();
        CHECK(
            std::all_of(moved.begin(), moved.begin() + codes_of_stage * dim, [](float v) { return std::isfinite(v); }));
      } else {
        c.expect_equal<float>(book, book.before());
        c.expect_equal<float>(counts, counts.before());
        c.expect_equal<float>(sums, sums.before());
      }
    }
}

TEST_CASE("vq_ema without a valid row changes nothing", "[vq]") {
  for (Device device : devices()) {
    Case c("vq_ema empty", device, {});
    auto &x = c.random("x", {1, 6, 1, 4}, -1, 1), &book = c.random("codebooks", {1, 8, 1, 4}, -1, 1);
    auto &counts = c.zeros("counts", {1, 1, 1, 8}), &sums = c.zeros("sums", {1, 8, 1, 4});
    auto &codes = c.zeros<int32_t>("codes", {2, 3, 1, 1}), &step = c.zeros<int32_t>("step", {});
    auto& frames = c.zeros<int32_t>("frames", {1, 1, 1, 2});
    vq_ema(c.ctx, {.x = x,
                   .codes = codes,
                   .frames = frames,
                   .batch = 2,
                   .codebooks = book,
                   .counts = counts,
                   .sums = sums,
                   .step = step,
                   .scratch = c.scratch(vq_ema_scratch(c.ctx, x.shape(), book.shape()))});
    c.expect_equal<float>(book, book.before());
    c.expect_equal<float>(counts, counts.before());
    c.expect_equal<float>(sums, sums.before());
  }
}

namespace {

// Rows around `clusters` centres, as many codes as needed for all of them.
std::vector<float> clustered(Case& c, int64_t rows, int64_t dim, int64_t clusters) {
  std::uniform_real_distribution<float> wide(-1, 1), narrow(-0.01f, 0.01f);
  std::vector<float> centres, out;
  for (int64_t i = 0; i < clusters * dim; ++i) centres.push_back(wide(c.rng));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < dim; ++d)
      out.push_back(centres[static_cast<size_t>(r % clusters * dim + d)] + narrow(c.rng));
  return out;
}

int64_t used_codes(const std::vector<int32_t>& codes) {
  return static_cast<int64_t>(std::set<int32_t>(codes.begin(), codes.end()).size());
}

}  // namespace

TEST_CASE("vq_kmeans uses its codes and lowers the distance", "[vq]") {
  for (Device device : devices()) {
    const Shape shape{4, 250, 1, 8};
    Case c("vq_kmeans", device, shape);
    auto& x = c.values("x", shape, clustered(c, 1000, 8, 64));
    auto &book = c.output("codebook", {1, 64, 1, 8}), &counts = c.output("counts", {1, 1, 1, 64});
    auto& codes = c.output<int32_t>("codes", {4, 250, 1, 1});
    std::vector<double> errors;
    for (int iterations : {0, 1, 10}) {
      vq_kmeans(c.ctx, {.x = x,
                        .codebook = book,
                        .counts = counts,
                        .scratch = c.scratch(vq_kmeans_scratch(c.ctx, shape, book.shape())),
                        .iterations = iterations,
                        .seed = 3});
      vq_nearest(c.ctx, {.x = x,
                         .codebook = book,
                         .codes = codes,
                         .scratch = c.scratch(vq_nearest_scratch(c.ctx, shape, book.shape()))});
      const std::vector<int32_t> found = codes.read();
      const std::vector<float> centres = book.read();
      std::vector<float> rows_of(64);
      double error = 0;
      for (size_t r = 0; r < 1000; ++r) {
        rows_of[static_cast<size_t>(found[r])] += 1;
        for (size_t d = 0; d < 8; ++d)
          error += std::pow(
              x[static_cast<int64_t>(r * 8 + d)] - static_cast<double>(centres[static_cast<size_t>(found[r]) * 8 + d]),
              2);
      }
      errors.push_back(error);
      c.expect_equal<float>(counts, rows_of);
      if (iterations == 0)  // drawn without replacement, so all differ
        CHECK(std::set<float>(centres.begin(), centres.end()).size() > 500);
      if (iterations == 10) CHECK(used_codes(found) >= 61);  // 95 %
    }
    CHECK(errors[1] < errors[0]);
    CHECK(errors[2] < errors[1]);
  }
}

namespace {

// An iteration from `start`. With small integers every distance is exact, so ties are exact ties.
void lloyd(const std::vector<float>& x, int64_t dim, std::vector<float>& start) {
  const size_t width = static_cast<size_t>(dim), rows = x.size() / width, codes = start.size() / width;
  std::vector<double> distances(rows), sums(start.size());
  std::vector<int64_t> counts(codes);
  for (size_t r = 0; r < rows; ++r) {
    size_t best = 0;
    for (size_t k = 0; k < codes; ++k) {
      double distance = 0;
      for (size_t d = 0; d < width; ++d)
        distance += std::pow(static_cast<double>(x[r * width + d]) - static_cast<double>(start[k * width + d]), 2);
      if (k == 0 || distance < distances[r]) distances[r] = distance, best = k;
    }
    ++counts[best];
    for (size_t d = 0; d < width; ++d) sums[best * width + d] += static_cast<double>(x[r * width + d]);
  }
  for (size_t k = 0; k < codes; ++k)
    for (size_t d = 0; d < width && counts[k] > 0; ++d)
      start[k * width + d] = static_cast<float>(sums[k * width + d]) / static_cast<float>(counts[k]);
  for (size_t k = 0; k < codes; ++k) {
    if (counts[k] > 0) continue;
    const auto farthest = std::max_element(distances.begin(), distances.end());
    if (*farthest <= 0) return;
    *farthest = 0;
    const auto row = x.begin() + (farthest - distances.begin()) * dim;
    std::copy(row, row + dim, start.begin() + static_cast<int64_t>(k) * dim);
  }
}

}  // namespace

TEST_CASE("an iteration of vq_kmeans is that of its reference, bit for bit", "[vq]") {
  struct Size {
    int64_t rows, codes, dim;
    int most;  // coordinates are 0 to `most`
  };
  for (Device device : devices())
    // Few different rows leave codes empty in the first three cases, and several rows are equally far.
    for (const Size& n : {Size{60, 20, 2, 3}, {5000, 40, 3, 2}, {300, 33, 1, 50}, {9000, 7, 2, 9}, {200, 9, 140, 1}}) {
      const Shape shape{1, n.rows, 1, n.dim}, books{1, n.codes, 1, n.dim};
      Case c("vq_kmeans iteration", device, shape);
      auto& x = c.integers("x", shape, 0, n.most);
      auto &start = c.output("start", books), &book = c.output("codebook", books);
      const View<float> scratch = c.scratch(vq_kmeans_scratch(c.ctx, shape, books));
      vq_kmeans(c.ctx, {.x = x, .codebook = start, .scratch = scratch, .iterations = 0, .seed = 4});
      vq_kmeans(c.ctx, {.x = x, .codebook = book, .scratch = scratch, .iterations = 1, .seed = 4});
      std::vector<float> expected = start.read();
      lloyd(x.before(), n.dim, expected);
      c.expect_equal<float>(book, expected);
    }
}

TEST_CASE("vq_kmeans with fewer rows than codes, with one row, with silence", "[vq]") {
  for (Device device : devices())
    for (int64_t rows : {1, 5, 30}) {
      const Shape shape{1, rows, 1, 4}, books{1, 32, 1, 4};
      Case c("vq_kmeans few", device, shape);
      auto &x = c.random("x", shape, -1, 1), &silent = c.zeros("silent", shape);
      auto &book = c.output("codebook", books), &flat = c.output("flat", books);
      const View<float> scratch = c.scratch(vq_kmeans_scratch(c.ctx, shape, books));
      vq_kmeans(c.ctx, {.x = x, .codebook = book, .scratch = scratch, .iterations = 0, .seed = 3});
      // Every code is one of the rows, except for the jitter.
      const std::vector<float> found = book.read();
      for (int64_t k = 0; k < 32; ++k) {
        double best = 1e9;
        for (int64_t r = 0; r < rows; ++r) {
          double far = 0;
          for (int64_t d = 0; d < 4; ++d)
            far = std::max(far, std::fabs(x[r * 4 + d] - static_cast<double>(found[static_cast<size_t>(k * 4 + d)])));
          best = std::min(best, far);
        }
        CHECK(best < 1.001e-3);
      }
      std::set<std::vector<float>> different;
      for (size_t k = 0; k < 32; ++k) different.insert({found.data() + k * 4, found.data() + k * 4 + 4});
      CHECK(different.size() == 32);
      vq_kmeans(c.ctx, {.x = x, .codebook = book, .scratch = scratch, .seed = 3});
      for (float v : book.read()) CHECK(std::isfinite(v));
      vq_kmeans(c.ctx, {.x = silent, .codebook = flat, .scratch = scratch, .seed = 3});
      c.expect_equal<float>(flat, std::vector<float>(128));
    }
}

TEST_CASE("vq_ema revives dead codes", "[vq]") {
  for (Device device : devices()) {
    const Shape shape{1, 1000, 1, 8}, books{1, 64, 1, 8};
    Case c("vq_ema revival", device, shape);
    auto& x = c.values("x", shape, clustered(c, 1000, 8, 64));
    // All codes but one are far away: the worst possible collapse.
    std::vector<float> start(64 * 8, 100.0f);
    std::fill(start.begin(), start.begin() + 8, 0.0f);
    auto &book = c.values("codebook", books, start), &sums = c.values("sums", books, start);
    auto& counts = c.values("counts", {1, 1, 1, 64}, std::vector<float>(64, 1.0f));
    auto &codes = c.output<int32_t>("codes", {1, 1000, 1, 1}), &step = c.zeros<int32_t>("step", {});
    const View<float> near = c.scratch(vq_nearest_scratch(c.ctx, shape, books)),
                      scratch = c.scratch(vq_ema_scratch(c.ctx, shape, books));
    int64_t before = 0;
    // Counts of one fall below dead_below in 34 steps. In 80 steps, revived codes can die and be revived once more.
    for (int i = 0; i < 80; ++i) {
      step.write({i});
      vq_nearest(c.ctx, {.x = x, .codebook = book, .codes = codes, .scratch = near});
      if (i == 0) before = used_codes(codes.read());
      vq_ema(c.ctx, {.x = x,
                     .codes = codes,
                     .codebooks = book,
                     .counts = counts,
                     .sums = sums,
                     .step = step,
                     .scratch = scratch,
                     .decay = 0.9f});
    }
    CHECK(before == 1);
    CHECK(used_codes(codes.read()) >= 48);
  }
}

TEST_CASE("vq ops name what does not fit", "[vq]") {
  Case c("vq shapes", devices().front(), {});
  auto &x = c.random("x", {2, 3, 1, 4}, -1, 1), &book = c.random("codebook", {1, 8, 1, 5}, -1, 1),
       &good = c.random("good", {1, 8, 1, 4}, -1, 1);
  auto &codes = c.zeros<int32_t>("codes", {2, 3, 1, 1}), &step = c.zeros<int32_t>("step", {});
  const View<float> scratch = c.scratch({1, 1, 1, 4000});
  CHECK_THROWS_WITH(vq_nearest(c.ctx, {.x = x, .codebook = book, .codes = codes, .scratch = scratch}),
                    Catch::Contains("vq_nearest: codebook is [1, 8, 1, 5], expected [1, 8, 1, 4]"));
  CHECK_THROWS_WITH(vq_nearest(c.ctx, {.x = x, .codebook = good, .codes = codes}),
                    Catch::Contains("vq_nearest: scratch"));
  CHECK_THROWS_WITH(vq_gather(c.ctx, {.codebook = book, .codes = codes, .y = x}), Catch::Contains("vq_gather: y"));
  CHECK_THROWS_WITH(vq_kmeans(c.ctx, {.x = x, .codebook = book, .scratch = scratch}),
                    Catch::Contains("vq_kmeans: codebook"));
  CHECK_THROWS_WITH(vq_kmeans(c.ctx, {.x = x, .codebook = good, .scratch = scratch, .iterations = -1}),
                    Catch::Contains("vq_kmeans: iterations is -1"));
  VqEma ema{.x = View<const float>(x.data(), {1, 6, 1, 4}),
            .codes = codes,
            .codebooks = good,
            .counts = View<float>(x.data(), {1, 1, 1, 7}),
            .sums = good,
            .step = step,
            .scratch = scratch};
  CHECK_THROWS_WITH(vq_ema(c.ctx, ema), Catch::Contains("vq_ema: counts is [1, 1, 1, 7], expected 8 elements"));
  ema.batch = 4;
  CHECK_THROWS_WITH(vq_ema(c.ctx, ema), Catch::Contains("vq_ema: batch is 4"));
}
