// Numbers that look random and follow from their place alone: the same on every device, for any number of threads.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace metarec {

// The step of SplitMix64 (Steele, Lea and Flood 2014): 2^64 over the golden ratio.
inline constexpr std::uint64_t kSplitMixStep = 0x9e3779b97f4a7c15;

// What SplitMix64 makes of its state.
METAREC_HOST_DEVICE constexpr std::uint64_t split_mix(std::uint64_t state) {
  state = (state ^ state >> 30) * 0xbf58476d1ce4e5b9;
  state = (state ^ state >> 27) * 0x94d049bb133111eb;
  return state ^ state >> 31;
}

// Where the stream of a seed begins that a use has to itself.
METAREC_HOST_DEVICE constexpr std::uint64_t stream_state(std::uint64_t seed, std::uint64_t stream) {
  return split_mix(seed ^ split_mix(stream + kSplitMixStep));
}

// Stochastic rounding to 16 bits: what is added to the lower half of a float before it is cut off, so that a value goes
// up or down with the chances that make it right on average. Each column's noise is uniform; those of a row are points
// of one sequence that fills the interval evenly (Weyl's), begun at random, so that a vector of them costs an addition.
class RowNoise {
 public:
  METAREC_HOST_DEVICE constexpr RowNoise(std::uint64_t seed, std::uint64_t row)
      : begin_(static_cast<std::uint32_t>(stream_state(seed, row) >> 32)) {}

  // Below 2^16.
  METAREC_HOST_DEVICE constexpr std::uint32_t operator()(std::int64_t column) const {
    return (begin_ + static_cast<std::uint32_t>(column) * kStep) >> 16;
  }

  // For vectors of columns.
  METAREC_HOST_DEVICE constexpr std::uint32_t begin() const { return begin_; }
  static constexpr std::uint32_t kStep = static_cast<std::uint32_t>(kSplitMixStep >> 32);

 private:
  std::uint32_t begin_;
};

}  // namespace metarec
