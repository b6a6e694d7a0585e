// nacre report
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "arguments.h"
#include "commands.h"
#include "files/text.h"
#include "jobs.h"
#include "nacre/log/progress.h"
#include "nacre/report/report.h"

namespace nacre::program {
namespace {

struct Options {
  std::string run, model, data_dir, output = "report.html";
  double max_seconds = 600;
  int64_t examples = 6;
  bool force = false, json = false;
  DeviceOptions device;
};

int report(const Options& o) {
  // Checked before the evaluation, which takes minutes: whether the page can be written.
  std::error_code failed;
  const std::filesystem::path parent = std::filesystem::path(o.output).parent_path();
  if (!parent.empty() && !std::filesystem::is_directory(parent, failed))
    throw Error(ErrorKind::io, "-o " + o.output + ": there is no folder " + parent.string());
  if (o.output == "-")
    throw Error(ErrorKind::usage,
                "-o -: a page cannot be written to standard output; expected a file name such as report.html");
  if (std::filesystem::is_directory(o.output, failed))
    throw Error(ErrorKind::usage, "-o " + o.output + ": is a folder, expected a file name such as report.html");
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
  if (o.json)
    print_json({{"output", r.output.string()}, {"bytes", r.bytes}, {"files", r.files}, {"snr", r.snr}});
  else
    std::printf("%s: %.1f MB, %lld file%s%s\n", printable(r.output.string()).c_str(),
                static_cast<double>(r.bytes) / 1e6, static_cast<long long>(r.files), r.files == 1 ? "" : "s",
                std::isfinite(r.snr)
                    ? (", mean SNR " + std::string(r.snr < 0 ? "" : "+") + fixed(r.snr, 2) + " dB").c_str()
                    : "");
  return 0;
}

}  // namespace

Command add_report(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("--run", o->run, "folder of the run: what nacre train wrote")->type_name("DIR")->required();
  app.add_option("--data-dir,--data_dir", o->data_dir, "folder of audio that the run was trained on")
      ->type_name("DIR")
      ->required();
  app.add_option("--model", o->model,
                 "model to evaluate: a run, checkpoint or model file (default: the run's best checkpoint)")
      ->type_name("MODEL");
  app.add_option("-o,--output", o->output, "the page: one self-contained HTML file")
      ->type_name("FILE")
      ->capture_default_str();
  app.add_flag("-f,--force", o->force, "replace the page if it exists");
  app.add_option("--max-seconds,--max_seconds", o->max_seconds, "maximum seconds of held-out audio to score")
      ->check(above_zero())
      ->capture_default_str();
  app.add_option("--examples", o->examples, "number of files to show with spectrograms and players")
      ->check(between(0, 100))
      ->capture_default_str();
  app.add_flag("--json", o->json, "print one JSON object to standard output");
  o->device.add_to(app);
  return [o] { return report(*o); };
}

}  // namespace nacre::program
