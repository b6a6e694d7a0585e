// nacre: train, run and judge neural audio codecs.
//
// Exit codes: 0 done, 2 usage, 3 bad input, 4 input/output failed, 5 out of memory, 6 device, 7 training diverged,
// 129, 130 and 143 stopped by a signal.
#include <cstdio>
#include <new>
#include <system_error>

#include "commands.h"
#include "nacre/version.h"

namespace nacre::program {

void DeviceOptions::add_to(CLI::App& app) {
  app.add_option("--device", device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  app.add_option("--precision", precision,
                 "fp32; tf32: CUDA's products on tensor cores, 10 bits of mantissa in; bf16: activations of 16 bits in "
                 "training")
      ->capture_default_str();
  app.add_option("-t,--threads", threads, "CPU threads; 0: all cores that affinity and CPU quota allow")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

ContextOptions DeviceOptions::context() const {
  ContextOptions options{.threads = threads};
  if (precision == "tf32")
    options.precision = Precision::tf32;
  else if (precision == "bf16" && !stores_bf16)
    throw Error(ErrorKind::usage, "--precision bf16: is for training; here it is fp32 or tf32");
  else if (precision != "fp32" && precision != "bf16")
    throw Error(ErrorKind::usage, "--precision " + precision + ": expected fp32, tf32 or bf16");
  if (device == "cpu") return options;
  if (device == "auto") {
    std::string why;
#if defined(NACRE_EMULATED)
    return options;  // an emulated device is for those who ask for it
#endif
    if (cuda_available(&why))
      options.device = {Device::cuda, 0};
    else if (built_with_cuda())  // a build for CUDA was made to use it: somebody will want to know
      std::fprintf(stderr, "nacre: running on the CPU: %s\n", why.c_str());
    return options;
  }
  if (device.rfind("cuda", 0) == 0) {
    const std::string rest = device.substr(4);
    options.device = {Device::cuda, 0};
    if (rest.empty()) return options;
    if (rest.size() > 1 && rest.size() < 5 && rest[0] == ':' &&
        rest.find_first_not_of("0123456789", 1) == std::string::npos) {
      options.device.index = std::stoi(rest.substr(1));
      return options;
    }
  }
  throw Error(ErrorKind::usage, "--device " + device + ": expected auto, cpu, cuda or cuda:N");
}

}  // namespace nacre::program

int main(int argc, char** argv) {
  using namespace nacre::program;
  CLI::App app{"Train, run and judge neural audio codecs.", "nacre"};
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("nacre " NACRE_VERSION "\ncommit ") + nacre::commit() + "\nbuilt by " +
                                        nacre::compiler());
  app.footer(
      "nacre VERB --help tells more.\nExit codes: 0 done, 2 usage, 3 bad input, 4 input/output, 5 memory, 6 device, "
      "7 training diverged, 129/130/143 signals.");
  struct Verb {
    CLI::App* app;
    Command run;
  };
  std::vector<Verb> verbs;
  const auto add = [&](const char* name, const char* what, Command (*make)(CLI::App&)) {
    CLI::App* verb = app.add_subcommand(name, what);
    verbs.push_back({verb, make(*verb)});
  };
  add("train", "train a codec on a folder of audio", add_train);
  add("encode", "audio files to .nacre streams", add_encode);
  add("decode", ".nacre streams to WAV files", add_decode);
  add("eval", "how good a model is on given audio", add_eval);
  add("report", "write a page that shows a run: curves, scores, pictures and sounds", add_report);
  add("info", "what a model, run, stream or audio file is", add_info);
  add("export", "a model's weights as one safetensors file", add_export);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    std::fprintf(stderr, "nacre: %s\n", e.what());
    return 2;
  }
  try {
    for (const Verb& v : verbs)
      if (v.app->parsed()) return v.run();
  } catch (const nacre::Error& e) {
    std::fprintf(stderr, "nacre: %s\n", e.what());
    return e.exit_code();
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "nacre: out of memory\n");
    return 5;
  } catch (const std::system_error& e) {
    std::fprintf(stderr, "nacre: %s\n", e.what());
    return e.code() == std::errc::resource_unavailable_try_again || e.code() == std::errc::not_enough_memory ? 5 : 4;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "nacre: %s\n", e.what());
    return 4;
  }
  return 2;
}
