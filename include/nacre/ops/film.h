#pragma once
#include "nacre/context.h"
// Feature-wise linear modulation (Perez et al. 2018, arXiv 1709.07871): a factor and an offset per channel, chosen by a
// label per item. With two labels it switches denoising off and on in SoundStream (arXiv 2107.03312, section III.F).
//
//   forward    y[b, t, w, c] = gamma[l, c] x[b, t, w, c] + beta[l, c] with l = labels[b]
//   backward   dx = gamma[l] dy
//              dgamma[l] = sum over the items with label l, over time and over width, of dy x
//              dbeta[l]  = sum over the same of dy
//   labels     values outside of [0, labels) count as the nearest one inside
//   saved      x
//   writes     y is =; dx is = unless add_dx; dgamma and dbeta are +=, by 0 for a label that no item has; an empty
//              output is skipped
//   aliasing   y may be x if no gradient is needed; dx may be dy
//   order      sums run over blocks of an item's rows fixed by the shape (another block size on CUDA), in float over at
//              most 64 rows and in double beyond
//   accuracy   with u = 2^-24: y within u (|gamma x| + |y|), dx one rounding, with add_dx one more; dgamma within 66 u
//              and dbeta within 65 u of the sizes of their terms, and two roundings more of the result
//   cost       forward 8 bytes per element, backward 12: bound by memory beyond the caches
namespace nacre {
template <class T>
struct FilmForward {
  View<const T> x;
  View<const int32_t> labels;     ///< [1, 1, 1, batch]
  View<const float> gamma, beta;  ///< [labels, 1, 1, channels]
  View<T> y;
};
template <class T>
struct FilmBackward {
  View<const T> x;
  View<const int32_t> labels;
  View<const float> gamma;
  View<const T> dy;
  View<T> dx{};           ///< = unless add_dx; empty: skipped
  View<float> dgamma{};   ///< += ; empty: skipped
  View<float> dbeta{};    ///< += ; empty: skipped
  View<float> scratch{};  ///< film_backward_scratch; needed for dgamma and dbeta
  bool add_dx = false;
};
Shape film_backward_scratch(Context&, Shape x);
template <class T = float>
void film_forward(Context&, const FilmForward<T>&);
template <class T = float>
void film_backward(Context&, const FilmBackward<T>&);
}  // namespace nacre
