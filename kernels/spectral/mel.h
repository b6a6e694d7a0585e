#pragma once
// The mel filter bank as a sparse matrix, by band and by bin.
#include <cstdint>
#include <vector>

namespace nacre {

/// A sparse matrix in compressed rows. The columns of a row ascend.
struct SparseRows {
  std::vector<int32_t> first;  ///< row r holds elements first[r] .. first[r + 1] - 1
  std::vector<int32_t> column;
  std::vector<float> weight;
  int64_t rows() const { return static_cast<int64_t>(first.size()) - 1; }
};
/// One matrix, [bands][bins], stored twice: rows of bands give the bands from the bins; rows of bins, the transpose,
/// give the gradient of a bin from those of its bands.
struct MelBank {
  SparseRows by_band, by_bin;
  MelBank() = default;
  explicit MelBank(const std::vector<std::vector<double>>& dense);
};

/// y [rows][lanes] = A x [columns][lanes]
void multiply_lanes(const SparseRows& a, const float* x, float* y);

}  // namespace nacre
