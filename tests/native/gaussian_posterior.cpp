// The posterior against its definition, written out in double precision.
#include "metarec/gaussian_posterior.h"

#include "checks.h"

namespace {

template <class Real>
struct Problem {
  std::int64_t rank;
  std::vector<std::int64_t> offsets{0};
  std::vector<Real> features, targets, precision, prior_mean, prior_precision;
  std::vector<Real> mean, cholesky, log_evidence;

  Problem(const std::vector<std::int64_t>& counts, std::int64_t rank, bool own) : rank(rank) {
    for (const std::int64_t count : counts) offsets.push_back(offsets.back() + count);
    const std::int64_t tasks = std::ssize(counts), total = offsets.back(), priors = own ? tasks : 1;
    features = normal<Real>(total * rank, 1);
    targets = normal<Real>(total, 2);
    precision = normal<Real>(total, 3);
    for (Real& value : precision) value = value < -1 ? Real(0) : std::abs(value) + Real(0.1);
    prior_mean = normal<Real>(priors * rank, 4);
    prior_precision.resize(priors * rank * rank);
    for (std::int64_t prior = 0; prior < priors; ++prior) {
      for (std::int64_t i = 0; i < rank; ++i) {
        for (std::int64_t k = 0; k < rank; ++k) {
          prior_precision[(prior * rank + i) * rank + k] = i == k ? Real(2 + prior % 3) : Real(1.0 / (2 + i + k));
        }
      }
    }
    mean.resize(tasks * rank);
    cholesky.resize(tasks * rank * rank);
    log_evidence.resize(tasks);
  }

  metarec::GaussianTasks<Real> tasks() const {
    return {rank, features, targets, precision, offsets, prior_mean, prior_precision};
  }
  void solve(const metarec::Parallel& parallel = {}) {
    metarec::gaussian_posterior<Real>(tasks(), {mean, cholesky, log_evidence}, parallel);
  }
};

// Claims L L^T = P + sum w f f^T and L L^T mu = P m + sum w y f, to a tolerance of the size of the terms.
template <class Real>
void check_normal_equations(const Problem<Real>& p, double tolerance) {
  const std::int64_t rank = p.rank;
  const bool own = std::ssize(p.prior_mean) > rank;
  for (std::int64_t task = 0; task + 1 < std::ssize(p.offsets); ++task) {
    const Real* prior = p.prior_precision.data() + (own ? task * rank * rank : 0);
    const Real* prior_mean = p.prior_mean.data() + (own ? task * rank : 0);
    const Real* factor = p.cholesky.data() + task * rank * rank;
    for (std::int64_t i = 0; i < rank; ++i) {
      double shift = 0, image = 0, size = 1;
      for (std::int64_t k = 0; k < rank; ++k) {
        double wanted = prior[i * rank + k], got = 0;
        shift += prior[i * rank + k] * static_cast<double>(prior_mean[k]);
        for (std::int64_t j = p.offsets[task]; j < p.offsets[task + 1]; ++j) {
          const Real* f = p.features.data() + j * rank;
          wanted += static_cast<double>(p.precision[j]) * f[i] * f[k];
        }
        for (std::int64_t c = 0; c < rank; ++c) got += static_cast<double>(factor[i * rank + c]) * factor[k * rank + c];
        CHECK(k <= i || factor[i * rank + k] == 0);
        CHECK(std::abs(got - wanted) <= tolerance * (1 + std::abs(wanted)));
        image += wanted * p.mean[task * rank + k];
        size += std::abs(wanted * p.mean[task * rank + k]);
      }
      for (std::int64_t j = p.offsets[task]; j < p.offsets[task + 1]; ++j) {
        shift += static_cast<double>(p.precision[j]) * p.targets[j] * p.features[j * rank + i];
      }
      CHECK(std::abs(image - shift) <= tolerance * size);
    }
  }
}

template <class Real>
void test_normal_equations(double tolerance) {
  for (const std::int64_t rank : {0, 1, 3, 8, 15, 16, 17, 32, 33, 50}) {
    for (const bool own : {false, true}) {
      Problem<Real> problem({0, 1, 5, 64, 65, 0, 130}, rank, own);
      problem.solve();
      check_normal_equations(problem, tolerance);
    }
  }
}

// Claims d log_evidence / d y_j = -w_j (y_j - f_j^T mu).
template <class Real>
void test_gradient_of_the_evidence(double tolerance) {
  Problem<Real> problem({3, 70}, 19, true);
  problem.solve();
  const std::int64_t tasks = 2, count = std::ssize(problem.targets);
  const std::vector<Real> no_mean(tasks * 19), no_cholesky(tasks * 19 * 19), ones(tasks, Real(1));
  std::vector<Real> features(count * 19), targets(count), precision(count), mean(tasks * 19), matrix(tasks * 19 * 19);
  metarec::gaussian_posterior_backward<Real>(problem.tasks(), problem.mean, problem.cholesky, no_mean, no_cholesky,
                                             ones, {features, targets, precision, mean, matrix});
  for (std::int64_t j = 0; j < count; ++j) {
    const std::int64_t task = j < 3 ? 0 : 1;
    double fitted = 0;
    for (std::int64_t i = 0; i < 19; ++i) {
      fitted += static_cast<double>(problem.features[j * 19 + i]) * problem.mean[task * 19 + i];
    }
    CHECK(std::abs(targets[j] + problem.precision[j] * (problem.targets[j] - fitted)) <= tolerance);
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
    const std::vector<Real> grad_mean = normal<Real>(std::ssize(one.mean), 5),
                            grad_cholesky = normal<Real>(std::ssize(one.cholesky), 6),
                            grad_evidence = normal<Real>(std::ssize(one.log_evidence), 7);
    std::vector<std::vector<Real>> gradients;
    for (const std::int64_t count : {1, 4}) {
      std::vector<Real> features(one.features.size()), targets(one.targets.size()), precision(one.precision.size()),
          mean(one.prior_mean.size()), matrix(one.prior_precision.size());
      metarec::gaussian_posterior_backward<Real>(one.tasks(), one.mean, one.cholesky, grad_mean, grad_cholesky,
                                                 grad_evidence, {features, targets, precision, mean, matrix},
                                                 threads(count));
      for (const auto* values : {&features, &targets, &precision, &mean, &matrix}) gradients.push_back(*values);
    }
    for (std::size_t i = 0; i < 5; ++i) CHECK(gradients[i] == gradients[i + 5]);
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
  test_normal_equations<float>(2e-4);
  test_normal_equations<double>(1e-11);
  test_gradient_of_the_evidence<float>(2e-3);
  test_gradient_of_the_evidence<double>(1e-11);
  test_an_update_adds_and_takes_away<float>(2e-3);
  test_an_update_adds_and_takes_away<double>(1e-11);
  test_bad_arguments_throw();
}
