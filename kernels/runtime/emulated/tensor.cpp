// The tensor-core instructions of one warp, with the fragment layouts of the PTX manual (sections "Matrix Fragments for
// mma.m16n8k16" and "m16n8k8"; "ldmatrix"). With g = lane / 4 and t = lane % 4, a lane has, of d += a b:
//
//   d, 16 x 8      rows g and g + 8, columns 2 t and 2 t + 1
//   bf16: a, 16 x 16, b, 16 x 8; two neighbours along k in each register, the lower k in the low half
//     a            rows g and g + 8, k = 2 t, 2 t + 1, 2 t + 8 and 2 t + 9; registers in the order (g, 2 t),
//                  (g + 8, 2 t), (g, 2 t + 8), (g + 8, 2 t + 8)
//     b            column g, k as in a
//   tf32: a, 16 x 8, b, 8 x 8; one number in each register
//     a            rows g and g + 8, k = t and t + 4, in the same order
//     b            column g, k as in a
//
// These functions resolve a warp operation (scheduler.h): they get the arguments of all 32 lanes at once.
#include <cstring>

#include "runtime/emulated/device.h"

namespace nacre::cuda::emulated {
namespace {

/// A bf16 is the upper half of a float.
float from_bf16(uint32_t bits) { return __uint_as_float(bits << 16); }

/// d += a b for the fragments of d in all lanes.
template <int depth>
void multiply(void* const (&arguments)[32], const float (&a)[16][depth], const float (&b)[depth][8]) {
  // Products in order of k, added in float; then the sum is added to d. A device adds in another order, and truncates.
  float d[16][8] = {};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane) {
    float* lane_d = static_cast<Mma*>(arguments[lane])->d;
    const int row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) lane_d[i] += d[row + i / 2 * 8][column + i % 2];
  }
}

}  // namespace

void mma_bf16(void* const (&arguments)[32], uint32_t) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* m = static_cast<Mma*>(arguments[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 2; ++half)
        a[group + i % 2 * 8][pair + i / 2 * 8 + half] = from_bf16(m->a[i] >> (16 * half) & 0xffffu);
    for (int i = 0; i < 2; ++i)
      for (int half = 0; half < 2; ++half) b[pair + i * 8 + half][group] = from_bf16(m->b[i] >> (16 * half) & 0xffffu);
  }
  multiply(arguments, a, b);
}

void mma_tf32(void* const (&arguments)[32], uint32_t) {
  float a[16][8], b[8][8];
  const auto value = [](uint32_t bits) {
    return __uint_as_float(bits & ~0x1fffu);
  };  // the device ignores the low 13 bits
  for (int lane = 0; lane < 32; ++lane) {
    const auto* m = static_cast<Mma*>(arguments[lane]);
    const int group = lane / 4, k = lane % 4;
    for (int i = 0; i < 4; ++i) a[group + i % 2 * 8][k + i / 2 * 4] = value(m->a[i]);
    for (int i = 0; i < 2; ++i) b[k + i * 4][group] = value(m->b[i]);
  }
  multiply(arguments, a, b);
}

/// Loads 8 x 8 matrices of 16-bit elements. Lane 8 m + r names row r of matrix m, 16 bytes. Register m of a lane gets
/// the elements 2 t and 2 t + 1 of row g, or if transposed those of column g.
void load_matrix(void* const (&arguments)[32], uint32_t) {
  const int matrices = static_cast<LoadMatrix*>(arguments[0])->matrices;
  for (int m = 0; m < matrices; ++m) {
    uint16_t rows[8][8];
    for (int row = 0; row < 8; ++row) {
      const void* from = static_cast<LoadMatrix*>(arguments[m * 8 + row])->row;
      if (reinterpret_cast<uintptr_t>(from) % 16 != 0)
        emulation::fail("ldmatrix from a row that is not 16-byte aligned");
      emulation::shadow_read(from, 16);
      std::memcpy(rows[row], from, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      auto* l = static_cast<LoadMatrix*>(arguments[lane]);
      const int row = lane / 4, pair = lane % 4 * 2;
      const uint32_t low = l->transposed ? rows[pair][row] : rows[row][pair];
      const uint32_t high = l->transposed ? rows[pair + 1][row] : rows[row][pair + 1];
      l->to[m] = low | high << 16;
    }
  }
}

}  // namespace nacre::cuda::emulated
