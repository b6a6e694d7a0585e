// Parameters by DAC's names: lists, totals, files, sharing.
#include "nacre/nn/parameters.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "file_tools.h"
#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/files/safetensors.h"

using namespace nacre;

namespace {

using Shapes = std::map<std::string, std::vector<int64_t>>;

/// The tensors of the published checkpoints, from their description. This is a second implementation of the model's
/// structure.
Shapes published(const std::vector<int64_t>& strides, int64_t latent, int64_t stages) {
  Shapes s;
  const auto conv = [&](const std::string& name, int64_t out, int64_t in, int64_t taps) {
    s[name + ".weight_v"] = {out, in, taps};
    s[name + ".weight_g"] = {out, 1, 1};
    s[name + ".bias"] = {out};
  };
  const auto unit = [&](const std::string& name, int64_t c) {
    s[name + ".block.0.alpha"] = {1, c, 1};
    conv(name + ".block.1", c, c, 7);
    s[name + ".block.2.alpha"] = {1, c, 1};
    conv(name + ".block.3", c, c, 1);
  };
  conv("encoder.block.0", 64, 1, 7);
  for (int64_t i = 0; i < 4; ++i) {
    const std::string name = "encoder.block." + std::to_string(i + 1) + ".block.";
    const int64_t c = 64 << i;
    for (int64_t u = 0; u < 3; ++u) unit(name + std::to_string(u), c);
    s[name + "3.alpha"] = {1, c, 1};
    conv(name + "4", 2 * c, c, 2 * strides[static_cast<size_t>(i)]);
  }
  s["encoder.block.5.alpha"] = {1, 1024, 1};
  conv("encoder.block.6", latent, 1024, 3);
  for (int64_t i = 0; i < stages; ++i) {
    const std::string name = "quantizer.quantizers." + std::to_string(i);
    conv(name + ".in_proj", 8, latent, 1);
    conv(name + ".out_proj", latent, 8, 1);
    s[name + ".codebook.weight"] = {1024, 8};
  }
  conv("decoder.model.0", 1536, latent, 7);
  for (int64_t i = 0; i < 4; ++i) {
    const std::string name = "decoder.model." + std::to_string(i + 1) + ".block.";
    const int64_t in = 1536 >> i, out = in / 2;
    s[name + "0.alpha"] = {1, in, 1};
    s[name + "1.weight_v"] = {in, out, 2 * strides[static_cast<size_t>(3 - i)]};
    s[name + "1.weight_g"] = {in, 1, 1};
    s[name + "1.bias"] = {out};
    for (int64_t u = 2; u < 5; ++u) unit(name + std::to_string(u), out);
  }
  s["decoder.model.5.alpha"] = {1, 96, 1};
  conv("decoder.model.6", 1, 96, 7);
  return s;
}

/// Parameters that are registered and never allocated. A list of names needs no 300 MB.
struct Registered {
  explicit Registered(const CodecConfig& c) : system(p, c) {}
  Parameters p;
  System system;
  Shapes shapes() const {
    Shapes s;
    for (const Parameter& x : p.all())
      for (const std::string& n : x.names) s[n] = x.stored;
    return s;
  }
};

CodecConfig small(QuantizerKind kind = QuantizerKind::factorised) {
  CodecConfig c;
  c.encoder_dim = 4, c.encoder_rates = {2, 3};
  c.decoder_dim = 16, c.decoder_rates = {3, 2};
  c.latent_dim = 6, c.dilations = {1, 3};
  c.quantizer = kind, c.n_codebooks = 3, c.codebook_size = 16, c.codebook_dim = 4;
  return c;
}

std::vector<float> everything(Context& ctx, const Parameters& p) {
  std::vector<float> all;
  p.each_tensor(ctx, [&](const std::string&, const std::vector<int64_t>&, std::span<const float> v) {
    all.insert(all.end(), v.begin(), v.end());
  });
  return all;
}
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

template <class F>
std::string error_of(F&& f, ErrorKind kind = ErrorKind::input) {
  try {
    f();
  } catch (const Error& e) {
    CHECK(e.kind() == kind);
    return e.what();
  }
  FAIL_CHECK("no error");
  return {};
}

void rewrite(const std::filesystem::path& from, const std::filesystem::path& to,
             const std::function<void(std::vector<StoredTensor>&, std::vector<std::vector<float>>&)>& change) {
  const Safetensors file = Safetensors::read(from);
  std::vector<StoredTensor> tensors(file.tensors().begin(), file.tensors().end());
  std::vector<std::vector<float>> held;
  held.reserve(16);
  change(tensors, held);
  write_safetensors(to, tensors, file.metadata());
}

}  // namespace

TEST_CASE("parameters: the names, shapes and totals of the published DAC checkpoints") {
  struct Published {
    const char* name;
    std::vector<int64_t> strides;
    int64_t stages, tensors, effective;
  };
  for (const Published& d :
       {Published{"dac-16k", {2, 4, 5, 8}, 12, 322, 74141697}, Published{"dac-24k", {2, 4, 5, 8}, 32, 462, 74653857},
        Published{"dac-44k", {2, 4, 8, 8}, 9, 301, 76620777}}) {
    CAPTURE(d.name);
    const Registered model(CodecConfig::named(d.name));
    const Shapes found = model.shapes(), wanted = published(d.strides, 1024, d.stages);
    CHECK(static_cast<int64_t>(found.size()) == d.tensors);
    for (const auto& [name, shape] : wanted) {
      INFO(name);
      REQUIRE(found.count(name) == 1);
      CHECK(found.at(name) == shape);
    }
    for (const auto& [name, shape] : found) {
      INFO(name);
      CHECK(wanted.count(name) == 1);
    }
    CHECK(model.p.effective_elements() == d.effective);
  }
}

TEST_CASE("parameters: a latent narrower than the encoder, as in the 16 kbit/s model") {
  CodecConfig c = CodecConfig::named("dac-44k");
  c.latent_dim = 128, c.n_codebooks = 18;
  const Registered model(c);
  CHECK(model.shapes() == published({2, 4, 8, 8}, 128, 18));
  CHECK(model.p.effective_elements() == 64189873);
}

TEST_CASE("parameters: what a step did not use has no gradient, whatever the step before left there") {
  const Device device = GENERATE(from_range(test::devices()));
  const bool in_one_op = GENERATE(false, true);  // the end of a step: separate ops, or one fused op
  const bool plain = GENERATE(false, true);      // weights without gains
  INFO(str(device) << (in_one_op ? ", fused" : ", op by op") << (plain ? ", plain" : ""));
  Context ctx({.device = device, .threads = 2});
  Parameters p;
  const auto add = [&](const char* name, std::vector<int64_t> stored, Shape shape) -> Weight& {
    return plain ? p.add_plain_weight({name}, std::move(stored), shape, {Init::one})
                 : p.add_weight({name}, std::move(stored), shape, {Init::one});
  };
  Weight &used = add("used", {3, 5, 2}, {.batch = 3, .time = 2, .channels = 5}),
         &idle = add("idle", {4, 3, 7}, {.batch = 4, .time = 7, .channels = 3});
  p.allocate(ctx, true);
  const auto fill = [&](View<float> v, float first) {
    std::vector<float> values(static_cast<size_t>(v.elements()));
    for (size_t i = 0; i < values.size(); ++i) values[i] = first + 0.01f * static_cast<float>(i % 17);
    ctx.write<float>(values, v);
  };
  fill(p.values(), 0.5f);
  p.refresh(ctx);
  const auto read = [&](View<const float> v) {
    std::vector<float> values(static_cast<size_t>(v.elements()));
    ctx.read<float>(v, values);
    return values;
  };
  // An earlier step left a gradient in both parameters. In the next step only `used` takes part.
  Plan plan(ctx, Purpose::training);
  plan.reserve([&](Plan& w) {
    const Step s = w.step("uses one weight");
    const WeightGrad dw = s.gradient(used);
    CHECK_FALSE(dw.add);
    s.backward([&fill, dw](Context&) { fill(dw.grad, 3); });
    p.clear_gradients(w);
  });
  fill(used.grad, 1), fill(idle.grad, 2);
  plan.run();

  const std::vector<float> before_v = read(idle.v->value), before_used = read(used.v->value),
                           before_g = plain ? std::vector<float>{} : read(idle.g->value);
  if (in_one_op) {
    const Shape all = p.values().shape, scratch = p.update_scratch(ctx);
    const auto bytes = [](Shape s) { return static_cast<size_t>(s.elements()) * sizeof(float); };
    const Memory m(ctx, bytes(all)), v(ctx, bytes(all)), scratch_memory(ctx, bytes(scratch)),
        scalars(ctx, sizeof(AdamWScalars));
    const auto floats = [](const Memory& of, Shape s) { return View<float>(reinterpret_cast<float*>(of.data()), s); };
    const View<AdamWScalars> one(reinterpret_cast<AdamWScalars*>(scalars.data()), {});
    const AdamWScalars rate{.lr = 0.01f};
    ctx.write<AdamWScalars>(std::span(&rate, 1), one);
    ctx.zero(floats(m, all)), ctx.zero(floats(v, all));
    p.update(ctx, {.value = p.values(),
                   .grad = p.gradients(),
                   .m = floats(m, all),
                   .v = floats(v, all),
                   .scalars = one,
                   .scratch = floats(scratch_memory, scratch),
                   .weight_decay = 0});
  } else {
    p.finish_gradients(ctx);
    for (const float g : read(idle.v->grad)) CHECK(g == 0);
    if (plain) {
      CHECK(same_bits(read(used.v->grad), read(used.grad)));
    } else {
      for (const float g : read(idle.g->grad)) CHECK(g == 0);
      const std::vector<float> found = read(used.g->grad);
      CHECK(std::all_of(found.begin(), found.end(), [](float g) { return g != 0; }));
    }
  }
  for (const float g : read(idle.grad)) CHECK(g == 0);
  if (in_one_op) {
    CHECK(same_bits(read(idle.v->value), before_v));
    if (!plain) CHECK(same_bits(read(idle.g->value), before_g));
    CHECK_FALSE(same_bits(read(used.v->value), before_used));
  }
}

TEST_CASE("parameters: saved and loaded, bit for bit") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  const test::Folder folder;
  for (const QuantizerKind kind : {QuantizerKind::factorised, QuantizerKind::ema}) {
    Context ctx({.device = device, .threads = 1});
    Codec codec(ctx, small(kind));
    codec.parameters().initialise(ctx, 5);
    codec.save(folder / "model.safetensors", {{"note", "kept"}});
    Codec loaded = Codec::load(ctx, folder / "model.safetensors");
    CHECK(same_bits(everything(ctx, codec.parameters()), everything(ctx, loaded.parameters())));
    CHECK(loaded.identity() == codec.identity());
    CHECK(loaded.config().to_json() == codec.config().to_json());
    CHECK(Safetensors::read(folder / "model.safetensors").metadata().at("note") == "kept");

    // Loading gives the same sound: weights that are stored [out, in, taps] get their memory layout back.
    const int64_t samples = 20 * codec.config().hop();
    std::vector<float> audio(static_cast<size_t>(samples));
    for (size_t i = 0; i < audio.size(); ++i) audio[i] = 0.3f * std::sin(0.1f * static_cast<float>(i * i % 97));
    const auto through = [&](Codec& c) {
      c.reserve_inference(1, samples);
      const std::vector<int32_t> codes(20 * 3);
      std::vector<float> out(audio.size());
      const Shape wave{.time = samples}, frames{.time = 20, .channels = 3};
      Memory wave_memory(ctx, out.size() * sizeof(float)), frames_memory(ctx, codes.size() * sizeof(int32_t));
      const View<float> x(reinterpret_cast<float*>(wave_memory.data()), wave);
      const View<int32_t> f(reinterpret_cast<int32_t*>(frames_memory.data()), frames);
      ctx.write<float>(audio, x);
      c.encode(x, f);
      c.decode(f, x);
      ctx.read<float>(x, out);
      return out;
    };
    const std::vector<float> first = through(codec);
    CHECK(same_bits(first, through(loaded)));
    CHECK(std::count(first.begin(), first.end(), first[0]) < 10);  // the codes are not constant
    // One changed bit of one weight gives another model.
    std::vector<float> g(4);
    ctx.read<float>(loaded.parameters().all()[1].value, g);
    g[0] = std::nextafter(g[0], 2.0f);
    ctx.write<float>(g, loaded.parameters().all()[1].value);
    CHECK(loaded.identity() != codec.identity());
  }
}

TEST_CASE("parameters: a strict load lists all that is wrong in one error") {
  const test::Folder folder;
  Context ctx({.threads = 1});
  Codec codec(ctx, small());
  codec.parameters().initialise(ctx, 5);
  codec.save(folder / "model.safetensors");
  rewrite(folder / "model.safetensors", folder / "wrong.safetensors", [](auto& tensors, auto& held) {
    std::erase_if(tensors, [](const StoredTensor& t) {
      return t.name == "encoder.block.0.bias" || t.name == "quantizer.quantizers.1.codebook.weight";
    });
    for (StoredTensor& t : tensors)
      if (t.name == "decoder.model.0.weight_v") std::swap(t.shape[0], t.shape[2]);
    held.push_back({1, 2});
    tensors.push_back({"encoder.extra", Dtype::f32, {2}, std::as_bytes(std::span<const float>(held.back()))});
  });
  const std::vector<float> before = everything(ctx, codec.parameters());
  const std::string what =
      error_of([&] { load_parameters(ctx, codec.parameters(), folder / "wrong.safetensors", true); });
  INFO(what);
  for (const char* part :
       {"wrong.safetensors", "missing (2)", "encoder.block.0.bias", "quantizer.quantizers.1.codebook.weight",
        "unexpected (1)", "encoder.extra", "of another shape (1)", "decoder.model.0.weight_v"})
    CHECK(what.find(part) != std::string::npos);
  CHECK(same_bits(before, everything(ctx, codec.parameters())));

  // Not strict: matching tensors are loaded, and the rest is reported.
  const LoadReport report = load_parameters(ctx, codec.parameters(), folder / "wrong.safetensors", false);
  CHECK(report.missing.size() == 2);
  CHECK(report.surplus == std::vector<std::string>{"encoder.extra"});
  CHECK(report.misshapen.size() == 1);
  CHECK(same_bits(before, everything(ctx, codec.parameters())));

  // A file that is no model of nacre gives an error that says so.
  {
    const Safetensors file = Safetensors::read(folder / "model.safetensors");
    write_safetensors(folder / "other.safetensors",
                      std::vector<StoredTensor>(file.tensors().begin(), file.tensors().end()), {{"format", "pt"}});
  }
  CHECK(error_of([&] { Codec::load(ctx, folder / "other.safetensors"); }).find("nacre.codec") != std::string::npos);
}

TEST_CASE("parameters: a second model of the same names shares them") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  Context ctx({.device = device, .threads = 1});
  Parameters p;
  const CodecConfig c = small(QuantizerKind::ema);
  const Net first = encoder_of(p, c);
  Quantizer quantizer(p, c);
  const size_t count = p.all().size();
  const Net second = encoder_of(p, c);
  CHECK(p.all().size() == count);
  p.allocate(ctx, true);
  const Net third = encoder_of(p, c);  // asks for nothing new, so it is still allowed
  CHECK(p.all().size() == count);
  CHECK_THROWS_AS(decoder_of(p, c), Error);
  CHECK_THROWS_AS(p.allocate(ctx, true), Error);
  CodecConfig wider = c;
  wider.encoder_dim = 5;
  CHECK(error_of([&] { encoder_of(p, wider); }, ErrorKind::usage).find("encoder.block.0") != std::string::npos);

  // Both instances compute the same.
  p.initialise(ctx, 3);
  std::vector<float> out[2];
  for (const Net* e : {&first, &second}) {
    Plan plan(ctx, Purpose::inference);
    View<const float> result;
    View<float> audio;
    plan.reserve([&](Plan& w) {
      const Output<float> source = w.source<float>({.batch = 2, .time = 36});
      audio = source.value;
      result = w.result<float>((*e)(w, source.flow));
    });
    std::vector<float> x(72);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 7) / 7;
    ctx.write<float>(x, audio);
    plan.run();
    std::vector<float>& y = out[e == &second];
    y.resize(static_cast<size_t>(result.elements()));
    ctx.read<float>(result, y);
  }
  CHECK(same_bits(out[0], out[1]));
}

TEST_CASE("parameters: assigned from another model, with averaged weights in place of its own") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  Context ctx({.device = device, .threads = 1});
  const CodecConfig c = small(QuantizerKind::ema);
  Codec from(ctx, c), to(ctx, c);
  from.parameters().initialise(ctx, 1);
  to.parameters().initialise(ctx, 2);
  CHECK(!same_bits(everything(ctx, from.parameters()), everything(ctx, to.parameters())));
  to.parameters().assign(ctx, from.parameters());
  CHECK(same_bits(everything(ctx, from.parameters()), everything(ctx, to.parameters())));
  CHECK(to.identity() == from.identity());

  const std::vector<float> quarters(static_cast<size_t>(from.parameters().trained_elements()), 0.25f);
  Memory averaged(ctx, quarters.size() * sizeof(float));
  const View<float> average(reinterpret_cast<float*>(averaged.data()), from.parameters().values().shape);
  ctx.write<float>(quarters, average);
  to.parameters().assign(ctx, from.parameters(), average);
  to.parameters().each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
    if (name.find(".codebook.") == std::string::npos)
      CHECK(std::all_of(v.begin(), v.end(), [](float x) { return x == 0.25f; }));
  });
  CodecConfig other = c;
  other.n_codebooks = 2;
  Codec fewer(ctx, other);
  CHECK_THROWS_AS(fewer.parameters().assign(ctx, from.parameters()), Error);
}

TEST_CASE("parameters: begin as they are registered") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  Context ctx({.device = device, .threads = 1});
  Parameters p;
  const Shape five{.channels = 5};
  p.add("zero", {5}, five, {Init::zero});
  p.add("one", {5}, five, {Init::one});
  p.add("uniform", {5}, five, {Init::uniform, 2.0});
  p.add("normal", {5}, five, {Init::normal, 1.0}, StoredAs::same, false);
  p.add("pair.own", {5}, five, {Init::normal, 1.0});
  p.add("pair.a", {5}, five, {Init::normal, 1.0, true});
  p.add("pair.b", {5}, five, {Init::normal, 4.0, true});
  p.add_stack({"0.stack", "1.stack"}, {5}, {.batch = 2, .channels = 5}, {Init::normal, 1.0});
  p.add("one", {5}, five, {Init::zero});  // a known parameter keeps the initial values of its first registration
  Weight& weight = p.add_weight({"0.w", "1.w"}, {2, 3, 2}, {.batch = 4, .time = 2, .channels = 3}, {Init::one});
  CHECK(error_of([&] { p.initialise(ctx, 1); }, ErrorKind::usage).find("allocate") != std::string::npos);
  p.allocate(ctx, false);
  ctx.write<float>(std::vector<float>(static_cast<size_t>(p.values().elements()), 7.0f),
                   p.values());  // left from before
  p.initialise(ctx, 1);
  std::map<std::string, std::vector<float>> v;
  p.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> values) {
    v[name].assign(values.begin(), values.end());
  });
  const auto all = [&](const char* name, float x) {
    CAPTURE(name);
    CHECK(std::all_of(v.at(name).begin(), v.at(name).end(), [&](float y) { return y == x; }));
  };
  all("zero", 0), all("one", 1), all("0.w.weight_v", 1), all("1.w.weight_v", 1);
  for (const char* gain : {"0.w.weight_g", "1.w.weight_g"}) all(gain, std::sqrt(6.0f));
  CHECK(std::all_of(v["uniform"].begin(), v["uniform"].end(), [](float x) { return x != 0 && std::fabs(x) <= 2; }));
  CHECK(!same_bits(v["normal"], v["pair.own"]));
  CHECK(!same_bits(v["pair.own"], v["pair.a"]));
  for (size_t i = 0; i < 5; ++i) CHECK(v["pair.b"][i] == 4 * v["pair.a"][i]);
  CHECK(!same_bits(v["0.stack"], v["1.stack"]));
  // Effective weights are current: they equal v where the gain is the norm of the row, within 8 ulp (weight_norm.h).
  std::vector<float> w(24);
  ctx.read<float>(weight.value32, w);
  for (const float x : w) CHECK(std::fabs(static_cast<double>(x) - 1) <= 8 * test::ulp);
}

TEST_CASE("parameters: weights of two dimensions have PyTorch's order in files and channels last in memory") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  Context ctx({.device = device, .threads = 1});
  const std::vector<int64_t> stored{2, 3, 4, 5};  // out, in, taps of time, taps of width
  const Shape shape{.batch = 2, .time = 5, .width = 4, .channels = 3};
  Parameters p;
  Weight &plain = p.add_plain_weight({"plain"}, stored, shape, {Init::uniform, 0.5}),
         &normed = p.add_weight({"normed"}, stored, shape, {Init::uniform, 0.5});
  CHECK(normed.g->stored == std::vector<int64_t>{2, 1, 1, 1});
  p.allocate(ctx, true);
  p.initialise(ctx, 7);
  std::vector<float> values(120), memory(120);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const Weight* const weights[] = {&plain, &normed};
  for (size_t which = 0; which < 2; ++which) {
    const std::string name = which == 0 ? "plain.weight" : "normed.weight_v";
    CHECK(p.set_tensor(ctx, name, stored, values));
    ctx.read<float>(weights[which]->v->value, memory);
    for (size_t o = 0; o < 2; ++o)
      for (size_t i = 0; i < 3; ++i)
        for (size_t k = 0; k < 4; ++k)
          for (size_t j = 0; j < 5; ++j)
            CHECK(memory[((o * 5 + j) * 4 + k) * 3 + i] == values[((o * 3 + i) * 4 + k) * 5 + j]);
  }
  int found = 0;
  p.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>& shape_in_file, std::span<const float> v) {
    if (shape_in_file != stored) return;
    INFO(name);
    CHECK(same_bits({v.begin(), v.end()}, values));
    ++found;
  });
  CHECK(found == 2);
}

TEST_CASE("parameters: plain weights beside normalised ones") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  Context ctx({.device = device, .threads = 1});
  const Init draw{Init::uniform, 0.5};
  const Shape shape{.batch = 4, .time = 2, .channels = 3};
  Parameters p, alone;
  Weight &first = p.add_weight({"first"}, {2, 3, 2}, {.batch = 2, .time = 2, .channels = 3}, draw),
         &stack = p.add_plain_weight({"0.stack", "1.stack"}, {2, 3, 2}, shape, draw),
         &second = p.add_weight({"second"}, {4, 3, 2}, shape, draw);
  alone.add_weight({"first"}, {2, 3, 2}, {.batch = 2, .time = 2, .channels = 3}, draw);
  alone.add_weight({"second"}, {4, 3, 2}, shape, draw);
  CHECK(stack.g == nullptr);
  CHECK(&p.add_plain_weight({"0.stack", "1.stack"}, {2, 3, 2}, shape, draw) == &stack);
  CHECK(p.effective_elements() == 12 + 24 + 24);
  // One layer cannot have both forms.
  for (const std::string& what : {error_of(
                                      [&] {
                                        p.add_weight({"0.stack", "1.stack"}, {2, 3, 2}, shape, draw);
                                      },
                                      ErrorKind::usage),
                                  error_of(
                                      [&] {
                                        p.add_plain_weight({"first"}, {2, 3, 2}, {.batch = 4, .channels = 3}, draw);
                                      },
                                      ErrorKind::usage)})
    CHECK(what.find("both with and without a gain") != std::string::npos);

  for (Parameters* each : {&p, &alone}) each->allocate(ctx, true), each->initialise(ctx, 7);
  std::map<std::string, std::vector<float>> values, others;
  const auto into = [](std::map<std::string, std::vector<float>>& to) {
    return [&to](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
      to[name].assign(v.begin(), v.end());
    };
  };
  p.each_tensor(ctx, into(values)), alone.each_tensor(ctx, into(others));
  CHECK(values.size() == others.size() + 2);
  for (const auto& [name, v] : others) CHECK(same_bits(values.at(name), v));  // a plain weight changes no other tensor
  CHECK_FALSE(same_bits(values.at("0.stack.weight"), values.at("1.stack.weight")));

  // The effective weight has the values in the layout of memory: taps before channels.
  const auto read = [&](View<const float> v) {
    std::vector<float> all(static_cast<size_t>(v.elements()));
    ctx.read<float>(v, all);
    return all;
  };
  const std::vector<float> w = read(stack.value32);
  for (size_t piece = 0; piece < 2; ++piece)
    for (size_t o = 0; o < 2; ++o)
      for (size_t k = 0; k < 2; ++k)
        for (size_t i = 0; i < 3; ++i)
          CHECK(w[((2 * piece + o) * 2 + k) * 3 + i] ==
                values.at(std::to_string(piece) + ".stack.weight")[(o * 3 + i) * 2 + k]);
  CHECK(same_bits(w, read(stack.v->value)));

  // A tensor that is set becomes effective with the next refresh().
  const std::vector<float> ones(12, 1.0f);
  CHECK(p.set_tensor(ctx, "1.stack.weight", {2, 3, 2}, ones));
  p.refresh(ctx);
  const std::vector<float> after = read(stack.value32);
  CHECK(same_bits({after.begin() + 12, after.end()}, ones));
  CHECK(same_bits({after.begin(), after.begin() + 12}, {w.begin(), w.begin() + 12}));

  // Storage in bf16 rounds once.
  Parameters narrow;
  Weight& rounded = narrow.add_plain_weight({"0.stack", "1.stack"}, {2, 3, 2}, shape, draw);
  narrow.allocate(ctx, false, Storage::bfloat16), narrow.initialise(ctx, 7);
  std::vector<bf16> found(24);
  ctx.read<bf16>(rounded.value16, found);
  for (size_t i = 0; i < 24; ++i) CHECK(to_float(found[i]) == to_float(to_bf16(w[i])));

  // Gradients: that of a plain weight passes to it unchanged, beside rows with gains on both sides.
  for (const Weight* each : {&first, &stack, &second})
    ctx.write<float>(std::vector<float>(static_cast<size_t>(each->grad.elements()), 0.25f), each->grad);
  p.finish_gradients(ctx);
  for (const float g : read(stack.v->grad)) CHECK(g == 0.25f);
  for (const Weight* each : {&first, &second}) CHECK_FALSE(same_bits(read(each->v->grad), read(each->grad)));
}

TEST_CASE("parameters: what begins random is a function of the seed and the name alone") {
  const Device device = GENERATE(from_range(test::devices()));
  CAPTURE(str(device));
  Context ctx({.device = device, .threads = 1});
  Codec a(ctx, small()), b(ctx, small());
  a.parameters().initialise(ctx, 9);
  b.parameters().initialise(ctx, 9);
  CHECK(same_bits(everything(ctx, a.parameters()), everything(ctx, b.parameters())));
  CodecConfig more = small();
  more.n_codebooks = 5;
  Codec c(ctx, more);
  c.parameters().initialise(ctx, 9);
  std::map<std::string, std::vector<float>> known;
  a.parameters().each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
    known[name].assign(v.begin(), v.end());
  });
  c.parameters().each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>&, std::span<const float> v) {
    if (known.count(name)) CHECK(same_bits(known[name], {v.begin(), v.end()}));
  });
  b.parameters().initialise(ctx, 10);
  CHECK(!same_bits(everything(ctx, a.parameters()), everything(ctx, b.parameters())));
}
