// The layer Film: y = gamma[label] x + beta[label] per channel (ops/film.h), where the label of each item is an input
// of the plan.
#include "nacre/ops/film.h"

#include "nacre/nn/layers.h"

namespace nacre {

Film::Film(Parameters& parameters, const std::string& name, int64_t channels, int64_t labels)
    : name_(name),
      gamma_(
          &parameters.add(name + ".gamma", {labels, channels}, {.batch = labels, .channels = channels}, {Init::one})),
      beta_(
          &parameters.add(name + ".beta", {labels, channels}, {.batch = labels, .channels = channels}, {Init::zero})) {}

Flow Film::plan(Plan& p, Flow x) const {
  return visit(x.storage, [&]<class T>(Type<T>) {
    const Step s = p.step(name_);
    const auto in = s.reads<T>(x, Until::backward);
    const auto out = s.makes<T>(x.shape);
    // The plan's memory, which the caller may fill again between runs; zeros if the walk sets no labels.
    const View<const int32_t> labels = p.labels(x.shape.batch);
    const View<float> scratch = s.scratch(film_backward_scratch(p.context(), x.shape), Until::backward);
    const View<float> dgamma = s.gradient(*gamma_), dbeta = s.gradient(*beta_);
    const auto n = static_cast<double>(x.shape.elements()), bytes = static_cast<double>(sizeof(T)) * n;
    // A product and a sum forward; a product for dx; a product and two sums for dgamma and dbeta, which read x beside
    // dy.
    s.costs({.forward = {.floats = 2 * n, .bytes = 2 * bytes, .launches = 1},
             .input_gradient = {.floats = n, .bytes = 2 * bytes, .launches = 1},
             .weight_gradient = {.floats = 3 * n, .bytes = bytes, .launches = 1}});
    s.forward([=, gamma = gamma_, beta = beta_](Context& c) {
      film_forward<T>(c, {.x = in.value, .labels = labels, .gamma = gamma->value, .beta = beta->value, .y = out.value});
    });
    s.backward([=, gamma = gamma_](Context& c) {
      film_backward<T>(c, {.x = in.value,
                           .labels = labels,
                           .gamma = gamma->value,
                           .dy = out.grad,
                           .dx = in.grad,
                           .dgamma = dgamma,
                           .dbeta = dbeta,
                           .scratch = scratch,
                           .add_dx = in.add});
    });
    return out.flow;
  });
}

static_assert(Layer<Film>);

}  // namespace nacre
