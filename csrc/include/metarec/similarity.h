// How two vectors are compared.
#pragma once

namespace metarec {

enum class Similarity { cosine, dot };

// A vector shorter than this has no direction: its cosine with anything is its dot product over this length.
inline constexpr double kNormEpsilon = 1e-12;

}  // namespace metarec
