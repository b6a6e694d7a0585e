#include "golden_file.h"

#include <filesystem>

namespace nacre::test {

Safetensors golden_file(const std::string& name) {
  std::filesystem::path path = std::filesystem::path(NACRE_GOLDEN) / name;
  // A packed tree (scripts/gpu_pack.sh) is not where it was built. Its program is at build/<preset>/tests.
  if (!std::filesystem::exists(path)) {
    const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe");
    path = program.parent_path().parent_path().parent_path().parent_path() / "tests" / "golden" / name;
  }
  return Safetensors::read(path);
}

}  // namespace nacre::test
