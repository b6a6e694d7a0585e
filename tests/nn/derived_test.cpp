// Memory that follows from parameters, and the products of a quantizer's projections among it.
#include "harness.h"
#include "nacre/nn/parameters.h"
#include "nacre/ops/add.h"

using namespace nacre;

TEST_CASE("what is derived from parameters follows each change of them", "[nn]") {
  for (const Device device : test::devices()) {
    Context ctx({.device = device});
    const auto twice_of = [](Parameters& p, const Parameter& v) -> const Derived& {
      return p.derive("twice", v.shape,
                      [&v](Context& c, View<float> to) { add<float>(c, {.a = v.value, .b = v.value, .y = to}); });
    };
    Parameters p, other;
    const Parameter& v = p.add("v", {3}, {.channels = 3}, {Init::normal, 1.0});
    const Parameter& v_of_other = other.add("v", {3}, {.channels = 3}, {Init::normal, 1.0});
    const Derived& twice = twice_of(p, v);
    twice_of(other, v_of_other);
    CHECK(&twice_of(p, v) == &twice);
    CHECK_THROWS_WITH(p.derive("twice", {.channels = 4}, {}), Catch::Contains("derived twice: registered as"));
    p.allocate(ctx, true);
    other.allocate(ctx, false);
    CHECK_THROWS_WITH(p.derive("late", {.channels = 1}, {}), Catch::Contains("derived late: added after allocate()"));
    const auto follows = [&] {
      std::vector<float> a(3), b(3);
      ctx.read<float>(v.value, a);
      ctx.read<float>(twice.value, b);
      for (size_t i = 0; i < 3; ++i) CHECK(b[i] == 2 * a[i]);
      CHECK(a[0] != 0);
      return a[0];
    };
    p.initialise(ctx, 1);
    const float initial = follows();
    other.initialise(ctx, 2);
    p.assign(ctx, other);
    const float assigned = follows();
    CHECK(assigned != initial);
    p.set_tensor(ctx, "v", {3}, std::vector<float>{5, 6, 7});
    p.refresh(ctx);
    CHECK(follows() == 5);

    // A step of the optimizer.
    ctx.write<float>(std::vector<float>(static_cast<size_t>(p.gradients().elements()), 1.0f), p.gradients());
    const auto bytes = static_cast<size_t>(p.values().elements()) * sizeof(float);
    const Memory m(ctx, bytes), squares(ctx, bytes), scalars(ctx, sizeof(AdamWScalars));
    const Shape scratch_shape = p.update_scratch(ctx);
    const Memory scratch(ctx, static_cast<size_t>(scratch_shape.elements()) * sizeof(float));
    const auto floats = [](const Memory& of, Shape shape) {
      return View<float>(reinterpret_cast<float*>(of.data()), shape);
    };
    for (const Memory* zero : {&m, &squares}) ctx.zero(floats(*zero, p.values().shape));
    const View<AdamWScalars> numbers(reinterpret_cast<AdamWScalars*>(scalars.data()), {.channels = 1});
    ctx.write<AdamWScalars>(std::vector<AdamWScalars>{{.lr = 0.5f}}, numbers);
    p.update(ctx, {.value = p.values(),
                   .grad = p.gradients(),
                   .m = floats(m, p.values().shape),
                   .v = floats(squares, p.values().shape),
                   .scalars = numbers,
                   .scratch = floats(scratch, scratch_shape)});
    CHECK(follows() < 5);
  }
}
