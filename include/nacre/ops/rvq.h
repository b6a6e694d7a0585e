#pragma once
#include "nacre/ops/vq.h"
// Residual vector quantisation (SoundStream, arXiv 2107.03312, algorithm 1), all stages in one call, with
// straight-through gradient.
//
// latent codes (no projections; EnCodec):
//   r_0 = z;   c_i = nearest(r_i);   q_i = E_i[c_i];   r_{i+1} = r_i - q_i;   y = sum_i q_i
//   dz  = dy + commitment * d(commitment loss)/dz with every q_i held constant (stop-gradient)
// factorised codes (with projections; DAC, arXiv 2306.06546, section 3.2, and its code):
//   e_i = W_in r_i + b_in;   c_i = nearest(e_i);   s_i = e_i + sg(E_i[c_i] - e_i);   q_i = W_out s_i + b_out
//   r_{i+1} = r_i - q_i (not detached);   y = sum_i mask_i q_i
//   the gradient passes back through all stages; the codebook loss reaches E_i, the commitment loss reaches e_i
// sg is stop-gradient.
// losses, with a the input of stage i's search (r_i or e_i) and b the code it chose:
//   commitment = sum_i mean (a - sg(b))^2,   codebook = sum_i mean (b - sg(a))^2   over valid frames and channels
//   Items with stages[b] <= i add zero but count in the mean. The two values are equal; only the gradients differ.
//   Without a valid frame both are 0. With `mean`, both are divided by the largest of the stages[b] (all without
//   `stages`; at least 1), and so are their gradients: EnCodec's mean over the stages that a batch uses.
//
//   forward     s_i is exactly E_i[c_i], not the float sum above; q_i starts from its bias and adds the channels of s_i
//               in order. All stages run for all items: `stages` masks y, but neither residuals nor codes. Codes and y
//               do not depend on whether `quantised` and `losses` are given
//   backward    m_i = [i < stages[b]], v = [frame valid], n = valid frames * dim. g is the gradient at r_{i+1}; it
//               starts as 0 and goes from the last stage to the first
//                 latent codes   dz = dy + commitment_weight sum_i m_i v 2 (r_i - q_i) / n; dy passes unmasked
//                 factorised     dq = m_i dy - g;   db_out += dq;   dW_out += dq s';   ds = W_out' dq
//                                de = ds + commitment_weight m_i v 2 (e - E[c]) / n
//                                db_in += de;   dW_in += de r_i';   g += W_in' de;   dz = g after the first stage
//                 both           dE[c] += codebook_weight m_i v 2 (E[c] - e) / n, if dcodebooks is given
//               The normalisation of the cosine metric has no gradient
//   orthogonal  latent codes only. The component of dy along the quantisation error e = y - z (after the stages used)
//               is removed, with one factor for the whole batch; rows with no stage are left out:
//                 dz = dy - b e + commitment term,   b = sum dy.e / sum e.e over valid frames; b = 0 if e = 0 or if b
//               overflows a float. Reason: codes that are means of the rows that chose them have e uncorrelated with y,
//               so E[e.z] = -E[e.e] < 0. Most losses pull y back along e; passed straight through, that gradient makes
//               z grow without limit, since it charges the encoder with the quantizer's error. A row that is not finite
//               makes all of dz NaN
//   saved       codes, quantised, and (factorised) z; the backward recomputes the residuals from the last to the first
//   writes      y, codes, quantised, losses are =; dz is = unless add_dz; the rest is +=; an empty output is skipped
//               (y: with products only)
//   products    with the result of rvq_products, no stage needs the residual. With P_ij = W_in_i W_out_j, of the stages
//               j before i:   e_i = (W_in_i z + s_i) - sum_j P_ij E_j[c_j],   s_i = b_in_i - sum_j W_in_i b_out_j
//               One product of z serves all stages, and the rest of the search is in numbers of stages x dim. The sum
//               runs over j and then over the channels of the code, in order, fused if the search's sums are. The
//               caller chooses: the bits of e, and so rarely a code, differ from those without products, but y has the
//               bits of its codes either way. The backward pass does not use them
//   equal codes given the same arguments, the codes of a row are the same whatever the other rows, the threads and the
//               cutting into calls are, and `quantised`, `losses` or y that is left out does not matter. With products
//               or without, and on another back end, a row's codes may differ from a stage on where rounding decides:
//               where the half distances of the two codes, in exact arithmetic from the same codes before, differ by at
//               most the sum of both errors. The error of h_k is that of vq.h plus sum_d |c_kd| t_d (cosine:
//               2 |t|/|e|). t_d = (2 latent + stages dim + 4) 2^-24 of the sum of |terms| of e_d with products: a term
//               passes at most `latent` roundings in P, as many in W_in_i z or as code channels in the sum, and those
//               of s_i. Without products as `accuracy` says
//   aliasing    none
//   decode      the sums and the order of the forward: bitwise equal to its y if all stages are used. Codes are clamped
//               to [0, codes)
//   order       fixed by the shape. Losses: per row in float, then over rows in double. b: in double, within parts (256
//               rows; CUDA 4096 elements), then over parts. Parameter gradients: at most 8 runs of rows, each in row
//               order, then over runs. CUDA, for codes of 8 channels and a latent of at most 1024: at most 32 runs of
//               chunks of 128 rows; within a chunk every eighth row, then the eight sums. Other shapes as on the CPU
//   accuracy    codes: see vq.h, for the residual left by the previous stages. Every other result within the rounding
//               of its own terms, with at most 2 stages (latent + dim + 6) + rows of them on any path
//   cost        2 rows stages codes dim flops; factorised, 4 rows stages dim latent more, and 3 times that backward.
//               With products and without y, half of it. rvq_products: (stages dim)^2 latent flops
//
// beam > 1: beam search (the M-algorithm, Anderson and Mohan, IEEE Trans. Communications 32(2), 1984) in place of the
// nearest code of each stage. A hypothesis is a sequence of codes; each row starts with the empty one. Every stage
// keeps the `beam` best of all (hypothesis, code) pairs; the codes of the best hypothesis after the last stage are the
// result. y, quantised, losses and gradients follow from the codes as above. Decoding is the same for every beam.
// beam = 1 equals the nearest code bit for bit. The sequence of beam = 1, the greedy one, is always among those kept:
// if its continuation is not one of the `beam` best, it takes the last place. So for no row is a wider beam worse than
// the nearest codes.
//   score       h_k + e in float, lower is better: h_k as in vq.h for the hypothesis' residual r; e = |r|^2 / 2, with
//               squares added in channel order from 0, fused if h_k is. r = z - q_0 - q_1 - ..., rounded after each
//   ties        the parent hypothesis that ranked better in the previous stage; then the lower code
//   stages      after stages[b] stages item b keeps only its best hypothesis; the beam then continues from it, which is
//               the greedy sequence of later stages. So y is the best of those stages, never worse than their nearest
//               codes, and the codes of later stages continue the same sequence
//   greedy      the score of the result is at most that of the nearest codes of the same stages. Scores are compared as
//               computed in float; the squared errors themselves may differ from them as `accuracy` says. The greedy
//               code is the one of least h_k, as in vq.h, not of least score: scores may round to the same. A greedy
//               sequence whose score is NaN or +inf is no longer kept
//   accuracy    if a candidate is dropped in favour of a worse one other than the greedy one, it is better by at most
//               the rounding of the two scores: (2 dim + 4) 2^-24 of the sum of |terms| of h_k and e each. e is summed
//               anew from each residual, so small residuals have small errors; only the residual's own 2^-24 per stage
//               and channel accumulates
//   optimum     the best of all sequences if beam >= codes^(stages - 1); otherwise a beam may be worse for a row
//               than a narrower one above 1
//   NaN         a pair whose score is NaN or +inf is not a candidate; a row without candidates takes code 0 of its best
//               hypothesis. That holds for every stage of a row with NaN or whose energy overflows
//   cost        at most 2 rows (1 + (stages - 1) beam) codes dim flops; on CUDA 2 rows stages w codes dim, where w is
//               16 / floor(16 / beam) for beams up to 16, and beam rounded up to a multiple of 16 beyond
namespace nacre {
/// Bounds the search's arrays on the CPU's stack and in CUDA's shared memory.
inline constexpr int64_t max_rvq_beam = 64;
struct RvqProjections {
  View<const float> in_weight{};   ///< [stages, dim, 1, latent]
  View<const float> in_bias{};     ///< [stages, 1, 1, dim]
  View<const float> out_weight{};  ///< [stages, latent, 1, dim]
  View<const float> out_bias{};    ///< [stages, 1, 1, latent]
  /// Result of rvq_products for these weights and biases, of as many stages or more; empty: residuals instead.
  View<const float> products{};
};
/// The products of projections that rvq_forward takes: [1, 1 + S dim, 1, S dim] floats, S = stages. Row 0 has s_i of
/// stage i at i dim. Row 1 + j dim + d has P_ij, column d, at i dim for the stages i behind j, and zeros before. The
/// first n stages have the first columns of the first rows. Any change of weights or biases asks for new products.
struct RvqProducts {
  RvqProjections projections;  ///< `products` is not read
  View<float> y;               ///< [1, 1 + stages dim, 1, stages dim] =
  View<float> scratch{};
};
struct RvqForward {
  View<const float> z;          ///< [batch, frames, 1, latent]
  View<const float> codebooks;  ///< [stages, codes, 1, dim]; dim = latent without projections
  RvqProjections projections{};
  View<const int32_t> stages{};  ///< [batch]: stages used per item (quantizer dropout); empty: all
  View<const int32_t> frames{};  ///< [batch]: valid frames per item (losses only); empty: all
  View<float> y;                 ///< [batch, frames, 1, latent] =; may be empty with products
  View<int32_t> codes;           ///< [batch, frames, 1, stages] =
  View<float> quantised{};       ///< saved for the backward: [stages, batch * frames, 1, dim], r_i or e_i of each stage
  View<float> losses{};  ///< [2] = commitment, codebook
  View<float> scratch{};
  VqMetric metric = VqMetric::euclidean;
  int64_t beam = 1;  ///< sequences kept per row, 1 to max_rvq_beam; more than 1 only for latent codes and euclidean
  bool mean = false;  ///< the losses are means over the stages used, not sums
};
struct RvqBackward {
  View<const float> z;  ///< factorised only
  View<const float> codebooks;
  RvqProjections projections{};
  View<const int32_t> stages{}, frames{};
  View<const int32_t> codes;
  View<const float> quantised;
  View<const float> dy;
  View<float> dz;            ///< = unless add_dz
  View<float> dcodebooks{};  ///< += codebook_weight * gradient of the codebook loss (factorised; empty: skipped)
  View<float> din_weight{}, din_bias{}, dout_weight{}, dout_bias{};  ///< +=
  View<float> scratch{};
  float commitment_weight = 1.0f, codebook_weight = 1.0f;
  bool orthogonal = false;  ///< removes the quantisation error's direction from dz; latent codes only
  bool mean = false;        ///< as in the forward pass
  bool add_dz = false;
};
/// Decodes the latent: y = sum of E_i[c_i], or of W_out E_i[c_i] + b_out, over the stages of `codes`.
struct RvqDecode {
  View<const int32_t> codes;  ///< [batch, frames, 1, stages], of the codebooks' stages or fewer
  View<const float> codebooks;
  RvqProjections projections{};
  View<float> y;
  View<float> scratch{};
};
/// `products`: of a call with RvqProjections::products.
Shape rvq_forward_scratch(Context&, Shape z, Shape codebooks, bool factorised, int64_t beam = 1, bool products = false);
Shape rvq_backward_scratch(Context&, Shape z, Shape codebooks, bool factorised);
Shape rvq_decode_scratch(Context&, Shape codes, Shape y, Shape codebooks, bool factorised);
Shape rvq_products_shape(int64_t stages, int64_t dim) noexcept;
/// The same on every device.
Shape rvq_products_scratch(int64_t stages, int64_t dim, int64_t latent) noexcept;
void rvq_products(Context&, const RvqProducts&);
void rvq_forward(Context&, const RvqForward&);
void rvq_backward(Context&, const RvqBackward&);
void rvq_decode(Context&, const RvqDecode&);
}  // namespace nacre
