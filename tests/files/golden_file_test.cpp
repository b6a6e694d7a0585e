#include "golden_file.h"

#include <cmath>
#include <cstddef>
#include <string>

#include "harness.h"

namespace nacre::test {
namespace {

// The losses that are stored are those of the stored logits. What is compared with nacre's discriminators is in
// golden/make_dac_discriminator.py.
TEST_CASE("golden_file: the losses of DAC's discriminator belong to its logits", "[golden]") {
  const Safetensors file = golden_file("dac_discriminator.safetensors");
  double discriminator = 0, generator = 0;
  for (const std::string d : {"0", "1", "2", "3", "4"}) {
    const GoldenTensor real = golden_tensor(file, "logits." + d + ".real");
    const GoldenTensor fake = golden_tensor(file, "logits." + d + ".fake");
    REQUIRE(real.shape == fake.shape);
    REQUIRE(real.shape.size() == 4);
    const double count = static_cast<double>(real.values.size());
    for (size_t i = 0; i < real.values.size(); ++i) {
      const double r = real.values[i], f = fake.values[i];
      discriminator += ((1 - r) * (1 - r) + f * f) / count;
      generator += (1 - f) * (1 - f) / count;
    }
  }
  // Rounding a logit x by u |x| changes a^2 with a = 1 - x by 2 u |x a| <= 2 u (|a| + a^2) <= u (1 + 3 a^2), and x^2 by
  // 2 u x^2. Five means have the first form, and the loss itself is rounded by u. One more u of the loss is for u^2.
  const auto within = [](double loss) { return ulp * (5 + 5 * loss); };
  const float d = golden_tensor(file, "loss.discriminator").values.at(0);
  const float g = golden_tensor(file, "loss.generator").values.at(0);
  CHECK(std::abs(d - discriminator) <= within(discriminator));
  CHECK(std::abs(g - generator) <= within(generator));
  CHECK(golden_tensor(file, "fake").shape == golden_tensor(file, "gradient.fake").shape);
  CHECK_THROWS_AS(golden_tensor(file, "loss"), Error);
}

}  // namespace
}  // namespace nacre::test
