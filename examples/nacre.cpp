// nacre: train, run and evaluate neural audio codecs.
//
// Exit codes: 0 success, 2 usage, 3 invalid input, 4 input/output failed, 5 out of memory, 6 device failed,
// 7 training diverged, 129, 130 and 143 stopped by a signal.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <new>
#include <nlohmann/json.hpp>
#include <system_error>

#include "arguments.h"
#include "commands.h"
#include "files/text.h"
#include "nacre/systems/codec_config.h"
#include "nacre/version.h"

namespace nacre::program {
namespace {

/// The number N of "cuda:N", with at most three digits, or -1 for other text.
int card_of(const std::string& device) {
  if (device == "cuda") return 0;
  if (device.size() < 6 || device.size() > 8 || !device.starts_with("cuda:")) return -1;
  return device.find_first_not_of("0123456789", 5) == std::string::npos ? std::stoi(device.substr(5)) : -1;
}

CLI::Validator device_name() {
  CLI::Validator words = one_of({"auto", "cpu", "cuda", "cuda:N"});
  const std::string text = words.get_description();
  return CLI::Validator(
      [words](std::string& name) {
        if (card_of(name) >= 0) return std::string();
        return name == "cuda:N" ? std::string("is 'cuda:N', expected a number for N") : words(name);
      },
      text);
}

/// Reopens standard streams that were closed. Otherwise the next opened file would get their descriptor, and printed
/// text would go into that file. Each is replaced by a descriptor that fails: reads on stdin, writes on stdout and
/// stderr.
void open_standard_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(fd, F_GETFD) < 0 && errno == EBADF)
      (void)!::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);  // opens fd, the lowest free descriptor
}

/// Flushes standard output and returns an error code if printed text could not be written.
int with_output_written(int code) {
  std::cout.flush();
  errno = 0;
  const bool failed = std::fflush(stdout) != 0 || std::ferror(stdout) != 0 || !std::cout;
  if (!failed) return code;
  complain(std::string("standard output: cannot write") + (errno != 0 ? std::string(": ") + std::strerror(errno) : ""));
  return code == 0 ? 4 : code;
}

}  // namespace

namespace {

/// Removes keys that have no value.
nlohmann::ordered_json with_values(const nlohmann::ordered_json& all) {
  if (!all.is_structured()) return all;
  nlohmann::ordered_json kept = all.is_array() ? nlohmann::ordered_json::array() : nlohmann::ordered_json::object();
  for (const auto& [key, value] : all.items()) {
    if (all.is_array())
      kept.push_back(with_values(value));
    else if (!value.is_null() && !(value.is_number_float() && !std::isfinite(value.get<double>())))
      kept[key] = with_values(value);
  }
  return kept;
}

}  // namespace

void print_json(const nlohmann::ordered_json& all) {
  const nlohmann::ordered_json object = with_values(all);
  std::printf("%s\n", object.dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace).c_str());
}
std::string config_type() {
  std::string names;
  for (const std::string& name : CodecConfig::names()) names += (names.empty() ? "" : ",") + name;
  return "FILE:{" + names + "}";
}
void complain(const std::string& text) { std::fprintf(stderr, "nacre: %s\n", printable(text).c_str()); }
void warn(const std::string& path, const std::string& warning) { complain("warning: " + path + ": " + warning); }

void DeviceOptions::add_to(CLI::App& app, const std::string& group) {
  device_option = app.add_option("--device", device, "auto, cpu, cuda or cuda:N")
                      ->type_name("DEVICE")
                      ->check(device_name())
                      ->group(group)
                      ->capture_default_str();
  precision_option = app.add_option("--precision", precision,
                                    stores_bf16 ? "arithmetic: fp32; tf32: on CUDA, matrix products on tensor cores, "
                                                  "whose inputs are rounded to 10 bits "
                                                  "of mantissa; bf16: activations stored in 16 bits"
                                                : "arithmetic: fp32; tf32: on CUDA, matrix products on tensor cores, "
                                                  "whose inputs are rounded to 10 bits "
                                                  "of mantissa")
                         ->type_name("KIND")
                         ->check(stores_bf16 ? one_of({"fp32", "tf32", "bf16"}) : one_of({"fp32", "tf32"}))
                         ->group(group)
                         ->capture_default_str();
  threads_option =
      app.add_option("-t,--threads", threads, "CPU threads; 0: all cores that affinity and CPU quota allow")
          ->check(between(0, 1024))
          ->group(group)
          ->capture_default_str();
}

ContextOptions DeviceOptions::context() const {
  ContextOptions options{.threads = threads};
  if (precision == "tf32") options.precision = Precision::tf32;
  if (device == "cpu") return options;
  if (device == "auto") {
    std::string why;
#if defined(NACRE_EMULATED)
    return options;  // an emulated device is used only on request
#endif
    if (cuda_available(&why))
      options.device = {Device::cuda, 0};
    else if (built_with_cuda())  // the user of a CUDA build probably expects CUDA
      std::fprintf(stderr, "nacre: running on the CPU: %s\n", why.c_str());
    return options;
  }
  options.device = {Device::cuda, card_of(device)};
  return options;
}

}  // namespace nacre::program

namespace nacre::program {
namespace {

int run(int argc, char** argv) {
  CLI::App app{"Train, run and evaluate neural audio codecs.", "nacre"};
  app.require_subcommand(1);
  app.get_formatter()->label("SUBCOMMAND", "VERB");
  app.set_version_flag("--version", std::string("nacre " NACRE_VERSION "\ncommit ") + nacre::commit() + "\nbuilt by " +
                                        nacre::compiler());
  app.footer(
      "nacre VERB --help lists the options of a verb; nacre man prints the manual page.\n"
      "Exit codes: 0 success, 2 usage error, 3 invalid input, 4 input/output error, 5 out of memory,\n"
      "6 device error, 7 training diverged, 129/130/143 stopped by a signal.");
  struct Verb {
    CLI::App* app;
    Command run;
  };
  std::vector<Verb> verbs;
  const auto add = [&](const char* name, const char* what, Command (*make)(CLI::App&)) {
    CLI::App* verb = app.add_subcommand(name, what)->group("Verbs");
    verbs.push_back({verb, make(*verb)});
  };
  add("train", "train a codec on a folder of audio", add_train);
  add("encode", "encode audio files as .nacre streams", add_encode);
  add("decode", "decode .nacre streams to WAV files", add_decode);
  add("eval", "measure the quality of a model on audio files", add_eval);
  add("report", "write an HTML page about a run: curves, scores, spectrograms and audio", add_report);
  add("info", "describe a model, run, stream, audio file or configuration", add_info);
  add("export", "write a model's weights, for nacre or another program", add_export);
  add("completion", "print a script for a shell that completes verbs and options", add_completion);
  add("man", "print the manual page", add_man);
  try {
    std::vector<std::string> words = arranged(app, {argv + std::min(argc, 1), argv + argc});
    std::reverse(words.begin(), words.end());  // CLI11 expects the words in reverse order
    app.parse(std::move(words));
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    complain(reason(e));
    return 2;
  }
  for (const Verb& v : verbs)
    if (v.app->parsed()) return v.run();
  return 2;
}

int run_and_explain(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const nacre::Error& e) {
    complain(e.what());
    return e.exit_code();
  } catch (const std::bad_alloc&) {
    complain("out of memory");
    return 5;
  } catch (const std::system_error& e) {
    complain(e.what());
    return e.code() == std::errc::resource_unavailable_try_again || e.code() == std::errc::not_enough_memory ? 5 : 4;
  } catch (const std::exception& e) {
    complain(e.what());
    return 4;
  }
}

}  // namespace
}  // namespace nacre::program

int main(int argc, char** argv) {
  using namespace nacre::program;
  open_standard_streams();
  return with_output_written(run_and_explain(argc, argv));
}
