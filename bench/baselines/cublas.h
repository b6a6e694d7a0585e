#pragma once
// Matrix products by cuBLAS: what the ceilings and the convolutions' `gemm` cases compare with.
#include <memory>
#include <string>
#include <string_view>

#include "nacre/context.h"

namespace nacre::bench {

/// One handle with a workspace of its own, on the context's stream, so that its products can be captured.
class Cublas {
 public:
  /// Throws Skip where the library is missing.
  explicit Cublas(Context&);
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  /// "13.1.0".
  const std::string& version() const;

  /// c [m, n] = op(a) op(b), all row by row; a is [m, k], or [k, m] if transposed, b is [k, n], or [n, k].
  /// "fp32" and "tf32" take floats, "bf16" bf16 with sums in float; c is float, or with c_is_bf16 bf16.
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
