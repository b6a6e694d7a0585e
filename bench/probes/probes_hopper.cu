// Probes of features of compute capability 9.0: wgmma descriptors that begin at any row, and TMA boxes that extend
// beyond the tensor. No kernel in kernels/ uses them yet.
#include "runtime/device.cuh"
#include "probes/probes.h"

#if defined(NACRE_EMULATED)

namespace nacre::probes {
static Result emulated_has_none() {
  return skip("needs compute capability 9.0, of which the emulated device has no wgmma and no TMA");
}
Result wgmma_shifted_rows(const Options&) { return emulated_has_none(); }
Result wgmma_mn_major(const Options&) { return emulated_has_none(); }
Result tma_boxes(const Options&) { return emulated_has_none(); }
}  // namespace nacre::probes

#else

#include <cuda.h>  // types only: the one driver function is looked up at run time

#include <cstring>
#include <functional>

namespace nacre::probes {
namespace {

void check(cudaError_t e, const char* what) {
  if (e != cudaSuccess)
    throw Error(ErrorKind::device, text("%s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e)));
}

/// Device memory that is freed with the object.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n) : n_(n) {
    check(cudaMalloc(&p_, n * sizeof(T)), "cudaMalloc");
    check(cudaMemset(p_, 0xff, n * sizeof(T)), "cudaMemset");
  }
  explicit Buffer(const std::vector<T>& from) : Buffer(from.size()) {
    check(cudaMemcpy(p_, from.data(), n_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { (void)cudaFree(p_); }
  T* data() const { return p_; }
  std::vector<T> read() const {
    std::vector<T> to(n_);
    check(cudaMemcpy(to.data(), p_, n_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return to;
  }

 private:
  T* p_ = nullptr;
  size_t n_;
};

bool is_hopper(Context& ctx) { return cuda::limits(ctx).major == 9 && cuda::limits(ctx).minor == 0; }
Result needs_hopper(Context& ctx) {
  return skip(
      text("needs compute capability 9.0, this device has %d.%d", cuda::limits(ctx).major, cuda::limits(ctx).minor));
}

// ---- wgmma
// ------------------------------------------------------------------------------------------------------------
// PTX manual, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions":
//
// Matrix descriptor, 64 bits ("Matrix Descriptor Format"); encode(x) = (x & 0x3ffff) >> 4:
//   0-13 encode(start address)   16-29 encode(leading dimension byte offset)
//   32-45 encode(stride dimension byte offset)   49-51 base offset
//   62-63 swizzle: 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes
// The base offset is 0 if the swizzle's repeating pattern begins at a multiple of 1024 bytes (128-byte swizzle), else
// (address at which the pattern begins >> 7) & 7.
//
// Positions of elements, in units of 16 bytes ("Strides", "Canonical layouts"; a unit has 8 bf16):
//   K-major, none:   8 rows of one unit are contiguous; the next unit of K is LBO away, the next 8 rows SBO.
//   K-major, 128:    8 rows of 8 units; the next 8 rows are SBO away; LBO is unused. A step of 16 in K is 32 bytes.
//   MN-major, none:  8 of K, of one unit of M or N each, are contiguous; the next 8 of K are LBO away, the unit SBO.
//   MN-major, 128:   8 of K, of 8 units each; the next 8 of K are SBO away, the next 8 units LBO (unused: 64 of M or N)
// 128-byte swizzle: bits 4 to 6 of an address are XORed with bits 7 to 9.
//
// The manual does not say whether the XOR applies to the resulting address or to the offset from the start. If it
// applies to the address, a descriptor may begin at any row of a tile whose pattern begins at a multiple of 1024 bytes,
// with base offset 0. The probe tries every base offset on tiles of both kinds.

constexpr int extent = 64;     // M, N and K
constexpr int tile_rows = 80;  // rows of 64 elements; 64 rows remain after a shift of 9
constexpr int tile_bytes = tile_rows * 128;
constexpr int shared_bytes = 4 * tile_bytes;  // a, b, and room for reads with a wrong stride
constexpr int pitch_none = tile_rows * 16;    // distance of units where 16-byte columns are contiguous
static_assert(tile_bytes % 1024 == 0 && pitch_none * 8 == tile_bytes && shared_bytes <= 48 << 10);

struct DescriptorCase {
  int swizzled;          ///< 128-byte swizzle, or none
  int shift_a, shift_b;  ///< rows between the start of the tile and the operand
  int own_pattern;       ///< the swizzle's pattern begins at the shifted row, not at a multiple of 1024 bytes
  int base_offset;       ///< of the shifted operand; the other has 0
  int exchanged;         ///< the leading and the stride offset are exchanged
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ uint64_t descriptor(unsigned address, unsigned leading, unsigned stride, int base_offset,
                                               int swizzled) {
  return uint64_t{(address & 0x3ffffu) >> 4} | uint64_t{leading >> 4} << 16 | uint64_t{stride >> 4} << 32 |
         static_cast<uint64_t>(base_offset) << 49 | static_cast<uint64_t>(swizzled) << 62;
}

/// d (+)= a b: 64 x 64 x 16 by four warps. An immediate selects transposed (MN-major) or plain (K-major) operands.
template <int transposed>
__device__ __forceinline__ void wgmma_64x64x16(float (&d)[32], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, %35, %35;\n}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b), "r"(add), "n"(transposed));
}

/// The byte offset of element `column` of row `row` in its tile. -1 for rows before the start of an own pattern.
__device__ __forceinline__ int place(const DescriptorCase& c, int shift, int row, int column) {
  if (c.swizzled == 0) return column / 8 * pitch_none + row * 16 + column % 8 * 2;
  const int first = c.own_pattern != 0 ? shift : 0;  // the row at which the pattern begins
  return row < first ? -1 : row * 128 + ((column * 2) ^ (((row - first) & 7) << 4));
}
#endif

/// One block per case computes d [cases, 64, 64]. a and b are [80, 64]. Their rows are rows of M or N if K-major, and
/// of K if MN-major.
template <int mn_major>
__global__ void __launch_bounds__(128)
    descriptor_kernel(const DescriptorCase* cases, const bf16* a, const bf16* b, float* out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ __align__(1024) unsigned char shared[shared_bytes];
  const DescriptorCase c = cases[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < shared_bytes / 4; i += 128) reinterpret_cast<uint32_t*>(shared)[i] = 0;
  __syncthreads();
  for (int i = thread; i < tile_rows * extent; i += 128) {
    const int at_a = place(c, c.shift_a, i / extent, i % extent), at_b = place(c, c.shift_b, i / extent, i % extent);
    if (at_a >= 0) *reinterpret_cast<uint16_t*>(shared + at_a) = a[i].bits;
    if (at_b >= 0) *reinterpret_cast<uint16_t*>(shared + tile_bytes + at_b) = b[i].bits;
  }
  // wgmma reads shared memory through the asynchronous proxy. Every thread must fence its writes into that proxy.
  asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();

  const unsigned tile = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const unsigned row_bytes = c.swizzled != 0 ? 128 : 16;
  const unsigned start_a = tile + c.shift_a * row_bytes, start_b = tile + tile_bytes + c.shift_b * row_bytes;
  // The offsets of the table above. An unused leading offset gets a value that stays within the buffer when it is
  // exchanged.
  unsigned leading = c.swizzled != 0 ? 2048 : mn_major != 0 ? 128 : pitch_none;
  unsigned stride = c.swizzled != 0 ? 1024 : mn_major != 0 ? pitch_none : 128;
  if (c.exchanged != 0) {
    const unsigned l = leading;
    leading = stride, stride = l;
  }
  // A step of 16 in K: two units along a row, or 16 rows.
  const unsigned step = mn_major != 0 ? 16 * row_bytes : c.swizzled != 0 ? 32 : 2 * pitch_none;
  const int base_a = c.shift_a != 0 || c.shift_b == 0 ? c.base_offset : 0, base_b = c.shift_b != 0 ? c.base_offset : 0;
  float d[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) d[i] = 0;
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (unsigned k = 0; k < 4; ++k)
    wgmma_64x64x16<mn_major>(d, descriptor(start_a + k * step, leading, stride, base_a, c.swizzled),
                             descriptor(start_b + k * step, leading, stride, base_b, c.swizzled), k > 0);
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  // Fragment of d ("Register Fragments", m64nNk16): warp w has rows 16 w to 16 w + 15, in the layout of mma.m16n8.
  float* to = out + int64_t{blockIdx.x} * extent * extent;
  const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
#pragma unroll
  for (int i = 0; i < 32; ++i) to[(row + i / 2 % 2 * 8) * extent + i / 4 * 8 + column + i % 2] = d[i];
#else
  (void)cases, (void)a, (void)b, (void)out;
#endif
}

constexpr int shifts[] = {0, 1, 3, 9};

std::string bits_of(int mask) {
  std::string s;
  for (int i = 0; i < 8; ++i)
    if ((mask >> i & 1) != 0) s += text(s.empty() ? "%d" : ",%d", i);
  return s.empty() ? "none" : s;
}

Result wgmma(const Options& o, bool mn_major) {
  Context ctx = context(o);
  if (!is_hopper(ctx)) return needs_hopper(ctx);
  std::vector<DescriptorCase> cases;
  for (const int operand : {0, 1})
    for (const int shift : shifts) {
      if (operand == 1 && shift == 0) continue;
      const int a = operand == 0 ? shift : 0, b = operand == 1 ? shift : 0;
      cases.push_back({0, a, b, 0, 0, 0});
      for (const int own : {0, 1})
        for (int base = 0; base < 8; ++base)
          if (own == 0 || shift != 0) cases.push_back({1, a, b, own, base, 0});
    }
  cases.push_back({0, 0, 0, 0, 0, 1});
  if (mn_major) cases.push_back({1, 0, 0, 0, 0, 1});

  Integers draw(5);
  std::vector<int> a(tile_rows * extent), b(tile_rows * extent);
  std::vector<bf16> left(a.size()), right(a.size());
  for (size_t i = 0; i < a.size(); ++i) {
    a[i] = draw(8), b[i] = draw(8);
    left[i] = to_bf16(static_cast<float>(a[i])), right[i] = to_bf16(static_cast<float>(b[i]));
  }
  const Buffer<DescriptorCase> device_cases(cases);
  const Buffer<bf16> device_a(left), device_b(right);
  const Buffer<float> out(cases.size() * extent * extent);
  const auto kernel = mn_major ? descriptor_kernel<1> : descriptor_kernel<0>;
  kernel<<<static_cast<unsigned>(cases.size()), 128>>>(device_cases.data(), device_a.data(), device_b.data(),
                                                       out.data());
  check(cudaGetLastError(), "launch of the descriptors' kernel");
  check(cudaDeviceSynchronize(), "the descriptors' kernel");
  const std::vector<float> d = out.read();

  const auto right_for = [&](size_t i) {
    const DescriptorCase& c = cases[i];
    for (int m = 0; m < extent; ++m)
      for (int n = 0; n < extent; ++n) {
        int sum = 0;
        for (int k = 0; k < extent; ++k)
          sum += mn_major ? a[(c.shift_a + k) * extent + m] * b[(c.shift_b + k) * extent + n]
                          : a[(c.shift_a + m) * extent + k] * b[(c.shift_b + n) * extent + k];
        if (d[i * extent * extent + static_cast<size_t>(m * extent + n)] != static_cast<float>(sum)) return false;
      }
    return true;
  };
  // The base offsets with which a shift gives the right result, as bits.
  const auto mask_of = [&](int swizzled, int operand, int shift, int own) {
    int mask = 0;
    for (size_t i = 0; i < cases.size(); ++i) {
      const DescriptorCase& c = cases[i];
      const bool same = operand == 0 ? c.shift_a == shift && c.shift_b == 0 : c.shift_b == shift && c.shift_a == 0;
      if (c.swizzled == swizzled && same && c.own_pattern == own && c.exchanged == 0 && right_for(i))
        mask |= 1 << c.base_offset;
    }
    return mask;
  };
  Result r;
  bool holds = true;
  std::string none_wrong, aligned, own;
  for (const int operand : {0, 1})
    for (const int shift : shifts) {
      if (operand == 1 && shift == 0) continue;
      const std::string name = text("%c by %d", "AB"[operand], shift);
      const int none = mask_of(0, operand, shift, 0), at_1024 = mask_of(1, operand, shift, 0);
      holds &= none != 0 && at_1024 != 0;
      if (none == 0) none_wrong += text(" %s", name.c_str());
      aligned += text(" %s: %s;", name.c_str(), bits_of(at_1024).c_str());
      r.figure(text("no swizzle, %s", name.c_str()), std::string(none != 0 ? "right" : "wrong"))
          .figure(text("128-byte swizzle, %s, base offsets", name.c_str()), bits_of(at_1024));
      if (shift == 0) continue;
      const int mine = mask_of(1, operand, shift, 1);
      own += text(" %s: %s;", name.c_str(), bits_of(mine).c_str());
      r.figure(text("128-byte swizzle from there on, %s, base offsets", name.c_str()), bits_of(mine));
    }
  for (size_t i = 0; i < cases.size(); ++i)
    if (cases[i].exchanged != 0)
      r.figure(cases[i].swizzled != 0 ? "128-byte swizzle, offsets exchanged" : "no swizzle, offsets exchanged",
               std::string(right_for(i) ? "right" : "wrong"));
  r.outcome = holds ? Result::ok : Result::failed;
  r.says = text(
      "no swizzle: %s%s; 128-byte swizzle, base offsets that are right: pattern at multiples of 1024 bytes%s "
      "pattern begins at the shifted row (the manual: 1, 3, 1)%s",
      none_wrong.empty() ? "every shift is right" : "wrong for", none_wrong.c_str(), aligned.c_str(), own.c_str());
  if (!r.says.empty() && r.says.back() == ';') r.says.pop_back();
  return r;
}

// ---- TMA
// --------------------------------------------------------------------------------------------------------------
// From the CUDA Driver API, cuTensorMapEncodeTiled: dimensions and boxes are listed innermost first. Strides are in
// bytes, for all dimensions but the innermost, and multiples of 16. The address is a multiple of 16, the map's of 64. A
// box has at most 256 elements per dimension; its innermost extent in bytes is a multiple of 16, and at most 128 with
// 128-byte swizzle. Without NaN fill, elements outside of the tensor are zero. From the PTX manual,
// cp.async.bulk.tensor: the destination is a multiple of 128 bytes, or of 1024 for the pattern of the 128-byte swizzle
// to begin there. Coordinates are signed. The barrier expects the bytes of the whole box, elements outside of the
// tensor included.

constexpr int channels = 48, times = 40, batches = 3;
constexpr int box_channels = 32, box_rows = 16, box_floats = box_channels * box_rows;
constexpr unsigned box_bytes = box_floats * 4;

/// out gets the box as it arrived. arrived is 1, or 0 if nothing arrived within about a tenth of a second.
template <int rank>
__global__ void __launch_bounds__(128)
    box_kernel(const __grid_constant__ CUtensorMap map, int c0, int c1, int c2, uint32_t* out, int* arrived) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ __align__(1024) uint32_t box[box_floats];
  __shared__ __align__(8) uint64_t barrier;
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(box));
  const unsigned bar = static_cast<unsigned>(__cvta_generic_to_shared(&barrier));
  for (int i = thread; i < box_floats; i += 128) box[i] = 0xffffffffu;
  if (thread == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  // The asynchronous proxy must write after the writes above.
  asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();
  if (thread == 0) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(box_bytes) : "memory");
    if constexpr (rank == 2)
      asm volatile(
          "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
          "[%4];" ::"r"(to),
          "l"(reinterpret_cast<uint64_t>(&map)), "r"(c0), "r"(c1), "r"(bar)
          : "memory");
    else
      asm volatile(
          "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
          "[%5];" ::"r"(to),
          "l"(reinterpret_cast<uint64_t>(&map)), "r"(c0), "r"(c1), "r"(c2), "r"(bar)
          : "memory");
  }
  // The wait is bounded, so that a wrong byte count is reported instead of a hang.
  int done = 0;
  for (const long long start = clock64(); done == 0 && clock64() - start < 200'000'000;)
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\nselp.s32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(bar)
                 : "memory");
  const int all = __syncthreads_and(done);
  for (int i = thread; i < box_floats; i += 128) out[i] = box[i];
  if (thread == 0) *arrived = all != 0;
#else
  (void)map, (void)c0, (void)c1, (void)c2, (void)out, (void)arrived;
#endif
}

using Encode = decltype(&cuTensorMapEncodeTiled);
Encode encoder() {
  void* f = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found),
        "cudaGetDriverEntryPointByVersion");
#else
  check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &f, cudaEnableDefault, &found), "cudaGetDriverEntryPoint");
#endif
  if (found != cudaDriverEntryPointSuccess || f == nullptr)
    throw Error(ErrorKind::device, "this driver has no cuTensorMapEncodeTiled; expected one for CUDA 12.0 or newer");
  return reinterpret_cast<Encode>(f);
}

struct BoxCase {
  const char* name;
  int channel, time, batch;
};
constexpr BoxCase boxes[] = {
    {"inside", 0, 8, 1},
    {"from row -3", 0, -3, 1},
    {"from row -3 of the first batch", 0, -3, 0},
    {"5 rows before the end", 0, times - 5, 1},
    {"5 rows before the end of the last batch", 0, times - 5, batches - 1},
    {"wholly before", 0, -box_rows, 1},
    {"wholly behind", 0, times + 7, 1},
    {"half of its channels behind the last", 32, 8, 1},
    {"channels from -8 on", -8, 8, 1},
    {"before in rows and channels", -8, -3, 0},
    {"batch -1", 0, 8, -1},
    {"the batch behind the last", 0, 8, batches},
};

}  // namespace

Result wgmma_shifted_rows(const Options& o) { return wgmma(o, false); }
Result wgmma_mn_major(const Options& o) { return wgmma(o, true); }

Result tma_boxes(const Options& o) {
  Context ctx = context(o);
  if (!is_hopper(ctx)) return needs_hopper(ctx);
  const Encode encode = encoder();
  std::vector<float> tensor(size_t{batches} * times * channels);
  for (size_t i = 0; i < tensor.size(); ++i) tensor[i] = static_cast<float>(i + 1);
  const Buffer<float> device(tensor);
  const Buffer<uint32_t> out(box_floats);
  const Buffer<int> arrived(1);
  Result r;
  int asked = 0, wrong = 0;
  for (const int rank : {2, 3})
    for (const bool swizzled : {false, true}) {
      // With rank 2 the tensor is the second batch alone, so that its neighbours in memory are not zeros.
      float* const base = rank == 3 ? device.data() : device.data() + times * channels;
      const cuuint64_t extents[] = {channels, times, batches};
      const cuuint64_t strides[] = {channels * 4, cuuint64_t{times} * channels * 4};
      const cuuint32_t box[] = {box_channels, box_rows, 1}, steps[] = {1, 1, 1};
      alignas(64) CUtensorMap map{};
      const CUresult made = encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, static_cast<cuuint32_t>(rank), base, extents,
                                   strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                   swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                                   CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
      if (made != CUDA_SUCCESS)
        return {
            Result::no_answer, text("cuTensorMapEncodeTiled of rank %d: error %d", rank, static_cast<int>(made)), {}};
      for (const BoxCase& b : boxes) {
        if (rank == 2 && b.batch != 1) continue;
        check(cudaMemset(out.data(), 0xee, box_bytes), "cudaMemset");
        check(cudaMemset(arrived.data(), 0, sizeof(int)), "cudaMemset");
        if (rank == 2)
          box_kernel<2><<<1, 128>>>(map, b.channel, b.time, 0, out.data(), arrived.data());
        else
          box_kernel<3><<<1, 128>>>(map, b.channel, b.time, b.batch, out.data(), arrived.data());
        check(cudaGetLastError(), "launch of a box's kernel");
        check(cudaDeviceSynchronize(), "a box's kernel");
        const std::vector<uint32_t> words = out.read();
        std::string answer = "right";
        if (arrived.read()[0] != 1) answer = "never arrived";
        int differ = 0;
        for (int row = 0; row < box_rows; ++row)
          for (int c = 0; c < box_channels; ++c) {
            const int channel = b.channel + c, time = b.time + row;
            const bool there =
                channel >= 0 && channel < channels && time >= 0 && time < times && b.batch >= 0 && b.batch < batches;
            uint32_t expected = 0;
            if (there) std::memcpy(&expected, &tensor[size_t(b.batch * times + time) * channels + size_t(channel)], 4);
            const int at = swizzled ? (row * 128 + ((c * 4) ^ ((row & 7) << 4))) / 4 : row * box_channels + c;
            differ += words[static_cast<size_t>(at)] != expected;
          }
        if (differ > 0 && answer == "right") answer = text("%d of %d words are wrong", differ, box_floats);
        ++asked;
        const std::string name = text("%d-D%s, %s", rank, swizzled ? ", 128-byte swizzle" : "", b.name);
        r.figure(name, answer);
        if (answer != "right") r.says += text("%s%s: %s", wrong++ == 0 ? "" : "; ", name.c_str(), answer.c_str());
      }
    }
  if (wrong == 0) r.says = text("all of %d boxes of rank 2 and 3, with and without swizzle, are right", asked);
  r.outcome = wrong == 0 ? Result::ok : Result::failed;
  return r.figure("asked", int64_t{asked}).figure("wrong", int64_t{wrong});
}

}  // namespace nacre::probes

#endif
