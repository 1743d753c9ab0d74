#include "isa.h"

#include <cstdlib>
#include <string_view>

namespace metarec {
namespace {

Isa detect() {
  Isa found = Isa::baseline;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found = Isa::avx2;
  if (found == Isa::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found = Isa::avx512;
  }
#endif
  const char* wanted = std::getenv("METAREC_ISA");
  if (wanted == nullptr) return found;
  const Isa limit = std::string_view(wanted) == "baseline" ? Isa::baseline
                    : std::string_view(wanted) == "avx2"   ? Isa::avx2
                                                           : Isa::avx512;
  return limit < found ? limit : found;
}

}  // namespace

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

}  // namespace metarec
