// nacre report
#include <memory>
#include <optional>

#include "commands.h"
#include "nacre/training/progress.h"
#include "nacre/training/report.h"

namespace nacre::program {
namespace {

struct Options {
  std::string run, model, data_dir, output = "report.html";
  double max_seconds = 600;
  int64_t examples = 6;
  bool force = false;
  DeviceOptions device;
};

int report(const Options& o) {
  std::optional<training::Progress> progress;
  const training::ReportResult r = training::write_report({.run = o.run,
                                                           .model = o.model,
                                                           .data_dir = o.data_dir,
                                                           .output = o.output,
                                                           .overwrite = o.force,
                                                           .max_seconds = o.max_seconds,
                                                           .examples = o.examples,
                                                           .context = o.device.context(),
                                                           .progress = [&](int64_t done, int64_t all) {
                                                             if (!progress) progress.emplace("report", all, "files");
                                                             progress->update(done);
                                                           }});
  if (progress) progress->finish();
  std::printf("%s: %.1f MB, %lld files, mean SNR %+.2f dB\n", r.output.string().c_str(),
              static_cast<double>(r.bytes) / 1e6, static_cast<long long>(r.files), r.snr);
  return 0;
}

}  // namespace

Command add_report(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("--run", o->run, "folder of the run: what nacre train wrote")->required();
  app.add_option("--data-dir,--data_dir", o->data_dir, "folder of audio that the run was trained on")->required();
  app.add_option("--model", o->model,
                 "what is judged: a run, checkpoint or model file (default: the run's best checkpoint)");
  app.add_option("-o,--output", o->output, "the page: one HTML file with everything in it")->capture_default_str();
  app.add_flag("-f,--force", o->force, "replace the page if it exists");
  app.add_option("--max-seconds,--max_seconds", o->max_seconds, "held-out audio that is scored, at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--examples", o->examples, "clips to look at and to listen to")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  o->device.add_to(app);
  return [o] { return report(*o); };
}

}  // namespace nacre::program
