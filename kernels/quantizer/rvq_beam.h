#pragma once
// The codes of rvq_forward with beam > 1, on the CPU. The arithmetic is given in nacre/ops/rvq.h.
#include "quantizer/vq_search.h"

namespace nacre::rvq_beam {

inline constexpr int64_t max_rows = vq_search::tile;  ///< per call: any beam then fills whole tiles with hypotheses

struct Sizes {
  int64_t stages, codes, dim, beam;
};

/// Floats of `slot`, the work space of one call of search().
int64_t slot_size(const Sizes&);

/// Writes the codes of `rows` <= max_rows rows of z, [row][dim], to codes[row * stages + stage]. `packed` has the
/// packed codebooks of all stages. After used[r] stages row r keeps only its best hypothesis and continues from it.
void search(const float* z, int64_t rows, const Sizes&, const float* codebooks, const float* packed,
            const int64_t* used, float* slot, int32_t* codes);

}  // namespace nacre::rvq_beam
