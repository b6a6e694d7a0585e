// The plan: no two live blocks overlap, = and += go to the right readers, gradients pass through residual connections.
#include <map>

#include "harness.h"
#include "nacre/nn/plan.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// y = f(x): reads in backward, scratch in both phases.
struct Unary {
  Read<float> x;
  Made<float> y;
  View<float> forward_scratch, backward_scratch;
  Flow<float> plan(Plan& p, Flow<float> in, int64_t channels) {
    p.next_step();
    x = p.reads(in, Phase::backward);
    y = p.makes<float>({.time = 3, .channels = channels});
    forward_scratch = p.scratch({.channels = 100}, Phase::forward);
    backward_scratch = p.scratch({.channels = 200}, Phase::backward);
    return y.flow;
  }
};
bool overlap(const View<const float>& a, const View<const float>& b) {
  return a && b && a.data < b.data + b.elements() && b.data < a.data + a.elements();
}

}  // namespace

TEST_CASE("plan: a chain keeps what backward needs, and nothing else", "[plan]") {
  Context ctx;
  std::vector<Unary> chain(6);
  Plan plan(ctx, Purpose::training);
  View<float> audio;
  plan.reserve([&](Plan& p) {
    p.next_step();
    const auto source = p.source<float>({.time = 3, .channels = 64});
    audio = source.value;
    Flow<float> x = source.flow;
    for (Unary& u : chain) x = u.plan(p, x, 64);
  });
  CHECK_FALSE(chain[0].x.grad);  // a source needs no gradient
  for (size_t i = 0; i < chain.size(); ++i) {
    for (size_t j = i + 1; j < chain.size(); ++j)
      CHECK_FALSE(overlap(chain[i].x.value, chain[j].x.value));  // all are read in backward, so all live together
    CHECK_FALSE(overlap(chain[i].x.value, chain[i].y.value));
    CHECK_FALSE(overlap(chain[i].x.value, chain[i].forward_scratch));
    if (i > 0) {
      CHECK(chain[i].x.grad);
      CHECK_FALSE(chain[i].x.add);
      CHECK_FALSE(overlap(chain[i].x.grad, chain[i].y.grad));
      CHECK_FALSE(overlap(chain[i].x.grad, chain[i].backward_scratch));
      CHECK_FALSE(overlap(chain[i].x.grad, chain[i].x.value));
    }
  }
  CHECK(plan.bytes() == plan.peak_live_bytes());  // a chain packs perfectly
  CHECK(plan.bytes() < plan.unshared_bytes());
}

TEST_CASE("plan: inference keeps two activations of a chain", "[plan]") {
  Context ctx;
  std::vector<Unary> chain(10);
  Plan plan(ctx, Purpose::inference);
  plan.reserve([&](Plan& p) {
    p.next_step();
    Flow<float> x = p.source<float>({.time = 3, .channels = 64}).flow;
    for (Unary& u : chain) x = u.plan(p, x, 64);
  });
  const size_t activation = 3 * 64 * sizeof(float), source = activation, scratch = 512;
  CHECK(plan.bytes() == source + 2 * activation + scratch);
  CHECK_FALSE(chain[3].backward_scratch);
  CHECK_FALSE(chain[3].x.grad);
}

TEST_CASE("plan: the last reader overwrites, the others add", "[plan]") {
  Context ctx;
  Plan plan(ctx, Purpose::training);
  Unary maker, first, second, third;
  plan.reserve([&](Plan& p) {
    p.next_step();
    const Flow<float> a = maker.plan(p, p.source<float>({.time = 3, .channels = 8}).flow, 8);
    first.plan(p, a, 8);
    second.plan(p, a, 8);
    third.plan(p, a, 8);
  });
  CHECK(first.x.add);
  CHECK(second.x.add);
  CHECK_FALSE(third.x.add);
  CHECK(first.x.grad.data == third.x.grad.data);
  CHECK(first.x.grad.data == maker.y.grad.data);
}

TEST_CASE("plan: a residual connection shares one gradient block", "[plan]") {
  Context ctx;
  Plan plan(ctx, Purpose::training);
  struct Join {
    Read<float> branch, x;
    Made<float> y;
  } join;
  Unary maker, branch, last;
  plan.reserve([&](Plan& p) {
    p.next_step();
    const Flow<float> x = maker.plan(p, p.source<float>({.time = 3, .channels = 8}).flow, 8);
    const Flow<float> h = branch.plan(p, x, 8);
    p.next_step();
    join.branch = p.reads(h, Phase::backward);
    join.y = p.makes<float>(x.shape);
    join.x = p.passes(x, join.y.flow);
    last.plan(p, join.y.flow, 8);
  });
  CHECK_FALSE(join.x.grad);                      // nothing to do in backward
  CHECK(maker.y.grad.data == join.y.grad.data);  // one block
  CHECK(branch.x.add);                           // the branch adds to it
  CHECK_FALSE(overlap(join.branch.grad, join.y.grad));
}

TEST_CASE("plan: a residual whose input is read later is added, not shared", "[plan]") {
  Context ctx;
  Plan plan(ctx, Purpose::training);
  Unary maker, later;
  Read<float> skip;
  Made<float> y;
  plan.reserve([&](Plan& p) {
    p.next_step();
    const Flow<float> x = maker.plan(p, p.source<float>({.time = 3, .channels = 8}).flow, 8);
    p.next_step();
    y = p.makes<float>(x.shape);
    skip = p.passes(x, y.flow);
    p.next_step();
    p.reads(y.flow, Phase::backward);
    later.plan(p, x, 8);
  });
  CHECK(skip.grad);
  CHECK(skip.add);
  CHECK_FALSE(later.x.add);
}

TEST_CASE("plan: random models never overlap what is alive together", "[plan]") {
  // Each activation is filled with its own number when it is made and checked whenever it is read, forward and
  // backward.
  Context ctx;
  std::mt19937_64 rng(seed());
  for (int round = 0; round < 50; ++round) {
    const int steps = 3 + static_cast<int>(rng() % 20);
    std::vector<std::vector<int>> inputs(static_cast<size_t>(steps));
    std::vector<int64_t> sizes(static_cast<size_t>(steps));
    for (int s = 0; s < steps; ++s) {
      sizes[static_cast<size_t>(s)] = 1 + static_cast<int64_t>(rng() % 300);
      for (int i = 0; i < 1 + static_cast<int>(rng() % 3); ++i)
        if (s > 0) inputs[static_cast<size_t>(s)].push_back(static_cast<int>(rng() % static_cast<uint64_t>(s)));
    }
    std::vector<Made<float>> made(static_cast<size_t>(steps));
    std::vector<std::vector<Read<float>>> reads(static_cast<size_t>(steps));
    std::vector<View<float>> scratch(static_cast<size_t>(steps));
    Plan plan(ctx, Purpose::training);
    plan.reserve([&](Plan& p) {
      for (size_t s = 0; s < made.size(); ++s) {
        p.next_step();
        reads[s].clear();
        for (const int i : inputs[s]) reads[s].push_back(p.reads(made[static_cast<size_t>(i)].flow, Phase::backward));
        made[s] = p.makes<float>({.channels = sizes[s]});
        scratch[s] = p.scratch({.channels = 1 + sizes[s] / 2}, Phase::forward);
      }
    });
    int wrong = 0;
    const auto all_are = [](View<const float> v, float x) {
      return std::all_of(v.begin(), v.end(), [&](float y) { return y == x; });
    };
    for (size_t s = 0; s < made.size(); ++s) {
      for (size_t i = 0; i < inputs[s].size(); ++i)
        wrong += !all_are(reads[s][i].value, static_cast<float>(inputs[s][i]));
      std::fill(made[s].value.begin(), made[s].value.end(), static_cast<float>(s));
      std::fill(scratch[s].begin(), scratch[s].end(), -1.0f);
    }
    // Backward: gradients count readers, by = and += as told.
    std::map<size_t, int> readers;
    for (size_t s = made.size(); s-- > 0;) {
      for (const int i : inputs[s])
        wrong += !all_are(reads[s][0].value, static_cast<float>(inputs[s][0])) && i == inputs[s][0];
      if (readers[s] > 0) wrong += !all_are(made[s].grad, static_cast<float>(readers[s]));
      for (size_t i = inputs[s].size(); i-- > 0;) {  // the mirror image of the forward order
        const Read<float>& r = reads[s][i];
        for (float& g : r.grad) g = (r.add ? g : 0.0f) + 1.0f;
        ++readers[static_cast<size_t>(inputs[s][i])];
      }
    }
    CHECK(wrong == 0);
    CHECK(plan.bytes() >= plan.peak_live_bytes());
  }
}

TEST_CASE("plan: walks that differ are refused", "[plan]") {
  Context ctx;
  Plan plan(ctx, Purpose::training);
  int walks = 0;
  CHECK_THROWS_WITH(plan.reserve([&](Plan& p) {
    p.next_step();
    p.makes<float>({.channels = ++walks * 1000});
  }),
                    Catch::Contains("second walk differs"));
}
