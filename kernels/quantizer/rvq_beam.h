#pragma once
// The codes of rvq_forward with beam > 1, on the CPU. The arithmetic is given in nacre/ops/rvq.h.
#include "quantizer/vq_search.h"

namespace nacre::rvq_beam {

inline constexpr int64_t max_rows = vq_search::tile;  ///< of one call: any beam then fills whole tiles with hypotheses

struct Sizes {
  int64_t stages, codes, dim, beam;
};

/// Floats that one call of search() writes.
int64_t slot_size(const Sizes&);

/// Finds the codes of `rows` <= max_rows rows of z, [row][dim], into codes[row * stages + stage]. `packed` holds the
/// packed codebooks, stage after stage. Row r keeps only its best sequence after used[r] stages, and goes on from it.
void search(const float* z, int64_t rows, const Sizes&, const float* codebooks, const float* packed,
            const int64_t* used, float* slot, int32_t* codes);

}  // namespace nacre::rvq_beam
