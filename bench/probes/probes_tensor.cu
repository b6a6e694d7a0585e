// Probes of features that the kernels use on every device: tensor-core fragments, ldmatrix, the engines of the
// convolutions, the sums of tensor cores, and asynchronous copies whose source is ignored. The expected values are
// computed here on the host from the PTX manual ("Matrix Fragments for mma.m16n8k16", "... m16n8k8", "ldmatrix",
// "cp.async"). They do not come from the emulator.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <span>

#include "conv/conv1d_engines.cuh"
#include "runtime/device.cuh"
#include "probes/probes.h"

namespace nacre::probes {
namespace {

using cuda::launch;

/// A device array that is read and written as a whole.
template <class T>
class Array {
 public:
  Array(Context& ctx, size_t n) : ctx_(ctx), memory_(ctx, n * sizeof(T)), n_(n) {}
  Array(Context& ctx, const std::vector<T>& from) : Array(ctx, from.size()) {
    ctx.write<T>(std::span<const T>(from), view());
  }
  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  View<T> view() const { return {data(), {.channels = static_cast<int64_t>(n_)}}; }
  std::vector<T> read() const {
    std::vector<T> to(n_);
    ctx_.read<T>(View<const T>(data(), {.channels = static_cast<int64_t>(n_)}), std::span<T>(to));
    return to;
  }

 private:
  Context& ctx_;
  Memory memory_;
  size_t n_;
};

// ---- mma fragments
// ----------------------------------------------------------------------------------------------------

/// One warp and one tile per block. a [16, depth] and b [depth, 8] are row-major. d [16, 8] holds the initial sums.
__global__ void mma_bf16_kernel(const bf16* a, const bf16* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, pair = lane % 4 * 2;
  a += blockIdx.x * 16 * 16, b += blockIdx.x * 16 * 8, d += blockIdx.x * 16 * 8;
  const auto two = [](bf16 low, bf16 high) { return uint32_t{low.bits} | uint32_t{high.bits} << 16; };
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) {
    const bf16* p = a + (group + i % 2 * 8) * 16 + pair + i / 2 * 8;
    left[i] = two(p[0], p[1]);
  }
  for (int i = 0; i < 2; ++i) {
    const bf16* p = b + (pair + i * 8) * 8 + group;
    right[i] = two(p[0], p[8]);
  }
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = d[(group + i / 2 * 8) * 8 + pair + i % 2];
  cuda::mma_bf16_16x8x16(sum, left, right);
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + pair + i % 2] = sum[i];
}

/// `steps` consecutive products of depth 8: a [steps, 16, 8], b [steps, 8, 8]. The first takes its initial sums as the
/// fourth operand, as the VQ search does.
__global__ void mma_tf32_kernel(const float* a, const float* b, float* d, int steps) {
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, k = lane % 4, pair = k * 2;
  a += int64_t{blockIdx.x} * steps * 16 * 8, b += int64_t{blockIdx.x} * steps * 8 * 8, d += blockIdx.x * 16 * 8;
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = d[(group + i / 2 * 8) * 8 + pair + i % 2];
  for (int s = 0; s < steps; ++s, a += 16 * 8, b += 8 * 8) {
    uint32_t left[4], right[2];
    for (int i = 0; i < 4; ++i) left[i] = cuda::to_tf32(a[(group + i % 2 * 8) * 8 + k + i / 2 * 4]);
    for (int i = 0; i < 2; ++i) right[i] = cuda::to_tf32(b[(k + i * 4) * 8 + group]);
    float next[4];
    cuda::mma_tf32_16x8x8(next, left, right, sum);
    for (int i = 0; i < 4; ++i) sum[i] = next[i];
  }
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + pair + i % 2] = sum[i];
}

/// The number of elements that differ from c + a b.
int64_t wrong_products(const std::vector<int>& a, const std::vector<int>& b, const std::vector<int>& c,
                       const std::vector<float>& d, int depth) {
  int64_t wrong = 0;
  for (size_t i = 0; i < d.size(); ++i) {
    const size_t tile = i / 128, row = i % 128 / 8, column = i % 8, n = static_cast<size_t>(depth);
    int sum = c[i];
    for (size_t k = 0; k < n; ++k) sum += a[(tile * 16 + row) * n + k] * b[(tile * n + k) * 8 + column];
    wrong += d[i] != static_cast<float>(sum);
  }
  return wrong;
}
std::vector<int> integers(Integers& draw, size_t n, int most) {
  std::vector<int> v(n);
  for (int& x : v) x = draw(most);
  return v;
}
template <class T>
std::vector<T> converted(const std::vector<int>& from) {
  std::vector<T> v(from.size());
  for (size_t i = 0; i < v.size(); ++i) v[i] = store<T>(static_cast<float>(from[i]));
  return v;
}

// ---- ldmatrix
// ---------------------------------------------------------------------------------------------------------

constexpr int spread_pitch = 24;  // distance of rows in 16-bit elements: 48 bytes

/// Row r of the four matrices is in slot (5 r + 3) mod 32. The value of an element is 8 row + column. `out` gets the
/// registers of each lane, of the plain and of the transposed load.
__global__ void ldmatrix_kernel(uint32_t* out) {
  NACRE_SHARED(uint16_t, rows, 32 * spread_pitch);
  const int lane = static_cast<int>(threadIdx.x);
  uint16_t* mine = rows + (5 * lane + 3) % 32 * spread_pitch;
  for (int i = 0; i < 8; ++i) mine[i] = static_cast<uint16_t>(lane * 8 + i);
  __syncthreads();
  uint32_t r[4];
  cuda::ldmatrix_x4(r, mine);
  for (int i = 0; i < 4; ++i) out[lane * 8 + i] = r[i];
  cuda::ldmatrix_x4_trans(r, mine);
  for (int i = 0; i < 4; ++i) out[lane * 8 + 4 + i] = r[i];
}

// ---- engines
// ----------------------------------------------------------------------------------------------------------

using cuda::tile::Major;
constexpr int tile_bytes = 64 * cuda::tile::pitch;  // 64 rows of a step; the 32 rows of 272 bytes take less
static_assert(32 * 272 <= tile_bytes && 64 * 144 <= tile_bytes);

/// One warp computes 64 x N of one step. The tiles of tile_bytes are in global memory in their shared-memory layout.
template <class T, int N, Major A, Major B>
__global__ void engine_kernel(const uint4* a, const uint4* b, int a_pitch, int b_pitch, float* out) {
  NACRE_SHARED(unsigned char, left, tile_bytes);
  NACRE_SHARED(unsigned char, right, tile_bytes);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < tile_bytes / 16; i += 32)
    reinterpret_cast<uint4*>(left)[i] = a[i], reinterpret_cast<uint4*>(right)[i] = b[i];
  __syncthreads();
  using Engine = cuda::tile::MmaEngine<T, N>;
  Engine engine;
  engine.clear();
  const auto rows = Engine::rows([&](int r) { return A == Major::k ? r * a_pitch : 0; }, lane);
  engine.template multiply<A, B>(left, rows, a_pitch, right, b_pitch, lane, Engine::depth, [] {});
  engine.template save<A, B>(out, N, lane);
}

/// The number of wrong elements among 64 x N.
template <class T, int N, Major A, Major B>
int64_t wrong_of_engine(Context& ctx, Integers& draw) {
  constexpr size_t depth = 128 / sizeof(T);
  const auto lay = [](Major major, const std::vector<int>& v, size_t rows, size_t pitch) {
    std::vector<unsigned char> tile(tile_bytes);
    for (size_t r = 0; r < rows; ++r)
      for (size_t k = 0; k < depth; ++k) {
        const T x = store<T>(static_cast<float>(v[r * depth + k]));
        std::memcpy(&tile[major == Major::k ? r * pitch + k * sizeof(T) : k * pitch + r * sizeof(T)], &x, sizeof(T));
      }
    return tile;
  };
  const auto pitch_of = [](Major major, size_t rows) {
    return major == Major::k ? size_t{cuda::tile::pitch} : rows * sizeof(T) + 16;
  };
  const std::vector<int> a = integers(draw, 64 * depth, 8), b = integers(draw, N * depth, 8);
  const size_t a_pitch = pitch_of(A, 64), b_pitch = pitch_of(B, N);
  const Array<unsigned char> left(ctx, lay(A, a, 64, a_pitch)), right(ctx, lay(B, b, N, b_pitch));
  const Array<float> out(ctx, 64 * N);
  launch(ctx, {.name = "probe_engine", .grid = 1, .block = 32}, engine_kernel<T, N, A, B>,
         reinterpret_cast<const uint4*>(left.data()), reinterpret_cast<const uint4*>(right.data()),
         static_cast<int>(a_pitch), static_cast<int>(b_pitch), out.data());
  const std::vector<float> d = out.read();
  int64_t wrong = 0;
  for (size_t i = 0; i < d.size(); ++i) {
    int sum = 0;
    for (size_t k = 0; k < depth; ++k) sum += a[i / N * depth + k] * b[i % N * depth + k];
    wrong += d[i] != static_cast<float>(sum);
  }
  return wrong;
}

// ---- ignored sources
// --------------------------------------------------------------------------------------------------

enum class Form : int { predicate, size };  // predicate: cp_async_or_zeros; size: cp_async with the size in a register

/// Odd lanes copy 16 bytes each from `from`. Even lanes copy `even_bytes`, 0 or 16, from `ignored`. The compiler turns
/// a size that it knows to be 0 or 16 into the instruction's predicate. A size that is an argument stays a size.
__global__ void ignored_kernel(const unsigned char* from, const unsigned char* ignored, Form form, int even_bytes,
                               int odd_bytes, uint32_t* out) {
  NACRE_SHARED(uint32_t, words, 32 * 4);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 4; ++i) words[lane * 4 + i] = 0xffffffffu;
  __syncthreads();
  const int bytes = lane % 2 == 1 ? odd_bytes : even_bytes;
  const unsigned char* p = lane % 2 == 1 ? from + lane * 16 : ignored;
  if (form == Form::predicate)
    cuda::cp_async_or_zeros(words + lane * 4, p, bytes != 0);
  else
    cuda::cp_async<16>(words + lane * 4, p, bytes);
  cuda::cp_async_commit();
  cuda::cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = words[lane * 4 + i];
}

struct IgnoredCase {
  const char* name;
  enum At : uint8_t { inside, fixed } at;
  int64_t offset;  ///< from the allocation, or the address itself
  bool read;       ///< the control: not ignored, so that an address that must trap does
};
constexpr IgnoredCase ignored_cases[] = {
    {"16-byte aligned, inside", IgnoredCase::inside, 64, false},
    {"1 behind a multiple of 16", IgnoredCase::inside, 65, false},
    {"8 behind a multiple of 16", IgnoredCase::inside, 72, false},
    {"15 behind a multiple of 16", IgnoredCase::inside, 79, false},
    {"16 before the allocation", IgnoredCase::inside, -16, false},
    {"at 0", IgnoredCase::fixed, 0, false},
    {"at -16", IgnoredCase::fixed, -16, false},
    {"at -1", IgnoredCase::fixed, -1, false},
    {"far outside, at 2^46", IgnoredCase::fixed, int64_t{1} << 46, false},
    {"not ignored, 1 behind a multiple of 16 (control)", IgnoredCase::inside, 65, true},
};
constexpr int ignored_count = static_cast<int>(std::size(ignored_cases));
const char* const not_asked = "not asked";

/// Runs one case. Returns "zeros", or what is wrong. Throws when the device reports an error.
std::string run_ignored(Context& ctx, const IgnoredCase& c, Form form) {
  std::vector<unsigned char> bytes(1024);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i * 7 + 1);
  const Array<unsigned char> from(ctx, bytes);
  const Array<uint32_t> out(ctx, 32 * 4);
  // Integers are used, because an address outside of every object is no valid C++ pointer.
  const auto base = c.at == IgnoredCase::inside ? reinterpret_cast<uintptr_t>(from.data()) : uintptr_t{0};
  const auto* ignored = reinterpret_cast<const unsigned char*>(base + static_cast<uintptr_t>(c.offset));
  launch(ctx, {.name = "probe_ignored", .grid = 1, .block = 32}, ignored_kernel, from.data(), ignored, form,
         c.read ? 16 : 0, 16, out.data());
  const std::vector<uint32_t> words = out.read();
  for (size_t lane = 0; lane < 32; ++lane) {
    uint32_t expected[4] = {};
    if (lane % 2 == 1) std::memcpy(expected, &bytes[lane * 16], 16);
    if (lane % 2 == 1 || !c.read)
      if (std::memcmp(&words[lane * 4], expected, 16) != 0)
        return lane % 2 == 1 ? "a neighbour's copy is wrong" : "not zeros";
  }
  return c.read ? "copied" : "zeros";
}

}  // namespace

Result mma_fragments(const Options& o) {
  Context ctx = context(o);
  Integers draw(1);
  const unsigned tiles = o.small ? 4 : 512;
  Result r;
  int64_t wrong_bf16 = 0, wrong_tf32 = 0;
  const std::vector<int> c = integers(draw, tiles * 128, 100);
  {
    const std::vector<int> a = integers(draw, tiles * 256, 16), b = integers(draw, tiles * 128, 16);
    const Array<bf16> left(ctx, converted<bf16>(a)), right(ctx, converted<bf16>(b));
    const Array<float> sums(ctx, converted<float>(c));
    launch(ctx, {.name = "probe_mma_bf16", .grid = tiles, .block = 32}, mma_bf16_kernel, left.data(), right.data(),
           sums.data());
    wrong_bf16 = wrong_products(a, b, c, sums.read(), 16);
  }
  {
    const std::vector<int> a = integers(draw, tiles * 128, 16), b = integers(draw, tiles * 64, 16);
    const Array<float> left(ctx, converted<float>(a)), right(ctx, converted<float>(b)), sums(ctx, converted<float>(c));
    launch(ctx, {.name = "probe_mma_tf32", .grid = tiles, .block = 32}, mma_tf32_kernel, left.data(), right.data(),
           sums.data(), 1);
    wrong_tf32 = wrong_products(a, b, c, sums.read(), 8);
  }
  r.outcome = wrong_bf16 + wrong_tf32 == 0 ? Result::ok : Result::failed;
  r.says = text("of %u numbers, bf16 %lld and tf32 %lld differ from the scalar product", tiles * 128,
                static_cast<long long>(wrong_bf16), static_cast<long long>(wrong_tf32));
  return r.figure("numbers", int64_t{tiles} * 128).figure("wrong_bf16", wrong_bf16).figure("wrong_tf32", wrong_tf32);
}

Result ldmatrix_fragments(const Options& o) {
  Context ctx = context(o);
  const Array<uint32_t> out(ctx, 32 * 8);
  launch(ctx, {.name = "probe_ldmatrix", .grid = 1, .block = 32}, ldmatrix_kernel, out.data());
  const std::vector<uint32_t> words = out.read();
  // Lane l has elements 2 (l % 4) and the next of row l / 4 of matrix m. Transposed, they are of column l / 4.
  const auto element = [](unsigned m, unsigned row, unsigned column) { return (m * 8 + row) * 8 + column; };
  int64_t plain = 0, transposed = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    for (unsigned m = 0; m < 4; ++m) {
      const unsigned one = lane / 4, two = lane % 4 * 2;
      plain += words[lane * 8 + m] != (element(m, one, two) | element(m, one, two + 1) << 16);
      transposed += words[lane * 8 + 4 + m] != (element(m, two, one) | element(m, two + 1, one) << 16);
    }
  Result r;
  r.outcome = plain + transposed == 0 ? Result::ok : Result::failed;
  r.says = text("of 128 words, x4 %lld and x4.trans %lld are not where they belong", static_cast<long long>(plain),
                static_cast<long long>(transposed));
  return r.figure("wrong", plain).figure("wrong_trans", transposed);
}

Result tile_engines(const Options& o) {
  Context ctx = context(o);
  Integers draw(2);
  Result r;
  int64_t all = 0;
  const auto add = [&](const char* name, int64_t wrong) {
    r.figure(std::string("wrong_") + name, wrong);
    all += wrong;
  };
  // Forward: weights and x are along. Input gradients: weights are across. Weight gradients: both are across.
  add("tf32_32_along_along", wrong_of_engine<float, 32, Major::k, Major::k>(ctx, draw));
  add("tf32_64_along_along", wrong_of_engine<float, 64, Major::k, Major::k>(ctx, draw));
  add("tf32_32_along_across", wrong_of_engine<float, 32, Major::k, Major::mn>(ctx, draw));
  add("tf32_64_along_across", wrong_of_engine<float, 64, Major::k, Major::mn>(ctx, draw));
  add("tf32_32_across_across", wrong_of_engine<float, 32, Major::mn, Major::mn>(ctx, draw));
  add("tf32_64_across_across", wrong_of_engine<float, 64, Major::mn, Major::mn>(ctx, draw));
  add("bf16_32_along_along", wrong_of_engine<bf16, 32, Major::k, Major::k>(ctx, draw));
  add("bf16_64_along_along", wrong_of_engine<bf16, 64, Major::k, Major::k>(ctx, draw));
  add("bf16_32_along_across", wrong_of_engine<bf16, 32, Major::k, Major::mn>(ctx, draw));
  add("bf16_64_along_across", wrong_of_engine<bf16, 64, Major::k, Major::mn>(ctx, draw));
  add("bf16_32_across_across", wrong_of_engine<bf16, 32, Major::mn, Major::mn>(ctx, draw));
  add("bf16_64_across_across", wrong_of_engine<bf16, 64, Major::mn, Major::mn>(ctx, draw));
  r.outcome = all == 0 ? Result::ok : Result::failed;
  r.says = text("twelve tiles of 64 x 32 and 64 x 64; %lld numbers differ from the scalar product",
                static_cast<long long>(all));
  return r;
}

// The search (kernels/quantizer/vq_products.cu) assumes that adding eight exact products to a sum has an error of at
// most 2^-18 (|c| + sum |a b|). Its estimate is 10 x 2^-23: every addend is truncated at or below 2^-23 of the largest.
// The probe looks for the worst case with addends near that truncation, beside a large sum or a large product.
Result tensor_core_sums(const Options& o) {
  Context ctx = context(o);
  Integers draw(3);
  const auto unit = [&] { return static_cast<float>(draw.bits() >> 8) * 0x1p-24f; };  // [0, 1)
  const auto tf32 = [](float x) {  // truncates to 10 bits of mantissa, so that to_tf32 changes nothing
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, x) & ~0x1fffu);
  };
  const auto sign = [&] { return draw.bits() >> 31 != 0 ? -1.0f : 1.0f; };
  Result r;
  r.says = "errors in units of 2^-23 of |c| + sum |a b|:";
  double worst_ratio = 0;
  for (const int steps : {1, 16}) {
    const size_t trials = o.small ? 64 : steps == 1 ? 16384 : 1024, n = static_cast<size_t>(steps);
    std::vector<float> a(trials * n * 128), b(trials * n * 64), c(trials * 128);
    for (size_t t = 0; t < trials; ++t) {
      const unsigned kind = t % 8;
      // Products are about 2^-cut of the largest value. They range from fully kept to fully truncated.
      const int cut = static_cast<int>(t / 8 % 32);
      const float small = std::ldexp(1.0f, -cut);
      for (size_t i = 0; i < 128; ++i) {
        const float s = kind % 2 == 0 ? 1.0f : sign();
        c[t * 128 + i] = kind < 4 ? s * (1 + (kind < 2 ? 0 : unit())) : s * small * unit();
      }
      for (size_t i = 0; i < n * 128; ++i) {
        // kind 0: just below a power of two, so that nearly a whole unit is truncated; 2: all random
        float x = kind < 2 ? 0x1.ffcp0f : 1 + unit();
        if (kind >= 4 && kind < 6 && i % 8 == t / 256 % 8) x /= small;  // one product is the largest
        if (kind >= 6) x = std::ldexp(1 + unit(), static_cast<int>(draw.bits() % 24));
        a[t * n * 128 + i] = tf32(kind % 2 == 0 ? x : x * sign());
      }
      for (size_t i = 0; i < n * 64; ++i) b[t * n * 64 + i] = tf32((kind < 2 ? 0x1.ffcp0f : 1 + unit()) * small * 0.5f);
    }
    const Array<float> left(ctx, a), right(ctx, b), sums(ctx, c);
    launch(ctx, {.name = "probe_sums", .grid = static_cast<unsigned>(trials), .block = 32}, mma_tf32_kernel,
           left.data(), right.data(), sums.data(), steps);
    const std::vector<float> d = sums.read();
    double worst = 0;
    int worst_kind = 0;
    for (size_t t = 0; t < trials; ++t)
      for (size_t i = 0; i < 128; ++i) {
        const double start = static_cast<double>(c[t * 128 + i]);
        double sum = start, size = std::fabs(start);
        for (size_t s = 0; s < n; ++s)
          for (size_t k = 0; k < 8; ++k) {
            const double p = static_cast<double>(a[((t * n + s) * 16 + i / 8) * 8 + k]) *
                             static_cast<double>(b[((t * n + s) * 8 + k) * 8 + i % 8]);
            sum += p, size += std::fabs(p);
          }
        const double error = std::fabs(static_cast<double>(d[t * 128 + i]) - sum);
        const double relative = size > 0 ? error / size : error;
        if (!(relative <= worst)) worst = relative, worst_kind = static_cast<int>(t % 8);
      }
    const double bound = steps * 0x1p-18;
    worst_ratio = std::isfinite(worst) ? std::max(worst_ratio, worst / bound) : HUGE_VAL;
    r.says += text(" %.2f of at most %.0f with %d channels (data of kind %d)%s", worst * 0x1p23, bound * 0x1p23,
                   steps * 8, worst_kind, steps == 1 ? "," : ";");
    r.figure(text("worst_relative_%d", steps * 8), worst);
  }
  r.outcome = worst_ratio <= 1 ? Result::ok : Result::failed;
  r.says += text(" the bound is %s, by a factor of %.2f", worst_ratio <= 1 ? "kept" : "broken",
                 worst_ratio <= 1 ? 1 / worst_ratio : worst_ratio);
  return r.figure("share_of_bound", worst_ratio);
}

Result ignored_sources(const Options& o) {
  Result r;
  if (emulated) {  // the emulator refuses all other addresses, as the kernels require
    Context ctx = context(o);
    bool holds = true;
    for (const Form form : {Form::predicate, Form::size}) holds &= run_ignored(ctx, ignored_cases[0], form) == "zeros";
    r.outcome = holds ? Result::ok : Result::failed;
    r.says = "aligned and inside: " + std::string(holds ? "zeros" : "not zeros") +
             "; other addresses are left to a real device";
    return r.figure("asked", int64_t{2});
  }
  // A trap destroys the context. Each process therefore runs the remaining cases up to the first that traps. Results
  // must be reported before the limit of this process, which would kill it.
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  const double asking = o.seconds > 0 ? o.seconds - 4 : 16;
  std::vector<std::string> answers;
  while (answers.size() < 2 * ignored_count) {
    const double spent = std::chrono::duration<double>(Clock::now() - start).count();
    if (spent >= asking) break;
    const size_t first = answers.size();
    const Ended e = in_child(
        [&](int pipe) {
          try {
            Context ctx = context(o);
            for (size_t i = first; i < 2 * ignored_count; ++i) {
              const Form form = i % 2 == 0 ? Form::predicate : Form::size;
              write_all(pipe, run_ignored(ctx, ignored_cases[i / 2], form) + "\n");
            }
          } catch (const std::exception& error) {
            write_all(pipe, one_line(error.what()) + "\n");
          }
        },
        std::min(8.0, asking + 1.5 - spent));  // 2 s more for a process that does not end
    for (size_t at = 0, end = 0; (end = e.wrote.find('\n', at)) != std::string::npos; at = end + 1)
      answers.push_back(e.wrote.substr(at, end - at));
    if (answers.size() == first)
      answers.push_back(!e.in_time      ? "hangs"
                        : e.signal != 0 ? text("ended by signal %d", e.signal)
                                        : text("ended with exit code %d and no word", e.code));
  }
  answers.resize(2 * ignored_count, not_asked);
  int bad = 0, asked = 0, left = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    const IgnoredCase& c = ignored_cases[i / 2];
    const char* form = i % 2 == 0 ? "predicate" : "size in a register";
    r.figure(std::string(c.name) + ", " + form, answers[i]);
    if (c.read) continue;
    if (answers[i] == not_asked) {
      ++left;
      continue;
    }
    ++asked;
    if (answers[i] == "zeros") continue;
    r.says += (bad++ == 0 ? "" : "; ") + std::string(c.name) + ", " + form + ": " + answers[i];
  }
  if (bad == 0) r.says = text("%d of %d cases neither trap nor leave anything but zeros", asked, asked);
  if (left > 0) r.says += text("; %d not asked, since the time was over", left);
  r.says += "; control, a misaligned copy that is not ignored: " + answers[2 * ignored_count - 2];
  // Success needs an answer for every case.
  r.outcome = bad > 0 ? Result::failed : left > 0 ? Result::no_answer : Result::ok;
  return r.figure("asked", int64_t{asked}).figure("bad", int64_t{bad}).figure("not_asked", int64_t{left});
}

}  // namespace nacre::probes
