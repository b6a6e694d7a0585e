#include "nacre/ops/rvq.h"

#include <algorithm>

#include "harness.h"

namespace nacre::bench {
namespace {

struct Size {
  Shape z;
  int64_t stages, codes, dim;  // dim 0: codes have the latent's dimension
  std::vector<int64_t> beams{1};
};

const Cases cases([](Suite& suite) {
  std::vector<Size> sizes{{{.batch = 16, .time = 50, .channels = 64}, 8, 1024, 0},  // 16 items, each 1 s at 16 kHz
                          {{.batch = 1, .time = 1, .channels = 64}, 8, 1024, 0},    // streaming
                          {{.batch = 16, .time = 50, .channels = 40}, 8, 1024, 0, {1, 4, 8, 16}},  // 40 bands
                          {{.batch = 16, .time = 50, .channels = 64}, 12, 1024, 8},                // factorised
                          {{.batch = 4, .time = 86, .channels = 1024}, 9, 1024, 8},                // DAC at 44.1 kHz
                          {{.batch = 1, .time = 1, .channels = 1024}, 12, 1024, 8}};  // DAC at 16 kHz, streaming
  if (suite.cuda())
    sizes = {{{.batch = 72, .time = 33, .channels = 1024}, 9, 1024, 8},  // DAC at 44.1 kHz, its training batch
             {{.batch = 16, .time = 33, .channels = 1024}, 9, 1024, 8},
             {{.batch = 16, .time = 50, .channels = 1024}, 12, 1024, 8},  // DAC at 16 kHz
             {{.batch = 16, .time = 400, .channels = 64}, 16, 1024, 0, {1, 8, 16}},  // speech-16k
             {{.batch = 1, .time = 1, .channels = 1024}, 9, 1024, 8}};    // streaming
  for (Size n : sizes) {
    n.z = suite.fit(n.z), n.stages = suite.least(n.stages, 3), n.codes = suite.least(n.codes, 40);
    n.z.time = suite.least(n.z.time, 12);
    const bool factorised = n.dim > 0;
    const VqMetric metric = factorised ? VqMetric::cosine : VqMetric::euclidean;  // as in the configurations
    const int64_t dim = factorised ? n.dim : n.z.channels, rows = n.z.rows();
    const Shape books{.batch = n.stages, .time = n.codes, .channels = dim};
    const Shape in{.batch = n.stages, .time = dim, .channels = n.z.channels},
        out{.batch = n.stages, .time = n.z.channels, .channels = dim};
    const int64_t chosen = std::min(books.elements(), rows * n.stages * dim);  // codebook elements, if all codes differ
    const int64_t weights = factorised ? 2 * in.elements() : 0;
    const int64_t projected = factorised ? 4 * rows * in.elements() : 0;
    const std::string name =
        label(n.z) + "/" + std::to_string(n.stages) + "x" + std::to_string(n.codes) + "x" + std::to_string(dim);
    const auto parameters = [=](const char* direction) -> std::vector<Parameter> {
      return {{"op", "rvq"},        {"direction", direction},
              {"type", "fp32"},     {"batch", n.z.batch},
              {"time", n.z.time},   {"channels", n.z.channels},
              {"stages", n.stages}, {"codes", n.codes},
              {"dim", n.dim},       {"metric", factorised ? "cosine" : "euclidean"}};
    };
    struct Views {
      RvqProjections p{};
      View<float> z, codebooks, y, quantised, losses;
      View<int32_t> codes;
    };
    const auto make = [=](Data& data) {
      Views v;
      v.z = data.random(n.z), v.codebooks = data.random(books), v.y = data.random(n.z);
      v.quantised = data.random({.batch = n.stages, .time = rows, .channels = dim});
      v.losses = data.random({.channels = 2});
      v.codes = data.indices({.batch = n.z.batch, .time = n.z.time, .channels = n.stages}, int32_t(n.codes));
      if (factorised)
        v.p = {.in_weight = data.random(in, -0.1, 0.1),
               .in_bias = data.random({.batch = n.stages, .channels = dim}),
               .out_weight = data.random(out, -0.1, 0.1),
               .out_bias = data.random({.batch = n.stages, .channels = n.z.channels})};
      return v;
    };
    const auto forward = [=](const Views& v, View<float> scratch, int64_t beam) {
      return RvqForward{.z = v.z,
                        .codebooks = v.codebooks,
                        .projections = v.p,
                        .y = v.y,
                        .codes = v.codes,
                        .quantised = v.quantised,
                        .losses = v.losses,
                        .scratch = scratch,
                        .metric = metric,
                        .beam = beam};
    };
    for (const int64_t beam : n.beams) {
      const int64_t searched = 1 + (n.stages - 1) * beam;  // codebooks searched per row
      std::vector<Parameter> with_beam = parameters("forward");
      with_beam.push_back({"beam", beam});
      suite.add({.name = "rvq_forward/" + name + (beam > 1 ? "/beam:" + std::to_string(beam) : ""),
                 .bytes = 4 * (2 * n.z.elements() + books.elements() + weights + rows * n.stages * (1 + dim)),
                 .flops = 2 * rows * searched * n.codes * dim + projected,
                 .parameters = with_beam},
                [=](Data& data) -> Run {
                  const Views v = make(data);
                  const View<float> scratch = data.random(rvq_forward_scratch(data.ctx, n.z, books, factorised, beam));
                  return [=](Context& ctx) { rvq_forward(ctx, forward(v, scratch, beam)); };
                });
    }
    // The same codes from products of the projections; then without y, as an encoder asks for them. Then the products.
    for (const bool codes_only : {false, true}) {
      if (!factorised) continue;
      std::vector<Parameter> of_case = parameters("forward");
      of_case.push_back({"products", int64_t{1}});
      if (codes_only) of_case.push_back({"codes_only", int64_t{1}});
      const int64_t y = codes_only ? 0 : n.z.elements();
      suite.add({.name = "rvq_forward/" + name + "/products" + (codes_only ? "/codes" : ""),
                 .bytes = 4 * (n.z.elements() + y + books.elements() + weights / (codes_only ? 2 : 1) +
                               rows * n.stages * (codes_only ? 1 : 1 + dim)),
                 .flops = 2 * rows * n.stages * n.codes * dim + projected / (codes_only ? 2 : 1),
                 .parameters = of_case},
                [=](Data& data) -> Run {
                  Views v = make(data);
                  v.p.products = data.random(rvq_products_shape(n.stages, dim), -0.1, 0.1);
                  const View<float> scratch =
                      data.random(rvq_forward_scratch(data.ctx, n.z, books, factorised, 1, true));
                  if (codes_only) v.y = {}, v.quantised = {}, v.losses = {};
                  return [=](Context& ctx) { rvq_forward(ctx, forward(v, scratch, 1)); };
                });
    }
    if (factorised)
      suite.add({.name = "rvq_products/" + name,
                 .bytes = 4 * (weights + rvq_products_shape(n.stages, dim).elements()),
                 .flops = n.stages * dim * (n.stages - 1) * dim * n.z.channels,
                 .parameters = parameters("products")},
                [=](Data& data) -> Run {
                  const Views v = make(data);
                  const View<float> y = data.random(rvq_products_shape(n.stages, dim)),
                                    scratch = data.random(rvq_products_scratch(n.stages, dim, n.z.channels));
                  return [=](Context& ctx) { rvq_products(ctx, {.projections = v.p, .y = y, .scratch = scratch}); };
                });
    for (const bool orthogonal : {false, true}) {
      if (orthogonal && factorised) continue;
      std::vector<Parameter> of_case = parameters("backward");
      if (orthogonal) of_case.push_back({"orthogonal", int64_t{1}});
      suite.add(
          {.name = "rvq_backward/" + name + (orthogonal ? "/orthogonal" : ""),
           // Gradients of parameters are accumulated (+=). Without projections there are none. The sums for the
           // orthogonal factor read dy and the last stage once more.
           .bytes = 4 * (3 * n.z.elements() + (factorised ? 3 : 1) * (weights + chosen) + rows * n.stages * (1 + dim) +
                         (orthogonal ? 3 * n.z.elements() : 0)),
           .flops = 3 * projected + 3 * rows * n.stages * dim + (orthogonal ? 7 * rows * dim : 0),
           .parameters = of_case},
          [=](Data& data) -> Run {
            const Views v = make(data);
            RvqBackward a{.z = v.z,
                          .codebooks = v.codebooks,
                          .projections = v.p,
                          .codes = v.codes,
                          .quantised = v.quantised,
                          .dy = v.y,
                          .dz = data.random(n.z),
                          .scratch = data.random(rvq_backward_scratch(data.ctx, n.z, books, factorised)),
                          .orthogonal = orthogonal};
            if (factorised)
              a.din_weight = data.random(in), a.dout_weight = data.random(out), a.dcodebooks = data.random(books);
            return [=](Context& ctx) { rvq_backward(ctx, a); };
          });
    }
    suite.add(
        {.name = "rvq_decode/" + name,
         .bytes = 4 * (n.z.elements() + chosen + weights / 2 + rows * n.stages),
         .flops = projected / 2 + rows * n.stages * n.z.channels,
         .parameters = parameters("decode")},
        [=](Data& data) -> Run {
          const Views v = make(data);
          const View<float> scratch = data.random(rvq_decode_scratch(data.ctx, v.codes.shape, n.z, books, factorised));
          return [=](Context& ctx) {
            rvq_decode(ctx,
                       {.codes = v.codes, .codebooks = v.codebooks, .projections = v.p, .y = v.y, .scratch = scratch});
          };
        });
  }
});

}  // namespace
}  // namespace nacre::bench
