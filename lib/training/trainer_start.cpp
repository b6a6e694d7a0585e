// The weights that a run starts from: those of a file, a transform, or random ones that are scaled. The constructor of
// the step has drawn random weights before, and has copied them as the first averaged weights. So each start ends with
// reset_average(); otherwise those random weights would stay a part of the averages for the first steps.
#include <algorithm>

#include "nacre/codec/scaled_start.h"
#include "nacre/codec/transform_start.h"
#include "training/trainer_run.h"

namespace nacre::training {
namespace {

namespace fs = std::filesystem;

/// "; missing: a, b and 3 more", up to five names.
std::string names_of(const char* what, const std::vector<std::string>& names) {
  constexpr size_t most = 5;
  if (names.empty()) return "";
  std::string text;
  for (size_t i = 0; i < std::min(most, names.size()); ++i) text += (i > 0 ? ", " : "") + names[i];
  if (names.size() > most) text += " and " + std::to_string(names.size() - most) + " more";
  return std::string("; ") + what + ": " + text;
}

}  // namespace

/// --init: the tensors of a file that have the name and shape of one of the model. Others keep their random values, if
/// --init-partial allows that. Returns true if codebooks are among them.
bool Run::init() {
  const fs::path weights = find_model(options_.init);
  const LoadReport r = load_parameters(ctx_, step_.parameters(), weights, false);
  const std::string counts = std::to_string(r.matched) + " tensors taken from " + weights.string() + ", " +
                             std::to_string(r.missing.size()) + " missing, " + std::to_string(r.surplus.size()) +
                             " not used, " + std::to_string(r.misshapen.size()) + " of another shape";
  const std::string names =
      names_of("missing", r.missing) + names_of("of another shape", r.misshapen) + names_of("not used", r.surplus);
  if (r.matched == 0)
    throw Error(ErrorKind::input, "init: no tensor of " + weights.string() + " fits this model" + names);
  if (!options_.init_partial && (!r.missing.empty() || !r.misshapen.empty()))
    throw Error(ErrorKind::input, "init: these are not all weights of the model: " + counts + names +
                                      "; --init-partial uses these and initialises the rest at random");
  say("init: " + counts + names);
  // Evaluations use the averaged weights, which still hold the values from before.
  step_.reset_average();
  // Codebooks that the file does not have are random, so they are started from data as in a new run.
  const auto codebook = [](const std::string& name) { return name.find(".codebook.") != std::string::npos; };
  return std::any_of(r.missing.begin(), r.missing.end(), codebook) ||
         std::any_of(r.misshapen.begin(), r.misshapen.end(), codebook);
}

/// training.start = transform. Keeps the random weights if the codec cannot carry a transform, and says why.
void Run::start_as_transform() {
  const TransformStart start = transform_start_of(config_.codec);
  if (!start.refused.empty()) return say("start: random weights; a transform codec does not fit: " + start.refused);
  transform_start(ctx_, step_.parameters(), config_.codec);
  step_.reset_average();
  say("start: a lapped transform of " + std::to_string(start.bands) + " bands" +
      (start.bands < config_.codec.hop() ? ", the lowest of " + std::to_string(config_.codec.hop()) : ""));
}

/// training.start = scaled.
void Run::start_scaled() {
  scaled_start(ctx_, step_.parameters());
  step_.reset_average();
  say("start: random weights that keep the variance of the signal");
}

}  // namespace nacre::training
