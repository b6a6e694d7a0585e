// Transforms by cuFFT, which is loaded on first use, and the inventory of CUDA's libraries on a machine.
#include <cufft.h>
#include <dlfcn.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "runtime/runtime.h"

namespace nacre::cuda {
namespace {

[[noreturn]] void throw_device(const std::string& what) { throw Error(ErrorKind::device, what); }

/// A shared library, searched for under the names it has in the CUDA versions that are supported.
// The handle is never closed: functions of the library stay callable until the process ends.
class Library {
 public:
  explicit Library(std::initializer_list<const char*> names) {
    for (const char* name : names) {
      handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (handle_ != nullptr) return;
      const char* const why = dlerror();
      if (missing_.empty() && why != nullptr)
        missing_ = why;  // keep the message for the newest version, which this build is made for
    }
  }
  /// The loader's message; empty if the library was found.
  const std::string& missing() const { return missing_; }
  template <class F>
  F* find(const char* name) const {
    return handle_ == nullptr ? nullptr : reinterpret_cast<F*>(dlsym(handle_, name));
  }

 private:
  void* handle_ = nullptr;
  std::string missing_;
};

// From the newest version to the oldest; the last name is that of a development package.
Library cufft_library() { return Library({"libcufft.so.12", "libcufft.so.11", "libcufft.so"}); }

// cuFFT's functions by pointer, so that a program starts on a machine without the library. Members are initialised in
// this order, `library` first; a function that is missing throws from the constructor.
struct CuFft {
  Library library = cufft_library();
  decltype(&cufftCreate) create = function<decltype(cufftCreate)>("cufftCreate");
  decltype(&cufftSetAutoAllocation) set_auto = function<decltype(cufftSetAutoAllocation)>("cufftSetAutoAllocation");
  decltype(&cufftMakePlanMany64) make = function<decltype(cufftMakePlanMany64)>("cufftMakePlanMany64");
  decltype(&cufftSetWorkArea) set_work = function<decltype(cufftSetWorkArea)>("cufftSetWorkArea");
  decltype(&cufftSetStream) set_stream = function<decltype(cufftSetStream)>("cufftSetStream");
  decltype(&cufftExecR2C) forward = function<decltype(cufftExecR2C)>("cufftExecR2C");
  decltype(&cufftExecC2R) inverse = function<decltype(cufftExecC2R)>("cufftExecC2R");
  decltype(&cufftDestroy) destroy = function<decltype(cufftDestroy)>("cufftDestroy");

 private:
  template <class F>
  F* function(const char* name) const {
    if (!library.missing().empty())
      throw_device("CUDA: cuFFT cannot be loaded (" + library.missing() +
                   "); install the CUDA libraries, or put their folder into LD_LIBRARY_PATH");
    F* const f = library.find<F>(name);
    if (f == nullptr) throw_device(std::string("CUDA: the installed cuFFT has no ") + name);
    return f;
  }
};
// Loaded once, at the first transform. A failure throws from the initialiser, so the next call tries again.
const CuFft& cufft() {
  static const CuFft f;
  return f;
}
// library_failed() first asks for an error of an earlier kernel, which cuFFT would report as its own.
void check(Runtime& runtime, cufftResult r, const char* what) {
  if (r == CUFFT_SUCCESS) [[likely]]
    return;
  const bool memory = r == CUFFT_ALLOC_FAILED;
  runtime.library_failed(std::string("cuFFT: ") + what + " failed with code " + std::to_string(r) +
                             (memory ? " (out of memory); lower batch_size or segment_length" : ""),
                         memory);
}

/// The version as "12.0.0", from a function that returns MAJOR_VERSION (0), MINOR_VERSION (1) and PATCH_LEVEL (2).
std::string version_by_property(int (*get_property)(int, int*)) {
  std::string out;
  for (int property = 0; property < 3; ++property) {
    int value = 0;
    if (get_property(property, &value) != 0) return "of an unknown version";
    out += (out.empty() ? "" : ".") + std::to_string(value);
  }
  return out;
}
CudaInventory::Library inventory_of(const char* name, const Library& library, const char* version,
                                    const char* used_by) {
  CudaInventory::Library found{name, "", library.missing(), used_by};
  if (!found.missing.empty()) return found;
  auto* const get_property = library.find<int(int, int*)>(version);
  found.version = get_property != nullptr ? version_by_property(get_property) : "of an unknown version";
  return found;
}

}  // namespace

std::vector<CudaInventory::Library> library_inventory() {
  return {
      inventory_of("cuFFT", cufft_library(), "cufftGetProperty",
                   "stft, and spectral_loss with windows that are no power of two"),
      inventory_of("cuBLAS", Library({"libcublas.so.13", "libcublas.so.12", "libcublas.so"}), "cublasGetProperty", ""),
      inventory_of("cuDNN", Library({"libcudnn.so.9", "libcudnn.so"}), "cudnnGetProperty", "")};
}

// The destructor's body runs before `work` is freed, so no plan outlives its work area.
struct Fft::Impl {
  cufftHandle forward = -1, inverse = -1;
  Memory work;
  int device = 0;
  ~Impl() {
    const OnDevice on_device(device);
    if (forward != -1) (void)cufft().destroy(forward);
    if (inverse != -1) (void)cufft().destroy(inverse);
  }
};

Fft::Fft(Context& ctx, int64_t length, int64_t batch) : impl_(std::make_shared<Impl>()) {
  Runtime& r = runtime(ctx);
  const auto lock = r.enter();
  r.refuse_in_capture("a transform's constructor");
  const CuFft& f = cufft();
  impl_->device = ctx.device().index;
  // Plans without automatic allocation share one work area: they run on one stream, one at a time. It is a Memory, so
  // it is counted like any other, and a lack of it has the usual error.
  size_t work_bytes = 0;
  const auto plan = [&](cufftHandle& handle, cufftType type) {
    size_t bytes = 0;
    // One dimension of `length`, contiguous (null embeddings), `batch` signals back to back. Spectra have length / 2 +
    // 1 complex numbers each.
    long long int n = length;
    check(r, f.create(&handle), "cufftCreate");
    // Must precede cufftMakePlanMany64, which otherwise allocates.
    check(r, f.set_auto(handle, 0), "cufftSetAutoAllocation");
    check(r, f.make(handle, 1, &n, nullptr, 1, 0, nullptr, 1, 0, type, batch, &bytes), "cufftMakePlanMany64");
    check(r, f.set_stream(handle, static_cast<cudaStream_t>(r.stream())), "cufftSetStream");
    work_bytes = std::max(work_bytes, bytes);
  };
  plan(impl_->forward, CUFFT_R2C);
  plan(impl_->inverse, CUFFT_C2R);
  impl_->work = Memory(ctx, work_bytes);
  check(r, f.set_work(impl_->forward, impl_->work.data()), "cufftSetWorkArea");
  check(r, f.set_work(impl_->inverse, impl_->work.data()), "cufftSetWorkArea");
}
Fft::Fft(Fft&&) noexcept = default;
Fft& Fft::operator=(Fft&&) noexcept = default;
Fft::~Fft() = default;

void Fft::forward(Context& ctx, const float* real, float* spectrum) {
  const auto lock = runtime(ctx).enter();
  runtime(ctx).count("cufft");
  // Out of place, so cuFFT does not write to the input of a forward transform; its signature has no const.
  check(runtime(ctx),
        cufft().forward(impl_->forward, const_cast<float*>(real), reinterpret_cast<cufftComplex*>(spectrum)),
        "cufftExecR2C");
}
void Fft::inverse(Context& ctx, float* spectrum, float* real) {
  const auto lock = runtime(ctx).enter();
  runtime(ctx).count("cufft");
  check(runtime(ctx), cufft().inverse(impl_->inverse, reinterpret_cast<cufftComplex*>(spectrum), real), "cufftExecC2R");
}

}  // namespace nacre::cuda
