// The kernels of gaussian_posterior against the same written out in double precision.
#include "ops/cuda/gaussian_posterior_kernel.cuh"

#include <numbers>

#include "cuda/emulated.h"

namespace {

namespace cuda = metarec::cuda;

struct Reference {
  std::vector<double> mean, cholesky;
  double log_evidence;
};

template <class Real>
struct Problem {
  std::int64_t rank;
  std::vector<std::int64_t> offsets{0};
  bool own_mean, own_precision;
  std::vector<Real> features, targets, precision, prior_mean, prior_precision;

  Problem(std::int64_t rank, const std::vector<std::int64_t>& counts, bool own_mean, bool own_precision)
      : rank(rank), own_mean(own_mean), own_precision(own_precision) {
    for (const std::int64_t count : counts) offsets.push_back(offsets.back() + count);
    features = normal<Real>(offsets.back() * rank, 1), targets = normal<Real>(offsets.back(), 2);
    for (const Real value : normal<Real>(offsets.back(), 3)) precision.push_back(value * value);
    for (std::int64_t i = 4; i < offsets.back(); i += 5) precision[i] = 0;
    prior_mean = normal<Real>((own_mean ? tasks() : 1) * rank, 4);
    for (std::int64_t task = 0; task < (own_precision ? tasks() : 1); ++task) {
      const std::vector<Real> root = normal<Real>(rank * rank, 5 + static_cast<unsigned>(task));
      for (std::int64_t i = 0; i < rank; ++i) {
        for (std::int64_t j = 0; j < rank; ++j) {  // above the diagonal stands what must not be read
          Real sum = i == j;
          for (std::int64_t k = 0; k < rank; ++k) sum += root[i * rank + k] * root[j * rank + k] / Real(rank);
          prior_precision.push_back(j <= i ? sum : std::numeric_limits<Real>::quiet_NaN());
        }
      }
    }
  }

  std::int64_t tasks() const { return std::ssize(offsets) - 1; }

  struct Results {
    std::vector<Real> mean, cholesky, log_evidence;
    bool operator==(const Results&) const = default;
  };

  Results compute(std::uint64_t seed) const {
    simt::Output<Real> mean(tasks() * rank), cholesky(tasks() * rank * rank), evidence(tasks());
    simt::Output<Real> determinants(own_precision ? tasks() : 1), matrices(cuda::gaussian_matrices(rank, tasks()));
    cuda::gaussian_posterior<Emulated, Real>(
        {seed},
        {rank, tasks(), offsets.back(), features.data(), targets.data(), precision.data(), offsets.data(),
         prior_mean.data(), prior_precision.data(), own_mean, own_precision},
        {mean.data(), cholesky.data(), evidence.data(), determinants.data(), matrices.data()});
    const auto copy = [](const auto& values) { return std::vector<Real>(values.begin(), values.end()); };
    return {copy(mean.written()), copy(cholesky.written()), copy(evidence.written())};
  }

  Reference expected(std::int64_t task) const {
    const Real* prior = prior_precision.data() + (own_precision ? task * rank * rank : 0);
    const Real* center = prior_mean.data() + (own_mean ? task * rank : 0);
    const auto full_prior = [&](std::int64_t i, std::int64_t j) { return double(prior[std::max(i, j) * rank + std::min(i, j)]); };
    std::vector<double> total(rank * rank), solution(rank), prior_factor(rank * rank);
    for (std::int64_t i = 0; i < rank; ++i) {
      for (std::int64_t j = 0; j < rank; ++j) {
        prior_factor[i * rank + j] = total[i * rank + j] = full_prior(i, j);
        solution[i] += full_prior(i, j) * center[j];
      }
    }
    for (std::int64_t row = offsets[task]; row < offsets[task + 1]; ++row) {
      const Real* f = features.data() + row * rank;
      for (std::int64_t i = 0; i < rank; ++i) {
        for (std::int64_t j = 0; j < rank; ++j) total[i * rank + j] += double(precision[row]) * f[i] * f[j];
        solution[i] += double(precision[row]) * targets[row] * f[i];
      }
    }
    double evidence = decompose(prior_factor) - decompose(total);
    for (std::int64_t i = 0; i < rank; ++i) {
      for (std::int64_t k = 0; k < i; ++k) solution[i] -= total[i * rank + k] * solution[k];
      solution[i] /= total[i * rank + i];
    }
    for (std::int64_t i = rank; i-- > 0;) {
      for (std::int64_t k = i + 1; k < rank; ++k) solution[i] -= total[k * rank + i] * solution[k];
      solution[i] /= total[i * rank + i];
    }
    for (std::int64_t row = offsets[task]; row < offsets[task + 1]; ++row) {
      double residual = targets[row];
      for (std::int64_t i = 0; i < rank; ++i) residual -= features[row * rank + i] * solution[i];
      if (precision[row] > 0) {
        evidence += (std::log(precision[row] / (2 * std::numbers::pi)) - precision[row] * residual * residual) / 2;
      }
    }
    for (std::int64_t i = 0; i < rank; ++i) {
      for (std::int64_t j = 0; j < rank; ++j) {
        evidence -= full_prior(i, j) * (solution[i] - center[i]) * (solution[j] - center[j]) / 2;
      }
    }
    return {solution, total, evidence};
  }

  // Factors a matrix in place, and gives half of the logarithm of its determinant.
  double decompose(std::vector<double>& matrix) const {
    double half = 0;
    for (std::int64_t j = 0; j < rank; ++j) {
      for (std::int64_t i = 0; i < rank; ++i) {
        double& entry = matrix[i * rank + j];
        for (std::int64_t k = 0; k < j && i >= j; ++k) entry -= matrix[i * rank + k] * matrix[j * rank + k];
        if (i < j) entry = 0;
        if (i == j) half += std::log(entry = std::sqrt(entry));
        if (i > j) entry /= matrix[j * rank + j];
      }
    }
    return half;
  }
};

template <class Real>
void check_against_reference(const Problem<Real>& problem, std::uint64_t seed) {
  const double tolerance = sizeof(Real) == 8 ? 1e-12 : 2e-5;
  const std::int64_t rank = problem.rank;
  const auto results = problem.compute(seed);
  for (std::int64_t task = 0; task < problem.tasks(); ++task) {
    const Reference expected = problem.expected(task);
    for (std::int64_t i = 0; i < rank; ++i) {
      CHECK(std::abs(results.mean[task * rank + i] - expected.mean[i]) < 4 * tolerance);
      for (std::int64_t j = 0; j < rank; ++j) {
        const double value = results.cholesky[(task * rank + i) * rank + j];
        CHECK(std::abs(value - expected.cholesky[i * rank + j]) < tolerance * (1 + std::abs(value)));
      }
    }
    CHECK(std::abs(results.log_evidence[task] - expected.log_evidence) < 4 * tolerance * (1 + std::abs(expected.log_evidence)));
  }
}

// The shapes of tests/ops/test_gaussian_posterior.py, with fewer observations and tasks where these only repeat.
template <class Real>
void test_posteriors() {
  check_against_reference(Problem<Real>(4, {}, false, false), 1);
  check_against_reference(Problem<Real>(3, {0}, true, true), 2);
  check_against_reference(Problem<Real>(1, {1}, false, false), 3);
  check_against_reference(Problem<Real>(2, {0, 0, 5, 0}, true, false), 4);
  check_against_reference(Problem<Real>(5, {3, 0, 1, 17, 64, 65, 2}, false, true), 5);
  check_against_reference(Problem<Real>(16, {170, 1, 0}, false, false), 6);
  check_against_reference(Problem<Real>(17, {20, 33}, true, true), 7);
  check_against_reference(Problem<Real>(33, {10, 40}, false, true), 8);
  check_against_reference(Problem<Real>(0, {4, 0}, false, false), 9);
}

void test_the_largest_in_shared_memory_and_those_beyond() {
  check_against_reference(Problem<float>(64, {64, 5}, false, false), 10);
  check_against_reference(Problem<double>(64, {20}, false, true), 11);
  check_against_reference(Problem<float>(65, {9, 0}, false, true), 12);
  check_against_reference(Problem<float>(127, {33}, false, false), 13);
}

void test_the_order_of_threads_changes_nothing() {
  const Problem<float> problem(19, {12, 3}, false, false);
  CHECK(problem.compute(1) == problem.compute(2));
}

void test_what_has_no_posterior_is_nan_in_that_task_alone() {
  Problem<float> problem(4, {3, 3, 3}, false, true);
  problem.precision[4] = -1;
  problem.prior_precision[2 * 16 + 5] = -100;
  const auto results = problem.compute(1);
  for (const int task : {0, 1, 2}) CHECK(std::isnan(results.log_evidence[task]) == (task > 0));
  for (const int i : {0, 1, 2, 3}) CHECK(!std::isnan(results.mean[i]) && std::isnan(results.mean[4 + i]));
}

void test_offsets_that_do_not_fit_stop_the_kernel() {
  Problem<float> problem(4, {3, 3}, false, false);
  problem.offsets[1] = 7;
  check_error([&] { problem.compute(1); }, "offsets must ascend from 0");
}

}  // namespace

int main() {
  test_posteriors<float>();
  test_posteriors<double>();
  test_the_largest_in_shared_memory_and_those_beyond();
  test_the_order_of_threads_changes_nothing();
  test_what_has_no_posterior_is_nan_in_that_task_alone();
  test_offsets_that_do_not_fit_stop_the_kernel();
}
