#pragma once
// Runs the built program and returns its outcome. Makes tiny models and audio for it.
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "catch.h"
#include "file_tools.h"
#include "nacre/codec/codec.h"
#include "nacre/data/audio.h"

namespace nacre::test {

struct Outcome {
  int code = -1;  ///< exit code, or 128 + signal
  std::string out, err;
  int64_t peak_kib = 0;  ///< peak of resident memory

  int64_t lines() const { return std::count(err.begin(), err.end(), '\n'); }
};

/// Starts `nacre arguments...` with standard input from a file. Standard output goes to a file that wait() reads, or to
/// `output`.
class Running {
 public:
  Running(const Folder& folder, std::vector<std::string> arguments, const std::string& input = "/dev/null",
          const std::string& output = "")
      : folder_(folder) {
    static int count = 0;
    name_ = ".run-" + std::to_string(count++);
    const std::string err = folder / (name_ + ".err");
    const std::string out = output.empty() ? folder / (name_ + ".out") : std::filesystem::path(output);
    // One thread by default, because tests run beside each other.
    const auto has = [&](const char* word) {
      return std::find(arguments.begin(), arguments.end(), word) != arguments.end();
    };
    if ((has("-m") || has("--model") || has("--data_dir")) && !has("-t") && !has("--threads") &&
        arguments.front() != "export")  // has no option for threads
      arguments.insert(arguments.end(), {"-t", "1"});
    arguments.insert(arguments.begin(), NACRE_PROGRAM);
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      const auto redirect = [](const std::string& path, int flags, int to) {
        const int fd = ::open(path.c_str(), flags, 0600);
        if (fd < 0 || ::dup2(fd, to) < 0) _exit(99);
      };
      redirect(input, O_RDONLY, 0);
      redirect(out, O_WRONLY | O_CREAT | O_TRUNC, 1);
      redirect(err, O_WRONLY | O_CREAT | O_TRUNC, 2);
      ::execv(argv[0], argv.data());
      _exit(98);
    }
  }
  pid_t pid() const { return pid_; }
  /// Whether the program has ended. wait() returns the outcome.
  bool ended() const {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid_;
  }
  Outcome wait() {
    int status = 0;
    struct rusage usage {};
    REQUIRE(::wait4(pid_, &status, 0, &usage) == pid_);
    Outcome o;
    o.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    o.out = slurp(folder_ / (name_ + ".out"));
    o.err = slurp(folder_ / (name_ + ".err"));
    o.peak_kib = usage.ru_maxrss;
    std::filesystem::remove(folder_ / (name_ + ".out"));
    std::filesystem::remove(folder_ / (name_ + ".err"));
    return o;
  }

 private:
  const Folder& folder_;
  std::string name_;
  pid_t pid_ = -1;
};

inline Outcome run(const Folder& folder, std::vector<std::string> arguments, const std::string& input = "/dev/null") {
  return Running(folder, std::move(arguments), input).wait();
}

inline CodecConfig tiny_config() {
  CodecConfig c;
  c.encoder_dim = 4, c.decoder_dim = 8, c.dilations = {1};
  c.encoder_rates = {8}, c.decoder_rates = {8};
  c.n_codebooks = 2, c.codebook_size = 16, c.codebook_dim = 4;
  return c;
}

/// Saves a model that was never trained as `name` in the folder. Returns its path.
inline std::string tiny_model(const Folder& folder, const std::string& name = "model.safetensors", uint64_t seed = 1,
                              const CodecConfig& config = tiny_config()) {
  Context ctx({.device = {}, .threads = 1});
  Codec codec(ctx, config);
  codec.parameters().initialise(ctx, seed);
  codec.save(folder / name);
  return folder / name;
}

/// A signal like a voice: a few harmonics that rise and fall, and a little noise.
inline std::vector<float> voice(int64_t frames, int rate, int channels = 1, uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> noise(-0.01f, 0.01f);
  std::vector<float> x(static_cast<size_t>(frames * channels));
  for (int64_t t = 0; t < frames; ++t)
    for (int c = 0; c < channels; ++c) {
      const double s = static_cast<double>(t) / rate, f = 110 * (c + 1);
      double v = 0;
      for (int h = 1; h < 4; ++h) v += std::sin(2 * M_PI * f * h * s) / h;
      x[static_cast<size_t>(t * channels + c)] = static_cast<float>(0.2 * v * std::sin(M_PI * 1.7 * s)) + noise(random);
    }
  return x;
}

inline std::string write_voice(const std::filesystem::path& path, int64_t frames, int rate = 16000, int channels = 1,
                               uint64_t seed = 1) {
  training::write_wav(path,
                      {.samples = voice(frames, rate, channels, seed), .sample_rate = rate, .channels = channels});
  return path;
}

}  // namespace nacre::test
