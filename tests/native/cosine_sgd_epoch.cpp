// Epochs of stochastic gradient descent: one rating by hand, many by what they must reach.
#include "metarec/cosine_sgd_epoch.h"

#include "checks.h"

namespace {

using metarec::RatingLoss;
using metarec::SgdOptions;
using metarec::Similarity;

template <class Real>
struct Problem {
  std::int64_t user_count, item_count, dim;
  std::vector<Real> users, items, user_biases, item_biases, head, values;
  std::vector<std::int32_t> user_rows, item_rows;

  Problem(std::int64_t user_count, std::int64_t item_count, std::int64_t dim, std::int64_t ratings)
      : user_count(user_count), item_count(item_count), dim(dim), users(normal<Real>(user_count * dim, 1)),
        items(normal<Real>(item_count * dim, 2)), user_biases(user_count), item_biases(item_count), head{1, 0} {
    std::mt19937 random(3);
    for (std::int64_t i = 0; i < ratings; ++i) {
      const auto user = static_cast<std::int32_t>(random() % user_count);
      const auto item = static_cast<std::int32_t>(i % 3 == 0 ? 0 : random() % item_count);
      user_rows.push_back(user);
      item_rows.push_back(item);
      values.push_back(static_cast<Real>((user + item) % 2));
    }
  }

  double epoch(const SgdOptions& options, const metarec::Parallel& parallel = {}) {
    return metarec::cosine_sgd_epoch<Real>(
        {dim, users, items, user_biases, item_biases, head},
        {std::span<const std::int32_t>(user_rows), std::span<const std::int32_t>(item_rows), values}, options, parallel);
  }

  bool operator==(const Problem&) const = default;
};

template <class Real>
void test_one_step_by_hand(double tolerance) {
  for (const RatingLoss loss : {RatingLoss::squared, RatingLoss::logistic}) {
    for (const Similarity similarity : {Similarity::cosine, Similarity::dot}) {
      for (const std::int64_t dim : {1, 7, 32}) {
        Problem<Real> problem(1, 1, dim, 1);
        const Problem<Real> before = problem;
        const double lr = 0.1, l2 = 0.2, head_lr = 0.03, value = problem.epoch({lr, l2, similarity, loss, 5, head_lr});
        double product = 0, left = 0, right = 0;
        for (std::int64_t d = 0; d < dim; ++d) {
          product += before.users[d] * before.items[d];
          left += before.users[d] * before.users[d];
          right += before.items[d] * before.items[d];
        }
        const bool cosine = similarity == Similarity::cosine;
        const double norms = cosine ? std::sqrt(left * right) : 1, score = product / norms;
        const bool logistic = loss == RatingLoss::logistic;
        const double slope = (logistic ? 1 / (1 + std::exp(-score)) : score) - before.values[0];
        const double expected = logistic ? std::log1p(std::exp(score)) - before.values[0] * score : slope * slope / 2;
        CHECK(std::abs(value - expected) < tolerance);
        for (std::int64_t d = 0; d < dim; ++d) {
          const double u = before.users[d], v = before.items[d];
          const double along = cosine ? score : 0;
          CHECK(std::abs(problem.users[d] - (u - lr * (slope * (v / norms - along * u / left) + l2 * u))) < tolerance);
          CHECK(std::abs(problem.items[d] - (v - lr * (slope * (u / norms - along * v / right) + l2 * v))) < tolerance);
        }
        CHECK(std::abs(problem.user_biases[0] + lr * slope) < tolerance);
        CHECK(std::abs(problem.item_biases[0] + lr * slope) < tolerance);
        CHECK(std::abs(problem.head[0] - (1 - head_lr * slope * score)) < tolerance);
        CHECK(std::abs(problem.head[1] + head_lr * slope) < tolerance);
      }
    }
  }
}

// Whether user and item are of one parity: a pattern of rank one.
template <class Real>
void test_learns_a_pattern() {
  for (const Similarity similarity : {Similarity::cosine, Similarity::dot}) {
    Problem<Real> problem(90, 60, 4, 9000);
    double loss = 1;
    for (std::uint64_t epoch = 0; epoch < 60; ++epoch) {
      loss = problem.epoch({.lr = 0.1, .l2 = 0, .similarity = similarity, .seed = epoch}, threads(2));
    }
    CHECK(loss < 1e-3);
  }
}

template <class Real>
void test_threads_change_nothing() {
  for (const RatingLoss loss : {RatingLoss::squared, RatingLoss::logistic}) {
    for (const std::int64_t ratings : {3000, 40000}) {  // of the first are fewer groups than threads
      Problem<Real> one(300, 200, 9, ratings), four = one;
      const SgdOptions options{0.02, 0.1, Similarity::cosine, loss, 7};
      const double alone = one.epoch(options), shared = four.epoch(options, threads(4));
      CHECK(alone == shared && one == four);
    }
  }
}

void test_bad_ratings_throw_and_change_nothing() {
  Problem<double> problem(4, 3, 5, 20000);
  problem.user_rows[17000] = 4;
  Problem<double> before = problem;
  check_throws([&] { problem.epoch({0.1, 0}, threads(2)); }, "users must be from 0 to 3, got 4 at 17000");
  problem.user_rows[17000] = before.user_rows[17000] = 0;
  problem.item_rows[3] = before.item_rows[3] = -1;
  check_throws([&] { problem.epoch({0.1, 0}); }, "items must be from 0 to 2, got -1 at 3");
  problem.values[2] = before.values[2] = 1.5;
  check_throws([&] { problem.epoch({0.1, 0, Similarity::dot, RatingLoss::logistic}); }, "from 0 to 1 for the logistic");
  CHECK(problem == before);
}

}  // namespace

// With an argument only what threads do, for the sanitizer that is slow.
int main(int count, char**) {
  test_threads_change_nothing<float>();
  test_threads_change_nothing<double>();
  if (count > 1) return 0;
  test_one_step_by_hand<float>(1e-5);
  test_one_step_by_hand<double>(1e-13);
  test_learns_a_pattern<float>();
  test_learns_a_pattern<double>();
  test_bad_ratings_throw_and_change_nothing();
}
