// Run configurations: names, files, single assignments, the schedule, and the warnings for new users.
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "file_tools.h"
#include "harness.h"
#include "nacre/systems/system.h"
#include "nacre/training/run_config.h"
#include "nacre/training/trainer.h"

using namespace nacre;
using namespace nacre::training;
using nlohmann::json;

namespace {

template <class F>
std::string refusal(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "accepted";
}
bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("run configurations: every name can be trained with, written and read again") {
  for (const std::string& name : CodecConfig::names()) {
    CAPTURE(name);
    const RunConfig c = RunConfig::named(name);
    c.check();
    const RunConfig again = RunConfig::from_json(c.to_json());
    CHECK(again.to_json() == c.to_json());
    CHECK(differences(c, again).empty());
    const test::Folder folder;
    test::spill(folder / "config.json", c.to_json());
    CHECK(RunConfig::named((folder / "config.json").string()).to_json() == c.to_json());
  }
  CHECK(holds(refusal([] { RunConfig::named("dac-48k"); }), "dac-44k"));
  const test::Folder folder;
  test::spill(folder / "bad.json", R"({"loss": {"mell": 1}})");
  const std::string what = refusal([&] { RunConfig::named((folder / "bad.json").string()); });
  CHECK(holds(what, "bad.json"));
  CHECK(holds(what, "loss.mell"));
}

TEST_CASE("run configurations: a preset's settings apply, and nothing besides them", "[config]") {
  for (const Preset& one : presets()) {
    CAPTURE(one.name);
    const json c = json::parse(RunConfig::named(one.name).to_json());
    json wanted = json::parse(RunConfig{}.to_json());
    wanted["codec"] = json::parse(one.codec.to_json());
    for (const auto& [key, value] : one.settings) {
      const size_t dot = key.find('.');
      const std::string section = key.substr(0, dot);
      CAPTURE(key);
      CHECK(section != "codec");
      wanted[section][key.substr(dot + 1)] = json::parse(value);
    }
    CHECK(c == wanted);
  }
}

TEST_CASE("run configurations: a run folder without codec.network is one of DAC's topology", "[config]") {
  const RunConfig c = RunConfig::named("speech-16k-small");
  json older = json::parse(c.to_json());
  REQUIRE(older["codec"].erase("network") == 1);
  CHECK(differences(RunConfig::from_json(older.dump()), c).empty());
}

TEST_CASE("run configurations: one assignment at a time") {
  RunConfig c = RunConfig::named("speech-16k-small");
  c.set("loss.mel=2.5");
  CHECK(c.loss.mel == 2.5);
  c.set("loss.mel=3");  // an integer for a real number
  CHECK(c.loss.mel == 3);
  c.set("loss.balanced=false");
  CHECK(!c.loss.balanced);
  CHECK(c.loss.orthogonal);
  c.set("loss.orthogonal=false");
  CHECK(!c.loss.orthogonal);
  c.set("training.start=random");
  CHECK(c.training.start == Start::random);
  CHECK(RunConfig::named("speech-8k").training.start == Start::scaled);
  c.set("loss.mel_scale=htk");
  CHECK(c.loss.mel_scale == MelScale::htk);
  c.set("loss.mel_kind=power");
  CHECK(c.loss.mel_kind == MelKind::power);
  c.set("loss.mel_kind=norms");
  CHECK(c.loss.mel_kind == MelKind::norms);
  c.set("loss.mel_fmin=64");
  CHECK(c.loss.mel_fmin == 64);
  c.set("codec.activation=snake_beta");
  CHECK(c.codec.activation == ActivationKind::snake_beta);
  c.set("training.schedule=\"cosine\"");
  CHECK(c.training.schedule == Schedule::cosine);
  c.set("training.seed=18446744073709551615");
  CHECK(c.training.seed == 18446744073709551615ull);
  c.set("training.max_steps=7");
  c.set("optimizer.clip=0");
  c.set("codec.dilations=[1, 5]");
  CHECK(c.codec.dilations == std::vector<int64_t>{1, 5});

  const std::string before = c.to_json();
  struct Wrong {
    const char *assignment, *named;
  };
  for (const Wrong& w : {Wrong{"loss.mell=1", "loss.mell"},
                         Wrong{"los.mel=1", "\"los\""},
                         Wrong{"loss.mel", "section.key=value"},
                         Wrong{"mel=1", "section.key=value"},
                         Wrong{"mel=loss.mel", "section.key=value"},
                         Wrong{"", "section.key=value"},
                         Wrong{"loss.mel=much", "loss.mel"},
                         Wrong{"loss.mel=", "loss.mel"},
                         Wrong{"loss.mel=-1", "loss.mel"},
                         Wrong{"training.start=wavelet", "\"wavelet\", expected transform, random or scaled"},
                         Wrong{"training.codebook_average_rows=-1", "training.codebook_average_rows"},
                         Wrong{"loss.orthogonal=1", "loss.orthogonal"},
                         Wrong{"training.codebook_start_rows=0", "training.codebook_average_rows"},
                         Wrong{"loss.windows=64", "loss.windows"},
                         Wrong{"loss.windows=[64]", "loss.mels"},
                         Wrong{"loss.windows=[64, 256.5, 1024]", "loss.windows"},
                         Wrong{"loss.balanced=1", "loss.balanced"},
                         Wrong{"loss.mel_scale=bark", "loss.mel_scale"},
                         Wrong{"loss.balancer_norm=items", "\"items\", expected batch or item"},
                         Wrong{"loss.feature_relative=1", "loss.feature_relative"},
                         Wrong{"discriminator.loss=hinge2", "discriminator.loss"},
                         Wrong{"discriminator.stft_windows=[100]", "discriminator.stft_windows"},
                         Wrong{"discriminator.stft_windows=[64, 64]", "discriminator.stft_windows"},
                         Wrong{"discriminator.stft_channels=0", "discriminator.stft_channels"},
                         Wrong{"discriminator.stft_slope=0", "discriminator.stft_slope"},
                         Wrong{"discriminator.window_full_layers=-1", "discriminator.window_full_layers"},
                         Wrong{"discriminator.scales=[3]", "discriminator.scales"},
                         Wrong{"discriminator.scales=[128]", "discriminator.scales"},
                         Wrong{"discriminator.scales=[0]", "discriminator.scales"},
                         Wrong{"discriminator.scales=[2, 2]", "discriminator.scales"},
                         Wrong{"discriminator.scale_slope=1", "discriminator.scale_slope"},
                         Wrong{"discriminator.scale_norm=layer", "\"layer\", expected none or weight"},
                         Wrong{"discriminator.residual_windows=[64]", "discriminator.residual_windows"},
                         Wrong{"discriminator.residual_windows=[192]", "multiples of 128, each 128 to 65536"},
                         Wrong{"discriminator.residual_windows=[256, 256]", "discriminator.residual_windows"},
                         Wrong{"discriminator.residual_channels=0", "discriminator.residual_channels"},
                         Wrong{"discriminator.residual_slope=0", "discriminator.residual_slope"},
                         Wrong{"discriminator.residual_norm=batch", "\"batch\", expected none, weight, group or layer"},
                         Wrong{"discriminator.level=1", "discriminator.level"},
                         Wrong{"loss.mel_kind=square", "\"square\", expected log, power or norms"},
                         Wrong{"loss.mel_fmin=-1", "loss.mel_fmin"},
                         Wrong{"loss.mel_fmin=nan", "loss.mel_fmin"},
                         Wrong{"training.batch_size=2.5", "training.batch_size"},
                         Wrong{"training.batch_size=0", "training.batch_size"},
                         Wrong{"training.batch_size=18446744073709551615", "training.batch_size"},
                         Wrong{"training.segment_length=1", "training.segment_length"},
                         Wrong{"training.segment_length=400", "loss.windows"},
                         Wrong{"training.seed=-1", "training.seed"},
                         Wrong{"training.schedule=linear", "training.schedule"},
                         Wrong{"training.valid_fraction=1", "training.valid_fraction"},
                         Wrong{"optimizer.learning_rate=0", "optimizer.learning_rate"},
                         Wrong{"optimizer.beta1=true", "optimizer.beta1"},
                         Wrong{"codec.n_codebooks=0", "codec.n_codebooks"},
                         Wrong{"codec.quantizer=fsq", "codec.quantizer"},
                         Wrong{"codec.=1", "codec."}}) {
    const std::string what = refusal([&] { c.set(w.assignment); });
    INFO(w.assignment << " -> " << what);
    CHECK(holds(what, w.named));
    CHECK(c.to_json() == before);  // refused and unchanged
  }
}

TEST_CASE("run configurations: discriminators of spectra need a segment of one window") {
  RunConfig c = RunConfig::named("dac-16k");
  c.set({{"loss.adversarial", "1", "a"},
         {"discriminator.periods", "[]", "b"},
         {"discriminator.windows", "[]", "c"},
         {"discriminator.stft_windows", "[512, 2048]", "d"},
         {"training.segment_length", "2048", "e"}});
  const std::string what = refusal([&] { c.set("training.segment_length=2040"); });
  CHECK(holds(what, "discriminator.stft_windows"));
  CHECK(holds(what, "2048"));
  CHECK(holds(what, "at most training.segment_length, 2040"));
  CHECK(holds(what, "use longer segments or shorter windows"));
  // Without any discriminator, the lists are named.
  CHECK(holds(refusal([&] { c.set("discriminator.stft_windows=[]"); }),
              "discriminator.scales and discriminator.residual_windows are empty"));
  // SoundStream's windows have the same limit. Reflection in the first layer of a scale needs eight of its samples.
  c.set({{"discriminator.stft_windows", "[]", "a"},
         {"discriminator.residual_windows", "[2048]", "b"},
         {"discriminator.scales", "[1, 32]", "c"},
         {"loss.windows", "[32]", "d"},
         {"loss.mels", "[5]", "e"}});
  CHECK(holds(refusal([&] { c.set("training.segment_length=2047"); }), "discriminator.residual_windows"));
  c.set({{"discriminator.residual_windows", "[]", "a"}, {"training.segment_length", "504", "b"}});
  CHECK(holds(refusal([&] { c.set("discriminator.scales=[64]"); }),
              "discriminator.scales is 64, expected at most an eighth of training.segment_length, 504"));
  // Windows that are not used have no limit.
  c.set({{"loss.adversarial", "0", "a"},
         {"discriminator.stft_windows", "[2048]", "b"},
         {"training.segment_length", "2040", "c"}});
}

TEST_CASE("run configurations: segments with scales are trained with a norm over the segment", "[config]") {
  RunConfig c = RunConfig::named("encodec-48k");
  CHECK(holds(refusal([&] { c.set("codec.norm=weight"); }),
              "codec.segment_scale is true, expected false in training unless codec.norm is group"));
  CodecConfig coded = c.codec;
  coded.norm = Norm::weight;
  coded.check();  // such a codec may code
}

TEST_CASE("run configurations: a latent width that nobody chose follows the widths that were") {
  RunConfig c = RunConfig::named("dac-16k");
  CHECK(c.codec.latent() == 1024);
  c.set("codec.encoder_dim=32");
  CHECK(c.codec.latent() == 512);
  const RunConfig d = RunConfig::from_json(R"({"codec": {"encoder_dim": 8, "encoder_rates": [2, 4],
      "decoder_dim": 64, "decoder_rates": [4, 2]}})");
  CHECK(d.codec.latent() == 32);
  c.set("codec.latent_dim=100");
  c.set("codec.encoder_dim=64");
  CHECK(c.codec.latent() == 100);
  // The written configuration has a number.
  CHECK(holds(d.to_json(), "\"latent_dim\": 32"));
}

TEST_CASE("run configurations: JSON on top of another configuration") {
  RunConfig base = RunConfig::named("speech-16k-small");
  base.set("loss.mel=4");
  const RunConfig c = RunConfig::from_json(R"({"loss": {"stft": 2}, // why not
      "training": {"batch_size": 3}})",
                                           base);
  CHECK(c.loss.mel == 4);
  CHECK(c.loss.stft == 2);
  CHECK(c.training.batch_size == 3);
  CHECK(differences(base, c) == std::vector<std::string>{"loss.stft: 1.0 -> 2.0", "training.batch_size: 8 -> 3"});
  struct Wrong {
    const char *json, *named;
  };
  for (const Wrong& w :
       {Wrong{R"({"los": {}})", "\"los\""}, Wrong{R"({"los": {"mel": 1}})", "\"los\""},
        Wrong{R"({"loss": 3})", "\"loss\""}, Wrong{R"({"loss": {"mell": 3}})", "loss.mell"},
        Wrong{R"({"loss": {"mel": "3"}})", "loss.mel"}, Wrong{"[1]", "object"}, Wrong{"{\"loss\"", "line 1, column 8"},
        Wrong{"", "line 1, column 1"}, Wrong{R"({"codec": {"sample_rate": 1}})", "codec.sample_rate"}}) {
    const std::string what = refusal([&] { RunConfig::from_json(w.json, base); });
    INFO(w.json << " -> " << what);
    CHECK(holds(what, w.named));
  }
}

TEST_CASE("run configurations: the list of keys is that of a written configuration, and its ranges those of messages",
          "[config]") {
  const auto json_of = [](const RunConfig& c) { return nlohmann::json::parse(c.to_json()); };
  nlohmann::json listed;
  for (const KeyRow& r : configuration_keys()) {
    INFO(r.name);
    CHECK_FALSE(r.help.empty());
    const size_t dot = r.name.find('.');
    listed[r.name.substr(0, dot)][r.name.substr(dot + 1)] = nlohmann::json::parse(r.default_value);
    // The default is accepted. A number below all ranges, an unknown word and the wrong type are refused.
    RunConfig c;
    c.set(r.name + "=" + r.default_value);
    CHECK(differences(c, RunConfig{}).empty());
    const std::string wrong = r.type == "word" ? "zzz" : r.type == "list of integers" ? "[-1,-1,-1]" : "-1";
    const std::string what = refusal([&] { c.set(r.name + "=" + wrong); });
    CHECK(holds(what, r.name));
    if (r.type == "word" || r.type == "boolean") CHECK(holds(what, ", expected " + r.range));
    if (r.type == "integer" && r.name != "training.segment_length") CHECK(holds(what, " is -1, expected " + r.range));
    if (r.type == "number") CHECK(holds(what, ", expected " + r.range));
  }
  nlohmann::json written = json_of(RunConfig{});
  written["codec"]["latent_dim"] = 0;  // derived from other keys and written as the derived value
  CHECK(listed == written);
}

TEST_CASE("run configurations: ranges that depend on other keys hold at their ends", "[config]") {
  const auto said = [](const std::string& key, const std::string& value, const std::string& mels = "[0]") {
    RunConfig c = RunConfig::named("speech-16k-small");  // a hop of 40
    return refusal([&] { c.set({{"loss.windows", "[64]", "a"}, {"loss.mels", mels, "b"}, {key, value, "c"}}); });
  };
  CHECK(said("training.segment_length", "40") == "accepted");
  CHECK(holds(said("training.segment_length", "39"), "39, expected 40 (one hop of the codec) to 1073741824"));
  CHECK(said("training.segment_length", "1073741824") == "accepted");
  CHECK(holds(said("training.segment_length", "1073741825"), "1073741825, expected 40 (one hop of the codec)"));
  for (const char* good : {"[8]", "[12]"}) CHECK(said("loss.windows", good) == "accepted");
  for (const char* bad : {"[4]", "[10]", "[65540]"})
    CHECK(holds(said("loss.windows", bad), "is not a multiple of 4 between 8 and 65536"));
  CHECK(said("loss.mels", "[32]") == "accepted");
  CHECK(holds(said("loss.mels", "[33]"), "33 bands at window 64, expected 0 to 32"));
  CHECK(said("loss.mel_fmin", "7999.5") == "accepted");
  CHECK(holds(said("loss.mel_fmin", "8000"), "8000 Hz, expected 0 to below half the sample rate (8000 Hz)"));
  // Powers may have bands without a bin.
  CHECK(said("loss.mel_kind", "\"norms\"", "[256]") == "accepted");
  CHECK(holds(said("loss.mel_kind", "\"norms\"", "[257]"), "257 bands at window 64, expected 0 to 256"));
  CHECK(said("loss.mel_kind", "\"power\"", "[256]") == "accepted");
  CHECK(holds(said("loss.mel_kind", "\"power\"", "[257]"), "257 bands at window 64, expected 0 to 256"));
  const auto power = [](const char* windows, const char* mels) {
    RunConfig c = RunConfig::named("speech-16k-small");
    return refusal([&] {
      c.set({{"loss.windows", windows, "a"}, {"loss.mels", mels, "b"}, {"loss.mel_kind", "\"power\"", "c"}});
    });
  };
  CHECK(power("[512]", "[1024]") == "accepted");
  CHECK(holds(power("[512]", "[1025]"), "1025 bands at window 512, expected 0 to 1024"));
  CHECK(holds(power("[12]", "[3]"), "12 is not a multiple of 8, as loss.mel_kind power expects"));
  CHECK(power("[12]", "[0]") == "accepted");
}

TEST_CASE("the learning rate's schedule") {
  TrainingConfig t;
  t.schedule = Schedule::constant;
  CHECK(schedule_factor(t, 0, 100) == 1);
  CHECK(schedule_factor(t, 99, 100) == 1);
  t.warmup_steps = 4;
  CHECK(schedule_factor(t, 0, 100) == 0.25);  // never zero, so that the first step has an effect
  CHECK(schedule_factor(t, 3, 100) == 1);
  CHECK(schedule_factor(t, 50, 100) == 1);
  t.warmup_steps = 0, t.schedule = Schedule::cosine, t.final_rate = 0.1;
  CHECK(schedule_factor(t, 0, 100) == Approx(1));
  CHECK(schedule_factor(t, 50, 100) == Approx(0.55));
  CHECK(schedule_factor(t, 100, 100) == Approx(0.1));
  CHECK(schedule_factor(t, 1000, 100) == Approx(0.1));  // beyond the end
  double last = 2;
  for (int64_t s = 0; s <= 100; ++s) {
    const double now = schedule_factor(t, s, 100);
    CHECK(now < last);
    last = now;
  }
}

TEST_CASE("warnings: what a newcomer is told about an evaluation") {
  HealthFigures good;
  good.snr = 8, good.input_std = 0.1, good.output_std = 0.09, good.output_mean = 1e-4;
  good.usage = {0.9, 0.5}, good.perplexity = {800, 400}, good.codes_seen = 100000, good.codebook_size = 1024;
  CHECK(warnings(good).empty());
  const auto one = [](const HealthFigures& f, const std::string& part) {
    const std::vector<std::string> w = warnings(f);
    return w.size() == 1 && holds(w[0], part);
  };
  HealthFigures f = good;
  f.snr = -1;
  CHECK(one(f, "SNR is negative"));
  f = good, f.output_mean = 0.05;
  CHECK(one(f, "DC offset"));
  f = good, f.output_std = 0.01;
  CHECK(one(f, "too quiet"));
  f = good, f.output_std = 0.5;
  CHECK(one(f, "too loud"));
  f = good, f.usage = {0.9, 0.01};
  CHECK(one(f, "codebook 1"));
  f.codes_seen = 50;  // so few frames cannot use more codes
  CHECK(warnings(f).empty());
  f = good, f.output_std = std::numeric_limits<double>::quiet_NaN();
  CHECK(one(f, "not a number"));
  f = good, f.input_std = f.output_std = 0;  // silence in, silence out
  CHECK(warnings(f).empty());
  const auto judged = [&](float real, float fake, double share) {
    HealthFigures with = good;
    with.discriminators = {{.name = "period_2", .real = real, .fake = fake}, {.name = "w", .real = real, .fake = fake}};
    with.adversarial_share = share, with.step = 500;
    return with;
  };
  CHECK(warnings(judged(0.7f, 0.6f, 0.4)).empty());
  CHECK(one(judged(0.99f, 0.98f, 0.4), "discriminators have won: period_2, w are right"));
  CHECK(one(judged(0.99f, 0.01f, 0.4), "discriminators are dead: period_2, w say"));
  CHECK(one(judged(0.7f, 0.6f, 0.6), "60 % of the gradient"));
  CHECK(warnings(judged(0.99f, 0.7f, 0.5)).empty());
  HealthFigures asked_for = judged(0.7f, 0.6f, 0.85);
  asked_for.adversarial_share_set = 0.8;
  CHECK(warnings(asked_for).empty());
  asked_for.adversarial_share = 0.95;
  CHECK(one(asked_for, "95 % of the gradient"));
  HealthFigures early = judged(0.0f, 1.0f, 0.4);
  early.step = 499;
  CHECK(warnings(early).empty());
}

TEST_CASE("warnings: advice is about what the configuration leaves to change") {
  const auto only = [](const HealthFigures& f) {
    const std::vector<std::string> w = warnings(f);
    REQUIRE(w.size() == 1);
    return w[0];
  };
  HealthFigures f;
  f.snr = -1, f.input_std = f.output_std = 0.1;
  CHECK_FALSE(holds(only(f), "loss.balanced"));  // it is on already
  CHECK(holds(only(f), "loss.mel"));
  f.balanced = false;
  CHECK(holds(only(f), "set loss.balanced"));
  f = {}, f.snr = 8, f.input_std = f.output_std = 0.1;
  f.usage = {0.01}, f.codes_seen = 100000, f.codebook_size = 1024;
  CHECK_FALSE(holds(only(f), "codec.quantizer"));  // it is ema already, and starts from data
  CHECK_FALSE(holds(only(f), "codebook_start_rows"));
  CHECK(holds(only(f), "codec.codebook_size"));
  CHECK(holds(only(f), "training.batch_size"));
  f.codebooks_from_data = false;
  CHECK(holds(only(f), "training.codebook_start_rows"));
  f.codebooks_from_data = true, f.ema = false;
  CHECK(holds(only(f), "codec.quantizer=ema"));
}

TEST_CASE("run configurations: several assignments are checked together, and the one at fault is named") {
  RunConfig c;
  c.codec.encoder_rates = {2, 4}, c.codec.decoder_rates = {4, 2}, c.codec.decoder_dim = 64;
  c.set({{"codec.encoder_rates", "[2,5]", "first"}, {"codec.decoder_rates", "[5,2]", "second"}});
  CHECK(c.codec.encoder_rates == std::vector<int64_t>{2, 5});
  const std::string before = c.to_json();
  const std::string what = refusal([&] {
    c.set({{"training.seed", "3", "--seed 3"},
           {"training.batch_size", "0", "--batch-size 0"},
           {"loss.mel", "2", "--set loss.mel=2"}});
  });
  INFO(what);
  CHECK(what.rfind("--batch-size 0: training.batch_size is 0, expected 1 to 65536", 0) == 0);
  CHECK(c.to_json() == before);
}
