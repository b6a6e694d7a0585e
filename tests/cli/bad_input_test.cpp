// Bad input is refused in one line with the documented exit code, and no file is left behind.
#include "cli/program.h"

using namespace nacre;
using namespace nacre::test;
namespace fs = std::filesystem;

namespace {

/// Checks a failed run: this exit code, one line that names the file, no file at `out`, no temporary files.
void expect_refusal(const Folder& folder, const Outcome& o, int code, const std::string& named,
                    const std::string& out) {
  INFO(o.err);
  CHECK(o.code == code);
  CHECK(o.lines() == 1);
  CHECK(o.err.rfind("nacre: ", 0) == 0);
  CHECK(o.err.find(named) != std::string::npos);
  CHECK_FALSE(fs::exists(out));
  for (const auto& entry : fs::directory_iterator(folder.path()))
    CHECK(entry.path().filename().string().find(".nacre-") == std::string::npos);
}

}  // namespace

TEST_CASE("bad audio is refused", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), out = folder / "out.nacre";
  const std::string good = slurp(write_voice(folder / "good.wav", 20000));
  const auto refuse = [&](const std::string& name, std::string_view content, int code = 3) {
    spill(folder / name, content);
    expect_refusal(folder, run(folder, {"encode", folder / name, "-o", out, "-m", model}), code, name, out);
  };
  refuse("empty.wav", "");
  refuse("text.wav", "Call me Ishmael. Some years ago, never mind how long precisely");
  refuse("cut.wav", good.substr(0, good.size() / 2));
  refuse("header.wav", good.substr(0, 44));
  refuse("half-header.wav", good.substr(0, 20));
  std::string nan = training::wav_bytes(std::vector<float>(100, 0.5f), 16000);
  std::vector<float> x(100, 0.5f);
  training::write_wav(folder / "f.wav", {.samples = x, .sample_rate = 16000, .channels = 1},
                      training::WavFormat::float32);
  nan = slurp(folder / "f.wav");
  nan[nan.size() - 1] = '\x7f', nan[nan.size() - 2] = '\xff';
  refuse("nan.wav", nan);
  expect_refusal(folder, run(folder, {"encode", folder / "missing.wav", "-o", out, "-m", model}), 4, "missing.wav",
                 out);
  fs::create_directory(folder / "no-audio");
  expect_refusal(folder, run(folder, {"encode", folder / "no-audio", "-o", out, "-m", model}), 3, "no-audio", out);
  expect_refusal(folder, run(folder, {"encode", folder / "good.wav", "-o", folder / "nowhere/out.nacre", "-m", model}),
                 4, "nowhere", out);
  expect_refusal(folder, run(folder, {"encode", "-", "-o", out, "-m", model}), 3, "standard input", out);
  if (::access("/dev/full", W_OK) == 0)
    CHECK(run(folder, {"encode", folder / "good.wav", "-o", "/dev/full", "-m", model, "-q"}).code == 4);
}

TEST_CASE("damaged streams are refused", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 24000, 16000, 2);
  REQUIRE(run(folder, {"encode", in, "-o", folder / "good.nacre", "-m", model}).code == 0);
  const std::string good = slurp(folder / "good.nacre"), out = folder / "out.wav", bad = folder / "bad.nacre";
  const auto refuse = [&](std::string_view content) {
    spill(bad, content);
    expect_refusal(folder, run(folder, {"decode", bad, "-o", out, "-m", model, "-q"}), 3, "bad.nacre", out);
  };
  // Cuts in the magic, in the header, at its end, in a packet, and before and in the closing packet.
  for (const size_t n :
       {size_t{0}, size_t{4}, size_t{30}, size_t{60}, size_t{70}, good.size() / 2, good.size() - 32, good.size() - 1}) {
    INFO("cut at " << n);
    refuse(std::string_view(good).substr(0, n));
  }
  // One flipped bit in the magic, version, rates, gain, model or length; in a packet's head, codes or checksum; in the
  // close.
  for (const size_t at : {size_t{0}, size_t{8}, size_t{13}, size_t{37}, size_t{41}, size_t{50}, size_t{60}, size_t{75},
                          good.size() / 2, good.size() - 36, good.size() - 20, good.size() - 1}) {
    INFO("flipped at " << at);
    std::string flipped = good;
    flipped[at] = static_cast<char>(flipped[at] ^ 4);
    refuse(flipped);
  }
  refuse(good + "x");
  refuse(slurp(in));
  // From a pipe to a file as well. From pipe to pipe, the samples in front have been written (tests/cli/live_test.cpp).
  spill(bad, good.substr(0, good.size() - 5));
  expect_refusal(folder, run(folder, {"decode", "-", "-o", out, "-m", model}, bad), 3, "standard input", out);
  CHECK(run(folder, {"decode", "-", "-o", "-", "-m", model}, bad).code == 3);
  // An existing file survives a failed run with -f.
  spill(out, "mine");
  CHECK(run(folder, {"decode", bad, "-o", out, "-m", model, "-f"}).code == 3);
  CHECK(slurp(out) == "mine");
}

TEST_CASE("streams of another model and models that are none are refused", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 4000), out = folder / "out.wav";
  REQUIRE(run(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model}).code == 0);
  const std::string other = tiny_model(folder, "other.safetensors", 2);
  Outcome o = run(folder, {"decode", folder / "s.nacre", "-o", out, "-m", other});
  expect_refusal(folder, o, 3, "s.nacre", out);
  CHECK(o.err.find("model") != std::string::npos);
  spill(folder / "text.safetensors", "not weights");
  expect_refusal(folder, run(folder, {"decode", folder / "s.nacre", "-o", out, "-m", folder / "text.safetensors"}), 3,
                 "text.safetensors", out);
  const std::string weights = slurp(model);
  spill(folder / "cut.safetensors", std::string_view(weights).substr(0, weights.size() - 100));
  expect_refusal(folder, run(folder, {"decode", folder / "s.nacre", "-o", out, "-m", folder / "cut.safetensors"}), 3,
                 "cut.safetensors", out);
  expect_refusal(folder, run(folder, {"decode", folder / "s.nacre", "-o", out, "-m", folder / "nothing"}), 4, "nothing",
                 out);
  fs::create_directory(folder / "empty");
  expect_refusal(folder, run(folder, {"decode", folder / "s.nacre", "-o", out, "-m", folder / "empty"}), 3, "empty",
                 out);
}

TEST_CASE("usage errors exit with 2", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 400);
  for (const std::vector<std::string>& bad : std::vector<std::vector<std::string>>{
           {},
           {"sing"},
           {"encode"},
           {"encode", in},
           {"encode", in, "-o", folder / "x"},
           {"encode", in, "-o", folder / "x", "-m", model, "--loud"},
           {"encode", in, "-o", "", "-m", model},
           {"encode", in, "-o", folder / "x", "-m", model, "--device", "abacus"},
           {"encode", in, "-o", folder / "x", "-m", model, "-t", "-1"},
           {"encode", in, "-o", folder / "x", "-m", model, "--beam", "0"},
           {"encode", in, "-o", folder / "x", "-m", model, "--beam", "2"},  // the model has factorised codes
           {"eval", in, "-m", model, "--beam", "65"},
           {"encode", "-", "-", "-o", folder / "x", "-m", model},
           {"decode", "-m", model},
           {"eval", in},
           {"eval", in, "-m", model, "--held-out"},
           {"eval", in, "-m", model, "--valid_seconds", "-3"},
           {"export", "-m", model, "-o", folder.path().string()},
           {"info"}}) {
    std::string line;
    for (const std::string& a : bad) line += " " + a;
    INFO(line);
    const Outcome o = run(folder, bad);
    INFO(o.err);
    CHECK(o.code == 2);
    CHECK(o.lines() == 1);
  }
  CHECK(run(folder, {"encode", in, "-o", folder / "x", "-m", model, "--device", "cuda:99"}).code == 6);
  for (const char* verb : {"train", "encode", "decode", "eval", "info", "export"}) {
    const Outcome o = run(folder, {verb, "--help"});
    CHECK(o.code == 0);
    CHECK(o.err.empty());
    CHECK(o.out.find("--") != std::string::npos);
  }
  const Outcome version = run(folder, {"--version"});
  CHECK(version.code == 0);
  CHECK(version.out.rfind("nacre ", 0) == 0);
  CHECK(version.out.find("\ncommit ") != std::string::npos);  // scripts/gpu_suite.sh looks for it
}

TEST_CASE("unknown configuration keys are named", "[cli]") {
  const Folder folder;
  spill(folder / "c.json", R"({"codec": {"encoder_dim": 8, "encoder_rate": [2]}})");
  fs::create_directory(folder / "data");
  write_voice(folder / "data/a.wav", 8000);
  Outcome o = run(folder, {"train", "--data_dir", folder / "data", "--checkpoint_dir", folder / "run", "--config",
                           folder / "c.json"});
  CHECK(o.code == 2);
  CHECK(o.lines() == 1);
  CHECK(o.err.find("encoder_rate") != std::string::npos);
  CHECK(run(folder, {"info", folder / "c.json"}).code == 2);
  o = run(folder,
          {"train", "--data_dir", folder / "data", "--checkpoint_dir", folder / "run", "--set", "training.sede=3"});
  CHECK(o.code == 2);
  CHECK(o.err.find("sede") != std::string::npos);
}

TEST_CASE("a signal leaves nothing half-written", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 16000 * 600);
  for (const int signal : {SIGINT, SIGTERM}) {
    // On a busy machine the file may be encoded before the signal arrives. Then the test tries again.
    Outcome o;
    for (int tries = 0; tries == 0 || (o.code == 0 && tries < 20); ++tries) {
      fs::remove(folder / "out.nacre");
      Running running(folder, {"encode", in, "-o", folder / "out.nacre", "-m", model, "-q", "-t", "1"});
      for (bool begun = false; !begun && !running.ended();) {  // until the temporary exists
        for (const auto& entry : fs::directory_iterator(folder.path()))
          begun = begun || entry.path().string().find(".nacre-") != std::string::npos;
        if (!begun) ::usleep(5000);
      }
      ::kill(running.pid(), signal);
      o = running.wait();
    }
    INFO(o.err);
    CHECK(o.code == 128 + signal);
    CHECK_FALSE(fs::exists(folder / "out.nacre"));
    for (const auto& entry : fs::directory_iterator(folder.path()))
      CHECK(entry.path().string().find(".nacre-") == std::string::npos);
  }
}
