#pragma once
// Matrix products by cuBLAS, for the ceilings and for the `gemm` cases of the convolutions.
#include <memory>
#include <string>
#include <string_view>

#include "nacre/context.h"

namespace nacre::bench {

/// One handle with its own workspace, on the stream of the context, so that its products can be captured.
class Cublas {
 public:
  /// Throws Skip when the library is missing.
  explicit Cublas(Context&);
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  /// The version as text, for example "13.1.0".
  const std::string& version() const;

  /// c [m, n] = op(a) op(b), all row-major. a is [m, k], or [k, m] if transposed. b is [k, n], or [n, k] if transposed.
  /// "fp32" and "tf32" take float; "bf16" takes bf16 and sums in float. c is float, or bf16 with c_is_bf16.
  struct Product {
    std::string_view arithmetic;
    int64_t m, n, k;
    const void *a, *b;
    void* c;
    bool a_transposed = false, b_transposed = false, c_is_bf16 = false;
  };
  void multiply(const Product&);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nacre::bench
