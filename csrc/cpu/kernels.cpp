// Which instruction set the kernels run with: decided once, when it is first needed.
#include "kernels.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string>

namespace captioner::cpu {

namespace portable {
template <typename T>
const Kernels<T>& functions();
}
#if defined(__x86_64__)
namespace avx2 {
template <typename T>
const Kernels<T>& functions();
}
namespace avx512 {
template <typename T>
const Kernels<T>& functions();
}
#endif

namespace {

template <typename T>
const Kernels<T>& choose() {
  const char* asked = std::getenv("CAPTIONER_CPU");
  const std::string name = asked ? asked : "";
  const bool any = name.empty() || name == "auto";
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && (any || name == "avx512")) return avx512::functions<T>();
  if (has_avx2 && (any || name == "avx2")) return avx2::functions<T>();
#endif
  STD_TORCH_CHECK(any || name == "portable",
                  "CAPTIONER_CPU must be auto, portable or an instruction set ",
                  "that this processor has (avx2, avx512), got ", name);
  return portable::functions<T>();
}

}  // namespace

template <typename T>
const Kernels<T>& kernels() {
  static const Kernels<T>& chosen = choose<T>();
  return chosen;
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace captioner::cpu
