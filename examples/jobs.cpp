#include "jobs.h"

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <optional>

#include "files/text.h"
#include "nacre/log/progress.h"

namespace nacre::program {
namespace {

using Clock = std::chrono::steady_clock;

std::atomic<int> signal_caught{0};
std::atomic<bool> unfinished{false};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

void on_signal(int signal) {
  if (signal_caught.exchange(signal) != 0 || !unfinished.load()) _exit(128 + signal);
}

/// A progress display that appears only if a job takes long.
class LateProgress {
 public:
  LateProgress(const char* label, int64_t total, const char* unit, bool quiet)
      : label_(label), total_(total), unit_(unit), quiet_(quiet), patience_(isatty(STDERR_FILENO) != 0 ? 0.5 : 10) {}
  void update(int64_t done, int64_t total, const std::string& details) {
    if (!shown_ && !quiet_ && std::chrono::duration<double>(Clock::now() - start_).count() > patience_)
      shown_.emplace(label_, total > 0 ? total : total_, unit_, training::ProgressOptions{.first = done});
    if (shown_) shown_->update(done, details);
  }
  void message(const std::string& text) {
    const std::string line = printable(text);  // the text contains file names
    if (shown_)
      shown_->message(line);
    else
      std::fprintf(stderr, "%s\n", line.c_str());
  }

 private:
  const char* label_;
  int64_t total_;
  const char* unit_;
  bool quiet_;
  double patience_;
  Clock::time_point start_ = Clock::now();
  std::optional<training::Progress> shown_;
};

}  // namespace

void catch_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    if (signal == SIGHUP && sigaction(signal, nullptr, &before) == 0 && before.sa_handler == SIG_IGN)
      continue;  // started by nohup
    sigaction(signal, &action, nullptr);
  }
}
const std::atomic<int>& caught_signal() { return signal_caught; }

void denoise(Codec& codec, bool encodes, bool decodes) {
  const Denoise half = codec.config().denoise;
  if (half == Denoise::none)
    throw Error(ErrorKind::usage,
                "--denoise: codec.denoise of the model is none, expected a model with encoder or decoder");
  if (half == Denoise::encoder ? !encodes : !decodes)
    throw Error(ErrorKind::usage, std::string("--denoise: this model denoises in its ") +
                                      (half == Denoise::encoder ? "encoder; give it to nacre encode"
                                                                : "decoder; give it to nacre decode"));
  codec.set_denoise(true);
}

std::string fixed(double x, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, x);
  return text;
}
std::string hex(uint64_t x) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(x));
  return text;
}

int run_jobs(const training::FileJobs& files, const char* label, bool quiet,
             const std::function<std::string(const training::FileJob&, const training::FileHooks&)>& one) {
  int code = 0;
  const bool several = files.several;
  LateProgress progress(label, several ? static_cast<int64_t>(files.jobs.size()) : 0, several ? "files" : "s", quiet);
  const auto failed = [&](const Error& e) {
    progress.message(std::string("nacre: ") + e.what());
    if (code == 0) code = several ? 3 : e.exit_code();
  };
  for (const Error& e : files.refused) failed(e);
  int64_t done = 0;
  for (const training::FileJob& job : files.jobs) {
    const training::FileHooks hooks{
        .progress =
            [&](double seconds, double total) {
              if (several)
                progress.update(done, 0,
                                printable(job.in) + (total > 0 ? " " + fixed(100 * seconds / total, 0) + " %" : ""));
              else
                progress.update(static_cast<int64_t>(seconds), static_cast<int64_t>(total), "");
            },
        .stop = &signal_caught,
        .unfinished = &unfinished};
    try {
      const std::string line = one(job, hooks);
      if (!quiet && !line.empty()) progress.message(line);
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::memory || e.kind() == ErrorKind::device) throw;  // the next file would fail as well
      failed(e);
    } catch (const training::Stopped& s) {
      progress.message("nacre: stopped; " + std::to_string(done) + " of " + std::to_string(files.jobs.size()) +
                       " files done");
      return 128 + s.signal;
    }
    ++done;
  }
  return code;
}

}  // namespace nacre::program
