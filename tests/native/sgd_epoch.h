// An epoch of stochastic gradient descent written out in double precision: one shuffle, one rating after the other.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "checks.h"
#include "metarec/cosine_sgd_epoch.h"

// Numbers by SplitMix64, one after the other.
class SplitMix {
 public:
  SplitMix(std::uint64_t seed, std::uint64_t stream) : state_(mixed(seed ^ mixed(stream + kStep))) {}

  void shuffle(std::vector<std::int64_t>& values) {
    for (std::uint64_t left = values.size(); left > 1; --left) {
      std::swap(values[left - 1], values[(mixed(state_ += kStep) >> 32) * left >> 32]);
    }
  }

  std::uint64_t state() const { return state_; }

 private:
  static constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15;

  static std::uint64_t mixed(std::uint64_t value) {
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
    value = (value ^ value >> 27) * 0x94d049bb133111eb;
    return value ^ value >> 31;
  }

  std::uint64_t state_;
};

// Stored in a type; in 16 bits after noise is added to those that are cut off.
template <class Stored>
Stored stored_by_hand(double value, std::uint32_t noise = 0) {
  if constexpr (std::is_same_v<Stored, metarec::BFloat16>) {
    return {static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(static_cast<float>(value)) + noise) >> 16)};
  } else {
    return static_cast<Stored>(value);
  }
}

struct SgdBlock {
  std::int64_t number;
  std::vector<std::int64_t> ratings;
};

// The order of an epoch: rounds of blocks of ratings.
using SgdOrder = std::vector<std::vector<SgdBlock>>;

inline std::vector<std::int64_t> groups_by_hand(std::span<const std::int32_t> named, std::int64_t rows,
                                                std::int64_t groups, SplitMix random) {
  std::vector<std::int64_t> counts(rows), order(rows), group(rows);
  for (const std::int32_t row : named) ++counts[row];
  for (std::int64_t row = 0; row < rows; ++row) order[row] = row;
  random.shuffle(order);
  std::int64_t before = 0;
  for (const std::int64_t row : order) {
    group[row] = before * groups / std::ssize(named);
    before += counts[row];
  }
  return group;
}

inline SgdOrder order_by_hand(std::span<const std::int32_t> user, std::span<const std::int32_t> item, std::int64_t users,
                              std::int64_t items, std::uint64_t seed) {
  std::int64_t groups = 1;
  while (groups < 64 && 4 * groups * groups * 512 <= std::ssize(user)) groups *= 2;
  std::vector<std::int64_t> user_group, item_group, diagonals;
  if (!user.empty()) user_group = groups_by_hand(user, users, groups, SplitMix(seed, 0));
  if (!user.empty()) item_group = groups_by_hand(item, items, groups, SplitMix(seed, 1));
  for (std::int64_t group = 0; group < groups; ++group) diagonals.push_back(group);
  SplitMix(seed, 2).shuffle(diagonals);
  SgdOrder rounds;
  for (const std::int64_t diagonal : diagonals) {
    rounds.emplace_back(groups);
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t partner = (group + diagonal) % groups;
      SgdBlock& block = rounds.back()[group];
      block.number = group * groups + partner;
      for (std::int64_t i = 0; i < std::ssize(user); ++i) {
        if (user_group[user[i]] == group && item_group[item[i]] == partner) block.ratings.push_back(i);
      }
      SplitMix(seed, 3 + block.number).shuffle(block.ratings);
    }
  }
  return rounds;
}

// A factorisation and its ratings, a third of them of item 0; of both tables a row is zero, and one has no direction.
template <class Stored>
struct SgdProblem {
  using Real = metarec::Arithmetic<Stored>;

  std::int64_t user_count, item_count, dim, count;
  std::vector<Stored> users, items;
  std::vector<Real> user_biases, item_biases, head, values;
  std::vector<std::int32_t> user, item;

  SgdProblem(std::int64_t user_count, std::int64_t item_count, std::int64_t dim, std::int64_t count)
      : user_count(user_count), item_count(item_count), dim(dim), count(count), users(table(user_count, dim, 1)),
        items(table(item_count, dim, 2)), user_biases(normal<Real>(user_count, 3)),
        item_biases(normal<Real>(item_count, 4)), head{Real(0.8), Real(0.3)} {
    std::mt19937 random(5);
    for (std::int64_t i = 0; i < count; ++i) {
      user.push_back(static_cast<std::int32_t>(random() % user_count));
      item.push_back(static_cast<std::int32_t>(i % 3 == 0 ? 0 : random() % item_count));
      values.push_back(static_cast<Real>(random() % 5 / 4.0));
    }
  }

  static std::vector<Stored> table(std::int64_t rows, std::int64_t dim, unsigned seed) {
    std::vector<Stored> stored;
    for (Real value : normal<Real>(rows * dim, seed)) {
      const std::int64_t row = std::ssize(stored) / dim;
      value /= std::sqrt(static_cast<Real>(dim));
      if (rows > 2 && row == 1) value = 0;
      if (rows > 2 && row == 2) value *= Real(1e-13);
      stored.push_back(stored_by_hand<Stored>(value));
    }
    return stored;
  }

  template <class Other>
  explicit SgdProblem(const SgdProblem<Other>& other)
      : user_count(other.user_count), item_count(other.item_count), dim(other.dim), count(other.count),
        user_biases(other.user_biases.begin(), other.user_biases.end()),
        item_biases(other.item_biases.begin(), other.item_biases.end()), head(other.head.begin(), other.head.end()),
        values(other.values.begin(), other.values.end()), user(other.user), item(other.item) {
    for (const auto value : other.users) users.push_back(metarec::value_of(value));
    for (const auto value : other.items) items.push_back(metarec::value_of(value));
  }

  bool operator==(const SgdProblem&) const = default;
};

namespace metarec {
inline bool operator==(BFloat16 left, BFloat16 right) { return left.bits == right.bits; }
}  // namespace metarec

// One step from a scale and a bias, which it changes; gives the loss before it.
inline double step_by_hand(SgdProblem<double>& problem, std::int64_t rating, const metarec::SgdOptions& options,
                           std::vector<double>& head) {
  const std::int64_t row = problem.user[rating], column = problem.item[rating], dim = problem.dim;
  double *const u = problem.users.data() + row * dim, *const v = problem.items.data() + column * dim;
  const std::vector<double> u_before(u, u + dim), v_before(v, v + dim);
  double product = 0, u_square = 0, v_square = 0;
  for (std::int64_t d = 0; d < dim; ++d) product += u[d] * v[d], u_square += u[d] * u[d], v_square += v[d] * v[d];
  const bool cosine = options.similarity == metarec::Similarity::cosine;
  const double u_norm = std::sqrt(u_square), v_norm = std::sqrt(v_square), least = metarec::kNormEpsilon;
  const double norms = cosine ? std::max(u_norm, least) * std::max(v_norm, least) : 1, score = product / norms;
  double &u_bias = problem.user_biases[row], &v_bias = problem.item_biases[column];
  const double predicted = head[0] * score + head[1] + u_bias + v_bias, value = problem.values[rating];
  const bool logistic = options.loss == metarec::RatingLoss::logistic;
  const double slope = (logistic ? 1 / (1 + std::exp(-predicted)) : predicted) - value;
  const double loss = logistic ? std::log1p(std::exp(predicted)) - value * predicted : slope * slope / 2;
  for (std::int64_t d = 0; d < dim; ++d) {
    double to_u = v_before[d] / norms, to_v = u_before[d] / norms;
    if (cosine) to_u = u_norm > least ? to_u - score * u_before[d] / u_square : 0;
    if (cosine) to_v = v_norm > least ? to_v - score * v_before[d] / v_square : 0;
    u[d] -= options.lr * (slope * head[0] * to_u + options.l2 * u_before[d]);
    v[d] -= options.lr * (slope * head[0] * to_v + options.l2 * v_before[d]);
  }
  u_bias -= options.lr * (slope + options.l2 * u_bias);
  v_bias -= options.lr * (slope + options.l2 * v_bias);
  const double head_lr = options.head_lr.value_or(options.lr);
  head[0] -= head_lr * slope * score;
  head[1] -= head_lr * slope;
  return loss;
}

// Rounds a row to what 16 bits hold, by the numbers of a stream.
inline void round_by_hand(double* row, std::int64_t dim, const SplitMix& random) {
  for (std::int64_t d = 0; d < dim; ++d) {
    const auto sum = static_cast<std::uint32_t>((random.state() >> 32) + static_cast<std::uint64_t>(d) * 0x9e3779b9);
    row[d] = metarec::value_of(stored_by_hand<metarec::BFloat16>(row[d], sum >> 16));
  }
}

// Of tables that are stored in a type.
template <class Stored>
double epoch_by_hand(SgdProblem<double>& problem, const metarec::SgdOptions& options) {
  double loss = 0;
  for (const auto& blocks : order_by_hand(problem.user, problem.item, problem.user_count, problem.item_count, options.seed)) {
    std::vector<double> total(2);
    for (const auto& [number, ratings] : blocks) {
      std::vector<double> head = problem.head;
      for (std::int64_t place = 0; place < std::ssize(ratings); ++place) {
        const std::int64_t rating = ratings[place], dim = problem.dim;
        loss += step_by_hand(problem, rating, options, head);
        if (!std::is_same_v<Stored, metarec::BFloat16>) continue;
        const std::uint64_t stream = ((2 * number + 1) << 32) + place, of_other_side = std::uint64_t{1} << 32;
        round_by_hand(problem.users.data() + problem.user[rating] * dim, dim, SplitMix(options.seed, stream));
        round_by_hand(problem.items.data() + problem.item[rating] * dim, dim, SplitMix(options.seed, stream + of_other_side));
      }
      total[0] += head[0], total[1] += head[1];
    }
    for (int i = 0; i < 2; ++i) problem.head[i] = total[i] / static_cast<double>(blocks.size());
  }
  return loss / static_cast<double>(problem.count);
}

// Makes an epoch by `run(problem, options)` and by hand, and claims that both come to the same. In 16 bits numbers that
// differ in the last bit of a float may be rounded to neighbours, but few: of the others' noise a half would be.
template <class Stored, class Run>
void check_epoch(SgdProblem<Stored> problem, const metarec::SgdOptions& options, double tolerance, const Run& run) {
  SgdProblem<double> expected(problem);
  const double loss = run(problem, options), loss_by_hand = epoch_by_hand<Stored>(expected, options);
  CHECK(problem.count == 0 ? std::isnan(loss) : std::abs(loss - loss_by_hand) < tolerance);
  std::int64_t equal = 0, different = 0;
  const auto check_values = [&](const auto& values, const std::vector<double>& wanted) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double value = metarec::value_of(values[i]);
      CHECK(std::abs(value - wanted[i]) <= tolerance * (1 + std::abs(wanted[i])));
      ++(value == wanted[i] ? equal : different);
    }
  };
  check_values(problem.users, expected.users);
  check_values(problem.items, expected.items);
  CHECK(!(std::is_same_v<Stored, metarec::BFloat16>) || 20 * different <= equal);
  check_values(problem.user_biases, expected.user_biases);
  check_values(problem.item_biases, expected.item_biases);
  check_values(problem.head, expected.head);
}
