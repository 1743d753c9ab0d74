// Bayesian linear regression of many tasks at once on CUDA. All pointers are the device's.
#pragma once

#include <algorithm>

#include "stream.h"

namespace metarec::cuda {

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
};

template <class Real>
struct GaussianPosterior {
  Real* mean;                        // [tasks, rank]
  Real* cholesky;                    // [tasks, rank, rank]
  Real* log_evidence;                // [tasks]
  Real* half_log_prior_determinant;  // workspace, [tasks], or [1] where all share the prior precision
  Real* matrices;                    // workspace of gaussian_matrices(rank, tasks)
};

// Up to this rank the matrix of a task lies in shared memory; above, in a workspace of that block.
constexpr std::int64_t kSharedRank = 64;
constexpr std::int64_t kBlocksWithWorkspace = 1024;
constexpr std::int64_t gaussian_matrices(std::int64_t rank, std::int64_t tasks) {
  return rank <= kSharedRank ? 0 : std::min(std::max<std::int64_t>(tasks, 1), kBlocksWithWorkspace) * (rank + 1) * (rank + 1);
}

// Where a precision is negative or not finite, or a matrix not positive definite, what depends on it is NaN.
// Launch is Stream, or what the tests have in its place.
template <class Launch, class Real>
void gaussian_posterior(const Launch& launch, const GaussianTasks<Real>& tasks,
                        const GaussianPosterior<Real>& posterior);

}  // namespace metarec::cuda
