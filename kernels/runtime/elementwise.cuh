#pragma once
// Kernels over elements: out[i] = f(a[i], b[i], out[i]). Memory bounds them, so accesses are 16 bytes wide and many are
// in flight: a thread loads `batch` packs before it stores any. The compiler cannot reorder this way itself, because
// out may be one of the inputs. If an address is not aligned, elements are processed one by one.
#include <type_traits>

#include "runtime/device.cuh"

namespace nacre::cuda {

inline constexpr int elementwise_threads = 256;

/// Which arrays f reads.
enum : int { reads_a = 1, reads_b = 2, reads_out = 4 };

/// Processes `batch` packs, `step` elements apart.
template <int reads, int batch, class T, class F>
__device__ __forceinline__ void elementwise_packs(const T* a, const T* b, T* out, int64_t step, const F& f) {
  Pack<T> va[batch], vb[batch], vo[batch];
#pragma unroll
  for (int k = 0; k < batch; ++k) {
    if constexpr ((reads & reads_a) != 0) va[k] = load_pack(a + k * step);
    if constexpr ((reads & reads_b) != 0) vb[k] = load_pack(b + k * step);
    if constexpr ((reads & reads_out) != 0) vo[k] = load_pack(out + k * step);
  }
#pragma unroll
  for (int k = 0; k < batch; ++k) {
    Pack<T> result;
#pragma unroll
    for (int i = 0; i < pack_size<T>; ++i)
      result.v[i] = f((reads & reads_a) != 0 ? va[k].v[i] : 0.0f, (reads & reads_b) != 0 ? vb[k].v[i] : 0.0f,
                      (reads & reads_out) != 0 ? vo[k].v[i] : 0.0f);
    store_pack(out + k * step, result);
  }
}

template <int reads, class T, class F>
__global__ void __launch_bounds__(elementwise_threads)
    elementwise_kernel(const T* a, const T* b, T* out, int64_t pack_count, int64_t n, F f) {
  constexpr int size = pack_size<T>, batch = reads == reads_a ? 4 : 2;
  const int64_t step = grid_threads();
  int64_t first = grid_thread();
  // A thread's packs are a whole grid apart, so adjacent threads access adjacent packs in each of them. The elements
  // that fill no pack are done one by one at the end.
  const auto run = [&](auto count) {
    const int64_t at = first * size;
    elementwise_packs<reads, count.value>(a + at, b + at, out + at, step * size, f);
    first += count.value * step;
  };
  while (first + (batch - 1) * step < pack_count) run(std::integral_constant<int, batch>{});
  while (first < pack_count) run(std::integral_constant<int, 1>{});
  for (int64_t i = pack_count * size + grid_thread(); i < n; i += step)
    out[i] = store<T>(f((reads & reads_a) != 0 ? to_float(a[i]) : 0.0f, (reads & reads_b) != 0 ? to_float(b[i]) : 0.0f,
                        (reads & reads_out) != 0 ? to_float(out[i]) : 0.0f));
}

/// Runs f over n elements. Arrays that `reads` leaves out may be null.
template <int reads, class T, class F>
void elementwise(Context& ctx, const char* name, const T* a, const T* b, T* out, int64_t n, F f) {
  if (n == 0) return;
  // Null counts as aligned, so arrays that are left out decide nothing.
  const int64_t pack_count = aligned16(a) && aligned16(b) && aligned16(out) ? n / pack_size<T> : 0;
  const int64_t items = pack_count > 0 ? pack_count : n;
  launch(ctx, {.name = name, .grid = blocks_for(items, 4 * elementwise_threads), .block = elementwise_threads},
         elementwise_kernel<reads, T, F>, a, b, out, pack_count, n, f);
}

}  // namespace nacre::cuda
