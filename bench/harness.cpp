#include "harness.h"

#include <benchmark/benchmark.h>
#include <dlfcn.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <set>

#include "ceilings.h"
#include "nacre/random.h"
#include "nacre/version.h"
#include "timing.h"

namespace nacre::bench {
namespace {

std::vector<void (*)(Suite&)>& definitions() {
  static std::vector<void (*)(Suite&)> all;
  return all;
}

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof(text), std::abs(x) < 100 ? "%.3g" : "%.1f", x);
  return text;
}

/// Prefix of an "error" that reports a skipped case, which is no failure.
const std::string skipped = "skipped: ";

struct Options {
  Device device{};
  int threads = 0;
  bool small = false;
  double seconds = 0;  // 0: the default of timing.h
  std::string cases, progress;
  unsigned limit = 0;  // seconds; 0: none
};

/// The current activity. The handler of SIGALRM prints it before it ends the program.
char doing[256];
void took_too_long(int) {
  const auto say = [](const char* text) { (void)!::write(STDERR_FILENO, text, std::strlen(text)); };
  say("nacre_bench: "), say(doing), say(": ran past its limit\n");
  ::_exit(124);
}
/// Sets the limit for the next activity. A thread that hangs in a kernel or a driver cannot end itself, so an alarm
/// does it.
void begin(const std::string& what, unsigned limit) {
  std::snprintf(doing, sizeof(doing), "%s", what.c_str());
  ::alarm(limit);
}

/// Not empty after an error that no later call recovers from, such as an illegal address. All remaining cases would
/// fail with it.
std::string lost_after;
void see_if_lost(Context& ctx, const std::string& name) {
  try {
    ctx.synchronize();
  } catch (const Error& error) {
    lost_after = name + ": " + error.what();
  }
}
/// Ends the program. The file of --benchmark_out is flushed after each result, so it has all results so far, but not
/// its closing brackets.
[[noreturn]] void end_lost() {
  std::fflush(nullptr);
  std::fprintf(stderr, "nacre_bench: the device is lost after %s\n", lost_after.c_str());
  ::_exit(static_cast<int>(ErrorKind::device));
}

/// Appends the name of a case to the file of --progress before the case runs.
void note_progress(const std::string& path, const std::string& name) {
  std::ofstream out(path, std::ios::app);
  out << name << std::endl;
  if (!out) throw Error(ErrorKind::io, "cannot write " + path);
}
std::set<std::string> begun_before(const std::string& path) {
  std::set<std::string> names;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) names.insert(line);
  return names;
}

/// One context per precision. A case names the one it needs.
struct Contexts {
  explicit Contexts(const Options& o) : options(o) {}
  Context& get(const std::string& arithmetic) {
    const Precision p = arithmetic == "tf32" ? Precision::tf32 : Precision::fp32;
    auto& made = contexts[p == Precision::tf32];
    if (!made) made = std::make_unique<Context>(ContextOptions{options.device, options.threads, p});
    return *made;
  }
  Options options;
  std::unique_ptr<Context> contexts[2];
};

void run_case(benchmark::State& state, Contexts& contexts, const Ceilings& ceilings, const Suite::Entry& entry) {
  const CaseInfo& info = entry.info;
  if (!lost_after.empty()) end_lost();
  if (!contexts.options.progress.empty()) note_progress(contexts.options.progress, info.name);
  if (!info.skipped.empty()) {
    state.SkipWithError((skipped + info.skipped).c_str());
    return;
  }
  begin(info.name, contexts.options.limit);
  try {
    Context& ctx = contexts.get(info.arithmetic);
    Data data(ctx);
    reset_memory_peak(ctx.device());
    const Run run = entry.setup(data);
    const bool timed = !contexts.options.small;
    const Timing t = measure(ctx, run, {.eager = info.eager, .timed = timed, .seconds = contexts.options.seconds});
    for (auto _ : state) state.SetIterationTime(t.warm.median);
    auto& c = state.counters;
    if (t.launches > 0) c["launches"] = static_cast<double>(t.launches);
    for (const auto& [name, value] : data.figures) c[name] = value;
    c["peak_MiB"] = static_cast<double>(t.peak_bytes) / (1 << 20);
    if (!timed) return;
    // The headline time on a device is the one with a cold cache. On the CPU it is the fastest of many runs.
    const bool cold = t.cold.runs > 0;
    const double seconds = cold ? t.cold.median : info.uneven ? t.warm.mean : t.warm.best;
    if (info.uneven) c["mean_us"] = 1e6 * t.warm.mean;
    c["warm_us"] = 1e6 * t.warm.median, c["best_us"] = 1e6 * t.warm.best;
    const Sample& spread = cold ? t.cold : t.warm;
    if (cold) c["cold_us"] = 1e6 * t.cold.median;
    c["p10_us"] = 1e6 * spread.p10, c["p90_us"] = 1e6 * spread.p90, c["p99_us"] = 1e6 * spread.p99;
    c["runs"] = static_cast<double>(spread.runs);
    if (info.audio_seconds > 0) c["x_realtime"] = info.audio_seconds / seconds;
    const double bytes = static_cast<double>(info.bytes), flops = static_cast<double>(info.flops);
    const double copy = cold ? ceilings.cold_copy(info.bytes) : ceilings.copy(info.bytes);
    const double peak = ceilings.peak(info.peak.empty() ? info.arithmetic : info.peak);
    const auto floor_with = [&](double copy_rate) {
      return std::max(bytes / copy_rate, peak > 0 ? flops / peak : 0.0);
    };
    if (cold) {  // the bandwidth ceiling of a cold run counts data that the second-level cache still holds
      const double cached = ceilings.copy(info.bytes);
      c["warm_p10_us"] = 1e6 * t.warm.p10, c["warm_p90_us"] = 1e6 * t.warm.p90;
      c["warm_runs"] = static_cast<double>(t.warm.runs);
      c["warm_copy%"] = 100 * bytes / t.warm.median / cached;
      if (peak > 0) c["warm_floor%"] = 100 * floor_with(cached) / t.warm.median;
    }
    c["GB/s"] = bytes / seconds * 1e-9;
    c["GFLOP/s"] = flops / seconds * 1e-9;
    c["copy%"] = 100 * bytes / seconds / copy;
    if (peak > 0) {
      c["peak%"] = 100 * flops / seconds / peak;
      c["floor%"] = 100 * floor_with(copy) / seconds;
    }
  } catch (const Skip& why) {
    state.SkipWithError((skipped + why.what()).c_str());
  } catch (const Error& error) {
    state.SkipWithError(error.what());
    see_if_lost(contexts.get(info.arithmetic), info.name);
  }
  ::alarm(0);
}

/// Prints one line per case. The table of Google Benchmark shows neither the spread nor the skipped cases.
class Table : public benchmark::BenchmarkReporter {
 public:
  explicit Table(bool timed) : timed_(timed) {}
  bool ReportContext(const Context& context) override {
    (void)context;
    for (const auto& [name, value] : settings()) std::printf("# %s: %s\n", name.c_str(), value.c_str());
    if (timed_)
      std::printf("%-64s %10s %10s %7s %5s %8s %9s %6s %6s %6s %6s %8s\n", "case", "cold us", "warm us", "spread",
                  "runs", "GB/s", "GFLOP/s", "copy%", "peak%", "floor%", "warm%", "launches");
    return true;
  }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      const std::string name = run.run_name.function_name;
      if (run.error_occurred) {
        std::printf("%-64s %s\n", name.c_str(), run.error_message.c_str());
        failed = failed || run.error_message.rfind(skipped, 0) != 0;
        continue;
      }
      if (run.run_type == Run::RT_Aggregate) continue;
      const auto& c = run.counters;
      const auto show = [&](const char* counter, const char* format, int width) {
        const auto at = c.find(counter);
        if (at == c.end())
          std::printf(" %*s", width, "-");
        else
          std::printf(format, at->second.value);
      };
      std::printf("%-64s", name.c_str());
      if (timed_) {
        show("cold_us", " %10.2f", 10), show("warm_us", " %10.2f", 10);
        const double low = c.at("p10_us").value, high = c.at("p90_us").value;
        std::printf(" %6.1f%%", 100 * (high - low) / (high + low));
        show("runs", " %5.0f", 5), show("GB/s", " %8.1f", 8), show("GFLOP/s", " %9.1f", 9);
        show("copy%", " %6.1f", 6), show("peak%", " %6.1f", 6), show("floor%", " %6.1f", 6);
        show("warm_floor%", " %6.1f", 6);
        show("launches", " %8.0f", 8);
      } else {
        show("launches", " %.0f launches", 8);
      }
      const bool uneven = c.find("mean_us") != c.end();
      for (const auto& [key, value] : c)
        if (std::find(std::begin(columns), std::end(columns), key) == std::end(columns) || (uneven && key == "p99_us"))
          std::printf("  %s %.4g", key.c_str(), value.value);
      std::printf("\n");
    }
    std::fflush(stdout);
  }
  bool failed = false;
  static std::vector<std::pair<std::string, std::string>>& settings() {
    static std::vector<std::pair<std::string, std::string>> all;
    return all;
  }

 private:
  static constexpr const char* columns[] = {"cold_us",     "warm_us",   "best_us",    "p10_us",     "p90_us",
                                            "runs",        "GB/s",      "GFLOP/s",    "copy%",      "peak%",
                                            "floor%",      "launches",  "peak_MiB",   "p99_us",     "warm_p10_us",
                                            "warm_p90_us", "warm_runs", "warm_copy%", "warm_floor%"};
  bool timed_;
};

void setting(const std::string& name, const std::string& value) {
  Table::settings().emplace_back(name, value);
  benchmark::AddCustomContext(name, value);
}

#if defined(NACRE_CUDA_LIBRARIES)
/// Prints the versions of libraries that cases load at run time, where they are present.
void describe_libraries() {
  const auto find = [](std::initializer_list<const char*> names, const char* function) {
    void* found = nullptr;
    for (const char* name : names)
      if (void* library = found == nullptr ? dlopen(name, RTLD_NOW | RTLD_LOCAL) : nullptr)
        found = dlsym(library, function);
    return found;
  };
  const auto dotted = [](int v, int major, int minor) {
    return std::to_string(v / major) + "." + std::to_string(v % major / minor) + "." + std::to_string(v % minor);
  };
  int v = 0;
  if (void* f = find({"libcufft.so.12", "libcufft.so.11"}, "cufftGetVersion"))
    if (reinterpret_cast<int (*)(int*)>(f)(&v) == 0) setting("cuFFT", dotted(v, 1000, 100));
  if (void* f = find({"libcudnn.so.9"}, "cudnnGetVersion"))
    setting("cuDNN", dotted(static_cast<int>(reinterpret_cast<size_t (*)()>(f)()), 10000, 100));
}
#endif

void describe(Context& ctx, const Ceilings& ceilings, const Options& options) {
  setting("device", str(ctx.device()));
  setting("description", ctx.instruction_set());
  setting("commit", commit());
  setting("compiler", compiler());
#if defined(NACRE_CUDA_LIBRARIES)
  describe_libraries();
#endif
  if (ctx.device().kind == Device::cpu) setting("threads", std::to_string(ctx.threads()));
  setting("small", options.small ? "true" : "false");
  if (options.small) return;
  const std::string vendor = ctx.device().kind == Device::cpu ? "memcpy" : "cudaMemcpyAsync";
  const auto list_copies = [&](const std::string& kind, const std::vector<Ceilings::Copy>& copies) {
    for (size_t i = 0; i < copies.size(); ++i) {
      const std::string name = kind + std::to_string(i + 1) + " of " + std::to_string(copies[i].bytes >> 10) + " KiB";
      setting(name, number(copies[i].bytes_per_second * 1e-9));
      setting(name + ", our loop", number(copies[i].own * 1e-9));
      setting(name + ", " + vendor, number(copies[i].vendor * 1e-9));
    }
  };
  list_copies("copy_GB/s ", ceilings.copies);
  list_copies("cold_copy_GB/s ", ceilings.cold_copies);
  for (const auto& [name, value] : ceilings.named()) setting(name, number(value));
  if (!ceilings.cublas.empty()) setting("cuBLAS", ceilings.cublas);
}

[[noreturn]] void usage(const std::string& what) { throw Error(ErrorKind::usage, what + "; see bench/harness.h"); }

/// Removes our options from the arguments. Both "--threads N" and "--threads=N" are accepted.
Options take_options(std::vector<char*>& args) {
  Options o;
  std::vector<char*> rest{args.front()};
  for (size_t i = 1; i < args.size(); ++i) {
    const std::string arg = args[i];
    const size_t equals = arg.find('=');
    const std::string name = arg.substr(0, equals);
    if (name == "--small") {
      o.small = true;
      continue;
    }
    if (name != "--threads" && name != "--device" && name != "--cases" && name != "--seconds" && name != "--progress" &&
        name != "--limit") {
      rest.push_back(args[i]);
      continue;
    }
    if (equals == std::string::npos && i + 1 == args.size()) usage(name + " expects a value");
    const std::string value = equals != std::string::npos ? arg.substr(equals + 1) : args[++i];
    if (name == "--cases") {
      o.cases = value;
    } else if (name == "--progress") {
      o.progress = value;
    } else if (name == "--device") {
      char* end = nullptr;
      const bool cuda = value.rfind("cuda", 0) == 0;
      if (cuda && value.size() > 5 && value[4] == ':')
        o.device.index = static_cast<int>(std::strtol(value.c_str() + 5, &end, 10));
      if ((value != "cpu" && value != "cuda" && end == nullptr) || (end != nullptr && *end != 0))
        usage("--device is \"" + value + "\"; expected cpu, cuda or cuda:N");
      o.device.kind = cuda ? Device::cuda : Device::cpu;
    } else {
      char* end = nullptr;
      const double n = std::strtod(value.c_str(), &end);
      if (end == value.c_str() || *end != 0 || !(n > 0))
        usage(name + " is \"" + value + "\"; expected a positive number");
      if (name == "--threads")
        o.threads = static_cast<int>(n);
      else if (name == "--limit")
        o.limit = static_cast<unsigned>(std::clamp(n, 1.0, 1e6));
      else
        o.seconds = n;
    }
  }
  args = rest;
  return o;
}

/// Names and words here contain no character that JSON must escape.
void write_cases(const Suite& suite, const Options& options) {
  std::ofstream out(options.cases);
  out << "{\"program\":\"nacre_bench\",\"device\":\"" << str(options.device)
      << "\",\"small\":" << (options.small ? "true" : "false") << ",\"cases\":[";
  const char* between = "\n";
  for (const Suite::Entry& e : suite.entries) {
    out << between << "{\"name\":\"" << e.info.name << "\",\"bytes\":" << e.info.bytes << ",\"flops\":" << e.info.flops
        << ",\"arithmetic\":\"" << e.info.arithmetic << "\",\"parameters\":{";
    const char* comma = "";
    for (const Parameter& p : e.info.parameters) {
      out << comma << '"' << p.name << "\":";
      if (const int64_t* n = std::get_if<int64_t>(&p.value))
        out << *n;
      else
        out << '"' << std::get<std::string>(p.value) << '"';
      comma = ",";
    }
    out << "}}";
    between = ",\n";
  }
  out << "\n]}\n";
  out.close();
  if (!out) throw Error(ErrorKind::io, "cannot write " + options.cases);
}

int bench_main(int argc, char** argv) {
  std::vector<char*> args(argv, argv + argc);
  const Options options = take_options(args);
  bool list = false, format = false;
  for (const char* arg : args) {
    list = list || std::strncmp(arg, "--benchmark_list_tests", 22) == 0;
    format = format || std::strncmp(arg, "--benchmark_format", 18) == 0;
  }
  int count = static_cast<int>(args.size());
  args.push_back(nullptr);
  benchmark::Initialize(&count, args.data());
  if (benchmark::ReportUnrecognizedArguments(count, args.data())) return 2;

  Suite suite(options.device.kind == Device::cuda, options.small);
  for (const auto define : definitions()) define(suite);
  if (!options.cases.empty()) {
    write_cases(suite, options);
    return 0;
  }
#if defined(NACRE_EMULATED)
  if (suite.cuda() && !options.small && !list)
    usage("the emulated device runs cases, but has no times: --device cuda expects --small");
#endif
  Contexts contexts(options);
  Ceilings ceilings;
  if (options.limit > 0) std::signal(SIGALRM, took_too_long);
  if (!list) {
    begin("ceilings", options.limit > 0 ? std::max(options.limit, 60U) : 0);
    Context& ctx = contexts.get("fp32");
    if (!options.small) ceilings = measure_ceilings(ctx);
    describe(ctx, ceilings, options);
    ::alarm(0);
  }
  const std::set<std::string> before = begun_before(options.progress);
  std::erase_if(suite.entries, [&](const Suite::Entry& e) { return before.contains(e.info.name); });
  for (const Suite::Entry& entry : suite.entries)
    benchmark::RegisterBenchmark(entry.info.name.c_str(),
                                 [&](benchmark::State& state) { run_case(state, contexts, ceilings, entry); })
        ->Iterations(1)  // one call of run_case makes all runs
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  Table table(!options.small);
  if (format || list)
    benchmark::RunSpecifiedBenchmarks();
  else
    benchmark::RunSpecifiedBenchmarks(&table);
  if (!lost_after.empty()) end_lost();
  benchmark::Shutdown();
  return table.failed ? 1 : 0;
}

}  // namespace

template <class T>
void Data::fill(View<T> v, std::vector<T> values) {
  const int64_t all = v.elements(), n = std::min<int64_t>(all, static_cast<int64_t>(values.size()));
  const auto part = [&](int64_t from, int64_t count) { return View<T>(v.data + from, {.channels = count}); };
  if (n == 0) return;
  ctx.write<T>(std::span<const T>(values.data(), static_cast<size_t>(n)), part(0, n));
  for (int64_t done = n; done < all;) {
    const int64_t next = std::min(done, all - done);
    ctx.copy<T>(part(0, next), part(done, next));
    done += next;
  }
  ctx.synchronize();
}
namespace {
constexpr int64_t drawn_at_most = 3 << 20;  // a multiple of four, but of no large power of two (cache aliasing)
}

template <class T>
View<T> Data::random(Shape s, double low, double high) {
  const View<T> v = zeros<T>(s);
  const Philox draw{.seed = 1, .stream = drawn_++};
  std::vector<T> host(static_cast<size_t>(std::min(s.elements(), drawn_at_most)));
  for (size_t i = 0; i < host.size(); i += 4) {
    const auto bits = draw(i / 4);
    for (size_t k = 0; k < 4 && i + k < host.size(); ++k)
      host[i + k] = store<T>(static_cast<float>(low + (high - low) * (bits[k] >> 8) * 0x1p-24));
  }
  fill(v, std::move(host));
  return v;
}
View<int32_t> Data::indices(Shape s, int32_t n) {
  const View<int32_t> v = zeros<int32_t>(s);
  const Philox draw{.seed = 1, .stream = drawn_++};
  std::vector<int32_t> host(static_cast<size_t>(std::min(s.elements(), drawn_at_most)));
  for (size_t i = 0; i < host.size(); ++i) host[i] = static_cast<int32_t>(draw.below(i, static_cast<uint64_t>(n)));
  fill(v, std::move(host));
  return v;
}
template View<float> Data::random<float>(Shape, double, double);
template View<bf16> Data::random<bf16>(Shape, double, double);

void Suite::add(CaseInfo info, std::function<Run(Data&)> setup) {
  if (small_)  // small shapes may coincide, so duplicates are removed
    for (const Entry& e : entries)
      if (e.info.name == info.name) return;
  entries.push_back({std::move(info), std::move(setup)});
}
std::vector<Shape> Suite::shapes(std::vector<Shape> cpu, std::vector<Shape> cuda) const {
  std::vector<Shape> fitted;
  for (const Shape& s : cuda_ && !cuda.empty() ? cuda : cpu) fitted.push_back(fit(s));
  return fitted;
}
Cases::Cases(void (*define)(Suite&)) { definitions().push_back(define); }

std::string label(Shape s) {
  return std::to_string(s.batch) + "x" + std::to_string(s.time) + "x" +
         (s.width != 1 ? std::to_string(s.width) + "x" : "") + std::to_string(s.channels);
}
std::vector<Parameter> tensor_parameters(const char* op, const char* direction, const std::string& type, Shape s) {
  return {{"op", op},         {"direction", direction}, {"type", type},
          {"batch", s.batch}, {"time", s.time},         {"channels", s.channels}};
}

}  // namespace nacre::bench

int main(int argc, char** argv) try { return nacre::bench::bench_main(argc, argv); } catch (const nacre::Error& error) {
  std::fprintf(stderr, "nacre_bench: %s\n", error.what());
  return error.exit_code();
}
