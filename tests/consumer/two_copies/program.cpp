// Two plug-ins with a copy of nacre each, and a third copy in the program itself. They work side by side, in threads,
// and after one of them was unloaded.
#include <dlfcn.h>

#include <thread>

#include "noise.h"

namespace {
struct Copy {
  void* library;
  int (*call)();
};
Copy load(const char* path) {
  void* library = ::dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", ::dlerror());
    std::exit(1);
  }
  return {library, reinterpret_cast<int (*)()>(::dlsym(library, "code_noise_of_copy"))};
}
}  // namespace

int main(int, char** argv) {
  const Copy a = load(argv[1]), b = load(argv[2]);
  if (a.call == b.call) return 2;
  int of_thread = 1;
  std::thread beside([&] { of_thread = a.call(); });
  const int here = b.call();
  beside.join();
  ::dlclose(a.library);
  return here != 0 || of_thread != 0 || b.call() != 0 || code_noise() != 0;
}
