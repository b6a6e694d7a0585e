#pragma once
#include "nacre/ops/vq.h"
// Residual vector quantisation (SoundStream, arXiv 2107.03312, algorithm 1), all stages in one call, with
// straight-through gradient.
//
// latent codes (no projections; EnCodec, the mission's default):
//   r_0 = z;   c_i = nearest(r_i);   q_i = E_i[c_i];   r_{i+1} = r_i - q_i;   y = sum_i q_i
//   dz  = dy + commitment * d(commitment loss)/dz with every q_i held constant (stop-gradient)
// factorised codes (projections given; DAC, arXiv 2306.06546, section 3.2; exact rules in DAC's code):
//   e_i = W_in r_i + b_in;   c_i = nearest(e_i);   s_i = e_i + sg(E_i[c_i] - e_i);   q_i = W_out s_i + b_out
//   r_{i+1} = r_i - q_i (not detached);   y = sum_i mask_i q_i
//   the gradient runs back through all stages; the codebook loss reaches E_i, the commitment loss e_i
// losses: commitment = sum_i mean (a - sg(b))^2, codebook = sum_i mean (b - sg(a))^2 over valid frames and channels of
// what stage i
//   quantised (a) and the row it chose (b); an item whose stages[b] <= i adds zero, but stays in the mean. Their values
//   are equal, only their gradients differ. Without a valid frame both are 0.
//
//   forward     s_i has the value of E_i[c_i] itself, not of a float sum that only nearly gives it; q_i starts from its
//               bias and adds s_i's channels. All stages run for all items: residuals and codes ignore `stages`, and y
//               leaves out what it masks. Without `quantised` and `losses` the same codes and the same y
//   backward    m_i = [i < stages[b]], v = [frame valid], n = valid frames * dim; g is the gradient at r_{i+1}, from
//               the last stage to the first, and starts as 0
//                 latent codes   dz = dy + commitment_weight sum_i m_i v 2 (r_i - q_i) / n; dy passes unmasked
//                 factorised     dq = m_i dy - g;   db_out += dq;   dW_out += dq s';   ds = W_out' dq
//                                de = ds + commitment_weight m_i v 2 (e - E[c]) / n
//                                db_in += de;   dW_in += de r_i';   g += W_in' de;   dz = g at the first
//                 both           dE[c] += codebook_weight m_i v 2 (E[c] - e) / n, where dcodebooks is given
//               Nothing flows through the normalisation of the cosine metric
//   orthogonal  latent codes only. dy loses its part along the quantisation error e = y - z of the stages used, one
//               factor for the whole batch; a row without a stage takes no part:
//                 dz = dy - b e + commitment term,   b = sum dy.e / sum e.e over valid frames; 0 where e = 0 or where b
//               is beyond a float. Codes that are means of what chose them have e uncorrelated with y, so
//               E[e.z] = -E[e.e] < 0, and most losses pull y back along e. Passed straight through, that makes z grow
//               without limit: the encoder is charged for the quantizer's error. Any row that is not finite makes all dz NaN
//   keeps       codes, quantised, and (factorised) z: residuals are built up again from the last to the first
//   writes      y, codes, quantised, losses are =; dz is = unless add_dz; the rest is +=; an empty output is skipped
//   aliasing    none
//   decode      the same sums in the same order as the forward: equal to its y bit for bit, where all stages are used.
//               A code outside [0, codes) counts as the nearest inside
//   order       fixed by the shape: losses per row in float, then over rows in double; b in double, per part (256 rows;
//               CUDA 4096 elements), then the parts; parameter gradients in at most 8 runs of rows, each in row order,
//               then run by run. CUDA, for codes of 8 channels and a latent of at most 1024: at most 32 runs of chunks of
//               128 rows, in a chunk every eighth row, then the eight sums; other shapes as on the CPU
//   accuracy    codes: see vq.h, with the residual that the stages before left; every other result within the rounding
//               of its own terms: no path passes through more than 2 stages (latent + dim + 6) + rows of them
//   cost        2 rows stages codes dim flops; factorised, 4 rows stages dim latent more, and 3 times that backward
//
// beam > 1: the M-algorithm (Anderson and Mohan, IEEE Trans. Communications 32(2), 1984) in place of the nearest code of
// each stage. A hypothesis is a sequence of codes; a row begins with the empty one. After every stage the `beam` best of
// (hypotheses x codes) stay; at the end the best one's codes are taken. y, quantised, losses and gradients follow from
// the codes as above, and decoding does not know of it. 1 is the nearest code, bit for bit.
//   score       h_k + e in float, least first: h_k as in vq.h, of the hypothesis' residual r; e = |r|^2 / 2, squares
//               added in channel order from 0, fused where h_k is. r = z - q_0 - q_1 - ..., rounded after each
//   ties        the lower hypothesis of the stage before, counted from the best; then the lower code
//   stages      item b keeps only its best hypothesis after stages[b] stages, and goes on from it with the beam: what y
//               has is the best of those stages, and the codes of later stages still follow from it
//   accuracy    a candidate that is left out for a worse one is better by at most the rounding of the two scores,
//               (2 dim + 4) 2^-24 of the sum of |terms| of h_k and e each. e is summed anew from every residual: small
//               residuals have small errors, and no error passes on but the residual's own 2^-24 per stage and channel
//   optimum     the best of all sequences where beam >= codes^(stages - 1); else not monotone in beam for a single row
//   NaN         a code whose score is NaN or not below +inf is not taken; a row without any takes code 0 of the best
//               hypothesis, which is every stage of a row with NaN or whose energy overflows
//   cost        at most 2 rows (1 + (stages - 1) beam) codes dim flops; on CUDA 2 rows stages w codes dim, where w is
//               16 / floor(16 / beam) for beams up to 16, and beam rounded up to a multiple of 16 beyond
namespace nacre {
/// Bounds what a row's search holds on the CPU's stack and in CUDA's shared memory.
inline constexpr int64_t max_rvq_beam = 64;
struct RvqProjections {
  View<const float> in_weight{};   ///< [stages, dim, 1, latent]
  View<const float> in_bias{};     ///< [stages, 1, 1, dim]
  View<const float> out_weight{};  ///< [stages, latent, 1, dim]
  View<const float> out_bias{};    ///< [stages, 1, 1, latent]
};
struct RvqForward {
  View<const float> z;          ///< [batch, frames, 1, latent]
  View<const float> codebooks;  ///< [stages, codes, 1, dim]; dim = latent without projections
  RvqProjections projections{};
  View<const int32_t> stages{};  ///< [batch]: stages used per item (quantizer dropout); empty: all
  View<const int32_t> frames{};  ///< [batch]: valid frames per item (losses only); empty: all
  View<float> y;                 ///< [batch, frames, 1, latent] =
  View<int32_t> codes;           ///< [batch, frames, 1, stages] =
  View<float>
      quantised{};  ///< kept for training: [stages, batch * frames, 1, dim], what each stage quantised (r_i or e_i)
  View<float> losses{};  ///< [2] = commitment, codebook
  View<float> scratch{};
  VqMetric metric = VqMetric::euclidean;
  int64_t beam = 1;  ///< sequences kept per row, 1 to max_rvq_beam; more than 1 only for latent codes and euclidean
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
  bool orthogonal = false;  ///< the quantisation error takes no part in dz; latent codes only
  bool add_dz = false;
};
/// Codes back to the latent: y = sum over the stages that `codes` has of E_i[c_i], or of W_out E_i[c_i] + b_out.
struct RvqDecode {
  View<const int32_t> codes;  ///< [batch, frames, 1, stages], of the codebooks' stages or fewer
  View<const float> codebooks;
  RvqProjections projections{};
  View<float> y;
  View<float> scratch{};
};
Shape rvq_forward_scratch(Context&, Shape z, Shape codebooks, bool factorised, int64_t beam = 1);
Shape rvq_backward_scratch(Context&, Shape z, Shape codebooks, bool factorised);
Shape rvq_decode_scratch(Context&, Shape codes, Shape y, Shape codebooks, bool factorised);
void rvq_forward(Context&, const RvqForward&);
void rvq_backward(Context&, const RvqBackward&);
void rvq_decode(Context&, const RvqDecode&);
}  // namespace nacre
