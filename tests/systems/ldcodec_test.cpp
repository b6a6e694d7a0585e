// LDCodec: a quantizer with two rates, a decoder of inverted bottlenecks, and the preset.
#include <set>

#include "adding/steps.h"
#include "codec/whole.h"
#include "gradient_check.h"
#include "nacre/losses/loss.h"
#include "nacre/systems/system.h"
#include "reference/codec.h"

using namespace nacre;
using namespace nacre::test;

namespace {

/// Frames of three positions: two codes of the long cascade, then two of the short one for each position.
CodecConfig tiny() {
  CodecConfig c = CodecConfig::named("ldcodec-16k");
  c.encoder_dim = 4, c.encoder_rates = {2, 3}, c.decoder_rates = {3, 2}, c.latent_dim = 6;
  c.decoder_channels = {8, 4, 4}, c.groups = 2, c.dilations = {1, 3}, c.kernel_size = 3;
  c.n_codebooks = 4, c.long_codebooks = 2, c.long_frames = 3, c.codebook_size = 8, c.beam = 1;
  c.check();
  return c;
}

int64_t multiply_adds(const CodecConfig& c, bool at_output_rate) {
  // By hand, per second. `at_output_rate`: transposed convolutions as profilers count them, once per output and tap.
  const auto& w = c.decoder_channels;
  int64_t rate = c.sample_rate;
  for (const int64_t r : c.encoder_rates) rate /= r;
  const int64_t latent = c.latent_dim, k = c.kernel_size;
  // The transposed convolution of R taps and stride R has one product per position, or R as profilers count.
  int64_t sum = rate * latent * latent * (at_output_rate ? c.long_frames : 1);
  sum += rate * (c.synthesiser_kernel_size + 1) * latent * latent + rate * k * latent * w[0];
  for (size_t i = 0; i < c.decoder_rates.size(); ++i) {
    const int64_t stride = c.decoder_rates[i], in = w[i], out = w[i + 1];
    sum += (at_output_rate ? rate * stride : rate) * 2 * stride * in * out;
    rate *= stride;
    sum += rate * 3 * (k + 1) * 2 * out * out / c.groups;  // three units, twice as wide inside
  }
  return sum + rate * k * w.back();
}

/// The decoder in double.
test::Layer decoder_reference(const CodecConfig& c) {
  const auto same = [&](int64_t taps, int64_t dilation, int64_t groups) {
    const int64_t side = (taps - 1) / 2 * dilation;
    return Conv1dGeometry{.dilation = dilation, .groups = groups, .left = side, .right = side};
  };
  test::Chain net;
  net << conv1d("decoder.model.0", c.kernel_size, same(c.kernel_size, 1, 1));
  int64_t i = 1;
  for (const int64_t rate : c.decoder_rates) {
    const std::string block = "decoder.model." + std::to_string(i++) + ".block.";
    const int64_t padding = (rate + 1) / 2;
    net << activation(block + "0", c.activation);
    net << conv_transpose1d(block + "1", 2 * rate, {.stride = rate, .left = padding, .right = padding}, rate % 2);
    int64_t j = 2;
    for (const int64_t dilation : c.dilations) {
      const std::string unit = block + std::to_string(j++) + ".block.";
      const bool first = c.residual_taps == UnitTaps::first;
      test::Chain branch;
      branch << conv1d(unit + "0", first ? c.kernel_size : 1,
                       same(first ? c.kernel_size : 1, first ? dilation : 1, c.groups));
      branch << activation(unit + "1", c.activation);
      branch << conv1d(unit + "2", first ? 1 : c.kernel_size,
                       same(first ? 1 : c.kernel_size, first ? 1 : dilation, c.groups));
      net << residual(branch);
    }
  }
  const std::string end = "decoder.model.";
  net << activation(end + std::to_string(i), c.activation);
  net << conv1d(end + std::to_string(i + 1), c.kernel_size, same(c.kernel_size, 1, 1));
  if (c.output_tanh) net << test::tanh;
  return net;
}

/// x, whose rows pass no gradient where `passes` is false. There the value is a constant.
Node* gated(Tape& t, Node* x, const std::vector<bool>& passes) {
  const auto channels = static_cast<size_t>(x->shape.channels);
  Values v = t.held(x->value);
  for (size_t i = 0; i < v.size(); ++i)
    if (passes[i / channels]) v[i] = x->value[i];
  Node* y = t.make(x->shape, std::move(v), {x});
  t.back(y, [=, &t] {
    Values d = y->gradient;
    for (size_t i = 0; i < d.size(); ++i)
      if (!passes[i / channels]) d[i] = 0;
    t.add(x, std::move(d));  // rounded, because the library adds it to what other readers gave
  });
  return y;
}

struct TwoRates {
  Node *y, *commitment, *rest;
};
/// The quantizer in double, with given codes [batch][frames][columns].
TwoRates quantiser_reference(Tape& t, Node* z, const CodecConfig& c, const std::vector<int32_t>& codes,
                             const std::vector<int32_t>& stages, const std::vector<int32_t>& frames) {
  const int64_t positions = c.long_frames, in_item = z->shape.time / positions, columns = c.codes_per_frame();
  const int64_t short_books = c.n_codebooks - c.long_codebooks;
  RvqReference of_long, of_short;
  of_long.stages = c.long_codebooks, of_short.stages = short_books;
  std::vector<bool> passes;
  for (RvqReference* q : {&of_long, &of_short}) q->codes = c.codebook_size, q->dim = c.latent();
  for (int64_t b = 0; b < z->shape.batch; ++b)
    for (int64_t f = 0; f < in_item; ++f) {
      const int32_t* frame = codes.data() + (b * in_item + f) * columns;
      const auto item = static_cast<size_t>(b);
      for (int64_t i = 0; i < c.long_codebooks; ++i) of_long.chosen.push_back(*frame++);
      of_long.used.push_back(std::min<int64_t>(stages[item], c.long_codebooks));
      of_long.valid.push_back(f < frames[item]);
      for (int64_t at = 0; at < positions; ++at) {
        for (int64_t i = 0; i < short_books; ++i) of_short.chosen.push_back(*frame++);
        of_short.used.push_back(std::max<int64_t>(stages[item] - c.long_codebooks, 0));
        of_short.valid.push_back(f < frames[item]);
        passes.push_back(stages[item] > c.long_codebooks);
      }
    }
  Node* g = conv1d("quantizer.long.reduce", positions, {.stride = positions})(t, z);
  const Quantised slow = quantise(t, g, "quantizer.long.quantizers", of_long);
  Node* p = conv_transpose1d("quantizer.long.expand", positions, {.stride = positions})(t, slow.y);
  Node* r = gated(t, sum(t, {{1, z}, {-1, p}}), passes);
  const Quantised fast = quantise(t, r, "quantizer.quantizers", of_short);
  Node* s = sum(t, {{1, p}, {1, fast.y}});
  if (c.synthesiser_kernel_size > 0) {
    const std::string at = "quantizer.synthesiser.block.";
    const int64_t side = (c.synthesiser_kernel_size - 1) / 2;
    test::Chain unit;
    unit << activation(at + "0", c.activation)
         << conv1d(at + "1", c.synthesiser_kernel_size, {.left = side, .right = side})
         << activation(at + "2", c.activation) << conv1d(at + "3", 1);
    s = residual(unit)(t, s);
  }
  return {s, sum(t, {{1, slow.commitment}, {1, fast.commitment}}), r};
}

/// One step of training without its update.
struct Trained {
  Context ctx;
  Parameters parameters;
  System system;
  Plan plan;
  View<float> audio{};
  View<const float> estimate{};
  Quantized quantized;

  Trained(const CodecConfig& c, Device device, int64_t batch, int64_t frames, float commitment, bool mean = false)
      : ctx({.device = device, .threads = 2}), system(parameters, c), plan(ctx, Purpose::training) {
    parameters.allocate(ctx, true);
    parameters.initialise(ctx, seed());
    // All values away from their start, so that no gradient is zero by chance.
    std::mt19937_64 rng(seed());
    std::vector<float> v(static_cast<size_t>(parameters.trained_elements()));
    ctx.read<float>(View<const float>(parameters.values()), v);
    for (float& x : v) x += drawn(rng, 1)[0] * 0.3f;
    ctx.write<float>(v, parameters.values());
    parameters.refresh(ctx);
    static const std::vector<double> one{1};
    plan.reserve([&](Plan& p) {
      const Output<float> source = p.source<float>({.batch = batch, .time = frames * c.hop()});
      audio = source.value;
      quantized =
          system.quantizer.plan(p, system.encoder(p, source.flow), {.commitment_weight = commitment, .mean = mean});
      const Flow y = system.decoder(p, quantized.flow);
      estimate = p.result<float>(y);
      const Branches branches = GradientBalancer(0, false).plan(p, y, one);
      waveform_loss_of({}).plan(p, {.estimates = branches.flows,
                                    .target = audio,
                                    .lengths = {},
                                    .values = p.persistent<float>({.channels = 1})});
      parameters.clear_gradients(p);
    });
  }
  std::vector<int32_t> run(const std::vector<float>& x, const std::vector<int32_t>& stages,
                           const std::vector<int32_t>& frames) {
    ctx.write<float>(x, audio);
    ctx.write<int32_t>(stages, quantized.stages);
    ctx.write<int32_t>(frames, quantized.frames);
    plan.run_gradients();
    parameters.finish_gradients(ctx);
    std::vector<int32_t> codes(static_cast<size_t>(quantized.codes.elements()));
    ctx.read<int32_t>(View<const int32_t>(quantized.codes), codes);
    return codes;
  }
};

template <class T>
std::vector<T> part(const std::vector<T>& v, int64_t first, int64_t count) {
  return {v.begin() + first, v.begin() + first + count};
}

std::vector<int32_t> encoded(Codec& codec, const std::vector<float>& x, int64_t batch, int64_t codebooks) {
  const CodecConfig& c = codec.config();
  const int64_t samples = static_cast<int64_t>(x.size()) / batch;
  codec.reserve_inference(batch, samples, Codec::Use::both, codebooks);
  const Shape shape{.batch = batch, .time = samples / c.hop(), .channels = c.codes_per_frame(codebooks)};
  OnDevice<float> audio(codec.context(), {.batch = batch, .time = samples});
  OnDevice<int32_t> found(codec.context(), shape);
  std::vector<int32_t> codes(static_cast<size_t>(shape.elements()));
  codec.context().write<float>(x, audio.view);
  codec.encode(audio.view, found.view);
  codec.context().read<int32_t>(found.view, codes);
  return codes;
}
std::vector<float> decoded(Codec& codec, const std::vector<int32_t>& codes, int64_t batch, int64_t codebooks) {
  const CodecConfig& c = codec.config();
  const int64_t columns = c.codes_per_frame(codebooks), frames = static_cast<int64_t>(codes.size()) / columns / batch;
  codec.reserve_inference(batch, frames * c.hop(), Codec::Use::both, codebooks);
  OnDevice<int32_t> given(codec.context(), {.batch = batch, .time = frames, .channels = columns});
  OnDevice<float> audio(codec.context(), {.batch = batch, .time = frames * c.hop()});
  std::vector<float> y(static_cast<size_t>(batch * frames * c.hop()));
  codec.context().write<int32_t>(codes, given.view);
  codec.decode(given.view, audio.view);
  codec.context().read<float>(audio.view, y);
  return y;
}

}  // namespace

TEST_CASE("LDCodec: the preset has 6 kbit/s and a decoder of 0.26 GMAC/s", "[ldcodec]") {
  const CodecConfig c = CodecConfig::named("ldcodec-16k");
  CHECK(c.hop() == 1280);
  CHECK(c.codes_per_frame() == 48);
  CHECK(c.nominal_bitrate() == 6000);  // 480 bits per 80 ms: 120 per 20 ms
  CHECK(c.nominal_bitrate(c.long_codebooks) == 1000);
  CHECK(c.codebooks_within(6000) == 18);
  CHECK(c.codebooks_within(5999) == 17);
  CHECK(c.codebooks_within(999) == 7);
  CHECK(c.decoder_macs(25) == 2 * multiply_adds(c, false));  // 25 frames are two seconds
  CHECK(c.decoder_macs_profiled(25) == 2 * multiply_adds(c, true));
  CHECK(multiply_adds(c, true) <= 260'000'000);  // as the paper counts
}

TEST_CASE("LDCodec: codes of a frame", "[ldcodec]") {
  const CodecConfig c = tiny();
  for (int64_t books = 1; books <= 4; ++books) CHECK(c.codebooks_of(c.codes_per_frame(books)) == books);
  CHECK(c.codes_per_frame(1) == 1);
  CHECK(c.codes_per_frame(2) == 2);
  CHECK(c.codes_per_frame(3) == 5);
  CHECK(c.codes_per_frame(4) == 8);
  for (const int64_t columns : {3, 4, 6, 7, 9}) CHECK(c.codebooks_of(columns) == 0);
  std::vector<int64_t> books;
  for (int64_t i = 0; i < 8; ++i) books.push_back(c.codebook_of(i, 4));
  CHECK(books == std::vector<int64_t>{0, 1, 2, 3, 2, 3, 2, 3});
  CHECK(c.codebook_of(4, 3) == 2);
}

TEST_CASE("LDCodec: names what a configuration cannot have", "[ldcodec]") {
  const auto changed = [](auto change) {
    CodecConfig c = tiny();
    change(c);
    return c;
  };
  const auto says = [](const char* text) { return Catch::Contains(text); };
  CHECK_THROWS_WITH(changed([](CodecConfig& c) {
                      c.decoder_channels = {8, 4};
                    }).check(),
                    says("codec.decoder_channels is 2 widths, expected 3"));
  CHECK_THROWS_WITH(changed([](CodecConfig& c) { c.groups = 3; }).check(),
                    says("codec.groups is 3, expected a divisor"));
  CHECK_THROWS_WITH(changed([](CodecConfig& c) { c.residual_width = 0.1; }).check(),
                    says("codec.residual_width is 0.1, expected at least one channel"));
  CHECK_THROWS_WITH(changed([](CodecConfig& c) { c.lstm_layers = 1; }).check(), says("codec.lstm_layers is 1"));
  for (const char* network : {"dac", "encodec", "soundstream"})
    CHECK_THROWS_WITH(changed([&](CodecConfig& c) {
                        c = CodecConfig{};
                        c.network = network, c.quantizer = QuantizerKind::ema, c.metric = VqMetric::euclidean;
                        c.long_codebooks = 2, c.long_frames = 2;
                      }).check(),
                      says("codec.long_codebooks is 2, expected 0"));
}

TEST_CASE("LDCodec: gradients of a step", "[ldcodec]") {
  struct Kind {
    UnitTaps taps;
    int64_t synthesiser;
    std::vector<int32_t> stages, frames;
  };
  // All codebooks; some of the short cascade, the long one alone, and not all of that; a padded item.
  const std::vector<Kind> kinds{{UnitTaps::first, 3, {4, 4, 4}, {3, 3, 3}},
                                {UnitTaps::first, 3, {3, 2, 1}, {3, 2, 3}},
                                {UnitTaps::second, 0, {4, 2, 3}, {1, 3, 2}}};
  for (const Device device : devices())
    for (const Kind& kind : kinds) {
      CodecConfig c = tiny();
      c.residual_taps = kind.taps, c.synthesiser_kernel_size = kind.synthesiser;
      constexpr int64_t batch = 3, frames = 3;
      CAPTURE(str(device), kind.synthesiser, kind.stages);
      Trained step(c, device, batch, frames, 0.25f);
      std::mt19937_64 rng(seed() + 1);
      const std::vector<float> x = drawn(rng, batch * frames * c.hop());
      const std::vector<int32_t> codes = step.run(x, kind.stages, kind.frames);
      std::vector<float> losses(2);
      step.ctx.read<float>(View<const float>(step.quantized.losses), losses);
      std::vector<float> estimate(x.size());
      step.ctx.read<float>(step.estimate, estimate);

      const test::Layer encodes = test::encoder(c), decodes = decoder_reference(c);
      const std::vector<int32_t> lengths(batch, static_cast<int32_t>(frames * c.hop()));
      double commitment = 0;
      Values y;
      const auto model = [&](Tape& t) {
        Node* z = encodes(t, t.constant({.batch = batch, .time = frames * c.hop()}, {x.begin(), x.end()}));
        const TwoRates q = quantiser_reference(t, z, c, codes, kind.stages, kind.frames);
        Node* out = decodes(t, q.y);
        commitment = q.commitment->value[0], y = out->value;
        Node* loss = test::waveform_loss(t, out, {x.begin(), x.end()}, lengths);
        return sum(t, {{1, loss}, {0.25, q.commitment}});
      };
      Tape tape;
      tape.parameters = values_of(step.ctx, step.parameters);
      const Comparison comparison(tape, model);
      CHECK(comparison.blunt() == "");
      comparison.check(gradients_of(step.ctx, step.parameters));
      // About 40 layers of sums of at most 42 terms: errors of random signs, and one in 20 of the terms remains.
      const double relative = ulp * std::sqrt(40.0 * 42) * 20;
      CHECK(std::fabs(losses[0] - commitment) <= relative * commitment);
      for (size_t i = 0; i < y.size(); ++i) REQUIRE(std::fabs(estimate[i] - y[i]) <= relative * largest(y));
      check_differences(tape, model, rng, 20);
    }
}

TEST_CASE("LDCodec: the codec gives the codes and the samples of training", "[ldcodec]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    const CodecConfig c = tiny();
    constexpr int64_t batch = 2, frames = 4;
    Trained step(c, device, batch, frames, 0.25f);
    Codec codec(step.ctx, c);
    codec.parameters().assign(step.ctx, step.parameters);
    std::mt19937_64 rng(seed() + 2);
    const std::vector<float> x = drawn(rng, batch * frames * c.hop());
    const std::vector<int32_t> trained = step.run(x, {4, 4}, {4, 4});
    CHECK(std::set<int32_t>(trained.begin(), trained.end()).size() > 4);
    CHECK(encoded(codec, x, batch, 4) == trained);
    std::vector<float> estimate(x.size());
    step.ctx.read<float>(step.estimate, estimate);
    CHECK(decoded(codec, trained, batch, 4) == estimate);

    // Fewer codebooks: the same codes, and the samples of a step that uses so many.
    const auto of_first = [&](int64_t books) {
      std::vector<int32_t> found;
      for (size_t i = 0; i < trained.size(); ++i)
        if (c.codebook_of(static_cast<int64_t>(i % 8), 4) < books) found.push_back(trained[i]);
      return found;
    };
    for (int32_t books = 1; books <= 3; ++books) {
      CAPTURE(books);
      CHECK(encoded(codec, x, batch, books) == of_first(books));
      step.run(x, {books, books}, {4, 4});
      step.ctx.read<float>(step.estimate, estimate);
      const std::vector<float> y = decoded(codec, of_first(books), batch, books);
      // The masked sums add zeros, so the bits are those of the shorter ones.
      CHECK(y == estimate);
    }

    // An item of a batch is coded as it is alone.
    const int64_t samples = frames * c.hop();
    for (int64_t b = 0; b < batch; ++b) {
      CHECK(encoded(codec, part(x, b * samples, samples), 1, 4) == part(trained, b * frames * 8, frames * 8));
      CHECK(decoded(codec, part(trained, b * frames * 8, frames * 8), 1, 4) ==
            part(decoded(codec, trained, batch, 4), b * samples, samples));
    }
  }
}

TEST_CASE("LDCodec: the start of the codebooks clusters both rates", "[ldcodec]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    CodecConfig c = tiny();
    c.codebook_size = 4;
    constexpr int64_t rows = 60;
    Context ctx({.device = device, .threads = 2});
    Parameters parameters;
    const Quantizer quantizer(parameters, c);
    parameters.allocate(ctx, true);
    parameters.initialise(ctx, seed());
    std::mt19937_64 rng(seed() + 3);
    const std::vector<float> z = drawn(rng, rows * c.latent());
    OnDevice<float> latents(ctx, {.time = rows, .channels = c.latent()});
    ctx.write<float>(z, latents.view);
    Plan plan(ctx, Purpose::inference);
    View<float> in;
    View<int32_t> codes;
    plan.reserve([&](Plan& p) {
      const Output<float> source = p.source<float>({.time = rows, .channels = c.latent()});
      in = source.value;
      codes = quantizer.plan(p, source.flow, {.beam = 1}).codes;
    });
    ctx.write<float>(z, in);
    std::vector<int32_t> found(static_cast<size_t>(codes.elements()));
    std::vector<int64_t> done;
    quantizer.start(ctx, latents.view, seed(), [&](int64_t n, int64_t total) {
      CHECK(total == 4);
      done.push_back(n);
    });
    CHECK(done == std::vector<int64_t>{0, 1, 2, 3, 4});
    plan.run();
    ctx.read<int32_t>(View<const int32_t>(codes), found);
    // The short cascade starts as a quantizer with one rate would from the rest, with the seeds of its later stages.
    Tape tape;
    tape.parameters = values_of(ctx, parameters);
    std::vector<float> left;
    tape.run([&](Tape& t) {
      Node* x = t.constant({.time = rows, .channels = c.latent()}, {z.begin(), z.end()});
      const TwoRates q = quantiser_reference(t, x, c, found, {4}, {rows / 3});
      left.assign(q.rest->value.begin(), q.rest->value.end());
      return q.commitment;
    });
    CodecConfig one = c;
    one.n_codebooks = 2, one.long_codebooks = 0, one.long_frames = 1, one.synthesiser_kernel_size = 0;
    Parameters apart;
    const Quantizer of_rest(apart, one);
    apart.allocate(ctx, true);
    apart.initialise(ctx, seed());
    ctx.write<float>(left, latents.view);
    of_rest.start(ctx, latents.view, seed() + 2 * 0x9E3779B97F4A7C15ull);
    const Tensors expected = values_of(ctx, apart), started = values_of(ctx, parameters);
    for (const char* book : {"0", "1"}) {
      const std::string name = std::string("quantizer.quantizers.") + book + ".codebook.embed";
      // Means of at most 60 rows below 4, whose rounding differs.
      for (size_t i = 0; i < expected.at(name).size(); ++i)
        CHECK(std::fabs(expected.at(name)[i] - started.at(name)[i]) <= 60 * ulp * 4);
    }

    // Every code is in use: its row is the mean of those that choose it. Random books of this scale leave most unused.
    for (int64_t book = 0; book < 4; ++book) {
      std::set<int32_t> used;
      for (size_t i = 0; i < found.size(); ++i)
        if (c.codebook_of(static_cast<int64_t>(i % 8), 4) == book) used.insert(found[i]);
      CAPTURE(book);
      CHECK(used.size() == 4);
    }
  }
}

TEST_CASE("LDCodec: a beam leaves at no position more than the nearest codes", "[ldcodec]") {
  for (const Device device : devices()) {
    CAPTURE(str(device));
    CodecConfig c = tiny();
    c.synthesiser_kernel_size = 0, c.n_codebooks = 6;  // the quantised latent is the sum; four stages in the beam
    constexpr int64_t rows = 300;
    const Shape shape{.time = rows, .channels = c.latent()};
    Context ctx({.device = device, .threads = 2});
    Parameters parameters;
    const Quantizer quantizer(parameters, c);
    parameters.allocate(ctx, true);
    parameters.initialise(ctx, seed());
    std::mt19937_64 rng(seed() + 4);
    const std::vector<float> z = drawn(rng, rows * c.latent());
    OnDevice<float> latents(ctx, shape);
    ctx.write<float>(z, latents.view);
    quantizer.start(ctx, latents.view, seed());
    const auto coded = [&](int64_t beam, std::vector<int32_t>& codes) {
      Plan plan(ctx, Purpose::inference);
      View<float> in;
      View<const float> out;
      View<int32_t> found;
      plan.reserve([&](Plan& p) {
        const Output<float> source = p.source<float>(shape);
        in = source.value;
        const Quantized q = quantizer.plan(p, source.flow, {.beam = beam});
        out = p.result<float>(q.flow), found = q.codes;
      });
      ctx.write<float>(z, in);
      plan.run();
      codes.resize(static_cast<size_t>(found.elements()));
      ctx.read<int32_t>(View<const int32_t>(found), codes);
      std::vector<float> y(z.size());
      ctx.read<float>(out, y);
      std::vector<double> left(rows);
      for (size_t i = 0; i < y.size(); ++i)
        left[i / static_cast<size_t>(c.latent())] += std::pow(double{z[i]} - double{y[i]}, 2);
      return left;
    };
    std::vector<int32_t> nearest, searched;
    const std::vector<double> greedy = coded(1, nearest), beam = coded(8, searched);
    double sum_greedy = 0, sum_beam = 0;
    for (size_t row = 0; row < rows; ++row) {
      // Two sequences of equal error are told apart by the rounding of their scores: (2 dim + 4) ulp of terms that are
      // at most a few times the energy of a position, below 10 here.
      CHECK(beam[row] <= greedy[row] + (2 * 6 + 4) * ulp * 40);
      sum_greedy += greedy[row], sum_beam += beam[row];
    }
    CHECK(sum_beam < sum_greedy);
    const size_t columns = static_cast<size_t>(c.codes_per_frame());
    for (size_t i = 0; i < nearest.size(); ++i)
      if (i % columns < 2) CHECK(nearest[i] == searched[i]);  // the long cascade is searched without a beam
  }
}
