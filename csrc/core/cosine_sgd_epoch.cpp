#include "metarec/cosine_sgd_epoch.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "metarec/bfloat16.h"
#include "metarec/sgd_order.h"
#include "row_groups.h"

namespace metarec {
namespace {

template <class Real>
struct Rating {
  std::uint32_t user, item;
  Real value;
};

template <class Real>
struct Head {
  Real scale, bias;
};

}  // namespace
}  // namespace metarec

#define METAREC_KERNEL "cosine_sgd_epoch_kernel.h"
#include "for_each_isa.h"

namespace metarec {
namespace {

// Gives each row a group, at random but so that groups have about as many ratings each.
std::vector<std::uint8_t> groups_of(std::span<const std::uint32_t> named, std::int64_t rows, std::int64_t groups,
                                    const Shuffle& shuffle) {
  std::vector<std::uint32_t> counts(static_cast<std::size_t>(rows)), order(counts.size());
  for (const std::uint32_t row : named) ++counts[row];
  std::iota(order.begin(), order.end(), 0u);
  shuffle(std::span(order));
  std::vector<std::uint8_t> group(counts.size());
  std::int64_t before = 0;
  for (const std::uint32_t row : order) {
    if (counts[row] == 0) continue;
    group[row] = static_cast<std::uint8_t>(sgd_group(before, groups, std::ssize(named)));
    before += counts[row];
  }
  return group;
}

// The ratings, block by block: block (g, h) has those of users of group g and items of group h.
template <class Real>
class Blocks {
 public:
  Blocks(std::int64_t users, std::int64_t items, const Ratings<Real>& ratings, std::uint64_t seed,
         const Parallel& parallel)
      : groups_(sgd_groups(std::ssize(ratings.values))) {
    const std::int64_t count = std::ssize(ratings.values);
    const auto user = checked_rows(ratings.users, users, "cosine_sgd_epoch_: users", parallel);
    const auto item = checked_rows(ratings.items, items, "cosine_sgd_epoch_: items", parallel);
    const std::span user_rows(user.get(), ratings.values.size()), item_rows(item.get(), ratings.values.size());
    std::vector<std::uint8_t> user_group, item_group;
    parallel.run(2, [&](std::int64_t side) {
      (side == 0 ? user_group : item_group) =
          side == 0 ? groups_of(user_rows, users, groups_, Shuffle(seed, kUserStream))
                    : groups_of(item_rows, items, groups_, Shuffle(seed, kItemStream));
    });
    const auto block_of = [&](std::int64_t i) {
      return static_cast<std::uint16_t>(user_group[user_rows[i]] * groups_ + item_group[item_rows[i]]);
    };

    // A counting sort in parts, stable, so that its result does not depend on them.
    constexpr std::int64_t least_part = 1 << 14;
    const std::int64_t blocks = groups_ * groups_, parts = std::clamp<std::int64_t>(count / least_part, 1, parallel.threads);
    const auto block = std::make_unique_for_overwrite<std::uint16_t[]>(static_cast<std::size_t>(count));
    std::vector<std::uint32_t> next(static_cast<std::size_t>(parts * blocks));
    parallel.run(parts, [&](std::int64_t part) {
      std::uint32_t* counts = next.data() + part * blocks;
      for (std::int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) ++counts[block[i] = block_of(i)];
    });
    std::uint32_t total = 0;
    for (std::int64_t block = 0; block < blocks; ++block) {
      begins_.push_back(total);
      for (std::int64_t part = 0; part < parts; ++part) {
        total += std::exchange(next[static_cast<std::size_t>(part * blocks + block)], total);
      }
    }
    begins_.push_back(total);
    ratings_ = std::make_unique_for_overwrite<Rating<Real>[]>(static_cast<std::size_t>(count));
    parallel.run(parts, [&](std::int64_t part) {
      std::uint32_t* places = next.data() + part * blocks;
      for (std::int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
        ratings_[places[block[i]]++] = {user_rows[i], item_rows[i], ratings.values[i]};
      }
    });
  }

  std::int64_t groups() const { return groups_; }

  std::span<Rating<Real>> block(std::int64_t index) {
    const auto begin = begins_[static_cast<std::size_t>(index)], end = begins_[static_cast<std::size_t>(index) + 1];
    return {ratings_.get() + begin, end - begin};
  }

 private:
  std::int64_t groups_;
  std::vector<std::uint32_t> begins_;
  std::unique_ptr<Rating<Real>[]> ratings_;
};

template <class Real>
void check_values(std::span<const Real> values, RatingLoss loss) {
  const bool logistic = loss == RatingLoss::logistic;
  const Real least = logistic ? Real(0) : std::numeric_limits<Real>::lowest();
  const Real most = logistic ? Real(1) : std::numeric_limits<Real>::max();
  bool all = true;
  for (const Real value : values) all &= value >= least && value <= most;
  if (all) return;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i] >= least && values[i] <= most) continue;
    throw std::invalid_argument("cosine_sgd_epoch_: ratings must be " +
                                std::string(logistic ? "from 0 to 1 for the logistic loss" : "finite") + ", got " +
                                std::to_string(values[i]) + " at " + std::to_string(i));
  }
}

}  // namespace

template <class Stored>
double cosine_sgd_epoch(const Factorization<Stored>& model, const Ratings<Arithmetic<Stored>>& ratings,
                        const SgdOptions& options, const Parallel& parallel) {
  using Real = Arithmetic<Stored>;
  check_values(ratings.values, options.loss);
  Blocks<Real> blocks(std::ssize(model.user_biases), std::ssize(model.item_biases), ratings, options.seed, parallel);
  const std::int64_t groups = blocks.groups();
  std::vector<Head<Real>> heads(static_cast<std::size_t>(groups));
  std::vector<double> losses(heads.size());
  double loss = 0;
  for (const std::int64_t diagonal : sgd_rounds(groups, options.seed)) {
    std::ranges::fill(heads, Head<Real>{model.head[0], model.head[1]});
    parallel.run(groups, [&](std::int64_t group) {
      const std::int64_t index = sgd_block(group, diagonal, groups);
      const std::span<Rating<Real>> block = blocks.block(index);
      Shuffle(options.seed, kBlockStreams + static_cast<std::uint64_t>(index))(block);
      const auto slot = static_cast<std::size_t>(group);
      losses[slot] = METAREC_DISPATCH(run_block<Stored>(model, options, index, block, heads[slot]));
    });
    // What all share is moved by the mean of the moves of the blocks.
    Head<Real> total{0, 0};
    for (const Head<Real>& head : heads) total = {total.scale + head.scale, total.bias + head.bias};
    model.head[0] = total.scale / static_cast<Real>(groups);
    model.head[1] = total.bias / static_cast<Real>(groups);
    loss = std::accumulate(losses.begin(), losses.end(), loss);
  }
  return loss / static_cast<double>(ratings.values.size());
}

template double cosine_sgd_epoch(const Factorization<float>&, const Ratings<float>&, const SgdOptions&,
                                 const Parallel&);
template double cosine_sgd_epoch(const Factorization<double>&, const Ratings<double>&, const SgdOptions&,
                                 const Parallel&);
template double cosine_sgd_epoch(const Factorization<BFloat16>&, const Ratings<float>&, const SgdOptions&,
                                 const Parallel&);

}  // namespace metarec
