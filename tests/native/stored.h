// The types that tables are stored in, as numbers of the test.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "checks.h"
#include "metarec/bfloat16.h"

template <class Stored>
Stored stored(double value) {
  if constexpr (sizeof(Stored) == sizeof(metarec::BFloat16)) {
    return {static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(value)) >> 16)};
  } else {
    return static_cast<Stored>(value);
  }
}

template <class Stored>
double number(Stored value) {
  if constexpr (sizeof(Stored) == sizeof(metarec::BFloat16)) {
    return std::bit_cast<float>(std::uint32_t{value.bits} << 16);
  } else {
    return value;
  }
}

template <class Stored>
std::vector<double> numbers(const std::vector<Stored>& values) {
  std::vector<double> result;
  for (const Stored value : values) result.push_back(number(value));
  return result;
}

template <class Stored>
std::vector<Stored> stored_normal(std::int64_t count, unsigned seed) {
  std::vector<Stored> values;
  for (const double value : normal<double>(count, seed)) values.push_back(stored<Stored>(value));
  return values;
}
