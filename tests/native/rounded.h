// What values become where they are stored, by what rounding means.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <optional>

#include "metarec/bfloat16.h"
#include "metarec/random.h"

// To 16 bits: to the upper neighbour from half of the way on, or, with noise, where the rest of the way is less than
// it. Past the largest value is infinity.
inline float rounded_by_hand(float value, const metarec::RowNoise* noise, std::int64_t column) {
  if (std::isinf(value) || value == 0) return value;
  const auto below = std::bit_cast<std::uint32_t>(value) & 0xffff0000;
  const float down = std::bit_cast<float>(below), up = std::bit_cast<float>(below + 0x10000);
  const double last = std::isinf(up) ? std::ldexp(1.0, 120) : std::abs(double{up} - down);
  const double way = std::abs(double{value} - down) / last;
  if (noise != nullptr) return way + (*noise)(column) / 65536.0 >= 1 ? up : down;
  if (way == 0.5) return below >> 16 & 1 ? up : down;
  return way > 0.5 ? up : down;
}

// Whether what was found is a value rounded, where this is known up to a tolerance: rounding keeps the order of values.
template <class Stored>
bool is_rounded(double found, double value, double tolerance, std::optional<std::uint64_t> seed, std::int64_t row,
                std::int64_t column) {
  if (sizeof(Stored) > sizeof(metarec::BFloat16)) return std::abs(found - value) <= tolerance;
  const metarec::RowNoise drawn(seed.value_or(0), static_cast<std::uint64_t>(row)), *noise = seed ? &drawn : nullptr;
  return rounded_by_hand(static_cast<float>(value - tolerance), noise, column) <= found &&
         found <= rounded_by_hand(static_cast<float>(value + tolerance), noise, column);
}
