#pragma once
// Factorised codes in numbers of stages x dim, on the CPU: what rvq_forward does with RvqProjections::products, and the
// sum over stages that rvq_decode shares. The arithmetic is given in nacre/ops/rvq.h.
#include "nacre/ops/rvq.h"
#include "quantizer/vq_search.h"

namespace nacre::rvq_algebra {

struct Sizes {
  int64_t rows, stages, codes, dim, latent;
  int64_t all() const { return stages * dim; }
};

/// Floats of the scratch of forward().
int64_t forward_size(const Sizes&);
/// All of rvq_forward but the losses: `row_losses` receives those of the rows, or is null.
void forward(const Context&, const RvqForward&, const Sizes&, const vq_search::RowMask&, float* scratch,
             float* row_losses);

/// out_weight [stages][latent][dim] to [stages][dim][latent], so that every loop runs along the latent.
void transpose_out(const Context&, const float* w, int64_t stages, int64_t latent, int64_t dim, float* to);

/// y of `rows` rows = sum over stages of W_out E[c] + b_out, in the order of the contract. `chosen` has the codes' rows
/// side by side, [row][stages dim]; row r uses the first used[r] stages, all if `used` is null.
void sum_codes(const float* chosen, int64_t rows, const int64_t* used, const float* transposed, const float* bias,
               const Sizes&, float* y);

}  // namespace nacre::rvq_algebra
