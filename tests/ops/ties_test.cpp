// Ties: among equally near codes the lowest index wins, wherever the others are. Codebooks are periodic, so that each
// row's nearest code recurs in other lanes, warps, tiles and turns of a search. All sums are exact.
#include <algorithm>

#include "harness.h"
#include "nacre/ops/rvq.h"
#include "nacre/ops/vq.h"

using namespace nacre;
using namespace nacre::test;

namespace {

constexpr int64_t ids = 4096;

/// The vector of a code, which recurs with a period. It has an 8, which keeps the directions of different ids distinct,
/// four digits of a number that is unique to the id, and zeros. The last channel distinguishes the repetitions: they
/// lie at equal distances on two sides of a row, which has a zero there. All repetitions of an id have the same norm,
/// so that the cosine metric ties, too.
void put_vector(float* to, int64_t id, int64_t dim, float last) {
  int64_t digits = id * 1103 % ids;  // 1103 is odd, so ids have distinct digits, and those of neighbours differ much
  std::fill(to, to + dim, 0.0f);
  to[dim - 1] = last;
  if (dim == 4) {  // two digits, which are not distinct in direction
    to[0] = static_cast<float>(digits % 64), to[1] = static_cast<float>(digits / 64);
    return;
  }
  to[0] = 8;
  for (int d = 1; d < 5; ++d, digits /= 8) to[d] = static_cast<float>(digits % 8);
}

std::vector<float> periodic_book(int64_t codes, int64_t period, int64_t dim) {
  std::vector<float> book(static_cast<size_t>(codes * dim));
  for (int64_t k = 0; k < codes; ++k)
    put_vector(book.data() + k * dim, k % period, dim, k / period % 2 == 0 ? 1.0f : -1.0f);
  return book;
}

/// The ids that the rows match: the first and the last of the period, and some between.
std::vector<int64_t> ids_of_rows(int64_t rows, int64_t period) {
  std::vector<int64_t> out;
  for (int64_t r = 0; r < rows; ++r) out.push_back(r % 2 == 0 ? (period - 1 - r / 2 % period) : r / 2 * 7 % period);
  return out;
}

std::vector<float> rows_of(const std::vector<int64_t>& wanted, int64_t dim, int64_t width) {
  std::vector<float> x(wanted.size() * static_cast<size_t>(width));
  for (size_t r = 0; r < wanted.size(); ++r) put_vector(x.data() + r * static_cast<size_t>(width), wanted[r], dim, 0);
  return x;
}

void nearest_case(Device device, int64_t rows, int64_t dim, int64_t codes, int64_t period, VqMetric metric,
                  VqMethod method) {
  REQUIRE((dim > 5 || (dim == 4 && metric == VqMetric::euclidean)));
  const Shape xs{1, rows, 1, dim}, books{1, codes, 1, dim};
  Case c("vq_nearest ties", device, xs, 3);
  const std::vector<int64_t> wanted = ids_of_rows(rows, period);
  auto &x = c.values("x", xs, rows_of(wanted, dim, dim)),
       &book = c.values("codebook", books, periodic_book(codes, period, dim));
  auto& found = c.output<int32_t>("codes", {1, rows, 1, 1});
  vq_nearest(c.ctx, {.x = x,
                     .codebook = book,
                     .codes = found,
                     .scratch = c.scratch(vq_nearest_scratch(c.ctx, xs, books)),
                     .metric = metric,
                     .method = method});
  INFO(codes << " codes of " << dim << " channels with a period of " << period);
  c.expect_equal<int32_t>(found, {wanted.begin(), wanted.end()});
}

// Periods around the sizes of lanes, vectors, blocks of 16 and 64 codes, warps, and turns of 1024 codes. Primes meet
// all positions of them.
const int64_t periods[] = {1,   3,   4,   5,   15,  16,   17,   31,   33,   64,   100,
                           127, 128, 129, 511, 512, 1000, 1023, 1024, 1025, 2048, 3000};

}  // namespace

TEST_CASE("vq_nearest gives ties to the lowest index in every turn of a search", "[vq][rtx3090]") {
  for (Device device : devices()) {
    int turn = 0;
    const VqMetric metrics[] = {VqMetric::euclidean, VqMetric::cosine};
    // Three turns of 1024 codes and the start of a fourth.
    for (const int64_t period : periods) nearest_case(device, 49, 7, 3100, period, metrics[turn++ % 2], VqMethod::sums);
    for (const int64_t period : {17, 1024})
      nearest_case(device, 5, 40, 2100, period, VqMetric::euclidean, VqMethod::sums);
    // One code per lane of a warp.
    for (const int64_t period : {1, 31, 32, 33, 64, 100})
      nearest_case(device, 3, 1600, 130, period, metrics[turn++ % 2], VqMethod::sums);
  }
}

TEST_CASE("vq_nearest gives ties to the lowest index by products", "[vq][rtx3090]") {
  for (Device device : devices()) {
    int turn = 0;
    const VqMetric metrics[] = {VqMetric::euclidean, VqMetric::cosine};
    for (const int64_t period : periods)
      nearest_case(device, 50, 8, 3100, period, metrics[turn++ % 2], VqMethod::products);
    for (const int64_t dim : {16, 32, 64, 128})  // different numbers of groups in flight
      for (const int64_t period : {1, 3, 16, 63, 64, 65, 256, 300})
        nearest_case(device, 20, dim, 600, period, metrics[turn++ % 2], VqMethod::products);
  }
}

TEST_CASE("vq_nearest gives ties to the lowest index where a thread walks all codes", "[vq]") {
  // The fewest rows that are searched from registers. Shared memory holds 1024 codes of 4 channels at once.
  for (Device device : devices()) nearest_case(device, 32768, 4, 1030, 1024, VqMetric::euclidean, VqMethod::sums);
}

namespace {

/// The first channels of the latent are quantised, and nothing is subtracted from it. Every stage sees the same row.
void factorised_case(Device device, int64_t rows, int64_t latent, int64_t dim, int64_t codes,
                     std::vector<int64_t> of_stages, VqMetric metric) {
  const auto stages = static_cast<int64_t>(of_stages.size());
  const int64_t least = *std::min_element(of_stages.begin(), of_stages.end());
  const Shape zs{1, rows, 1, latent}, books{stages, codes, 1, dim};
  Case c("rvq ties", device, zs, 3);
  const std::vector<int64_t> wanted = ids_of_rows(rows, least);
  std::vector<float> book, in(static_cast<size_t>(stages * dim * latent));
  for (int64_t i = 0; i < stages; ++i) {
    const std::vector<float> one = periodic_book(codes, of_stages[static_cast<size_t>(i)], dim);
    book.insert(book.end(), one.begin(), one.end());
    for (int64_t d = 0; d < dim; ++d) in[static_cast<size_t>((i * dim + d) * latent + d)] = 1;
  }
  auto &z = c.values("z", zs, rows_of(wanted, dim, latent)), &codebooks = c.values("codebooks", books, book);
  auto& in_weight = c.values("in_weight", {stages, dim, 1, latent}, in);
  auto &in_bias = c.zeros("in_bias", {stages, 1, 1, dim}),
       &out_weight = c.zeros("out_weight", {stages, latent, 1, dim}),
       &out_bias = c.zeros("out_bias", {stages, 1, 1, latent}), &y = c.output("y", zs);
  RvqProjections p{.in_weight = in_weight, .in_bias = in_bias, .out_weight = out_weight, .out_bias = out_bias};
  std::vector<int32_t> expected;
  for (const int64_t id : wanted)
    expected.insert(expected.end(), static_cast<size_t>(stages), static_cast<int32_t>(id));
  for (const bool with_products : {false, true}) {
    if (with_products) {
      auto& products = c.output("products", rvq_products_shape(stages, dim));
      rvq_products(c.ctx,
                   {.projections = p, .y = products, .scratch = c.scratch(rvq_products_scratch(stages, dim, latent))});
      p.products = products;
    }
    auto& found = c.output<int32_t>("codes", {1, rows, 1, stages});
    rvq_forward(c.ctx, {.z = z,
                        .codebooks = codebooks,
                        .projections = p,
                        .y = y,
                        .codes = found,
                        .scratch = c.scratch(rvq_forward_scratch(c.ctx, zs, books, true, 1, with_products)),
                        .metric = metric});
    INFO(codes << " codes of " << dim << " channels, latent " << latent << ", periods from " << least << ", products "
               << with_products);
    c.expect_equal<int32_t>(found, expected);
  }
}

/// Codes of the latent's dimension. The second stage sees the residual of the first, (0, ..., 0, -1). Its codes are
/// periodic, too, and the first of each period is the nearest to that residual.
void latent_case(Device device, int64_t rows, int64_t dim, int64_t codes, int64_t period, int64_t second,
                 int64_t beam) {
  const Shape zs{1, rows, 1, dim}, books{2, codes, 1, dim};
  Case c("rvq latent ties", device, zs, 3);
  const std::vector<int64_t> wanted = ids_of_rows(rows, period);
  std::vector<float> book = periodic_book(codes, period, dim);
  book.resize(static_cast<size_t>(2 * codes * dim));
  // Codes with zeros are half a unit nearer than those with 32. The nearest code of each period of the second stage is
  // its first.
  for (int64_t k = 0; k < codes; ++k)
    if (k % second != 0) book[static_cast<size_t>((codes + k) * dim)] = 32;
  auto &z = c.values("z", zs, rows_of(wanted, dim, dim)), &codebooks = c.values("codebooks", books, book),
       &y = c.output("y", zs);
  auto& found = c.output<int32_t>("codes", {1, rows, 1, 2});
  rvq_forward(c.ctx, {.z = z,
                      .codebooks = codebooks,
                      .y = y,
                      .codes = found,
                      .scratch = c.scratch(rvq_forward_scratch(c.ctx, zs, books, false, beam)),
                      .beam = beam});
  std::vector<int32_t> expected;
  for (const int64_t id : wanted) expected.push_back(static_cast<int32_t>(id)), expected.push_back(0);
  INFO(codes << " codes of " << dim << " channels, periods " << period << " and " << second << ", beam " << beam);
  c.expect_equal<int32_t>(found, expected);
}

}  // namespace

TEST_CASE("factorised rvq gives ties to the lowest index in every stage and turn", "[rvq][rtx3090]") {
  for (Device device : devices()) {
    int turn = 0;
    const VqMetric metrics[] = {VqMetric::euclidean, VqMetric::cosine};
    for (const int64_t period : periods)  // 8 channels of code: groups of nine rows, 1024 codes per turn
      factorised_case(device, 19, 20, 8, 3100, {period, std::min<int64_t>(period + 31, 3100)}, metrics[turn++ % 2]);
    for (const int64_t latent : {300, 600})  // two and four channels of latent per thread
      for (const int64_t period : {16, 1000, 1024})
        factorised_case(device, 10, latent, 8, 2100, {1024, period}, VqMetric::euclidean);
    for (const int64_t period : {1, 31, 32, 33, 64, 100})  // other channels of code: one row per warp
      factorised_case(device, 9, 20, 7, 130, {period, 128}, metrics[turn++ % 2]);
  }
}

TEST_CASE("latent rvq gives ties to the lowest index in every stage and turn", "[rvq][rtx3090]") {
  for (Device device : devices()) {
    for (const int64_t period : periods) latent_case(device, 17, 9, 3100, period, 1024, 1);
    for (const int64_t second : {1, 17, 128, 1023, 1025}) latent_case(device, 17, 9, 3100, 1024, second, 1);
    for (const int64_t period : {1, 17, 100, 128})  // equally good hypotheses are ordered by their codes
      latent_case(device, 17, 9, 300, period, 33, 5);
  }
}
