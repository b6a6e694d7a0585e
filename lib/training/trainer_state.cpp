// What a checkpoint of a run holds, and how it is read back. NAME is the name of a tensor of the model, as in PyTorch's
// files. Everything is float32, and each tensor has the shape and the layout of its file form.
//
//   model.safetensors          NAME               averaged weights, and the values of what is not trained (codebooks);
//                                                 without averaging, all values
//   optimizer.safetensors      value.NAME         all values, only with averaging
//                              adamw.m.NAME, adamw.v.NAME                moments; parameters that are trained only
//                              balancer.norms.TERM, balancer.ones.TERM   one number each
//                              discriminator.m.NAME, discriminator.v.NAME
//   discriminator.safetensors  NAME               values, only with discriminators
//   manifest.json              configuration, schedule, counters and what RunIdentity compares
//
// Effective weights follow from directions and gains and are in no file. Crops, noise and dropped codebooks follow from
// seed and step and have no state.
#include "training/trainer_state.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "files/owned_tensors.h"
#include "nacre/files/safetensors.h"
#include "training/trainer_run.h"

namespace nacre::training {
namespace {

using nlohmann::json;

// Versions of other libraries that affect the bits. There are none now; runs that began when convolutions used oneDNN
// have its version here.
constexpr const char* libraries = "none";

// Name of the averaged weights in TrainingStep::state(), which the optimizer forms from its own name.
constexpr const char* averaged = "adamw.ema";

/// A number of the balancer's state. Zero for a term that the checkpoint did not train with: its average then starts
/// with the next step.
float balancer_state(const Safetensors& rest, const std::string& name) {
  if (const StoredTensor* own = rest.find(name)) return to_floats(*own).at(0);
  // Earlier versions had these three terms and stored all numbers in one tensor.
  static constexpr std::array<const char*, 6> places{"balancer.norms.waveform", "balancer.norms.stft",
                                                     "balancer.norms.mel",      "balancer.ones.waveform",
                                                     "balancer.ones.stft",      "balancer.ones.mel"};
  const StoredTensor* all = rest.find("balancer");
  const auto place = static_cast<size_t>(std::find(places.begin(), places.end(), name) - places.begin());
  if (all == nullptr || place == places.size()) return 0;
  const std::vector<float> values = to_floats(*all);
  return place < values.size() ? values[place] : 0;
}
const char* name_of(Storage s) { return s == Storage::bfloat16 ? "bf16" : "fp32"; }

}  // namespace

// The epochs end where step + shift, the steps of the current size, reaches num_epochs * steps.
RunSchedule::RunSchedule(const TrainingConfig& t, int64_t steps, int64_t moved)
    : steps_per_epoch(steps), shift(moved), end(t.num_epochs * steps - moved), stop(end) {
  if (t.max_steps > 0) stop = std::min(stop, t.max_steps);
}
int64_t RunSchedule::factor_end(const TrainingConfig& t) const { return t.schedule_steps > 0 ? t.schedule_steps : end; }
/// With schedule_steps the schedule is one in steps, and a change of the batch size does not move it. Otherwise it is
/// one in epochs, and `shift` translates.
double RunSchedule::factor(const TrainingConfig& t, int64_t step) const {
  return t.schedule_steps > 0 ? schedule_factor(t, step, t.schedule_steps) : schedule_factor(t, step, end, shift);
}

RunSchedule continued(const RunSchedule& then, const TrainingConfig& now, int64_t steps_per_epoch, int64_t step) {
  // No rounding here, so a run that is resumed with the same data keeps its schedule exactly.
  if (then.steps_per_epoch == steps_per_epoch) return {now, steps_per_epoch, then.shift};
  // Chosen so that (step + shift) / steps_per_epoch is the number of epochs done before, to the nearest step.
  const double epochs = static_cast<double>(step + then.shift) / static_cast<double>(then.steps_per_epoch);
  return {now, steps_per_epoch, std::llround(epochs * static_cast<double>(steps_per_epoch)) - step};
}

std::string what_changes_rate(const RunIdentity& then, const RunIdentity& now, int64_t step) {
  // Each with its own configuration and schedule.
  const auto rate = [](const RunIdentity& r, int64_t at) {
    return r.config.optimizer.learning_rate * r.schedule.factor(r.config.training, at);
  };
  const double before = rate(then, step), after = rate(now, step);
  // The bound is rounding: the same rate computed from other numbers.
  if (std::fabs(before - after) <= 1e-9 * std::max(before, after)) return "";
  std::string line = "learning rate: " + number(after, "%.3g") +
                     " at the next step (with the previous settings: " + number(before, "%.3g") + ")";
  if (now.config.training.schedule == Schedule::constant) return line + "; it stays constant";
  const int64_t end_then = then.schedule.factor_end(then.config.training),
                end_now = now.schedule.factor_end(now.config.training);
  line += "; it falls to " + number(rate(now, end_now), "%.3g") + " at step " + std::to_string(end_now);
  if (then.config.training.schedule == Schedule::cosine && end_then != end_now)
    line += ", where the schedule ends now (before: at step " + std::to_string(end_then) + ")";
  return line;
}

RunIdentity identity_of(const RunConfig& config, uint64_t data, const Context& ctx, Storage storage,
                        const RunSchedule& schedule, uint64_t noise) {
  return {config, data, ctx.threads(), ctx.instruction_set(), libraries, storage, schedule, noise};
}

RunIdentity identity_from_manifest(const std::string& manifest) {
  try {
    const json m = json::parse(manifest);
    RunIdentity r;
    r.config = RunConfig::from_json(m.at("config").dump());
    r.data = m.at("data").get<uint64_t>();
    r.noise = m.value("noise", uint64_t{0});
    r.threads = m.at("threads").get<int>();
    r.instruction_set = m.at("instruction_set").get<std::string>();
    r.libraries = m.at("libraries").get<std::string>();
    if (m.value("storage", "fp32") == "bf16") r.storage = Storage::bfloat16;
    // Optional: noise, which runs without it leave out; storage; the schedule, which older runs did not record.
    r.schedule.steps_per_epoch = 0;
    if (m.contains("schedule"))
      r.schedule = RunSchedule(r.config.training, m["schedule"].at("steps_per_epoch").get<int64_t>(),
                               m["schedule"].at("shift").get<int64_t>());
    return r;
  } catch (const json::exception& e) {
    throw Error(ErrorKind::input, std::string("manifest.json: not the manifest of a training run: ") + e.what());
  }
}

std::vector<std::string> what_forbids_resume(const RunIdentity& then, const RunIdentity& now) {
  static const std::set<std::string> harmless{"training.num_epochs", "training.max_steps", "training.schedule_steps",
                                              "training.valid_seconds", "training.checkpoint_minutes",
                                              // No later step depends on how a run starts or on the beam.
                                              "training.start", "training.codebook_start_rows",
                                              "training.codebook_average_rows", "codec.beam"};
  // Without discriminators before and after, their settings have no effect. The same holds for noise.
  const bool adversarial = then.config.loss.adversarial > 0 || now.config.loss.adversarial > 0;
  const bool noisy = then.noise != 0 || now.noise != 0;
  const auto unused = [&](const std::string& key) {
    if (key.starts_with("training.noise_") || key == "training.clean_target") return !noisy;
    return !adversarial && (key.starts_with("discriminator.") || key == "loss.feature" ||
                            key == "loss.feature_relative" || key == "loss.adversarial_start");
  };
  std::vector<std::string> found;
  for (const std::string& d : differences(then.config, now.config)) {
    // A difference is "section.key: value -> value".
    const std::string key = d.substr(0, d.find(':'));
    if (!harmless.contains(key) && !unused(key)) found.push_back(d);
  }
  if (then.data != now.data) found.push_back("data: the list of audio files changed");
  if (then.noise != now.noise)
    found.push_back(then.noise == 0  ? "noise: none, now a folder (--noise-dir)"
                    : now.noise == 0 ? "noise: a folder, now none (--noise-dir)"
                                     : "noise: the list of noise files changed");
  if (then.storage != now.storage)
    found.push_back(std::string("activations: stored in ") + name_of(then.storage) + ", now " + name_of(now.storage) +
                    " (--precision)");
  return found;
}

std::string what_changes_bits(const RunIdentity& then, const RunIdentity& now) {
  std::string s;
  const auto add = [&](const std::string& a, const std::string& b, const char* what) {
    if (a != b) s += (s.empty() ? "" : ", ") + std::string(what) + " " + a + " then, " + b + " now";
  };
  add(then.instruction_set, now.instruction_set, "instruction set");
  add(then.libraries, now.libraries, "library");
  return s;
}

/// Reads the counters from the device, so it waits for the step that runs.
std::string manifest_of(TrainingStep& step, const RunIdentity& identity, int64_t at, double snr) {
  const AdamWScalars scalars = step.scalars();
  json manifest = {{"config", json::parse(identity.config.to_json())},
                   {"data", identity.data},
                   {"threads", identity.threads},
                   {"instruction_set", identity.instruction_set},
                   {"libraries", identity.libraries},
                   {"storage", name_of(identity.storage)},
                   {"nacre", "0.1.0"},
                   {"epoch", identity.schedule.epoch_of(at)},
                   {"schedule",
                    {{"steps_per_epoch", identity.schedule.steps_per_epoch},
                     {"shift", identity.schedule.shift},
                     {"stop", identity.schedule.stop}}},
                   {"sampler", {{"step", at}, {"seed", identity.config.training.seed}}},
                   {"adamw", {{"lr", scalars.lr}, {"step", scalars.step}, {"skipped", scalars.skipped}}}};
  if (step.discriminators() != nullptr) {
    const AdamWScalars theirs = step.discriminator_scalars();
    manifest["discriminator"] = {{"lr", theirs.lr}, {"step", theirs.step}, {"skipped", theirs.skipped}};
  }
  if (identity.noise != 0) manifest["noise"] = identity.noise;
  if (std::isfinite(snr)) manifest["metrics"] = {{"snr", snr}};
  return manifest.dump();
}

CheckpointContent content_of(TrainingStep& step, Context& ctx, const RunIdentity& identity, int64_t at, double snr) {
  // With averaged weights, model.safetensors holds the averages, which is what is used after training, and the values
  // that are trained on go to optimizer.safetensors as "value.NAME". Without them, model.safetensors holds the values.
  // Either way it is a complete model.
  // Shared, because the functions that write the files outlive this call.
  auto model = std::make_shared<OwnedTensors>();
  auto rest = std::make_shared<OwnedTensors>();
  const Parameters& parameters = step.parameters();
  bool averaging = false;
  for (const StateTensor& s : step.state()) averaging = averaging || s.name == averaged;
  parameters.each_tensor(ctx,
                         [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
                           (averaging ? *rest : *model).add_copy(averaging ? "value." + name : name, shape, v);
                         });
  for (const StateTensor& s : step.state()) {
    // A state of this size is laid out as the trained parameters (moments, averages) and is stored tensor by tensor,
    // under names that do not depend on the layout.
    if (s.values.elements() == parameters.trained_elements()) {
      const bool is_model = s.name == averaged;
      parameters.each_tensor(ctx, s.values,
                             [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
                               if (is_model)
                                 model->add_copy(name, shape, v);
                               else
                                 rest->add_copy(s.name + "." + name, shape, v);
                             });
    } else {
      std::vector<float> v(static_cast<size_t>(s.values.elements()));
      ctx.read<float>(s.values, v);
      rest->add(s.name, {s.values.elements()}, v);
    }
  }
  if (averaging)  // values that are not trained have no average (codebooks follow their own)
    parameters.each_tensor(ctx,
                           [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
                             for (const StoredTensor& t : model->list)
                               if (t.name == name) return;
                             model->add_copy(name, shape, v);
                           });
  std::shared_ptr<OwnedTensors> judges;
  if (const Parameters* theirs = step.discriminators()) {
    judges = std::make_shared<OwnedTensors>();
    theirs->each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
      judges->add_copy(name, shape, v);
    });
    // Their optimizer keeps no averages, so moments are all of its state.
    for (const StateTensor& s : step.discriminator_state())
      theirs->each_tensor(ctx, s.values,
                          [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> v) {
                            rest->add_copy(s.name + "." + name, shape, v);
                          });
  }
  const std::map<std::string, std::string> metadata{{config_metadata_key, identity.config.codec.to_json()},
                                                    {"nacre.step", std::to_string(at)}};
  CheckpointContent c;
  // The state is copied from the device already. The store calls these functions when it writes.
  c.files.push_back({"model.safetensors",
                     [model, metadata](const ByteSink& sink) { write_safetensors(sink, model->list, metadata); }});
  c.files.push_back({"optimizer.safetensors", [rest](const ByteSink& sink) { write_safetensors(sink, rest->list); }});
  if (judges)
    c.files.push_back({discriminator_file, [judges](const ByteSink& sink) { write_safetensors(sink, judges->list); }});
  c.manifest = manifest_of(step, identity, at, snr);
  // Before the evaluation there is no metric; CheckpointStore::judge() adds it.
  if (std::isfinite(snr)) c.metric = snr;
  return c;
}

namespace {

/// The norm is that of one step and no state.
AdamWScalars scalars_from(const json& of_optimizer) {
  return {.lr = of_optimizer.at("lr").get<float>(),
          .norm = 0,
          .step = of_optimizer.at("step").get<int32_t>(),
          .skipped = of_optimizer.at("skipped").get<int32_t>()};
}

/// Names and file shapes of all tensors, sorted by name.
std::vector<std::pair<std::string, std::vector<int64_t>>> tensors_of(Context& ctx, const Parameters& parameters) {
  std::vector<std::pair<std::string, std::vector<int64_t>>> names;
  parameters.each_tensor(ctx, [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float>) {
    names.emplace_back(name, shape);
  });
  return names;
}

/// Sets values and moments of the discriminators. All must be in the files: at() throws otherwise.
void restore_discriminators(TrainingStep& step, Context& ctx, const Safetensors& weights, const Safetensors& rest) {
  Parameters& parameters = *step.discriminators();
  for (const auto& [name, shape] : tensors_of(ctx, parameters)) {
    const auto set = [&, &to = name](const StoredTensor& from, View<float> block) {
      parameters.set_tensor(ctx, to, from.shape, to_floats(from), block);
    };
    set(weights.at(name), {});
    for (const StateTensor& s : step.discriminator_state()) set(rest.at(s.name + "." + name), s.values);
  }
  parameters.refresh(ctx);
}

}  // namespace

bool has_discriminators(const Checkpoint& checkpoint, const DiscriminatorConfig& then, const DiscriminatorConfig& now) {
  return std::filesystem::exists(checkpoint.file(discriminator_file)) && then.same_networks(now);
}

int64_t restore(TrainingStep& step, const Checkpoint& checkpoint, bool with_discriminators) {
  Context& ctx = step.context();
  Parameters& parameters = step.parameters();
  // All files are read and checked before the first value is written.
  const Safetensors rest = Safetensors::read(checkpoint.file("optimizer.safetensors"), {.allow_nonfinite = false});
  const Safetensors model = Safetensors::read(checkpoint.file("model.safetensors"), {.allow_nonfinite = false});
  std::optional<Safetensors> judges;
  if (with_discriminators && step.discriminators() != nullptr &&
      std::filesystem::exists(checkpoint.file(discriminator_file)))
    judges = Safetensors::read(checkpoint.file(discriminator_file), {.allow_nonfinite = false});
  bool averaging = false;
  for (const StateTensor& s : step.state()) averaging = averaging || s.name == averaged;
  const auto names = tensors_of(ctx, parameters);
  const auto set = [&](const StoredTensor& from, const std::string& name, View<float> block) {
    parameters.set_tensor(ctx, name, from.shape, to_floats(from), block);
  };
  for (const auto& [name, shape] : names) {
    // The file decides and not the configuration, because averaging may have been switched since.
    const bool raw_apart = rest.find("value." + name) != nullptr;
    set(raw_apart ? rest.at("value." + name) : model.at(name), name, {});
  }
  // Averages: if averaging was switched on since, the model's file holds the values, and the averages start from them.
  // Moments that the file lacks stay zero.
  for (const StateTensor& s : step.state()) {
    if (s.name.starts_with("balancer.")) {
      const float value = balancer_state(rest, s.name);
      ctx.write<float>(std::span(&value, 1), s.values);
      continue;
    }
    for (const auto& [name, shape] : names) {
      const StoredTensor* t = s.name == averaged ? model.find(name) : rest.find(s.name + "." + name);
      if (t != nullptr) set(*t, name, s.values);  // buffers have no moments; set_tensor() skips them
    }
  }
  try {
    const json manifest = json::parse(checkpoint.manifest);
    step.set_scalars(scalars_from(manifest.at("adamw")));
    if (judges) step.set_discriminator_scalars(scalars_from(manifest.at("discriminator")));
  } catch (const json::exception& e) {
    throw Error(ErrorKind::input, checkpoint.path.string() + "/manifest.json: " + e.what());
  }
  if (judges) restore_discriminators(step, ctx, *judges, rest);
  // Derives the effective weights, which no checkpoint holds.
  parameters.refresh(ctx);
  return checkpoint.step;
}

}  // namespace nacre::training
