// The list of losses, their configuration, and the plan of all of them.
#include "files/fields.h"
#include "files/spelling.h"
#include "nacre/losses/adversarial.h"
#include "nacre/losses/loss.h"

namespace nacre {
namespace {

[[noreturn]] void refuse_loss(const std::string& key, const std::string& what) {
  throw Error(ErrorKind::usage, "loss." + key + ": " + what);
}

/// The list: a new loss is a word here.
std::vector<Loss> all_losses(const LossConfig& config, int64_t sample_rate) {
  return {waveform_loss_of(config), spectral_loss_of(config, sample_rate)};
}

}  // namespace

std::vector<Loss> losses_of(const LossConfig& config, int64_t sample_rate) {
  config.check(sample_rate);
  return all_losses(config, sample_rate);
}

void LossConfig::check(int64_t sample_rate) const {
  LossConfig c = *this;
  check_limits("loss", fields_of(c), twelve_digits);
  double weights = 0;
  std::vector<std::string> names;
  // Before windows and mels are checked: all_losses() describes the losses and computes nothing from them.
  for (const Loss& loss : all_losses(*this, sample_rate))
    for (const TermSpec& term : loss.terms) weights += term.weight, names.push_back(term.name);
  if (weights <= 0) refuse_loss(names.front(), listed(names, "and") + " are all zero; one must be positive");
  if (windows.empty()) refuse_loss("windows", "is empty");
  if (mels.size() != windows.size())
    refuse_loss("mels", std::to_string(mels.size()) + " entries for " + std::to_string(windows.size()) + " windows");
  for (size_t i = 0; i < windows.size(); ++i) {
    if (windows[i] < 8 || windows[i] > 65536 || windows[i] % 4 != 0)
      refuse_loss("windows", std::to_string(windows[i]) + " is not a multiple of 4 between 8 and 65536");
    if (mel_kind == MelKind::power && mels[i] > 0 && windows[i] % 8 != 0)
      refuse_loss("windows", std::to_string(windows[i]) + " is not a multiple of 8, as loss.mel_kind power expects");
    const int64_t most = mel_kind != MelKind::log ? std::min<int64_t>(4 * windows[i], 1024) : windows[i] / 2;
    if (mels[i] < 0 || mels[i] > most)
      refuse_loss("mels", std::to_string(mels[i]) + " bands at window " + std::to_string(windows[i]) +
                              ", expected 0 to " + std::to_string(most));
  }
  if (mel_kind != MelKind::log && (mel_excess != 1 || mel_transient != 0))
    refuse_loss(mel_excess != 1 ? "mel_excess" : "mel_transient",
                twelve_digits(mel_excess != 1 ? mel_excess : mel_transient) + ", expected " +
                    (mel_excess != 1 ? "1" : "0") + " unless loss.mel_kind is log");
  if (sample_rate <= 0) refuse_loss("sample_rate", "must be positive");
  if (!(mel_fmin >= 0) || !(2 * mel_fmin < static_cast<double>(sample_rate)))
    refuse_loss("mel_fmin", twelve_digits(mel_fmin) + " Hz, expected 0 to below half the sample rate (" +
                                twelve_digits(static_cast<double>(sample_rate) / 2) + " Hz)");
}

std::string term_title(const std::string& name) {
  // Titles do not depend on the configuration, so any valid one gives them. A term of an older run may be unknown.
  std::vector<TermSpec> terms = adversarial_terms({});
  for (const Loss& loss : losses_of({}, 16000)) terms.insert(terms.end(), loss.terms.begin(), loss.terms.end());
  for (const TermSpec& term : terms)
    if (term.name == name) return term.title;
  return name;
}

Input<float> read_branch(const Step& s, Flow branch) {
  const Input<float> in = s.reads<float>(branch, Until::backward);
  if (in.add)
    throw Error(ErrorKind::usage, "loss: a later step reads the branch, expected the loss as its last reader");
  return in;
}

PlannedLosses plan_losses(Plan& p, Flow estimate, View<const float> target, View<const int32_t> lengths,
                          const LossConfig& config, int64_t sample_rate, std::span<const Loss> more, int64_t channels) {
  std::vector<Loss> losses = losses_of(config, sample_rate);
  losses.insert(losses.end(), more.begin(), more.end());
  PlannedLosses planned;
  std::vector<double> weights;  // of the branches
  // Terms have one order everywhere, and so have branches: in values, shares and the balancer's state. Each loss gets
  // its part of both.
  for (const Loss& loss : losses)
    for (size_t i = 0; i < loss.terms.size(); ++i) {
      if (i == 0 || !loss.joint) {
        // A term begins a branch, except for the further terms of a joint loss. The weights of a joint loss act inside
        // of it, so its branch has weight 1.
        planned.leader.push_back(planned.terms.size());
        weights.push_back(loss.joint ? 1 : loss.terms[i].weight);
      }
      planned.branch.push_back(weights.size() - 1);
      planned.terms.push_back(loss.terms[i]);
    }
  // Gates switch losses of `more` on and off between runs without another plan.
  if (!more.empty()) planned.gates = p.persistent<float>({.channels = static_cast<int64_t>(weights.size())});
  const Branches branches = GradientBalancer(config.balancer_decay, config.balanced, config.balancer_norm)
                                .plan(p, estimate, weights, planned.gates, channels);
  const View<float> values = p.persistent<float>({.channels = static_cast<int64_t>(planned.terms.size())});
  size_t first = 0;
  for (const Loss& loss : losses) {
    const size_t count = loss.terms.size();
    const View<float> own(values ? values.data + first : nullptr, {.channels = static_cast<int64_t>(count)});
    loss.plan(p, {.estimates = std::span(branches.flows).subspan(planned.branch[first], loss.joint ? 1 : count),
                  .target = target,
                  .lengths = lengths,
                  .values = own});
    first += count;
  }
  // The balancer's backward pass runs after those of all losses, because it was made before them.
  planned.step = branches.step;
  planned.values = values, planned.shares = branches.shares;
  planned.balancer_state = branches.state;
  return planned;
}

}  // namespace nacre
