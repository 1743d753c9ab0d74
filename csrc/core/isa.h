// The instruction sets that kernels are compiled for, and the choice among them at run time.
#pragma once

namespace metarec {

enum class Isa { baseline, avx2, avx512 };

// The best one that this processor has; the environment variable METAREC_ISA (baseline, avx2) can lower it.
Isa isa();

}  // namespace metarec
