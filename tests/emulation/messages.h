// The text of errors: indices, locations in the source and names of kernels.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>

#include "emulation.h"

namespace emulation {

inline std::string text(const Extent& index) {
  std::ostringstream out;
  out << "(" << index.x << ", " << index.y << ", " << index.z << ")";
  return out.str();
}

inline std::string text(const Location& location) {
  const std::string file = location.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(location.line);
}

// Kernels are exported from the library or program, so that their addresses have names.
inline std::string name_of(const void* kernel) {
  Dl_info info{};
  if (!dladdr(kernel, &info) || !info.dli_sname) return "(a kernel without a name)";
  int failed = 0;
  std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &failed), std::free);
  return failed ? info.dli_sname : name.get();
}

}  // namespace emulation
