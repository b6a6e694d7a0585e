// The plan: live blocks never overlap, = and += go to the right writers, gradients pass through residual connections
// and stop where they must, and the program runs in the order that the walks describe.
#include "nacre/nn/plan.h"

#include <map>

#include "harness.h"
#include "nacre/nn/parameters.h"
#include "nn/sum.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// y = f(x). Reads x in the backward pass, and has scratch in both passes.
struct Unary {
  Input<float> x;
  Output<float> y;
  View<float> forward_scratch, backward_scratch;
  Flow plan(Plan& p, Flow in, int64_t channels) {
    const Step s = p.step("unary");
    x = s.reads<float>(in, Until::backward);
    y = s.makes<float>({.time = 3, .channels = channels});
    forward_scratch = s.scratch({.channels = 100}, Until::forward);
    backward_scratch = s.scratch({.channels = 200}, Until::backward);
    return y.flow;
  }
};
/// A step that produces the first gradient.
void end(Plan& p, Flow x) { p.step("end").reads<float>(x); }

bool overlap(const View<const float>& a, const View<const float>& b) {
  return a && b && a.data < b.data + b.elements() && b.data < a.data + a.elements();
}
std::string refusal(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "nothing was refused";
}
/// A source whose gradient is needed, so that later steps have gradients.
Flow variable(Plan& p, int64_t channels = 8) { return p.source<float>({.time = 3, .channels = channels}, true).flow; }

/// Parameters of two weights, on the CPU.
struct Weights {
  Parameters parameters;
  Weight &a = parameters.add_weight({"a"}, {2, 3, 1}, {.batch = 2, .channels = 3}, uniform_by_fan_in(3)),
         &b = parameters.add_weight({"b"}, {2, 3, 1}, {.batch = 2, .channels = 3}, uniform_by_fan_in(3));
  Parameter& bias = parameters.add("bias", {4}, {.channels = 4}, {Init::zero});
  explicit Weights(Context& c) { parameters.allocate(c, true); }
};

}  // namespace

TEST_CASE("plan: a chain keeps what backward needs, and nothing else", "[plan]") {
  Context ctx;
  std::vector<Unary> chain(6);
  Plan plan(ctx, Purpose::training);
  plan.reserve([&](Plan& p) {
    Flow x = variable(p, 64);
    for (Unary& u : chain) x = u.plan(p, x, 64);
    end(p, x);
  });
  for (size_t i = 0; i < chain.size(); ++i) {
    for (size_t j = i + 1; j < chain.size(); ++j)
      CHECK_FALSE(overlap(chain[i].x.value, chain[j].x.value));  // backward reads all, so all are live
    CHECK_FALSE(overlap(chain[i].x.value, chain[i].y.value));
    CHECK_FALSE(overlap(chain[i].x.value, chain[i].forward_scratch));
    CHECK(chain[i].x.grad);
    CHECK_FALSE(chain[i].x.add);
    CHECK_FALSE(overlap(chain[i].x.grad, chain[i].y.grad));
    CHECK_FALSE(overlap(chain[i].x.grad, chain[i].backward_scratch));
    CHECK_FALSE(overlap(chain[i].x.grad, chain[i].x.value));
  }
  CHECK(plan.bytes() == plan.peak_live_bytes());  // a chain packs without gaps
  CHECK(plan.bytes() < plan.unshared_bytes());
  CHECK(plan.steps().size() == 7);
  CHECK(plan.steps().back() == "end");
}

TEST_CASE("plan: inference keeps two activations of a chain", "[plan]") {
  Context ctx;
  std::vector<Unary> chain(10);
  Plan plan(ctx, Purpose::inference);
  plan.reserve([&](Plan& p) {
    Flow x = variable(p, 64);
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
  Unary maker, first, second, third, unused;
  plan.reserve([&](Plan& p) {
    const Flow a = maker.plan(p, variable(p), 8);
    const Flow x = first.plan(p, a, 8), y = second.plan(p, a, 8), z = third.plan(p, a, 8);
    unused.plan(p, a, 8);  // no gradient reaches it
    for (const Flow f : {x, y, z}) end(p, f);
  });
  CHECK(first.x.add);
  CHECK(second.x.add);
  CHECK_FALSE(third.x.add);
  CHECK(first.x.grad.data == third.x.grad.data);
  CHECK(first.x.grad.data == maker.y.grad.data);
  CHECK_FALSE(unused.x.grad);
  CHECK_FALSE(unused.y.grad);
  CHECK_FALSE(unused.backward_scratch);
}

TEST_CASE("plan: a residual connection shares one gradient block", "[plan]") {
  Context ctx;
  Plan plan(ctx, Purpose::training);
  struct {
    Input<float> branch, x;
    Output<float> y;
  } join;
  Unary maker, branch, last;
  plan.reserve([&](Plan& p) {
    const Flow x = maker.plan(p, variable(p), 8);
    const Flow h = branch.plan(p, x, 8);
    const Step s = p.step("join");
    join.branch = s.reads<float>(h, Until::backward);
    join.y = s.makes<float>(x.shape);
    join.x = s.passes<float>(x, join.y.flow);
    end(p, last.plan(p, join.y.flow, 8));
  });
  CHECK_FALSE(join.x.grad);                      // the backward pass has nothing to do
  CHECK(maker.y.grad.data == join.y.grad.data);  // one block
  CHECK(branch.x.add);                           // the branch adds to it
  CHECK_FALSE(overlap(join.branch.grad, join.y.grad));
}

TEST_CASE("plan: a sum shares its gradient with one of its terms", "[plan]") {
  Context ctx;
  Plan plan(ctx, Purpose::training);
  Unary a, b, aside;
  Input<float> term[2];
  Output<float> sum;
  plan.reserve([&](Plan& p) {
    const Flow x = a.plan(p, variable(p), 8), y = b.plan(p, variable(p), 8);
    end(p, aside.plan(p, x, 8));  // adds to the gradient of x
    const Step s = p.step("sum");
    sum = s.makes<float>(x.shape);
    term[0] = s.passes<float>(x, sum.flow);
    term[1] = s.passes<float>(y, sum.flow);
    end(p, sum.flow);
  });
  CHECK(a.y.grad);
  CHECK(b.y.grad);
  CHECK_FALSE(overlap(a.y.grad, b.y.grad));
  CHECK((term[0].grad.data == nullptr) != (term[1].grad.data == nullptr));  // the other one copies
}

TEST_CASE("plan: the sum of an activation and itself has twice the gradient", "[plan]") {
  for (const bool read_later : {false, true}) {  // then the sum's gradient is added to what x has
    CAPTURE(read_later);
    Context ctx;
    Plan plan(ctx, Purpose::training);
    Output<float> x;
    plan.reserve([&](Plan& p) {
      const auto ends = [&](Flow f, float gradient) {
        const Step s = p.step("end");
        const Input<float> y = s.reads<float>(f);
        s.backward([=](Context&) {
          for (int64_t i = 0; i < y.grad.elements(); ++i) y.grad.data[i] = gradient + (y.add ? y.grad.data[i] : 0);
        });
      };
      x = p.source<float>({.channels = 3}, true);
      ends(sum_of(p, "sum", x.flow, x.flow), 5);
      if (read_later) ends(x.flow, 100);
    });
    for (int run = 0; run < 2; ++run) {
      plan.run();
      for (int64_t i = 0; i < 3; ++i) CHECK(x.grad.data[i] == (read_later ? 110 : 10));
    }
  }
}

TEST_CASE("plan: a residual whose input is read later is added, not shared", "[plan]") {
  Context ctx;
  Plan plan(ctx, Purpose::training);
  Unary maker, later;
  Input<float> skip;
  plan.reserve([&](Plan& p) {
    const Flow x = maker.plan(p, variable(p), 8);
    const Step s = p.step("skip");
    const Output<float> y = s.makes<float>(x.shape);
    skip = s.passes<float>(x, y.flow);
    end(p, y.flow);
    end(p, later.plan(p, x, 8));
  });
  CHECK(skip.grad);
  CHECK(skip.add);
  CHECK_FALSE(later.x.add);
}

TEST_CASE("plan: gradients go where something is trained, and nowhere else", "[plan]") {
  Context ctx;
  Weights w(ctx), frozen(ctx);
  Plan plan(ctx, Purpose::training);
  Unary before, behind, aside;
  WeightGrad first, second, third, of_frozen;
  View<float> bias, frozen_bias;
  Output<float> fixed;
  Input<float> trained_input, frozen_input, detached;
  bool trains_a = false, trains_b = true, trains_frozen = true;
  plan.reserve([&](Plan& p) {
    fixed = p.source<float>({.time = 3, .channels = 8});
    Flow x = before.plan(p, fixed.flow, 8);  // nothing is trained so far: no gradient
    Step s = p.step("a");
    trained_input = s.reads<float>(x);
    first = s.gradient(w.a);
    bias = s.gradient(w.bias);
    x = s.makes<float>(x.shape).flow;
    {
      const Frozen guard = p.freeze(frozen.parameters);
      s = p.step("frozen");
      frozen_input = s.reads<float>(x);
      of_frozen = s.gradient(frozen.a);
      frozen_bias = s.gradient(frozen.bias);
      x = s.makes<float>(x.shape).flow;
    }
    s = p.step("a again");
    s.reads<float>(x);
    second = s.gradient(w.a);
    x = s.makes<float>(x.shape).flow;
    s = p.step("reads a detached value");
    detached = s.reads<float>(p.detach(x));
    s.makes<float>(x.shape);
    third = s.gradient(w.b);  // no step reads its output
    end(p, behind.plan(p, x, 8));
    trains_a = p.trains(w.a), trains_b = p.trains(w.b), trains_frozen = p.trains(frozen.a);
  });
  CHECK_FALSE(before.y.grad);
  CHECK_FALSE(trained_input.grad);
  CHECK(frozen_input.grad);
  CHECK(behind.x.grad);
  CHECK_FALSE(detached.grad);
  CHECK(detached.value.data == behind.x.value.data);
  CHECK(first.grad.data == w.a.grad.data);
  CHECK(first.add);
  CHECK(second.grad.data == w.a.grad.data);
  CHECK_FALSE(second.add);
  CHECK_FALSE(third.grad);
  CHECK_FALSE(of_frozen.grad);
  CHECK_FALSE(frozen_bias);
  CHECK(bias.data == w.bias.grad.data);
  CHECK(trains_a);
  CHECK_FALSE(trains_b);
  CHECK_FALSE(trains_frozen);
}

TEST_CASE("plan: each walk's first writer of a weight's gradient overwrites it", "[plan]") {
  Context ctx;
  Weights w(ctx);
  Plan plan(ctx, Purpose::training);
  WeightGrad use[4];
  const auto uses = [&](Plan& p, int first) {
    for (int i = first; i < first + 2; ++i) {
      const Step s = p.step("use");
      use[i] = s.gradient(w.a);
      end(p, s.makes<float>({.channels = 2}).flow);
    }
  };
  plan.reserve([&](Plan& p) {
    p.inner([&](Plan& d) { uses(d, 0); });
    uses(p, 2);
  });
  for (const WeightGrad& g : use) CHECK(g.grad.data == w.a.grad.data);
  CHECK(use[0].add);
  CHECK_FALSE(use[1].add);
  CHECK(use[2].add);
  CHECK_FALSE(use[3].add);
}

TEST_CASE("plan: a fork is one value and a gradient per branch", "[plan]") {
  Context ctx;
  Plan plan(ctx, Purpose::training);
  Unary maker, left, right;
  Output<float> branch[2];
  Input<float> joined;
  plan.reserve([&](Plan& p) {
    const Flow x = maker.plan(p, variable(p), 8);
    const Step s = p.step("fork");
    joined = s.reads<float>(x);
    for (Output<float>& b : branch) b = s.shares<float>(x);
    end(p, left.plan(p, branch[0].flow, 8));
    end(p, right.plan(p, branch[1].flow, 8));
  });
  for (const Output<float>& b : branch) CHECK(b.value.data == maker.y.value.data);
  CHECK(left.x.value.data == maker.y.value.data);
  CHECK(left.x.grad.data == branch[0].grad.data);
  CHECK(right.x.grad.data == branch[1].grad.data);
  CHECK_FALSE(left.x.add);
  CHECK_FALSE(right.x.add);
  for (const View<const float>& a : {branch[0].grad, branch[1].grad}) CHECK_FALSE(overlap(a, joined.grad));
  CHECK_FALSE(overlap(branch[0].grad, branch[1].grad));
}

namespace {

/// A random program. Its steps write their own number and check what they read. Walks may contain inner walks, which
/// read detached activations of the outer walks.
struct RandomProgram {
  std::mt19937_64 rng;
  int wrong = 0, ran = 0;
  int number = 0;
  std::vector<std::string> order;  // the expected order of passes

  static bool all_are(View<const float> v, float x) {
    return std::all_of(v.begin(), v.end(), [&](float y) { return y == x; });
  }
  struct Made {
    Flow flow;
    int step;
  };

  void walk(Plan& p, std::vector<Made> outer, int depth) {
    std::vector<Made> mine;
    std::vector<std::string> backward;
    const int steps = 2 + static_cast<int>(rng() % 12);
    for (int i = 0; i < steps; ++i) {
      if (depth < 2 && rng() % 5 == 0) {
        std::vector<Made> all = outer;
        for (const Made& m : mine) all.push_back(m);
        p.inner([&](Plan& q) { walk(q, all, depth + 1); });
      }
      const int id = number++;
      std::vector<std::pair<int, Flow>> inputs;
      for (uint64_t n = rng() % 3; n > 0 && !mine.empty(); --n) {
        const Made& m = mine[rng() % mine.size()];
        inputs.emplace_back(m.step, m.flow);
      }
      for (uint64_t n = rng() % 3; n > 0 && !outer.empty(); --n) {
        const Made& m = outer[rng() % outer.size()];
        inputs.emplace_back(m.step, p.detach(m.flow));
      }
      if (inputs.empty()) inputs.emplace_back(-1, p.source<float>({.channels = 5}, true).flow);
      const Step s = p.step("step " + std::to_string(id));
      std::vector<Input<float>> in;
      for (const auto& [from, flow] : inputs) in.push_back(s.reads<float>(flow, Until::backward));
      const int64_t size = 1 + static_cast<int64_t>(rng() % 300);
      const View<float> scratch = s.scratch({.channels = 1 + size / 2}, Until::forward),
                        backward_scratch = s.scratch({.channels = 1 + size / 3}, Until::backward),
                        saved = s.saved<float>({.channels = 1 + size / 4});
      const bool loss = i + 1 == steps || rng() % 4 == 0;
      Output<float> out;
      if (!loss) {
        out = s.makes<float>({.channels = size}, Until::backward);
        mine.push_back({out.flow, id});
      }
      const auto inputs_hold = [this, in, inputs] {
        for (size_t k = 0; k < in.size(); ++k)
          if (inputs[k].first >= 0) wrong += !all_are(in[k].value, static_cast<float>(inputs[k].first));
      };
      s.forward([this, inputs_hold, out, scratch, saved, id](Context&) {
        inputs_hold();
        if (out.value) std::fill(out.value.begin(), out.value.end(), static_cast<float>(id));
        std::fill(scratch.begin(), scratch.end(), -1.0f);
        std::fill(saved.begin(), saved.end(), 1000.0f + static_cast<float>(id));
        order.push_back("forward " + std::to_string(id));
      });
      // A gradient is the number of paths to losses. Each step passes on the value that arrives, by = or += as planned.
      s.backward([this, inputs_hold, in, out, backward_scratch, saved, id, loss](Context&) {
        inputs_hold();
        wrong += !all_are(saved, 1000.0f + static_cast<float>(id));
        if (!loss) wrong += !all_are(out.value, static_cast<float>(id));
        const float paths = loss ? 1.0f : out.grad.data[0];
        if (!loss) wrong += !all_are(out.grad, paths);
        std::fill(backward_scratch.begin(), backward_scratch.end(), -2.0f);
        for (size_t k = in.size(); k-- > 0;)  // the reverse of the forward order
          if (in[k].grad)
            for (float& g : in[k].grad) g = (in[k].add ? g : 0.0f) + paths;
        order.push_back("backward " + std::to_string(id));
        ++ran;
      });
    }
    p.then([this, depth](Context&) { order.push_back("then " + std::to_string(depth)); });
  }
};

}  // namespace

TEST_CASE("plan: random programs never overwrite what is alive", "[plan]") {
  Context ctx;
  int backward_passes = 0, inner_walks = 0;
  for (uint64_t round = 0; round < 60; ++round) {
    CAPTURE(round);
    RandomProgram program;
    Plan plan(ctx, Purpose::training);
    plan.reserve([&](Plan& p) {
      program.rng.seed(seed() + round);
      program.number = 0;
      program.walk(p, {}, 0);
    });
    plan.run();
    CHECK(program.wrong == 0);
    CHECK(plan.bytes() >= plan.peak_live_bytes());
    backward_passes += program.ran;
    // The backward passes of a walk run in reverse. An inner walk ends before the outer one continues.
    std::vector<int> forwards;
    for (const std::string& pass : program.order) {
      const int id = std::stoi(pass.substr(pass.find(' ') + 1));
      if (pass[0] == 'f') {
        forwards.push_back(id);
      } else if (pass[0] == 'b') {
        while (!forwards.empty() && forwards.back() > id) forwards.pop_back();  // those steps had no gradient
        REQUIRE(!forwards.empty());
        CHECK(forwards.back() == id);
        forwards.pop_back();
      } else if (id > 0) {
        ++inner_walks;
      }
    }
    CHECK(program.order.back() == "then 0");
    // A second run gives the same, since a run leaves no state.
    const std::vector<std::string> first = std::exchange(program.order, {});
    plan.run();
    CHECK(program.wrong == 0);
    CHECK(program.order == first);
  }
  CHECK(backward_passes > 500);
  CHECK(inner_walks > 60);
}

TEST_CASE("plan: an inner walk's memory is free afterwards", "[plan]") {
  Context ctx;
  Plan plan(ctx, Purpose::training);
  Unary generator, critic, later;
  plan.reserve([&](Plan& p) {
    const Flow fake = generator.plan(p, variable(p, 64), 64);
    p.inner([&](Plan& d) {
      const Flow x = d.source<float>({.channels = 1}, true).flow;
      const Step s = d.step("critic");
      critic.x = s.reads<float>(d.detach(fake), Until::backward);
      s.reads<float>(x);
      critic.y = s.makes<float>({.channels = 5000}, Until::backward);
      end(d, critic.y.flow);
    });
    end(p, later.plan(p, fake, 5000 / 3));
  });
  CHECK(critic.x.value.data == later.x.value.data);  // the generator's output is live during both
  CHECK_FALSE(critic.x.grad);
  CHECK(later.x.grad);
  CHECK_FALSE(overlap(critic.y.value, generator.y.value));
  CHECK(overlap(critic.y.value, later.y.value));
}

TEST_CASE("plan: what steps carry lasts from run to run until it is reset", "[plan]") {
  Context ctx;
  Plan plan(ctx, Purpose::inference);
  std::vector<float> seen;
  plan.reserve([&](Plan& p) {
    const Step s = p.step("counter");
    const View<float> count = s.carries<float>({.channels = 3});
    const View<float> scratch = s.scratch({.channels = 100}, Until::forward);
    s.forward([&seen, count, scratch](Context&) {
      std::fill(scratch.begin(), scratch.end(), 7.0f);
      seen.push_back(count[2]);
      for (float& v : count) v += 1;
    });
    const Step other = p.step("other");
    const View<float> more = other.scratch({.channels = 500}, Until::forward);
    other.forward([more](Context&) { std::fill(more.begin(), more.end(), 9.0f); });
  });
  for (int i = 0; i < 3; ++i) plan.run();
  plan.reset();
  for (int i = 0; i < 2; ++i) plan.run();
  CHECK(seen == std::vector<float>{0, 1, 2, 0, 1});
}

TEST_CASE("plan: a run that is given up leaves no trace, unless weights have moved", "[plan]") {
  Context ctx;
  std::vector<float> averages{1, 2, 3}, weight{5};
  const View<float> state(averages.data(), {.channels = 3});
  Plan plan(ctx, Purpose::training);
  int passes = 0, asked = 0, last = -1;
  plan.reserve([&](Plan& p) {
    const Flow x = p.source<float>({.channels = 2}, true).flow;
    const Step moving = p.step("moving averages");
    moving.reads<float>(x);
    const Flow y = moving.makes<float>({.channels = 2}).flow;
    moving.changes(state);
    moving.forward([&](Context&) { ++passes; });
    moving.backward([&](Context&) { ++passes, averages[0] += 10; });
    moving.update([&](Context&) { ++passes, averages[2] *= 2; });
    const Step loss = p.step("loss");
    last = loss.number();
    loss.reads<float>(y);
    loss.forward([&](Context&) { ++passes; });
    loss.backward([&](Context&) { ++passes; });
    p.then([&](Context&) { ++passes, weight[0] = 6; });
    p.then([&](Context&) { ++passes; });
  });
  for (int after = 0; after < 6; ++after) {
    CAPTURE(after);
    passes = asked = 0;
    CHECK_FALSE(plan.run([&] { return asked++ == after; }));
    CHECK(passes == after);
    CHECK(averages == std::vector<float>{1, 2, 3});
    CHECK(weight[0] == 5);
  }
  asked = passes = 0;
  CHECK(plan.run([&] { return asked++ >= 6; }));  // the first update of weights has run by then
  CHECK(asked == 6);
  CHECK(passes == 7);
  CHECK(averages == std::vector<float>{11, 2, 6});
  CHECK(weight[0] == 6);

  // A part of a program updates nothing.
  passes = 0;
  plan.run_until(last, Until::forward);
  CHECK(passes == 2);
  plan.run_until(last, Until::backward);
  CHECK(passes == 5);
  plan.run_gradients();
  CHECK(passes == 9);
  CHECK(averages == std::vector<float>{11, 2, 6});
  CHECK(refusal([&] { plan.run_until(7, Until::forward); }).find("step 7 has no forward pass") != std::string::npos);
}

TEST_CASE("plan: wrong walks are refused by the name of the step", "[plan]") {
  Context ctx;
  const auto refused = [&](const std::function<void(Plan&)>& walk) {
    return refusal([&] { Plan(ctx, Purpose::training).reserve(walk); });
  };
  int walks = 0;
  CHECK_THAT(refused([&](Plan& p) { p.step("grows").makes<float>({.channels = ++walks * 1000}); }),
             Catch::Contains("\"grows\"") && Catch::Contains("second walk differs"));
  walks = 0;
  CHECK_THAT(refused([&](Plan& p) { p.step(++walks == 1 ? "one" : "two"); }), Catch::Contains("second walk differs"));
  walks = 0;
  CHECK_THAT(refused([&](Plan& p) {
               if (p.step("only"), ++walks == 1) p.step("gone");
             }),
             Catch::Contains("second walk differs"));
  CHECK_THAT(refused([&](Plan& p) {
               const Flow x = p.source<bf16>({.channels = 4}).flow;
               p.step("halves").reads<float>(x);
             }),
             Catch::Contains("\"halves\"") && Catch::Contains("reads float") && Catch::Contains("bf16"));
  CHECK_THAT(refused([&](Plan& p) { p.step("blind").reads<float>({}); }), Catch::Contains("no step made"));
  CHECK_THAT(refused([&](Plan& p) {
               const Flow x = variable(p);
               p.inner([&](Plan& d) { d.step("critic").reads<float>(x); });
             }),
             Catch::Contains("\"critic\"") && Catch::Contains("detach"));
  CHECK_THAT(refused([&](Plan& p) {
               const Step old = p.step("old");
               p.step("new");
               old.makes<float>({.channels = 1});
             }),
             Catch::Contains("\"old\"") && Catch::Contains("after a newer step was created"));
  Plan plan(ctx, Purpose::training);
  CHECK_THAT(refusal([&] { plan.step("nowhere"); }), Catch::Contains("outside of a walk"));
}
