#pragma once
// Residual vector quantisation in double, with given codes, on a tape.
#include <memory>

#include "reference/layers.h"
#include "reference/rvq.h"

namespace nacre::test {

struct Quantised {
  Node *y, *commitment, *codebook;             ///< both losses are unweighted
  std::shared_ptr<const RvqReference> stages;  ///< inputs and outputs of every stage
};
/// `given` has stages, codes, dim, factorised and orthogonal, and per row chosen, used and valid. All other values come
/// from z and from the parameters of <name>.0, <name>.1, ... The value of y is that of the codes. Its gradient goes
/// straight through to z.
inline Quantised quantise(Tape& t, Node* z, const std::string& name, const RvqReference& given) {
  using Rvq = RvqReference;
  struct Part {
    std::string name;
    Values Rvq::*value, Rvq::*gradient;
    bool normalised = false;
  };
  static const std::vector<Part> parts{{".codebook.weight", &Rvq::codebooks, &Rvq::dcodebooks},
                                       {".in_proj", &Rvq::in_weight, &Rvq::din_weight, true},
                                       {".in_proj.bias", &Rvq::in_bias, &Rvq::din_bias},
                                       {".out_proj", &Rvq::out_weight, &Rvq::dout_weight, true},
                                       {".out_proj.bias", &Rvq::out_bias, &Rvq::dout_bias}};
  const auto q = std::make_shared<Rvq>(given);
  q->rows = z->shape.rows(), q->latent = z->shape.channels, q->z = z->value;
  std::vector<Node*> inputs{z};
  std::vector<std::pair<Node*, Values Rvq::*>> pieces;  // destination of each piece of a stacked gradient
  const auto append = [](Values& all, const Values& one) { all.insert(all.end(), one.begin(), one.end()); };
  for (int64_t i = 0; i < q->stages; ++i) {
    const std::string stage = name + "." + std::to_string(i);
    if (!q->factorised) append(q->codebooks, t.parameters.at(stage + ".codebook.embed"));  // moving averages: constant
    for (const Part& part : parts) {
      if (!q->factorised) break;
      Node* p = part.normalised ? weight(t, stage + part.name, WeightForm::normalised) : t.parameter(stage + part.name);
      append((*q).*part.value, p->value);
      inputs.push_back(p), pieces.emplace_back(p, part.gradient);
    }
  }
  q->freeze();
  q->frozen_e = t.held(q->frozen_e), q->frozen_codes = t.held(q->frozen_codes);
  q->forward();
  Values y = q->y;
  if (!q->factorised) {  // z plus a constant: no parameter affects the codes
    for (size_t i = 0; i < y.size(); ++i) y[i] -= q->z[i];
    y = t.held(y);
    for (size_t i = 0; i < y.size(); ++i) y[i] += q->z[i];
  }
  const Quantised out{t.make(z->shape, std::move(y), inputs), t.make({}, {q->commitment}, inputs),
                      t.make({}, {q->codebook_loss}, inputs), q};
  t.back(out.y, [=, &t] {
    q->dy = out.y->gradient;
    q->commitment_weight = out.commitment->gradient[0], q->codebook_weight = out.codebook->gradient[0];
    q->backward();
    t.add(z, q->dz);
    const size_t per_stage = pieces.size() / static_cast<size_t>(q->stages);
    for (size_t i = 0; i < pieces.size(); ++i) {
      const auto& [node, gradient] = pieces[i];
      const auto from = ((*q).*gradient).begin() + static_cast<long>(i / per_stage * node->value.size());
      t.add(node, Values(from, from + static_cast<long>(node->value.size())));
    }
  });
  return out;
}

}  // namespace nacre::test
