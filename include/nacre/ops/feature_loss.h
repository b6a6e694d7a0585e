#pragma once
#include <array>

#include "nacre/context.h"
// Feature matching (Larsen et al. 2016, arXiv 1512.09300; Kumar et al. 2019, arXiv 1910.06711): the L1 distance of the
// activations of a discriminator for real and for fake audio, over a list of activations in one pass.
//
//   forward    loss = sum_i mean |fake_i - real_i|, each mean over all elements of activation i
//   backward   dfake_i = weight sign(fake_i - real_i) / elements_i
//   relative   loss and dfake of pair i are divided by max(mean |real_i|, 1e-12), which counts as a constant (EnCodec,
//              arXiv 2210.13438, section 3.4). So an activation of zeros gives finite values. A real_i that is NaN
//              somewhere makes the whole gradient of its pair NaN
//   sign       of 0 is 0, of NaN is NaN
//   writes     loss is = unless add_loss; gradients are =. The gradient of a pair without an address is skipped
//   aliasing   a gradient may be the fake activation of its pair
//   order      every pair is summed in double, over parts fixed by its shape; pairs are added in their order
//   accuracy   loss within 4 u (u = 2^-24); a gradient within 2 u, and rounded once when T is bf16
//   cost       reads both activations and writes the gradient once: bound by memory. CUDA: two launches for all pairs.
//              relative: one more read of the real activations, and two more launches
namespace nacre {
inline constexpr int feature_loss_max = 32;
template <class T>
struct FeaturePair {
  View<const T> real, fake;  ///< equal shapes
  View<T> gradient{};        ///< with respect to fake
};
template <class T>
struct FeatureLoss {
  std::array<FeaturePair<T>, feature_loss_max> pairs{};  ///< the first `count` are used
  int count = 0;                                         ///< 1 to feature_loss_max
  View<float> loss;                                      ///< [1] = unless add_loss
  View<float> scratch{};                                 ///< feature_loss_scratch
  float weight = 1;                                      ///< of the gradient
  bool add_loss = false;
  bool relative = false;
};
/// `elements` and `count` describe all pairs together.
Shape feature_loss_scratch(Context&, int64_t elements, int count, bool relative = false);
template <class T = float>
void feature_loss(Context&, const FeatureLoss<T>&);
}  // namespace nacre
