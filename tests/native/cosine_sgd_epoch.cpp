// Epochs of stochastic gradient descent against the same by hand, and by what they must reach.
#include "metarec/cosine_sgd_epoch.h"

#include <array>

#include "checks.h"
#include "sgd_epoch.h"

namespace {

using metarec::BFloat16;
using metarec::RatingLoss;
using metarec::SgdOptions;
using metarec::Similarity;

template <class Stored>
double epoch(SgdProblem<Stored>& problem, const SgdOptions& options, const metarec::Parallel& parallel = {}) {
  return metarec::cosine_sgd_epoch<Stored>(
      {problem.dim, problem.users, problem.items, problem.user_biases, problem.item_biases, problem.head},
      {std::span<const std::int32_t>(problem.user), std::span<const std::int32_t>(problem.item), problem.values}, options,
      parallel);
}

template <class Stored>
void test_epochs(double tolerance) {
  std::uint64_t seed = 0;
  for (const RatingLoss loss : {RatingLoss::squared, RatingLoss::logistic}) {
    for (const Similarity similarity : {Similarity::cosine, Similarity::dot}) {
      // Of the last are four groups each of users and items.
      for (const auto& [users, items, dim, ratings] :
           {std::array<std::int64_t, 4>{3, 4, 5, 0}, {1, 1, 1, 1}, {1, 1, 32, 1}, {4, 3, 0, 20}, {7, 5, 7, 40},
            {14, 9, 64, 150}, {12, 9, 70, 100}, {300, 200, 9, 9000}}) {
        const SgdOptions options{0.05, 0.1, similarity, loss, ++seed, 0.02};
        check_epoch(SgdProblem<Stored>(users, items, dim, ratings), options, tolerance,
                    [](auto& problem, const SgdOptions& options) { return epoch(problem, options, threads(2)); });
      }
    }
  }
}

// Whether user and item are of one parity: a pattern of rank one.
template <class Real>
void test_learns_a_pattern() {
  for (const Similarity similarity : {Similarity::cosine, Similarity::dot}) {
    SgdProblem<Real> problem(90, 60, 4, 9000);
    for (std::int64_t i = 0; i < problem.count; ++i) problem.values[i] = (problem.user[i] + problem.item[i]) % 2;
    problem.users = normal<Real>(90 * 4, 1), problem.items = normal<Real>(60 * 4, 2);
    double loss = 1;
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
      loss = epoch(problem, {.lr = 0.1, .l2 = 0, .similarity = similarity, .seed = seed}, threads(2));
    }
    CHECK(loss < 1e-3);
  }
}

template <class Stored>
void test_threads_change_nothing() {
  for (const RatingLoss loss : {RatingLoss::squared, RatingLoss::logistic}) {
    for (const std::int64_t ratings : {3000, 40000}) {  // of the first are fewer groups than threads
      SgdProblem<Stored> one(300, 200, 9, ratings), four = one;
      const SgdOptions options{0.02, 0.1, Similarity::cosine, loss, 7};
      const double alone = epoch(one, options), shared = epoch(four, options, threads(4));
      CHECK(alone == shared && one == four);
    }
  }
}

void test_bad_ratings_throw_and_change_nothing() {
  SgdProblem<double> problem(4, 3, 5, 20000);
  problem.user[17000] = 4;
  SgdProblem<double> before = problem;
  check_throws([&] { epoch(problem, {0.1, 0}, threads(2)); }, "users must be from 0 to 3, got 4 at 17000");
  problem.user[17000] = before.user[17000] = 0;
  problem.item[3] = before.item[3] = -1;
  check_throws([&] { epoch(problem, {0.1, 0}); }, "items must be from 0 to 2, got -1 at 3");
  problem.values[2] = before.values[2] = 1.5;
  check_throws([&] { epoch(problem, {0.1, 0, Similarity::dot, RatingLoss::logistic}); }, "from 0 to 1 for the logistic");
  CHECK(problem == before);
}

}  // namespace

// With an argument only what threads do, for the sanitizer that is slow.
int main(int count, char**) {
  test_threads_change_nothing<float>();
  test_threads_change_nothing<double>();
  test_threads_change_nothing<BFloat16>();
  if (count > 1) return 0;
  test_epochs<float>(2e-5);
  test_epochs<double>(1e-12);
  test_epochs<BFloat16>(0x1p-7);
  test_learns_a_pattern<float>();
  test_learns_a_pattern<double>();
  test_bad_ratings_throw_and_change_nothing();
}
