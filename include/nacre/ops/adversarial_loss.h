#pragma once
#include "nacre/context.h"
// Losses of a discriminator and of the generator that it judges, with their gradients with respect to the logits.
//
//   least squares  (Mao et al. 2017, arXiv 1611.04076; the code of DAC)
//     discriminator  loss = mean (1 - real)^2 + mean fake^2                      threshold 1/2
//     generator      loss = mean (1 - fake)^2
//   hinge  (Lim and Ye 2017, arXiv 1705.02894; SoundStream, EnCodec)
//     discriminator  loss = mean max(0, 1 - real) + mean max(0, 1 + fake)        threshold 0
//     generator      loss = mean max(0, 1 - fake)
//   hinge with a linear generator  (Lim and Ye 2017; the code of EnCodec)
//     discriminator  as hinge
//     generator      loss = -mean fake
//
// Means run over all logits of their half of the batch. The gradient is scaled by `weight`, the loss is not.
//   gradient   of max(0, z) is 1 for z > 0 and 0 for z <= 0
//   right      a logit above the threshold is judged real, one at or below it is judged fake
//   NaN        in a logit gives NaN in loss and in its gradient; it is never judged right
//   saved      the logits
//   writes     loss is = unless add_loss; right and gradient are =
//   aliasing   gradient may be logits
//   order      summed in double, over parts fixed by the shape
//   accuracy   loss within 4 u (u = 2^-24) of the sum of the sizes of its terms; gradient within 4 u, and rounded once
//              when T is bf16; right is a count, exact, divided in double and rounded once
//   cost       bytes of one read and one write of the logits: bound by launches. CUDA: one launch for up to
//              4096 logits per half, otherwise two
namespace nacre {
enum class AdversarialKind : uint8_t { least_squares, hinge, hinge_linear };

/// Logits of real and of fake audio in one batch: the first half of the items is real, the second half is fake.
template <class T>
struct DiscriminatorLoss {
  View<const T> logits;   ///< [2 * batch, time, width, channels]
  View<float> loss;       ///< [1] = unless add_loss
  View<float> right{};    ///< [2] = the fraction of the real and of the fake logits that are judged right; may be empty
  View<T> gradient{};     ///< = ; empty: skipped
  View<float> scratch{};  ///< adversarial_loss_scratch
  AdversarialKind kind = AdversarialKind::least_squares;
  float weight = 1;
  bool add_loss = false;
};
template <class T>
struct GeneratorLoss {
  View<const T> logits;   ///< [batch, time, width, channels]
  View<float> loss;       ///< [1] = unless add_loss
  View<T> gradient{};     ///< = ; empty: skipped
  View<float> scratch{};  ///< adversarial_loss_scratch
  AdversarialKind kind = AdversarialKind::least_squares;
  float weight = 1;
  bool add_loss = false;
};
Shape adversarial_loss_scratch(Context&, Shape logits);
/// Throws Error(usage) if the number of items is odd.
template <class T = float>
void discriminator_loss(Context&, const DiscriminatorLoss<T>&);
template <class T = float>
void generator_loss(Context&, const GeneratorLoss<T>&);
}  // namespace nacre
