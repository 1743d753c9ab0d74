// What decides the order of an epoch of stochastic gradient descent, the same on every device.
//
// Users and items are cut into as many groups each, and the ratings so into a square of blocks. A round takes a diagonal
// of it, whose blocks share neither users nor items; the ratings of a block follow one another in random order.
#pragma once

#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "host_device.h"
#include "random.h"

namespace metarec {

// How many groups users and items are cut into. It depends on the ratings alone, not on the threads: blocks of at least
// 512 ratings, and a power of two, so that threads get equal shares.
inline std::int64_t sgd_groups(std::int64_t ratings) {
  constexpr std::int64_t least_block = 512, most_groups = 64;
  std::int64_t groups = 1;
  while (groups < most_groups && 4 * groups * groups * least_block <= ratings) groups *= 2;
  return groups;
}

// Shuffles from the last place to the first (Fisher and Yates), by numbers of SplitMix64: every use has a stream of its
// own, and each place its number, so that all can be had at once.
class Shuffle {
 public:
  METAREC_HOST_DEVICE Shuffle(std::uint64_t seed, std::uint64_t stream) : state_(stream_state(seed, stream)) {}

  // The place of `count` that changes values with this one.
  METAREC_HOST_DEVICE std::int64_t partner(std::int64_t place, std::int64_t count) const {
    const std::uint64_t number = split_mix(state_ + static_cast<std::uint64_t>(count - place) * kSplitMixStep) >> 32;
    return static_cast<std::int64_t>(number * static_cast<std::uint64_t>(place + 1) >> 32);
  }

  template <class Value>
  void operator()(std::span<Value> values) const {
    const std::int64_t count = std::ssize(values);
    for (std::int64_t place = count - 1; place > 0; --place) {
      std::swap(values[static_cast<std::size_t>(place)], values[static_cast<std::size_t>(partner(place, count))]);
    }
  }

 private:
  std::uint64_t state_;
};

inline constexpr std::uint64_t kUserStream = 0, kItemStream = 1, kRoundStream = 2, kBlockStreams = 3;

// The stream of the noise that rounds a row after a step, in tables of 16 bits: of each place in each block, for each
// side, which is kUserStream or kItemStream. Those of the shuffles are below.
METAREC_HOST_DEVICE constexpr std::uint64_t sgd_step_stream(std::int64_t block, std::int64_t place, std::uint64_t side) {
  return ((2 * static_cast<std::uint64_t>(block) + side + 1) << 32) + static_cast<std::uint64_t>(place);
}

// The group of a row, at random but so that groups have about as many ratings each: `before` is how many of the ratings
// are of rows before it in shuffled order.
METAREC_HOST_DEVICE inline std::int64_t sgd_group(std::int64_t before, std::int64_t groups, std::int64_t ratings) {
  return before * groups / ratings;
}

// The diagonals in the order of the rounds: round r takes the blocks (g, (g + rounds[r]) % groups).
inline std::vector<std::int64_t> sgd_rounds(std::int64_t groups, std::uint64_t seed) {
  std::vector<std::int64_t> rounds(static_cast<std::size_t>(groups));
  std::iota(rounds.begin(), rounds.end(), std::int64_t{0});
  Shuffle(seed, kRoundStream)(std::span(rounds));
  return rounds;
}

// The block of a round that has the users of a group.
METAREC_HOST_DEVICE inline std::int64_t sgd_block(std::int64_t group, std::int64_t diagonal, std::int64_t groups) {
  return group * groups + (group + diagonal) % groups;
}

}  // namespace metarec
