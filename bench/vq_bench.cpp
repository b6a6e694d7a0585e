#include "nacre/ops/vq.h"

#include "harness.h"

namespace nacre::bench {
namespace {

const Cases cases([](Suite& suite) {
  struct Size {
    int64_t rows, codes, dim;
  };
  for (Size n : {Size{400, 1024, 64}, Size{4000, 1024, 64}, Size{4000, 1024, 8}}) {
    const Shape x{.time = n.rows, .channels = n.dim}, book{.time = n.codes, .channels = n.dim};
    const std::string name = label(x) + "/" + std::to_string(n.codes);
    suite.add({.name = "vq_nearest/" + name,
               .bytes = 4 * (x.elements() + book.elements() + n.rows),
               .flops = 2 * n.rows * n.codes * n.dim},
              [=](Data& data) -> Run {
                const View<float> rows = data.random(x), codebook = data.random(book);
                const View<float> scratch = data.random(vq_nearest_scratch(data.ctx, x, book));
                const View<int32_t> codes = data.indices({.time = n.rows}, 1);
                return [=](Context& ctx) {
                  vq_nearest(ctx, {.x = rows, .codebook = codebook, .codes = codes, .scratch = scratch});
                };
              });
    suite.add({.name = "vq_ema/" + name,
               .bytes = 4 * (x.elements() + 4 * book.elements() + n.rows),
               .flops = x.elements() + 4 * book.elements()},
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
  const Shape x{.time = 20000, .channels = 64}, book{.time = 1024, .channels = 64};
  suite.add({.name = "vq_kmeans/one iteration/" + label(x) + "/1024",
             .bytes = 4 * (x.elements() + book.elements()),
             .flops = 2 * x.time * book.elements()},
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
