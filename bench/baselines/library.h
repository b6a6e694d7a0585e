#pragma once
// Loads a library when a baseline first needs it, so that a bench starts without the library.
#include <dlfcn.h>

#include <string>
#include <vector>

#include "harness.h"

namespace nacre::bench {

class Library {
 public:
  /// `what` is the name in messages. The loader's path is searched first, then the toolkit of the build. Throws Skip.
  Library(const char* what, const std::vector<std::string>& names) : what_(what) {
    for (const std::string& folder : {std::string(), std::string(NACRE_CUDA_LIBRARIES "/")})
      for (const std::string& name : names)
        if (handle_ == nullptr) handle_ = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ == nullptr)
      throw Skip(what_ + ": " + names.front() + " is missing; put its folder into LD_LIBRARY_PATH");
  }
  template <class F>
  F* function(const char* name) const {
    void* f = dlsym(handle_, name);
    if (f == nullptr) throw Skip(what_ + ": the library found here has no " + name);
    return reinterpret_cast<F*>(f);
  }

 private:
  std::string what_;
  void* handle_ = nullptr;
};

}  // namespace nacre::bench
