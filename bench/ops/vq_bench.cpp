#include "nacre/ops/vq.h"

#include <algorithm>

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  struct Size {
    int64_t rows, codes, dim;
  };
  std::vector<Size> sizes{{400, 1024, 64}, {4000, 1024, 64}, {4000, 1024, 8}};
  if (suite.cuda())
    sizes = {{1 << 20, 1024, 8}, {1 << 20, 1024, 16}, {1 << 20, 1024, 64}, {1 << 20, 1024, 128}, {2376, 1024, 8}};
  for (Size n : sizes) {
    n.rows = suite.least(n.rows, 70), n.codes = suite.least(n.codes, 40);
    const Shape x{.time = n.rows, .channels = n.dim}, book{.time = n.codes, .channels = n.dim};
    const std::string name = label(x) + "/" + std::to_string(n.codes);
    const auto parameters = [n](const char* op, const char* direction) {
      return std::vector<Parameter>{{"op", op},       {"direction", direction}, {"type", "fp32"},
                                    {"rows", n.rows}, {"codes", n.codes},       {"dim", n.dim}};
    };
    // Where the shape selects tensor cores, the search with sums in float is measured as well.
    const bool ladder = suite.cuda() && n.rows >= 32768;
    for (VqMethod method : ladder ? std::vector{VqMethod::by_shape, VqMethod::sums} : std::vector{VqMethod::by_shape})
      suite.add({.name = (method == VqMethod::sums ? "vq_nearest/by sums/" : "vq_nearest/") + name,
                 .bytes = 4 * (x.elements() + book.elements() + n.rows),
                 .flops = 2 * n.rows * n.codes * n.dim,
                 .peak = ladder && method == VqMethod::by_shape ? "tf32" : "",
                 .parameters = parameters("vq_nearest", "forward")},
                [=](Data& data) -> Run {
                  const View<float> rows = data.random(x), codebook = data.random(book);
                  const View<float> scratch = data.random(vq_nearest_scratch(data.ctx, x, book));
                  const View<int32_t> codes = data.indices({.time = n.rows}, 1);
                  return [=](Context& ctx) {
                    vq_nearest(ctx,
                               {.x = rows, .codebook = codebook, .codes = codes, .scratch = scratch, .method = method});
                  };
                });
    if (suite.cuda() && n.dim != 128) continue;  // codes of the latent's dimension
    suite.add({.name = "vq_gather/" + name,
               .bytes = 4 * (x.elements() + std::min(x.elements(), book.elements()) + n.rows),
               .parameters = parameters("vq_gather", "forward")},
              [=](Data& data) -> Run {
                const View<float> rows = data.random(x), codebook = data.random(book);
                const View<int32_t> codes = data.indices({.time = n.rows}, static_cast<int32_t>(n.codes));
                return [=](Context& ctx) { vq_gather(ctx, {.codebook = codebook, .codes = codes, .y = rows}); };
              });
    suite.add({.name = "vq_ema/" + name,
               .bytes = 4 * (x.elements() + 4 * book.elements() + n.rows),
               .flops = x.elements() + 4 * book.elements(),
               .parameters = parameters("vq_ema", "step")},
              [=](Data& data) -> Run {
                const View<float> rows = data.random(x), codebook = data.random(book), sums = data.random(book),
                                  counts = data.random({.channels = n.codes}, 1, 2);
                const View<float> scratch = data.random(vq_ema_scratch(data.ctx, x, book));
                const View<int32_t> codes = data.indices({.time = n.rows}, static_cast<int32_t>(n.codes)),
                                    step = data.indices({}, 1);
                return [=](Context& ctx) {
                  vq_ema(ctx, {.x = rows,
                               .codes = codes,
                               .codebooks = codebook,
                               .counts = counts,
                               .sums = sums,
                               .step = step,
                               .scratch = scratch});
                };
              });
  }
  const Shape x{.time = suite.least(20000, 100), .channels = 64}, book{.time = suite.least(1024, 20), .channels = 64};
  suite.add({.name = "vq_kmeans/one iteration/" + label(x) + "/" + std::to_string(book.time),
             .bytes = 4 * (x.elements() + book.elements()),
             .flops = 2 * x.time * book.elements(),
             .parameters = {{"op", "vq_kmeans"},
                            {"direction", "step"},
                            {"type", "fp32"},
                            {"rows", x.time},
                            {"codes", book.time},
                            {"dim", x.channels}},
             .eager = true},
            [=](Data& data) -> Run {
              const View<float> rows = data.random(x), codebook = data.random(book),
                                scratch = data.random(vq_kmeans_scratch(data.ctx, x, book));
              return [=](Context& ctx) {
                vq_kmeans(ctx, {.x = rows, .codebook = codebook, .scratch = scratch, .iterations = 1});
              };
            });
});

}  // namespace
}  // namespace nacre::bench
