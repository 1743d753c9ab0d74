// The posterior, its gradients and its updates against what they are, written out in double precision.
#include "metarec/gaussian_posterior.h"

#include "posterior_by_hand.h"

namespace {

template <class Real>
struct Problem : PosteriorProblem<Real> {
  std::vector<Real> mean, cholesky, log_evidence;

  Problem(const std::vector<std::int64_t>& counts, std::int64_t rank, bool own)
      : PosteriorProblem<Real>(rank, counts, own, own), mean(counts.size() * rank),
        cholesky(counts.size() * rank * rank), log_evidence(counts.size()) {}

  metarec::GaussianTasks<Real> view() const {
    return {this->rank,    this->features,   this->targets,        this->precision,
            this->offsets, this->prior_mean, this->prior_precision};
  }
  void solve(const metarec::Parallel& parallel = {}) {
    metarec::gaussian_posterior<Real>(view(), {mean, cholesky, log_evidence}, parallel);
  }

  struct Gradients {
    std::vector<Real> features, targets, precision, prior_mean, prior_precision;
    bool operator==(const Gradients&) const = default;
  };
  Gradients gradients(const PosteriorAdjoint<Real>& from, const metarec::Parallel& parallel = {}) const {
    Gradients to{std::vector<Real>(this->features.size()), std::vector<Real>(this->targets.size()),
                 std::vector<Real>(this->precision.size()), std::vector<Real>(this->prior_mean.size()),
                 std::vector<Real>(this->prior_precision.size())};
    metarec::gaussian_posterior_backward<Real>(
        view(), mean, cholesky, from.mean, from.cholesky, from.log_evidence,
        {to.features, to.targets, to.precision, to.prior_mean, to.prior_precision}, parallel);
    return to;
  }
};

template <class Real>
void test_posteriors_and_gradients(double tolerance) {
  for (const std::int64_t rank : {0, 1, 3, 8, 15, 16, 17, 32, 33, 50}) {
    for (const bool own : {false, true}) {
      Problem<Real> problem({0, 1, 5, 64, 65, 0, 130}, rank, own);
      problem.solve();
      std::vector<PosteriorByHand> posteriors;
      std::vector<double> mean, cholesky, evidence;
      for (std::int64_t t = 0; t < problem.tasks(); ++t) {
        posteriors.push_back(posterior_by_hand(problem.task(t)));
        const auto& [of_mean, of_cholesky, of_evidence] = posteriors.back();
        mean.insert(mean.end(), of_mean.begin(), of_mean.end());
        cholesky.insert(cholesky.end(), of_cholesky.values.begin(), of_cholesky.values.end());
        evidence.push_back(of_evidence);
      }
      const std::string what = "rank " + std::to_string(rank);
      check_close(problem.mean, mean, tolerance, what + ": mean");
      check_close(problem.cholesky, cholesky, tolerance, what + ": cholesky");
      check_close(problem.log_evidence, evidence, tolerance, what + ": log evidence");
      const PosteriorAdjoint<Real> adjoint(problem);
      check_gradients(problem, posteriors, adjoint, problem.gradients(adjoint), tolerance, what);
    }
  }
}

// The gradients that are written out are those of the posterior that is written out: by differences.
void test_gradients_by_hand() {
  const PosteriorProblem<double> problem(3, {0, 4}, true, true);
  const PosteriorAdjoint<double> adjoint(problem);
  for (const std::int64_t t : {0, 1}) {
    TaskByHand task = problem.task(t);
    const auto loss = [&] {
      const PosteriorByHand posterior = posterior_by_hand(task);
      double sum = adjoint.log_evidence[t] * posterior.log_evidence;
      for (std::int64_t i = 0; i < 3; ++i) {
        sum += adjoint.mean[t * 3 + i] * posterior.mean[i];
        for (std::int64_t j = 0; j <= i; ++j) sum += adjoint.cholesky[(t * 3 + i) * 3 + j] * posterior.cholesky(i, j);
      }
      return sum;
    };
    // Of numbers that change together.
    const auto check_slope = [&](const std::vector<double*>& numbers, double wanted) {
      constexpr double step = 1e-5;
      for (double* number : numbers) *number += step;
      const double above = loss();
      for (double* number : numbers) *number -= 2 * step;
      const double below = loss();
      for (double* number : numbers) *number += step;
      CHECK(std::abs((above - below) / (2 * step) - wanted) < 1e-6 * (1 + std::abs(wanted)));
    };
    const TaskByHand to = adjoint.gradients(problem, t, posterior_by_hand(task));
    for (std::size_t i = 0; i < task.features.size(); ++i) check_slope({&task.features[i]}, to.features[i]);
    for (std::size_t i = 0; i < task.targets.size(); ++i) {
      check_slope({&task.targets[i]}, to.targets[i]);
      check_slope({&task.precision[i]}, to.precision[i]);
    }
    for (std::int64_t i = 0; i < 3; ++i) {
      check_slope({&task.prior_mean[i]}, to.prior_mean[i]);
      for (std::int64_t j = 0; j < i; ++j) {
        check_slope({&task.prior_precision(i, j), &task.prior_precision(j, i)}, 2 * to.prior_precision(i, j));
      }
      check_slope({&task.prior_precision(i, i)}, to.prior_precision(i, i));
    }
  }
}

template <class Real>
void test_an_update_adds_and_takes_away(double tolerance) {
  for (const std::int64_t rank : {1, 7, 33}) {
    Problem<Real> all({4, 9}, rank, false), without = all;
    without.precision[2] = without.precision[12] = 0;
    all.precision[2] = all.precision[12] = Real(1.5);
    all.solve();
    without.solve();
    std::vector<Real> features, targets{all.targets[2], all.targets[12]}, precision{Real(1.5), Real(1.5)};
    for (const std::int64_t j : {2, 12}) {
      features.insert(features.end(), all.features.begin() + j * rank, all.features.begin() + (j + 1) * rank);
    }
    std::vector<Real> mean = without.mean, cholesky = without.cholesky;
    const auto check_equals = [&](const Problem<Real>& wanted) {
      for (std::size_t i = 0; i < mean.size(); ++i) CHECK(std::abs(mean[i] - wanted.mean[i]) <= tolerance);
      for (std::size_t i = 0; i < cholesky.size(); ++i) CHECK(std::abs(cholesky[i] - wanted.cholesky[i]) <= tolerance);
    };
    metarec::gaussian_update<Real>(rank, mean, cholesky, features, targets, precision);
    check_equals(all);
    for (Real& value : precision) value = -value;
    metarec::gaussian_update<Real>(rank, mean, cholesky, features, targets, precision);
    check_equals(without);
  }
}

// Many tasks of all lengths, so that every thread has some; the results are the very same.
template <class Real>
void test_threads_change_nothing() {
  std::vector<std::int64_t> counts;
  for (std::int64_t task = 0; task < 300; ++task) counts.push_back(task * 7 % 40);
  for (const bool own : {false, true}) {
    Problem<Real> one(counts, 12, own), four = one;
    one.solve();
    four.solve(threads(4));
    CHECK(one.mean == four.mean && one.cholesky == four.cholesky && one.log_evidence == four.log_evidence);
    const PosteriorAdjoint<Real> adjoint(one);
    CHECK(one.gradients(adjoint) == one.gradients(adjoint, threads(4)));
    const std::vector<Real> step = normal<Real>(std::ssize(one.mean), 8), target = normal<Real>(300, 9),
                            weight(300, Real(0.5));
    metarec::gaussian_update<Real>(12, one.mean, one.cholesky, step, target, weight);
    metarec::gaussian_update<Real>(12, four.mean, four.cholesky, step, target, weight, threads(4));
    CHECK(one.mean == four.mean && one.cholesky == four.cholesky);
  }
}

void test_bad_arguments_throw() {
  Problem<float> problem({2, 3}, 4, true);
  problem.precision[3] = -1;
  check_throws([&] { problem.solve(threads(2)); }, "precision must be finite and not negative");
  problem.precision[3] = 1;
  problem.offsets = {0, 3, 2};
  check_throws([&] { problem.solve(); }, "offsets must ascend from 0 to 5");
  problem.offsets = {0, 2, 5};
  problem.prior_precision.assign(problem.prior_precision.size(), -1);
  check_throws([&] { problem.solve(threads(2)); }, "prior precision of task 0 is not positive definite");
  std::vector<float> mean(2), cholesky{1, 0, 0, 1};
  const std::vector<float> ones(2, 1), target(1, 1), minus(1, -2);
  check_throws([&] { metarec::gaussian_update<float>(2, mean, cholesky, ones, target, minus); },
               "updated precision of task 0 is not positive definite");
}

}  // namespace

// With an argument only what threads do, for the sanitizer that is slow.
int main(int count, char**) {
  test_threads_change_nothing<float>();
  test_threads_change_nothing<double>();
  if (count > 1) return 0;
  test_posteriors_and_gradients<float>(2e-4);
  test_posteriors_and_gradients<double>(1e-11);
  test_gradients_by_hand();
  test_an_update_adds_and_takes_away<float>(2e-3);
  test_an_update_adds_and_takes_away<double>(1e-11);
  test_bad_arguments_throw();
}
