// Storage of floating values in 16 bits: the upper half of a float.
#pragma once

#include <cstdint>

namespace metarec {

struct BFloat16 {
  std::uint16_t bits;
};

// The type that values of a type are computed in.
template <class Stored>
struct ArithmeticOf {
  using Type = Stored;
};

template <>
struct ArithmeticOf<BFloat16> {
  using Type = float;
};

template <class Stored>
using Arithmetic = typename ArithmeticOf<Stored>::Type;

}  // namespace metarec
