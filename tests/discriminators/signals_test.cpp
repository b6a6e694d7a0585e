// The steps in front of a discriminator: shapes, receptive fields, and gradients against the reference in double
// precision.
#include "nacre/discriminators/signals.h"

#include "gradient_check.h"
#include "nacre/nn/layers.h"
#include "reference/layers.h"
#include "reference/losses.h"
#include "reference/signals.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// A number for each element, different for its neighbours: what depends on sums alone would pass with equal numbers.
float slope_at(size_t i) {
  return 0.5f + 0.25f * static_cast<float>((i * 37 + i / 11) % 13) - (i % 3 == 0 ? 2.0f : 0.0f);
}

/// A loss whose gradient with respect to element i is slope_at(i).
void slopes_of(Plan& p, Flow x) {
  const Step s = p.step("slopes");
  const auto in = s.reads<float>(x);
  s.backward([=](Context& c) {
    std::vector<float> dx(static_cast<size_t>(in.grad.elements()), 0.0f);
    if (in.add) c.read<float>(View<const float>(in.grad), dx);
    for (size_t i = 0; i < dx.size(); ++i) dx[i] += slope_at(i);
    c.write<float>(dx, in.grad);
  });
}
Node* slopes_of(Tape& t, Node* x) {
  double total = 0;
  for (size_t i = 0; i < x->value.size(); ++i) total += static_cast<double>(slope_at(i)) * x->value[i];
  Node* y = t.make({}, {total}, {x});
  t.back(y, [=, &t] {
    Values dx;
    for (size_t i = 0; i < x->value.size(); ++i) dx.push_back(static_cast<double>(slope_at(i)) * y->gradient[0]);
    t.add(x, std::move(dx));
  });
  return y;
}

constexpr StftGeometry aligned{.window = 16, .hop = 4, .aligned = true};
constexpr StftGeometry centred{.window = 12, .hop = 5};
constexpr StftGeometry inside{.window = 16, .hop = 4, .inside = true, .normalised = true};

}  // namespace

TEST_CASE("signals: shapes and receptive fields") {
  Context ctx({.threads = 1});
  Plan plan(ctx, Purpose::inference);
  const Shape shape{.batch = 3, .time = 50};
  Flow audio, levelled, folded, whole, frames, plain, within, both, stereo, apart, alone;
  plan.survey([&](Plan& p) {
    audio = p.source<float>(shape).flow;
    levelled = level(p, "level", audio);
    folded = fold(p, "fold", audio, 7);
    whole = fold(p, "fold", audio, 5);
    frames = spectrum(p, "spectrum", audio, aligned);
    plain = spectrum(p, "spectrum", audio, centred);
    within = spectrum(p, "within", audio, inside);
    both = pair(p, "pair", View<const float>(nullptr, shape), audio);
    stereo = p.source<float>({.batch = 3, .time = 50, .channels = 2}).flow;
    apart = channels_apart(p, "apart", stereo);
    alone = channels_apart(p, "apart", audio);
  });
  CHECK(levelled.shape == shape);
  CHECK(folded.shape == Shape{.batch = 21, .time = 8});
  CHECK(whole.shape == Shape{.batch = 15, .time = 11});
  CHECK(frames.shape == Shape{3, 13, 9, 2});
  CHECK(plain.shape == Shape{3, 11, 7, 2});
  CHECK(within.shape == Shape{3, 9, 9, 2});
  CHECK(both.shape == Shape{.batch = 6, .time = 50});
  CHECK(apart.shape == Shape{.batch = 6, .time = 50});
  CHECK(alone.id == audio.id);  // no step
  const auto field = [&](Flow to, Span of) {
    const Span found = plan.reach(to, of, audio);
    return std::pair{found.first, found.last};
  };
  CHECK(field(levelled, {49, 49}).first == 0);
  CHECK(field(levelled, {0, 0}).second == 49);
  CHECK(field(folded, {2, 3}) == std::pair<int64_t, int64_t>{14, 27});
  CHECK(field(frames, {0, 1}) == std::pair<int64_t, int64_t>{-6, 13});
  CHECK(field(plain, {2, 2}) == std::pair<int64_t, int64_t>{4, 15});
  CHECK(field(within, {2, 3}) == std::pair<int64_t, int64_t>{8, 27});
  CHECK(field(both, {5, 6}) == std::pair<int64_t, int64_t>{5, 6});
  const Span of_apart = plan.reach(apart, {5, 6}, stereo);
  CHECK((of_apart.first == 5 && of_apart.last == 6));
  CHECK(plan.costs().size() == 8);
}

TEST_CASE("signals: channels apart, forth and back") {
  const Shape shape{.batch = 2, .time = 30, .channels = 3};
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    std::vector<float> audio, found(180), back(180);
    for (int i = 0; i < 180; ++i) audio.push_back(static_cast<float>(i));
    Plan plan(ctx, Purpose::training);
    Output<float> source;
    View<const float> result;
    plan.reserve([&](Plan& p) {
      source = p.source<float>(shape, true);
      if (source.value) ctx.write<float>(audio, source.value);
      const Flow once = channels_apart(p, "once", source.flow), twice = channels_apart(p, "twice", source.flow);
      result = p.result<float>(once);
      slopes_of(p, once), slopes_of(p, twice);
    });
    plan.run_gradients();
    ctx.read<float>(result, found);
    ctx.read<float>(source.grad, back);
    for (size_t i = 0; i < 180; ++i) {
      const size_t item = i / 90, t = i % 90 / 3, channel = i % 3, at = (item * 3 + channel) * 30 + t;
      CHECK(found[at] == audio[i]);
      CHECK(back[i] == 2 * slope_at(at));
    }
  }
}

TEST_CASE("signals: what cannot be is refused") {
  using Catch::Contains;
  Context ctx({.threads = 1});
  const Shape shape{.batch = 2, .time = 20};
  const auto survey = [&](const std::function<void(Plan&, Flow)>& walk) {
    Plan plan(ctx, Purpose::inference);
    plan.survey([&](Plan& p) { walk(p, p.source<float>(shape).flow); });
  };
  CHECK_THROWS_WITH(survey([](Plan& p, Flow x) { fold(p, "critic", x, 20); }), Contains("period is 20"));
  CHECK_THROWS_WITH(
      survey([](Plan& p, Flow x) { spectrum(p, "critic", x, {.window = 16, .hop = 3, .aligned = true}); }),
      Contains("window is 16 and hop is 3"));
  CHECK_THROWS_WITH(
      survey([](Plan& p, Flow x) { pair(p, "critic", View<const float>(nullptr, {.batch = 2, .time = 21}), x); }),
      Contains("critic: real audio is [2, 21, 1, 1], generated audio [2, 20, 1, 1]"));
}

TEST_CASE("signals: without training, values are those of training") {
  const Shape shape{.batch = 2, .time = 45};
  for (const Device device : devices()) {
    CAPTURE(str(device));
    Context ctx({.device = device, .threads = 2});
    std::mt19937_64 rng(seed());
    std::uniform_real_distribution<float> draw(-1, 1);
    std::vector<float> real(90), fake(90);
    for (float& x : real) x = draw(rng);
    for (float& x : fake) x = draw(rng);
    std::vector<std::vector<float>> found[2];
    for (const Purpose purpose : {Purpose::inference, Purpose::training}) {
      Plan plan(ctx, purpose);
      View<const float> results[3];
      plan.reserve([&](Plan& p) {
        const View<float> target = p.persistent<float>(shape);
        const Output<float> source = p.source<float>(shape);
        if (source.value) ctx.write<float>(fake, source.value), ctx.write<float>(real, target);
        const Flow x = level(p, "level", pair(p, "pair", target, source.flow));
        results[0] = p.result<float>(x);
        results[1] = p.result<float>(fold(p, "fold", x, 4));
        results[2] = p.result<float>(spectrum(p, "spectrum", x, aligned));
      });
      plan.run();
      for (const View<const float>& r : results) {
        std::vector<float> values(static_cast<size_t>(r.elements()));
        ctx.read<float>(r, values);
        found[purpose == Purpose::training].push_back(values);
      }
    }
    CHECK(found[0] == found[1]);
    // Real items come first.
    std::vector<double> item(real.begin(), real.begin() + 45);
    const nacre::reference::Level exact(item.data(), 45, static_cast<double>(0.8f), 0);
    for (size_t i = 0; i < 45; ++i)
      CHECK(std::fabs(static_cast<double>(found[0][0][i]) - exact.y[i]) <= 8 * ulp);  // sizes are at most 1
  }
}

TEST_CASE("signals: gradients, with several readers in one plan") {
  for (const int64_t time : {45, 48})  // 48: a multiple of the periods
    for (const Device device : devices()) {
      CAPTURE(str(device), time);
      const Shape shape{.batch = 2, .time = time};
      Context ctx({.device = device, .threads = 2});
      Parameters parameters;
      const Conv1d generator(parameters, "generator", 1, 1, 3, {.left = 1, .right = 1});
      const Conv1d critic(parameters, "critic", 1, 2, 5, {.left = 2, .right = 2});
      parameters.allocate(ctx, true);
      std::mt19937_64 rng(seed());
      std::uniform_real_distribution<float> draw(-1, 1);
      std::vector<float> values(static_cast<size_t>(parameters.trained_elements())),
          real(static_cast<size_t>(shape.elements())), heard(real.size());
      for (std::vector<float>* v : {&values, &real, &heard})
        for (float& x : *v) x = draw(rng);
      ctx.write<float>(values, parameters.values());
      parameters.refresh(ctx);
      Plan plan(ctx, Purpose::training);
      plan.reserve([&](Plan& p) {
        const View<float> target = p.persistent<float>(shape);
        const Output<float> source = p.source<float>(shape);
        if (source.value) ctx.write<float>(heard, source.value), ctx.write<float>(real, target);
        const Flow fake = generator.plan(p, source.flow);
        const Flow both = pair(p, "pair", target, fake), x = level(p, "level", both);
        slopes_of(p, critic.plan(p, fold(p, "fold.3", x, 3)));
        slopes_of(p, fold(p, "fold.4", x, 4));
        slopes_of(p, spectrum(p, "aligned", x, aligned));
        slopes_of(p, spectrum(p, "centred", fake, centred));
        slopes_of(p, spectrum(p, "inside", x, inside));
        slopes_of(p, level(p, "again", fake));
        slopes_of(p, fold(p, "fold.2", fake, 2));
        slopes_of(p, pair(p, "twice", target, fake));
        parameters.clear_gradients(p);
      });
      plan.run_gradients();
      parameters.finish_gradients(ctx);

      const test::Layer generates = conv1d("generator", 3, {.left = 1, .right = 1}),
                        judges = conv1d("critic", 5, {.left = 2, .right = 2});
      const Values target(real.begin(), real.end());
      const auto model = [&](Tape& t) {
        Node *fake = generates(t, t.constant(shape, {heard.begin(), heard.end()})),
             *x = test::level(t, test::pair(t, target, fake));
        return sum(t, {{1, slopes_of(t, judges(t, test::fold(t, x, 3)))},
                       {1, slopes_of(t, test::fold(t, x, 4))},
                       {1, slopes_of(t, test::spectrum(t, x, aligned))},
                       {1, slopes_of(t, test::spectrum(t, fake, centred))},
                       {1, slopes_of(t, test::spectrum(t, x, inside))},
                       {1, slopes_of(t, test::level(t, fake))},
                       {1, slopes_of(t, test::fold(t, fake, 2))},
                       {1, slopes_of(t, test::pair(t, target, fake))}});
      };
      Tape tape;
      tape.parameters = values_of(ctx, parameters);
      const Comparison comparison(tape, model);
      CHECK(comparison.blunt() == "");
      comparison.check(gradients_of(ctx, parameters));
      check_differences(tape, model, rng, 20);
    }
}

TEST_CASE("signals: what is detached gets no gradient") {
  Context ctx({.threads = 1});
  const Shape shape{.batch = 1, .time = 20};
  Parameters parameters;
  const Conv1d critic(parameters, "critic", 1, 1, 3, {.left = 1, .right = 1});
  parameters.allocate(ctx, true);
  Plan plan(ctx, Purpose::training);
  Output<float> source;
  plan.reserve([&](Plan& p) {
    const View<float> target = p.persistent<float>(shape);
    source = p.source<float>(shape, true);
    const Flow x = level(p, "level", pair(p, "pair", target, p.detach(source.flow)));
    slopes_of(p, critic.plan(p, fold(p, "fold", x, 3)));
    parameters.clear_gradients(p);
  });
  CHECK(!source.grad);
  plan.run_gradients();
}
