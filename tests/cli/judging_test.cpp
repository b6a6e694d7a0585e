// nacre train and signals; nacre eval on long and on unusual files; the warning of nacre encode about checkpoints of a
// run.
#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "nacre/files/checkpoint_store.h"

using namespace nacre;
using namespace nacre::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// Makes a folder of short voices, and returns a command that trains on it until it is stopped.
std::vector<std::string> train_on(const Folder& folder, const std::vector<std::string>& more = {}) {
  fs::create_directories(folder / "data");
  for (int i = 0; i < 4; ++i)
    write_voice(folder / ("data/" + std::to_string(i) + ".wav"), 6000 + 777 * i, 16000, 1, 10 + i);
  json config;
  config["codec"] = json::parse(tiny_config().to_json());
  config["loss"] = {{"windows", {64, 256}}, {"mels", {8, 16}}};
  config["training"] = {{"batch_size", 2}, {"segment_length", 2048}, {"num_epochs", 100000000}};
  spill(folder / "config.json", config.dump());
  std::vector<std::string> all{
      "train", "--data_dir", folder / "data", "--checkpoint_dir", folder / "run", "--config", folder / "config.json",
      "-t",    "1"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

/// The program with its standard output in a pipe, so that a test can send a signal after a certain output.
class Heard {
 public:
  Heard(const Folder& folder, std::vector<std::string> arguments, bool ignores_hangup = false) {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    arguments.insert(arguments.begin(), NACRE_PROGRAM);
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    const std::string err = folder / "err";
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      const int fd = ::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      if (::dup2(ends[1], 1) < 0 || ::dup2(fd, 2) < 0) _exit(99);
      ::close(ends[0]), ::close(ends[1]);
      if (ignores_hangup) ::signal(SIGHUP, SIG_IGN);
      ::execv(argv[0], argv.data());
      _exit(98);
    }
    ::close(ends[1]);
    from_ = ends[0];
  }
  Heard(const Heard&) = delete;
  Heard& operator=(const Heard&) = delete;
  ~Heard() {
    if (pid_ > 0) ::kill(pid_, SIGKILL), ::waitpid(pid_, nullptr, 0);
    stop_reading();
  }
  /// Reads until the text appears. Returns false at the end of the output.
  bool until(const std::string& text) {
    char piece[256];
    while (said.find(text) == std::string::npos) {
      const ssize_t n = ::read(from_, piece, sizeof piece);
      if (n <= 0) return false;
      said.append(piece, static_cast<size_t>(n));
    }
    return true;
  }
  void send(int signal) const { REQUIRE(::kill(pid_, signal) == 0); }
  void stop_reading() {
    if (from_ >= 0) ::close(from_);
    from_ = -1;
  }
  int code() {
    if (from_ >= 0) until("\n\n\n");  // reads to the end
    int status = 0;
    REQUIRE(::waitpid(pid_, &status, 0) == pid_);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  std::string said;

 private:
  pid_t pid_ = -1;
  int from_ = -1;
};

}  // namespace

TEST_CASE("train: each signal saves the run and has its exit code", "[cli]") {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const Folder folder;
    Heard t(folder, train_on(folder));
    REQUIRE(t.until("epoch 2  step"));
    t.send(signal);
    CHECK(t.code() == 128 + signal);
    INFO(signal << "\n" << t.said);
    CHECK(t.said.find("; the same command goes on from there") != std::string::npos);
    const CheckpointSearch found = newest_checkpoint(folder / "run");
    REQUIRE(found.found);
    CHECK(found.damaged.empty());
    CHECK(t.said.find("stopped at step " + std::to_string(found.found->step) + "; saved " +
                      found.found->path.string()) != std::string::npos);
  }
}

TEST_CASE("train: a signal before the first step leaves what the same command begins with", "[cli]") {
  for (const char* said : {"data:", "model:"}) {
    const Folder folder;
    {
      Heard t(folder, train_on(folder));
      REQUIRE(t.until(said));
      t.send(SIGTERM);
      CHECK(t.code() == 143);
      // The signal may arrive at any point of the start. The program left at once or stopped with a message. A
      // checkpoint, if there is one, must be good.
      const std::string err = slurp(folder / "err");
      INFO(t.said << err);
      CHECK((t.said.find("stopped ") != std::string::npos || err.find("nacre: stopped before training") == 0 ||
             err.find("\nnacre: stopped before training") != std::string::npos));
      CHECK(newest_checkpoint(folder / "run").damaged.empty());
    }
    CHECK(run(folder, train_on(folder, {"--max-steps", "3"})).code == 0);
    CHECK(newest_checkpoint(folder / "run").found->step >= 3);
  }
}

TEST_CASE("train: a screen that goes away does not end a run, nor does a hang-up under nohup", "[cli]") {
  const Folder folder;
  {
    Heard t(folder, train_on(folder, {"--max-steps", "40"}));
    REQUIRE(t.until("start  step 0"));
    t.stop_reading();
    CHECK(t.code() == 0);
    CHECK(newest_checkpoint(folder / "run").found->step == 40);
  }
  Heard t(folder, train_on(folder, {"--max-steps", "60"}), true);
  REQUIRE(t.until("resumed from"));
  t.send(SIGHUP);
  CHECK(t.code() == 0);
  CHECK(newest_checkpoint(folder / "run").found->step == 60);
}

TEST_CASE("train: --init takes a part of a model only with --init-partial", "[cli]") {
  const Folder folder;
  CodecConfig other = tiny_config();
  other.codebook_size = 32;
  const std::string weights = tiny_model(folder, "other.safetensors", 1, other);
  Outcome o = run(folder, train_on(folder, {"--init", weights, "--max-steps", "1"}));
  CHECK(o.code == 3);
  CHECK(o.lines() == 1);
  CHECK(o.err.find("of another shape: ") != std::string::npos);
  CHECK(o.err.find("--init-partial") != std::string::npos);
  o = run(folder, train_on(folder, {"--init", weights, "--init-partial", "--max-steps", "1"}));
  INFO(o.err);
  CHECK(o.code == 0);
}

TEST_CASE("eval: memory does not grow with a file's length", "[cli][peak]") {
  const Folder folder(true);  // on disk: a folder in memory would count
  const std::string model = tiny_model(folder);
  // The files have another rate, so that resampling is included. Both are split into pieces of 20 s, and a last one of
  // 30 s.
  const std::string small = write_voice(folder / "small.wav", 50 * 8000, 8000),
                    large = write_voice(folder / "large.wav", 530 * 8000, 8000);
  const Outcome a = run(folder, {"eval", small, "-m", model, "--json"}),
                b = run(folder, {"eval", large, "-m", model, "--json"});
  INFO(a.err << b.err);
  REQUIRE(a.code == 0);
  REQUIRE(b.code == 0);
  CHECK(json::parse(b.out)["files"][0]["seconds"] == 530);
  // If they were kept, the samples of the other 480 s would take 31 MB. Scoring them at once would take 80 bytes each.
  // The limit is half of the former.
  INFO(a.peak_kib << " and " << b.peak_kib << " KiB");
  CHECK(b.peak_kib - a.peak_kib < 480 * 16000 * 4 / 2 / 1024);
}

TEST_CASE("eval: every mean is a number or has no key", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  training::write_wav(folder / "constant.wav",
                      {.samples = std::vector<float>(9000, 0.25f), .sample_rate = 16000, .channels = 1});
  training::write_wav(folder / "one.wav", {.samples = {0.25f}, .sample_rate = 16000, .channels = 1});
  const std::string speech = write_voice(folder / "speech.wav", 16000);
  Outcome o = run(folder, {"eval", folder / "constant.wav", folder / "one.wav", speech, "-m", model, "--json"});
  INFO(o.err << o.out);
  REQUIRE(o.code == 0);
  CHECK(o.out.find("null") == std::string::npos);
  const json all = json::parse(o.out);
  for (const char* key : {"snr", "si_sdr"}) CHECK_FALSE(all["files"][0].contains(key));  // a constant offset is silence
  CHECK(all["files"][0]["mel_distance"].is_number());
  for (const char* key : {"si_sdr", "mel_distance", "stft_distance"}) {
    CHECK_FALSE(all["files"][1].contains(key));
    CHECK(all["mean"][key].is_number());
  }
  CHECK(all["mean"]["si_sdr"] == all["files"][2]["si_sdr"]);
  CHECK(all["mean"]["mel_distance"].get<double>() ==
        Approx((all["files"][0]["mel_distance"].get<double>() + all["files"][2]["mel_distance"].get<double>()) / 2));
  o = run(folder, {"eval", folder / "constant.wav", folder / "one.wav", "-m", model});
  REQUIRE(o.code == 0);
  CHECK(o.out.find("constant.wav (silent: no SNR, no STOI)") != std::string::npos);
  CHECK(o.out.find("nan") == std::string::npos);
  CHECK(o.out.find("inf") == std::string::npos);
}

TEST_CASE("eval: scores of training audio are called that", "[cli]") {
  const Folder folder;
  for (const char* fraction : {"0", "0.5"}) {
    REQUIRE(run(folder, train_on(folder, {"--max-steps", "1", "--experiment-name", std::string("x") + fraction,
                                          "--valid-fraction", fraction}))
                .code == 0);
    const Outcome o = run(
        folder, {"eval", folder / "data", "-m", folder / ("run/x" + std::string(fraction)), "--held-out", "--json"});
    INFO(o.err);
    REQUIRE(o.code == 0);
    const bool on_training = fraction[1] == 0;
    CHECK(json::parse(o.out)["judged_on"] == (on_training ? "training audio" : "held out"));
    CHECK((o.err.find("is held out; these are scores of training audio") != std::string::npos) == on_training);
  }
}

TEST_CASE("encode warns where its model is going to be removed", "[cli]") {
  const Folder folder;
  const std::string audio = write_voice(folder / "in.wav", 4000), run_folder = folder / "run";
  {
    Heard t(folder, train_on(folder));
    REQUIRE(t.until("epoch 1  step"));
    t.send(SIGTERM);
    REQUIRE(t.code() == 143);
  }
  const auto encode = [&](const std::string& model, const std::vector<std::string>& more = {}) {
    std::vector<std::string> all{"encode", audio, "-o", folder / "s.nacre", "-f", "-m", model};
    all.insert(all.end(), more.begin(), more.end());
    const Outcome o = run(folder, all);
    INFO(o.err);
    CHECK(o.code == 0);
    return o.err;
  };
  const std::string warned = encode(run_folder), checkpoint = newest_checkpoint(run_folder).found->path;
  CHECK(warned.find("nacre: warning: ") == 0);
  CHECK(warned.find("nacre export -m ") != std::string::npos);
  CHECK(std::count(warned.begin(), warned.end(), '\n') == 2);  // the warning, and the line of the result
  CHECK(encode(checkpoint).find("nacre: warning: ") == 0);
  CHECK(encode(checkpoint + "/model.safetensors").find("nacre: warning: ") == 0);
  CHECK(encode(run_folder, {"-q"}).empty());
  REQUIRE(run(folder, {"export", "-m", run_folder, "-o", folder / "kept.safetensors"}).code == 0);
  CHECK(encode(folder / "kept.safetensors").find("warning") == std::string::npos);
  CHECK(encode(run_folder + "/start/model.safetensors").find("warning") == std::string::npos);
  // A finished run removes nothing any more.
  const int64_t last = newest_checkpoint(run_folder).found->step;
  REQUIRE(run(folder, train_on(folder, {"--max-steps", std::to_string(last + 2)})).code == 0);
  CHECK(encode(run_folder + "/" + newest_checkpoint(run_folder).found->path.filename().string()).find("warning") ==
        std::string::npos);
}
