// Storage of floating values in 16 bits: the upper half of a float.
#pragma once

#include <bit>
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

// The number that is stored, on the host.
template <class Stored>
constexpr Arithmetic<Stored> value_of(Stored stored) {
  return stored;
}

constexpr float value_of(BFloat16 stored) { return std::bit_cast<float>(std::uint32_t{stored.bits} << 16); }

}  // namespace metarec
