// Which instruction sets this build holds and this machine has.
#include <stdexcept>

#include "runtime.h"

namespace flashlla {
namespace {

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found;  // best first
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    found.push_back(kernels_avx512());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(kernels_avx2());
#endif
  found.push_back(kernels_baseline());
  return found;
}

}  // namespace

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Kernels* kernels : runnable()) names.emplace_back(kernels->name);
  return names;
}

const Kernels& select_kernels(const std::string& name) {
  const std::vector<const Kernels*> all = runnable();
  if (name.empty()) return *all.front();
  std::string names;
  for (const Kernels* kernels : all) {
    if (name == kernels->name) return *kernels;
    names += names.empty() ? "" : ", ";
    names += kernels->name;
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available here; choose one of " + names);
}

}  // namespace flashlla
