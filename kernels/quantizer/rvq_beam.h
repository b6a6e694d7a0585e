#pragma once
// The codes of rvq_forward with beam > 1, on the CPU. The arithmetic is given in nacre/ops/rvq.h.
#include "quantizer/vq_search.h"

namespace nacre::rvq_beam {

inline constexpr int64_t max_rows = vq_search::tile;  ///< per call: any beam then fills whole tiles with hypotheses

struct Sizes {
  int64_t stages, codes, dim, beam;
};

/// Floats of `slot`, the work space of one call of search(); `in_place`: of a call without packed codebooks.
int64_t slot_size(const Sizes&, bool in_place);

/// Writes the codes of `rows` <= max_rows rows of z, [row][dim], to codes[row * stages + stage]. `packed` has the
/// packed codebooks of all stages. Null: each codebook is packed part by part as it is read, which is faster if there
/// is only this call; `rows` is then at most vq_search::few_rows. After used[r] stages row r keeps only its best
/// hypothesis and continues from it.
void search(const float* z, int64_t rows, const Sizes&, const float* codebooks, const float* packed,
            const int64_t* used, float* slot, int32_t* codes);

}  // namespace nacre::rvq_beam
