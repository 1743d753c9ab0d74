// The kernels of gaussian_posterior, its gradients and its updates against the same written out in double precision.
#include "ops/cuda/gaussian_posterior_kernel.cuh"

#include "cuda/emulated.h"
#include "native/posterior_by_hand.h"

namespace {

namespace cuda = metarec::cuda;

template <class Value>
std::vector<Value> copied(std::span<const Value> values) {
  return {values.begin(), values.end()};
}

template <class Real>
struct Problem : PosteriorProblem<Real> {
  using PosteriorProblem<Real>::PosteriorProblem;
  using PosteriorProblem<Real>::rank;
  std::int64_t most_blocks = 1024;

  cuda::GaussianTasks<Real> view() const {
    cuda::GaussianTasks<Real> tasks{rank, this->tasks(), this->offsets.back(), this->features.data(),
                                    this->targets.data(), this->precision.data(), this->offsets.data(),
                                    this->prior_mean.data(), this->prior_precision.data(), this->own_mean,
                                    this->own_precision};
    tasks.blocks = std::min(tasks.blocks, most_blocks);
    return tasks;
  }

  struct Results {
    std::vector<Real> mean, cholesky, log_evidence;
    bool operator==(const Results&) const = default;
  };

  Results compute(std::uint64_t seed) const {
    const std::int64_t tasks = this->tasks();
    simt::Output<Real> mean(tasks * rank), cholesky(tasks * rank * rank), evidence(tasks);
    simt::Output<Real> determinants(view().priors()), matrices(cuda::gaussian_matrices(view(), view().height()));
    cuda::gaussian_posterior<Emulated, Real>(
        {seed}, view(), {mean.data(), cholesky.data(), evidence.data(), determinants.data(), matrices.data()});
    return {copied(mean.written()), copied(cholesky.written()), copied(evidence.written())};
  }

  struct Gradients {
    std::vector<Real> features, targets, precision, prior_mean, prior_precision;
    bool operator==(const Gradients&) const = default;
  };

  // Of posteriors that were computed by hand.
  Gradients gradients(const std::vector<PosteriorByHand>& posteriors, const PosteriorAdjoint<Real>& adjoint,
                      std::uint64_t seed) const {
    const cuda::GaussianTasks<Real> tasks = view();
    const std::int64_t count = tasks.observations;
    std::vector<Real> mean, cholesky;
    for (const PosteriorByHand& posterior : posteriors) {
      mean.insert(mean.end(), posterior.mean.begin(), posterior.mean.end());
      cholesky.insert(cholesky.end(), posterior.cholesky.values.begin(), posterior.cholesky.values.end());
    }
    simt::Output<Real> features(count * rank), targets(count), precision(count);
    simt::Output<Real> prior_mean(std::ssize(this->prior_mean)), prior_precision(std::ssize(this->prior_precision));
    simt::Output<Real> sums(tasks.blocks * cuda::gaussian_sums(tasks));
    simt::Output<Real> matrices(cuda::gaussian_matrices(tasks, tasks.gradient_height()));
    cuda::gaussian_posterior_backward<Emulated, Real>(
        {seed}, tasks,
        {adjoint.mean.data(), adjoint.cholesky.data(), adjoint.log_evidence.data(), mean.data(), cholesky.data()},
        {features.data(), targets.data(), precision.data(), prior_mean.data(), prior_precision.data(), sums.data(),
         matrices.data()});
    return {copied(features.written()), copied(targets.written()), copied(precision.written()),
            copied(prior_mean.written()), copied(prior_precision.written())};
  }

  std::vector<PosteriorByHand> by_hand() const {
    std::vector<PosteriorByHand> posteriors;
    for (std::int64_t t = 0; t < this->tasks(); ++t) posteriors.push_back(posterior_by_hand(this->task(t)));
    return posteriors;
  }
};

template <class Real>
std::string name_of(std::uint64_t seed) {
  return "case " + std::to_string(seed) + (sizeof(Real) == sizeof(double) ? " in double" : " in float");
}

template <class Real>
constexpr double kTolerance = sizeof(Real) == sizeof(double) ? 1e-12 : 2e-5;

template <class Real>
void check_posteriors(const Problem<Real>& problem, const std::vector<PosteriorByHand>& posteriors,
                      std::uint64_t seed) {
  std::vector<double> mean, cholesky, evidence;
  for (const PosteriorByHand& posterior : posteriors) {
    mean.insert(mean.end(), posterior.mean.begin(), posterior.mean.end());
    cholesky.insert(cholesky.end(), posterior.cholesky.values.begin(), posterior.cholesky.values.end());
    evidence.push_back(posterior.log_evidence);
  }
  const std::string what = name_of<Real>(seed);
  const auto results = problem.compute(seed);
  check_close(results.mean, mean, 4 * kTolerance<Real>, what + ": mean");
  check_close(results.cholesky, cholesky, kTolerance<Real>, what + ": cholesky");
  check_close(results.log_evidence, evidence, 4 * kTolerance<Real>, what + ": log evidence");
}

template <class Real>
void check_against_reference(const Problem<Real>& problem, std::uint64_t seed) {
  const std::vector<PosteriorByHand> posteriors = problem.by_hand();
  check_posteriors(problem, posteriors, seed);
  const PosteriorAdjoint<Real> adjoint(problem);
  check_gradients(problem, posteriors, adjoint, problem.gradients(posteriors, adjoint, seed), 4 * kTolerance<Real>,
                  name_of<Real>(seed));
}

// The shapes of tests/ops/test_gaussian_posterior.py, with fewer observations and tasks where these only repeat.
template <class Real>
void test_posteriors_and_gradients() {
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
  check_against_reference(Problem<float>(64, {33, 5}, false, false), 10);
  check_against_reference(Problem<double>(64, {20}, false, true), 11);
  check_against_reference(Problem<float>(65, {9, 0}, false, true), 12);
  check_against_reference(Problem<float>(90, {33}, false, false), 13);
}

// Launches nothing: claims that the smallest devices (8.6 and 12.0) could, whose blocks have 99 KiB.
struct OnSmallDevice {
  std::int64_t rank;

  template <class... Parameters>
  void operator()(const cuda::Grid& grid, void (*)(Parameters...), std::type_identity_t<Parameters>...) const {
    constexpr std::size_t limit = 99 << 10, static_bytes = 1 << 10;
    if (grid.shared_bytes + static_bytes <= limit) return;
    std::fprintf(stderr, "rank %td takes %zu bytes of shared memory\n", rank, grid.shared_bytes);
    std::exit(1);
  }
};

template <class Real>
void test_any_rank_fits_on_small_devices() {
  for (const std::int64_t rank : {1, 64, 65, 154, 155, 400, 1000, 3000}) {
    const OnSmallDevice launch{rank};
    const cuda::GaussianTasks<Real> tasks{rank, 8, 80, {}, {}, {}, {}, {}, {}, true, true};
    cuda::gaussian_posterior<OnSmallDevice, Real>(launch, tasks, {});
    cuda::gaussian_posterior_backward<OnSmallDevice, Real>(launch, tasks, {}, {});
    cuda::gaussian_update<OnSmallDevice, Real>(launch, {rank, 8, {}, {}, {}, {}, {}, {}, {}});
  }
}

// With doubles 31 rows of rank 155 are taken at a time.
void test_tiles_of_long_rows() {
  const Problem<double> problem(155, {32}, false, false);
  check_posteriors(problem, problem.by_hand(), 30);
}

void test_blocks_with_a_workspace_go_through_all_tasks() {
  std::uint64_t seed = 14;
  for (const std::int64_t rank : {3, 65}) {
    for (const bool own_mean : {false, true}) {
      for (const bool own_precision : {false, true}) {
        if (rank == 65 && own_mean != own_precision) continue;
        Problem<float> problem(rank, {2, 0, 3, 1, 4}, own_mean, own_precision);
        problem.most_blocks = 2;
        check_against_reference(problem, seed++);
      }
    }
  }
}

// Updates posteriors that were computed by hand, each by one observation.
template <class Real>
struct Update {
  std::int64_t rank, tasks;
  std::vector<Real> mean, cholesky, features, targets, precision;

  struct Results {
    std::vector<Real> mean, cholesky;
    bool operator==(const Results&) const = default;
  };

  Results compute(std::uint64_t seed) const {
    simt::Output<Real> new_mean(tasks * rank), new_cholesky(tasks * rank * rank);
    cuda::gaussian_update<Emulated, Real>({seed}, {rank, tasks, mean.data(), cholesky.data(), features.data(),
                                                   targets.data(), precision.data(), new_mean.data(),
                                                   new_cholesky.data()});
    return {copied(new_mean.written()), copied(new_cholesky.written())};
  }
};

// The last observation of each task is kept back, or is one too many that must be taken away.
template <class Real>
Update<Real> update_of(const Problem<Real>& problem, bool takes_away, std::vector<double>& mean,
                       std::vector<double>& cholesky) {
  const std::int64_t rank = problem.rank;
  Update<Real> update{rank, problem.tasks(), {}, {}, {}, {}, {}};
  for (std::int64_t t = 0; t < problem.tasks(); ++t) {
    TaskByHand without = problem.task(t);
    const PosteriorByHand with = posterior_by_hand(without);
    const std::int64_t last = problem.offsets[t + 1] - 1;
    update.precision.push_back(takes_away ? -problem.precision[last] : problem.precision[last]);
    update.targets.push_back(problem.targets[last]);
    update.features.insert(update.features.end(), problem.features.begin() + last * rank,
                           problem.features.begin() + (last + 1) * rank);
    without.precision.back() = 0;
    const PosteriorByHand rest = posterior_by_hand(without);
    const auto &from = takes_away ? with : rest, &to = takes_away ? rest : with;
    update.mean.insert(update.mean.end(), from.mean.begin(), from.mean.end());
    update.cholesky.insert(update.cholesky.end(), from.cholesky.values.begin(), from.cholesky.values.end());
    mean.insert(mean.end(), to.mean.begin(), to.mean.end());
    cholesky.insert(cholesky.end(), to.cholesky.values.begin(), to.cholesky.values.end());
  }
  return update;
}

template <class Real>
void test_updates() {
  const double tolerance = sizeof(Real) == sizeof(double) ? 1e-12 : 2e-5;
  std::uint64_t seed = 20;
  for (const std::int64_t rank : {0, 1, 2, 7, 31, 33, 64, 65}) {
    for (const bool takes_away : {false, true}) {
      std::vector<double> mean, cholesky;
      const Update<Real> update = update_of(Problem<Real>(rank, {4, 1, 9}, false, false), takes_away, mean, cholesky);
      const auto results = update.compute(++seed);
      const std::string what = "update of rank " + std::to_string(rank);
      check_close(results.mean, mean, 4 * tolerance, what + ": mean");
      check_close(results.cholesky, cholesky, 4 * tolerance, what + ": cholesky");
    }
  }
  Update<Real>{3, 0, {}, {}, {}, {}, {}}.compute(1);
}

void test_the_order_of_threads_changes_nothing() {
  for (const bool own : {false, true}) {
    const Problem<float> problem(19, {12, 3, 40}, own, own);
    const PosteriorAdjoint<float> adjoint(problem);
    const std::vector<PosteriorByHand> posteriors = problem.by_hand();
    CHECK(problem.compute(1) == problem.compute(2));
    CHECK(problem.gradients(posteriors, adjoint, 1) == problem.gradients(posteriors, adjoint, 2));
  }
  std::vector<double> mean, cholesky;
  const Update<float> update = update_of(Problem<float>(40, {3, 5}, false, false), false, mean, cholesky);
  CHECK(update.compute(1) == update.compute(2));
}

void test_what_has_no_posterior_is_nan_in_that_task_alone() {
  Problem<float> problem(4, {3, 3, 3}, false, true);
  problem.precision[4] = -1;
  problem.prior_precision[2 * 16 + 5] = -100;
  const auto results = problem.compute(1);
  for (const int task : {0, 1, 2}) CHECK(std::isnan(results.log_evidence[task]) == (task > 0));
  for (const int i : {0, 1, 2, 3}) CHECK(!std::isnan(results.mean[i]) && std::isnan(results.mean[4 + i]));

  std::vector<double> mean, cholesky;
  Update<float> update = update_of(Problem<float>(4, {3, 3, 3}, false, false), false, mean, cholesky);
  update.precision[1] = -100, update.precision[2] = std::numeric_limits<float>::infinity();
  const auto updated = update.compute(1);
  for (const int i : {0, 1, 2, 3}) {
    CHECK(!std::isnan(updated.mean[i]) && std::isnan(updated.mean[4 + i]) && std::isnan(updated.mean[8 + i]));
  }
}

void test_offsets_that_do_not_fit_stop_the_kernel() {
  Problem<float> problem(4, {3, 3}, false, false);
  const std::vector<PosteriorByHand> posteriors = problem.by_hand();
  problem.offsets[1] = 7;
  check_error([&] { problem.compute(1); }, "offsets must ascend from 0");
  const PosteriorAdjoint<float> adjoint(problem);
  check_error([&] { problem.gradients(posteriors, adjoint, 1); }, "offsets must ascend from 0");
}

}  // namespace

int main() {
  test_any_rank_fits_on_small_devices<double>();
  test_any_rank_fits_on_small_devices<float>();
  test_updates<float>();
  test_updates<double>();
  test_posteriors_and_gradients<float>();
  test_posteriors_and_gradients<double>();
  test_the_largest_in_shared_memory_and_those_beyond();
  test_tiles_of_long_rows();
  test_blocks_with_a_workspace_go_through_all_tasks();
  test_the_order_of_threads_changes_nothing();
  test_what_has_no_posterior_is_nan_in_that_task_alone();
  test_offsets_that_do_not_fit_stop_the_kernel();
}
