// nacre_probes: main, the table of probes, and the process each of them runs in.
//
//   nacre_probes [--list] [--device cuda:N] [--small] [--seconds S] [--out FILE] [NAME...]
//
//   --list           prints the names of all probes, one a line
//   --device cuda:N  selects the device (default cuda)
//   --small          uses small sizes; times then mean nothing
//   --seconds S      limits all probes together (default 60, on the emulated device no limit); one takes at most 20
//   --out FILE       appends a line of JSON as each probe ends; the first line of a new file describes the device
//
// Every probe runs in its own process. A probe that loses the context of the device or hangs affects no other probe.
//
// Exit codes: 0 all requested probes ran, whatever they found; 1 some probe has no answer, or the device did not answer
// two requests for its description; 2 usage; 4 FILE cannot be written; 6 no device.
#include "probes/probes.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "nacre/error.h"
#include "runtime/runtime.h"

namespace nacre::probes {
namespace {

constexpr Probe all_probes[] = {
    {"mma_fragments", "fragments of mma m16n8k16 (bf16) and m16n8k8 (tf32) have the layout of the PTX manual",
     mma_fragments},
    {"ldmatrix_fragments", "ldmatrix x4 and x4.trans give the layout of the PTX manual", ldmatrix_fragments},
    {"tile_engines", "the convolutions' tensor-core engines compute the scalar product", tile_engines},
    {"tensor_core_sums", "sums of eight tf32 products are off by at most 2^-18, as the VQ search assumes",
     tensor_core_sums},
    {"ignored_sources", "an asynchronous copy whose source is ignored does not read or check the address",
     ignored_sources},
    {"shared_memory_limit", "static and dynamic shared memory together may reach the opt-in limit, but not exceed it",
     shared_memory_limit},
    {"allocation_in_capture", "a call that a capture forbids returns an error, and the device stays usable",
     allocation_in_capture},
    {"upload_beside_graph", "uploads beside a replaying graph transfer the right bytes, and overlap it",
     upload_beside_graph},
    {"wgmma_shifted_rows", "a wgmma descriptor may begin at any row, K-major", wgmma_shifted_rows},
    {"wgmma_mn_major", "the same with both operands MN-major", wgmma_mn_major},
    {"tma_boxes", "a TMA box that leaves the tensor is filled with zeros there", tma_boxes},
    {"launch_gap", "time per empty kernel, launched singly and in a graph of 450", launch_gap},
    {"copy_ceiling", "bytes per second of a copy from device to device", copy_ceiling},
    {"product_ceiling", "operations per second of large cuBLAS products, bf16 and tf32", product_ceiling},
};

// Limits in seconds, where there is a limit. Two descriptions of the device must not take longer than
// scripts/gpu/first.sh waits for a line.
constexpr double longest_probe = 20, longest_describe = 13;
constexpr double longest_end = 2;  // seconds for a killed process to end

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string packed(const Result& r) {
  std::string s = std::to_string(r.outcome) + "\n" + one_line(r.says) + "\n";
  for (const auto& [name, json] : r.figures) s += name + "\t" + json + "\n";
  return s + ".\n";
}
/// Returns false if the text is incomplete.
bool unpack(const std::string& s, Result& r) {
  std::vector<std::string> lines;
  for (size_t at = 0, end = 0; (end = s.find('\n', at)) != std::string::npos; at = end + 1)
    lines.push_back(s.substr(at, end - at));
  if (lines.size() < 3 || lines.back() != ".") return false;
  r.outcome = static_cast<Result::Outcome>(std::atoi(lines[0].c_str()));
  r.says = lines[1];
  for (size_t i = 2; i + 1 < lines.size(); ++i) {
    const size_t tab = lines[i].find('\t');
    r.figures.emplace_back(lines[i].substr(0, tab), lines[i].substr(tab + 1));
  }
  return true;
}

Result run(Result (*probe)(const Options&), Options o, double seconds) {
  o.seconds = seconds;
  const Ended e = in_child(
      [&](int pipe) {
        Result r;
        try {
          r = probe(o);
        } catch (const std::exception& error) {
          r = {Result::no_answer, error.what(), {}};
        }
        write_all(pipe, packed(r));
      },
      seconds);
  Result r;
  if (unpack(e.wrote, r)) return r;
  if (!e.in_time) return {Result::no_answer, text("did not end within %.0f s", seconds), {}};
  if (e.signal != 0) return {Result::no_answer, text("was ended by signal %d", e.signal), {}};
  return {Result::no_answer, text("ended with exit code %d without an answer", e.code), {}};
}

/// Waits up to `seconds` (0: forever) for a child to end. Returns false if it still runs.
bool reap(pid_t child, int& status, double seconds) {
  const Clock::time_point start = Clock::now();
  for (;;) {
    const pid_t ended = waitpid(child, &status, seconds > 0 ? WNOHANG : 0);
    if (ended == child || (ended < 0 && errno != EINTR)) return true;
    if (seconds > 0 && seconds_since(start) >= seconds) return false;
    if (ended == 0) (void)poll(nullptr, 0, 5);
  }
}

/// A process that keeps a context open while the probes run. Some systems unload the driver as soon as nobody uses the
/// device; without the keeper every probe would then wait seconds for the driver.
class Keeper {
 public:
  explicit Keeper(const Options& o) {
    const pid_t parent = getpid();
    child_ = fork();
    if (child_ != 0) return;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    try {
      const Context ctx = context(o);
      for (;;) (void)pause();
    } catch (const std::exception&) {  // the probes will report it
    }
    _exit(1);
  }
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;
  ~Keeper() {
    if (child_ <= 0) return;
    (void)kill(child_, SIGKILL);
    int status = 0;
    (void)reap(child_, status, longest_end);
  }

 private:
  pid_t child_ = -1;
};

std::string members(const Result& r) {
  std::string s;
  for (const auto& [name, json] : r.figures) s += ", " + quoted(name) + ": " + json;
  return s;
}

const char* word(Result::Outcome o) { return o == Result::ok ? "ok" : o == Result::skipped ? "skipped" : "failed"; }

struct Request {
  Options options;
  double seconds = emulated ? 0 : 60;  // 0: no limit
  std::string out;
  bool list = false;
  std::vector<const Probe*> probes;
};

[[noreturn]] void usage(const std::string& what) {
  std::fprintf(stderr, "nacre_probes: %s\n", what.c_str());
  std::exit(2);
}

Request parse(int argc, char** argv) {
  Request r;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    const auto value = [&] {
      if (++i >= argc) usage(a + ": a value is missing");
      return std::string(argv[i]);
    };
    if (a == "--list") {
      r.list = true;
    } else if (a == "--small") {
      r.options.small = true;
    } else if (a == "--out") {
      r.out = value();
    } else if (a == "--seconds") {
      const std::string v = value();
      char* end = nullptr;
      r.seconds = std::strtod(v.c_str(), &end);
      if (end == v.c_str() || *end != 0 || !std::isfinite(r.seconds) || r.seconds <= 0)
        usage("--seconds is \"" + v + "\"; expected a number above 0");
    } else if (a == "--device") {
      const std::string v = value();
      const std::string digits = v.starts_with("cuda:") ? v.substr(5) : "0";
      if ((v != "cuda" && !v.starts_with("cuda:")) || digits.empty() || digits.size() > 4 ||
          !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; }))
        usage("--device is \"" + v + "\"; expected cuda or cuda:N");
      r.options.index = std::atoi(digits.c_str());
    } else if (a.starts_with("-")) {
      usage(a + " is not an option; expected --list, --device, --small, --seconds or --out");
    } else {
      const auto found =
          std::find_if(std::begin(all_probes), std::end(all_probes), [&](const Probe& p) { return a == p.name; });
      if (found == std::end(all_probes)) usage("no probe is named \"" + a + "\"; --list names them");
      r.probes.push_back(&*found);
    }
  }
  if (r.probes.empty())
    for (const Probe& p : all_probes) r.probes.push_back(&p);
  return r;
}

/// Appends a line to the file in one write, so that readers see all of it or nothing. Exits with 4 on failure.
void append(const std::string& file, const std::string& line, bool only_first = false) {
  if (file.empty()) return;
  const int f = open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  const std::string all = line + "\n";
  bool done = f >= 0;
  if (done && !(only_first && lseek(f, 0, SEEK_END) > 0))
    done = write(f, all.data(), all.size()) == ssize_t(all.size());
  const int why = errno;
  if (f >= 0 && close(f) != 0) done = false;
  if (done) return;
  std::fprintf(stderr, "nacre_probes: cannot write %s: %s\n", file.c_str(), std::strerror(why));
  std::exit(4);
}

int main_program(int argc, char** argv) {
  const Request request = parse(argc, argv);
  if (request.list) {
    for (const Probe& p : all_probes) std::printf("%s\n", p.name);
    return 0;
  }
  const Clock::time_point start = Clock::now();
  const bool limited = request.seconds > 0;
  const auto left = [&] { return request.seconds - seconds_since(start); };
  Result device = run(describe, request.options, limited ? longest_describe : 0);
  if (device.outcome == Result::no_answer && (!limited || left() >= 1))
    device = run(describe, request.options, limited ? std::min(left(), longest_describe) : 0);
  if (device.outcome == Result::no_answer) {
    std::fprintf(stderr, "nacre_probes: the device did not answer: %s\n", device.says.c_str());
    return 1;
  }
  if (device.outcome != Result::ok) {
    std::fprintf(stderr, "nacre_probes: %s\n", device.says.c_str());
    return static_cast<int>(ErrorKind::device);
  }
  std::printf("%s\n", device.says.c_str());
  std::fflush(stdout);
  append(request.out, "{\"device\": " + quoted(device.says) + members(device) + "}", true);

  // In exclusive mode only one process at a time may use a device.
  const bool shared =
      emulated || std::find(device.figures.begin(), device.figures.end(),
                            std::pair<std::string, std::string>("compute_mode", "0")) != device.figures.end();
  const std::unique_ptr<Keeper> keeper = shared ? std::make_unique<Keeper>(request.options) : nullptr;
  int no_answer = 0;
  for (const Probe* p : request.probes) {
    const Clock::time_point began = Clock::now();
    Result r = limited && left() < 1 ? Result{Result::no_answer, "no time was left", {}}
                                     : run(p->run, request.options, limited ? std::min(left(), longest_probe) : 0);
    const bool answered = r.outcome != Result::no_answer;
    if (!answered) r.says = "no answer: " + r.says, ++no_answer;
    if (r.says.empty()) r.says = "holds";
    std::printf("%-21s %-7s %s: %s\n", p->name, word(r.outcome), p->asks, r.says.c_str());
    std::fflush(stdout);
    append(request.out, "{\"probe\": " + quoted(p->name) + ", \"outcome\": \"" + word(r.outcome) +
                            "\", \"says\": " + quoted(r.says) + ", \"asks\": " + quoted(p->asks) +
                            ", \"answered\": " + (answered ? "true" : "false") +
                            text(", \"seconds\": %.3f", seconds_since(began)) + members(r) + "}");
  }
  return no_answer == 0 ? 0 : 1;
}

}  // namespace

Result& Result::figure(const std::string& name, double v) {
  figures.emplace_back(name, std::isfinite(v) ? text("%.9g", v) : "null");
  return *this;
}
Result& Result::figure(const std::string& name, int64_t v) {
  figures.emplace_back(name, std::to_string(v));
  return *this;
}
Result& Result::figure(const std::string& name, const std::string& v) {
  figures.emplace_back(name, quoted(one_line(v)));
  return *this;
}
std::string one_line(std::string s) {
  std::replace_if(
      s.begin(), s.end(), [](char c) { return c == '\n' || c == '\t' || c == '\r'; }, ' ');
  return s;
}
Result skip(const std::string& why) { return {Result::skipped, why, {}}; }

std::string quoted(const std::string& s) {
  std::string q = "\"";
  for (const char c : s) {
    if (c == '"' || c == '\\')
      q += std::string("\\") + c;
    else if (static_cast<unsigned char>(c) < 0x20)
      q += text("\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    else
      q += c;
  }
  return q + "\"";
}

std::string text(const char* format, ...) {
  va_list a, b;
  va_start(a, format);
  va_copy(b, a);
  std::string s(static_cast<size_t>(std::max(0, std::vsnprintf(nullptr, 0, format, a))), ' ');
  std::vsnprintf(s.data(), s.size() + 1, format, b);
  va_end(a);
  va_end(b);
  return s;
}

void write_all(int pipe, const std::string& s) {
  for (size_t at = 0; at < s.size();) {
    const ssize_t n = write(pipe, s.data() + at, s.size() - at);
    if (n < 0 && errno != EINTR) return;
    if (n > 0) at += static_cast<size_t>(n);
  }
}

Ended in_child(const std::function<void(int pipe)>& work, double seconds) {
  int ends[2];
  std::fflush(nullptr);
  if (pipe(ends) != 0) throw Error(ErrorKind::io, std::string("pipe: ") + std::strerror(errno));
  const pid_t parent = getpid(), child = fork();
  if (child < 0) {
    (void)close(ends[0]), (void)close(ends[1]);
    throw Error(ErrorKind::io, std::string("fork: ") + std::strerror(errno));
  }
  if (child == 0) {
    // A child that waits for a kernel forever can only be killed. This kills it when its parent ends for any reason.
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    (void)close(ends[0]);
    work(ends[1]);
    std::fflush(nullptr);
    _exit(0);  // no destructors: the context may be lost
  }
  (void)close(ends[1]);
  Ended e;
  const Clock::time_point start = Clock::now();
  for (;;) {
    const double left = seconds - seconds_since(start);
    if (seconds > 0 && left <= 0) break;
    pollfd p{ends[0], POLLIN, 0};
    const int ready = poll(&p, 1, seconds > 0 ? static_cast<int>(std::min(left, 1e6) * 1000) + 1 : -1);
    if (ready < 0 && errno != EINTR) break;
    if (ready <= 0) continue;
    char buffer[4096];
    const ssize_t n = read(ends[0], buffer, sizeof buffer);
    if (n == 0 || (n < 0 && errno != EINTR)) break;
    if (n > 0) e.wrote.append(buffer, static_cast<size_t>(n));
  }
  (void)close(ends[0]);
  int status = 0;
  // The child has closed its end of the pipe, but the driver may still keep it from ending.
  const double left = seconds - seconds_since(start);
  if ((seconds > 0 && left <= 0) || !reap(child, status, seconds > 0 ? left : 0)) {
    e.in_time = false;
    (void)kill(child, SIGKILL);
    if (!reap(child, status, longest_end)) return e;
  }
  if (WIFSIGNALED(status)) e.signal = WTERMSIG(status);
  if (WIFEXITED(status)) e.code = WEXITSTATUS(status);
  return e;
}

}  // namespace nacre::probes

int main(int argc, char** argv) { return nacre::probes::main_program(argc, argv); }
