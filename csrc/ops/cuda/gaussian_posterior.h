// Bayesian linear regression of many tasks at once on CUDA. All pointers are the device's.
#pragma once

#include <algorithm>

#include "stream.h"

namespace metarec::cuda {

// Up to this rank the matrices of a task lie in shared memory; above, in a workspace of their block.
constexpr std::int64_t kSharedRank = 64;
constexpr int kRows = 32;  // observations that are handled at a time, at most

// As metarec::GaussianTasks: task t owns the observations [offsets[t], offsets[t + 1]).
template <class Real>
struct GaussianTasks {
  std::int64_t rank, tasks, observations;
  const Real* features;         // [observations, rank]
  const Real* targets;          // [observations]
  const Real* precision;        // [observations]
  const std::int64_t* offsets;  // [tasks + 1]
  const Real* prior_mean;       // [rank], or [tasks, rank]
  const Real* prior_precision;  // [rank, rank], or [tasks, rank, rank]; the lower triangle is read
  bool own_mean, own_precision;
  // So many go through all tasks where each has a workspace, on any device: they decide the order of sums.
  std::int64_t blocks = std::min<std::int64_t>(tasks, 1024);

  std::int64_t priors() const { return own_precision ? tasks : 1; }
  // From one row of a matrix to the next: room for one value more, and odd, so that a column lies in all banks.
  std::int64_t stride() const { return (rank + 1) | 1; }
  // The rows of a task's matrices: one, and the right-hand side; or a gradient, and what its rows take up one by one.
  std::int64_t height() const { return rank + 1; }
  std::int64_t gradient_height() const { return rank + std::max<std::int64_t>(rank, 2 * kRows); }
};

// The observations whose rows lie in shared memory at a time: fewer where rows are long (doubles from rank 155 up), so
// that they and a mean take 40 KiB, and two blocks fit on a multiprocessor of any device.
template <class Real>
int rows_at_once(const GaussianTasks<Real>& tasks) {
  constexpr std::int64_t values = (40 << 10) / sizeof(Real);
  return static_cast<int>(std::clamp<std::int64_t>((values - tasks.rank) / tasks.stride(), 1, kRows));
}

// The size of the workspace for matrices of a height.
template <class Real>
std::int64_t gaussian_matrices(const GaussianTasks<Real>& tasks, std::int64_t height) {
  return tasks.rank <= kSharedRank ? 0 : std::max<std::int64_t>(tasks.blocks, 1) * height * tasks.stride();
}

template <class Real>
struct GaussianPosterior {
  Real* mean;                        // [tasks, rank]
  Real* cholesky;                    // [tasks, rank, rank]
  Real* log_evidence;                // [tasks]
  Real* half_log_prior_determinant;  // workspace, [priors]
  Real* matrices;                    // workspace of gaussian_matrices(tasks, tasks.height())
};

// What reaches the results, and the results themselves.
template <class Real>
struct GaussianAdjoint {
  const Real *grad_mean, *grad_cholesky, *grad_log_evidence;
  const Real *mean, *cholesky;
};

template <class Real>
struct GaussianPosteriorGradients {
  Real *features, *targets, *precision, *prior_mean, *prior_precision;  // of the sizes in GaussianTasks
  Real* sums;                                                           // workspace, [blocks, gaussian_sums(tasks)]
  Real* matrices;  // workspace of gaussian_matrices(tasks, tasks.gradient_height())
};

// What a block leaves of the gradients of priors that all tasks share: of the precision, then of the mean.
template <class Real>
std::int64_t gaussian_sums(const GaussianTasks<Real>& tasks) {
  return (tasks.own_precision ? 0 : tasks.rank * tasks.rank) + (tasks.own_mean ? 0 : tasks.rank);
}

// A posterior per task, and an observation that it takes up; one of negative precision is taken away.
template <class Real>
struct GaussianUpdates {
  std::int64_t rank, tasks;
  const Real* mean;       // [tasks, rank]
  const Real* cholesky;   // [tasks, rank, rank]
  const Real* features;   // [tasks, rank]
  const Real* targets;    // [tasks]
  const Real* precision;  // [tasks]
  Real *new_mean, *new_cholesky;
};

// Where a precision is negative or not finite, or a matrix not positive definite, what depends on it is NaN.
// Launch is Stream, or what the tests have in its place.
template <class Launch, class Real>
void gaussian_posterior(const Launch& launch, const GaussianTasks<Real>& tasks,
                        const GaussianPosterior<Real>& posterior);

template <class Launch, class Real>
void gaussian_posterior_backward(const Launch& launch, const GaussianTasks<Real>& tasks,
                                 const GaussianAdjoint<Real>& adjoint,
                                 const GaussianPosteriorGradients<Real>& gradients);

template <class Launch, class Real>
void gaussian_update(const Launch& launch, const GaussianUpdates<Real>& updates);

}  // namespace metarec::cuda
