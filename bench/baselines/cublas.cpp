#include "baselines/cublas.h"

#include <cublas_v2.h>

#include <limits>

#include "baselines/library.h"
#include "runtime/runtime.h"

namespace nacre::bench {
namespace {

using GemmEx = cublasStatus_t(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void*,
                              const void*, cudaDataType, int, const void*, cudaDataType, int, const void*, void*,
                              cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t);

struct Functions {
  Library library{"cuBLAS", {"libcublas.so.13", "libcublas.so.12"}};
  decltype(&cublasCreate_v2) create = library.function<decltype(cublasCreate_v2)>("cublasCreate_v2");
  decltype(&cublasDestroy_v2) destroy = library.function<decltype(cublasDestroy_v2)>("cublasDestroy_v2");
  decltype(&cublasSetStream_v2) set_stream = library.function<decltype(cublasSetStream_v2)>("cublasSetStream_v2");
  decltype(&cublasSetWorkspace_v2) set_workspace =
      library.function<decltype(cublasSetWorkspace_v2)>("cublasSetWorkspace_v2");
  decltype(&cublasGetVersion_v2) version = library.function<decltype(cublasGetVersion_v2)>("cublasGetVersion_v2");
  decltype(&cublasGetStatusName) status_name = library.function<decltype(cublasGetStatusName)>("cublasGetStatusName");
  GemmEx* gemm = library.function<GemmEx>("cublasGemmEx");
};
const Functions& functions() {
  static const Functions f;
  return f;
}

void check(cublasStatus_t s, const char* what) {
  if (s == CUBLAS_STATUS_SUCCESS) return;
  throw Error(ErrorKind::device, std::string("cuBLAS: ") + what + ": " + functions().status_name(s));
}

constexpr size_t workspace_bytes = size_t{64} << 20;  // NVIDIA recommends 32 MiB on sm_90

}  // namespace

struct Cublas::Impl {
  cublasHandle_t handle = nullptr;
  Memory workspace;
  std::string version;
  ~Impl() {
    if (handle != nullptr) (void)functions().destroy(handle);
  }
};

Cublas::Cublas(Context& ctx) : impl_(std::make_unique<Impl>()) {
  const Functions& f = functions();
  Impl& i = *impl_;
  check(f.create(&i.handle), "cublasCreate");
  int version = 0;
  check(f.version(i.handle, &version), "cublasGetVersion");
  i.version =
      std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
  check(f.set_stream(i.handle, static_cast<cudaStream_t>(cuda::runtime(ctx).stream())), "cublasSetStream");
  // cublasSetStream resets the workspace, so the workspace is set after the stream.
  i.workspace = Memory(ctx, workspace_bytes);
  check(f.set_workspace(i.handle, i.workspace.data(), i.workspace.size()), "cublasSetWorkspace");
}
Cublas::~Cublas() = default;
const std::string& Cublas::version() const { return impl_->version; }

void Cublas::multiply(const Product& p) {
  for (const int64_t extent : {p.m, p.n, p.k})
    if (extent < 1 || extent > std::numeric_limits<int>::max())
      throw Error(ErrorKind::usage, "cuBLAS: a product of " + std::to_string(p.m) + " x " + std::to_string(p.n) +
                                        " x " + std::to_string(p.k) + "; expected extents of 1 to 2^31 - 1");
  const bool bf16_in = p.arithmetic == "bf16";
  const cudaDataType in = bf16_in ? CUDA_R_16BF : CUDA_R_32F, out = p.c_is_bf16 ? CUDA_R_16BF : CUDA_R_32F;
  const cublasComputeType_t compute = p.arithmetic == "tf32" ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  const int m = static_cast<int>(p.m), n = static_cast<int>(p.n), k = static_cast<int>(p.k);
  const float one = 1, zero = 0;
  // cuBLAS is column-major and sees every matrix transposed. It computes c^T = op(b)^T op(a)^T.
  check(functions().gemm(impl_->handle, p.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                         p.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, n, m, k, &one, p.b, in, p.b_transposed ? k : n,
                         p.a, in, p.a_transposed ? m : k, &zero, p.c, out, n, compute, CUBLAS_GEMM_DEFAULT),
        "cublasGemmEx");
}

}  // namespace nacre::bench
