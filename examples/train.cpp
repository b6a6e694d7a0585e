// nacre train
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <list>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "arguments.h"
#include "commands.h"
#include "files/text.h"
#include "nacre/training/trainer.h"

namespace nacre::program {
namespace {

std::atomic<int> stop_signal{0};
std::atomic<bool> may_leave{false};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

/// The first signal asks the trainer to save and stop. The second exits at once, and so does the first if there is
/// nothing to save.
void on_signal(int signal) {
  if (stop_signal.exchange(signal) != 0) _exit(128 + signal);
  if (!may_leave.load()) return;
  constexpr char line[] = "nacre: stopped before training began; the same command starts again\n";
  if (::write(STDERR_FILENO, line, sizeof line - 1) < 0) _exit(128 + signal);  // exits in both cases
  _exit(128 + signal);
}

/// A hang-up signal that is already ignored (nohup) stays ignored. A closed screen, such as a pipe, must not end a run.
void catch_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    if (signal == SIGHUP && sigaction(signal, nullptr, &before) == 0 && before.sa_handler == SIG_IGN) continue;
    sigaction(signal, &action, nullptr);
  }
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
}

/// Whether the reader of a pipe has closed it or a terminal has hung up.
bool nobody_reads(int fd) {
  pollfd stream{.fd = fd, .events = POLLOUT, .revents = 0};
  return ::poll(&stream, 1, 0) > 0 && (stream.revents & (POLLERR | POLLHUP)) != 0;
}

/// A key that has an option of its own. --set accepts all keys.
struct KeyOption {
  std::string option, key;
  std::optional<int64_t> integer;
  std::optional<double> number;
};

struct Options {
  std::string data_dir, noise_dir, checkpoint_dir, config = "speech-16k", resume = "auto", init, experiment_name;
  std::vector<std::string> set;
  std::list<KeyOption> keys;  // CLI11 keeps addresses of the values, so elements must not move
  int64_t max_bad = 10;
  bool init_partial = false, allow_change = false, use_wandb = false, json = false, salvage = false;
  DeviceOptions device;
};

training::RunConfig resolved(const Options& o) {
  training::RunConfig c = training::RunConfig::named(o.config);
  std::vector<training::Setting> settings;
  for (const std::string& s : o.set) settings.push_back(training::setting(s));
  const auto take = [&](const auto& given, const KeyOption& k) {
    if (!given) return;
    const nlohmann::json value = *given;
    // JSON has neither infinity nor NaN. As a word, such a value is refused by its name.
    const std::string text = value.dump() == "null" ? std::to_string(*given) : value.dump();
    settings.push_back({.key = k.key, .value = text, .source = k.option + " " + text});
  };
  for (const KeyOption& k : o.keys) take(k.integer, k), take(k.number, k);
  if (o.salvage) settings.push_back({.key = "training.salvage", .value = "true", .source = "--salvage"});
  c.set(settings);
  return c;
}

/// The run's folder. A name that leads out of the checkpoint folder is refused, because nobody would look there.
std::filesystem::path run_of(const Options& o) {
  const std::filesystem::path name = o.experiment_name, folder = o.checkpoint_dir;
  if (name.is_absolute() || std::find(name.begin(), name.end(), "..") != name.end())
    throw Error(ErrorKind::usage, "--experiment-name " + o.experiment_name +
                                      ": is outside of the checkpoint folder; expected the name of a sub-folder");
  return name.empty() ? folder : folder / name;
}

int train(const Options& o) {
  training::TrainerOptions t;
  t.config = resolved(o);
  t.data_dir = o.data_dir;
  t.noise_dir = o.noise_dir;
  t.run = run_of(o);
  t.context = o.device.context();
  t.storage = o.device.storage();
  t.resume = o.resume;
  t.init = o.init;
  t.init_partial = o.init_partial;
  t.allow_change = o.allow_change;
  t.max_bad = o.max_bad;
  t.experiment_name = o.experiment_name;
  t.stop = &stop_signal;
  if (o.json) t.out = stderr;
  t.may_leave = &may_leave;
  catch_signals();
  const training::TrainResult r = training::train(t);
  if (o.use_wandb)
    std::fprintf(t.out,
                 "--use_wandb: nothing was uploaded; this command uploads the run's TensorBoard files:\n"
                 "  wandb sync --sync-tensorboard %s\n",
                 shell_word(t.run.string()).c_str());
  if (o.json) {
    nlohmann::ordered_json all = {
        {"run", t.run.string()}, {"step", r.step}, {"steps", r.steps}, {"finished", r.finished}};
    if (r.signal != 0) all["signal"] = r.signal;
    if (!r.checkpoint.empty()) all["checkpoint"] = r.checkpoint.string();
    all["snr"] = r.snr;
    print_json(all);
  } else if (std::fflush(stdout); nobody_reads(STDOUT_FILENO)) {
    std::clearerr(stdout);  // the run itself succeeded, so a closed screen is not a failure
  }
  return r.signal != 0 && !r.finished ? 128 + r.signal : 0;
}

/// Adds an option for a key, with the key's name and help.
void add_key(CLI::App& app, std::list<KeyOption>& keys, const training::KeyRow& row) {
  const std::string name = "--" + row.name.substr(row.name.find('.') + 1);
  std::string option = name;
  std::replace(option.begin(), option.end(), '_', '-');
  KeyOption& k = keys.emplace_back(KeyOption{option, row.name, {}, {}});
  const std::string names = option == name ? name : option + "," + name;
  if (row.type == "integer")
    app.add_option(names, k.integer, row.help);
  else
    app.add_option(names, k.number, row.help);
}

}  // namespace

Command add_train(CLI::App& app) {
  auto o = std::make_shared<Options>();
  app.add_option("--data-dir,--data_dir", o->data_dir, "folder of audio, searched recursively")
      ->type_name("DIR")
      ->required();
  app.add_option("--checkpoint-dir,--checkpoint_dir", o->checkpoint_dir, "folder of the run, for checkpoints and logs")
      ->type_name("DIR")
      ->required();
  app.add_option("--noise-dir,--noise_dir", o->noise_dir,
                 "folder of noise, searched recursively; a share of the inputs is mixed with it "
                 "(training.noise_share, noise_gain and clean_target)")
      ->type_name("DIR");
  app.add_option("--config", o->config, "a built-in configuration (nacre info --configs lists them) or a JSON file")
      ->type_name(config_type())
      ->capture_default_str();
  app.add_option("--set", o->set, "set one key of the configuration, as section.key=value; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false)
      ->take_all();
  std::map<std::string, training::KeyRow> rows;
  for (const training::KeyRow& r : training::configuration_keys()) rows[r.name] = r;
  for (const char* key :
       {"training.batch_size", "training.num_epochs", "optimizer.learning_rate", "training.segment_length",
        "codec.sample_rate", "training.max_steps", "training.seed", "training.valid_fraction"})
    add_key(app, o->keys, rows.at(key));
  app.get_option("--seed")->check(at_least(0));
  app.add_flag("--salvage", o->salvage, salvage_help);
  app.add_option(
         "--max-bad,--max_bad", o->max_bad,
         "skip up to this many bad files, or 1 % of all files if that is more; with more bad files the run stops")
      ->check(at_least(0))
      ->capture_default_str();
  app.add_option("--resume", o->resume,
                 "auto: continue from the newest checkpoint, if there is one; never: refuse a folder that has "
                 "checkpoints; or the "
                 "folder of the checkpoint to continue from")
      ->type_name("DIR:{auto,never}")
      ->capture_default_str();
  app.add_option("--init", o->init,
                 "initial weights: a model file (also of transformers, descript-audio-codec or encodec), checkpoint or "
                 "run; the state of its optimizer is not used")
      ->type_name("MODEL");
  app.add_flag("--init-partial,--init_partial", o->init_partial,
               "accept --init weights for a part of the model; the rest is initialised at random");
  app.add_flag("--allow-change,--allow_change", o->allow_change,
               "resume even if the configuration or the data changed");
  app.add_option("--experiment-name,--experiment_name", o->experiment_name,
                 "sub-folder of the checkpoint folder, for this run");
  app.add_flag("--use-wandb,--use_wandb", o->use_wandb, "print the command that uploads the logs to Weights & Biases");
  app.add_flag("--json", o->json,
               "print one JSON object to standard output at the end, and everything else to standard error");
  o->device.stores_bf16 = true;
  o->device.add_to(app);
  return [o] { return train(*o); };
}

}  // namespace nacre::program
