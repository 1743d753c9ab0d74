// Bayesian linear regression of many tasks at once: posterior, evidence, gradients, one-observation updates.
#pragma once

#include <cstdint>
#include <span>

#include "metarec/parallel.h"

namespace metarec {

// Task t owns the observations [offsets[t], offsets[t + 1]). All arrays are row-major; Real is float or double.
template <class Real>
struct GaussianTasks {
  std::int64_t rank;
  std::span<const Real> features;         // [n, rank]
  std::span<const Real> targets;          // [n]
  std::span<const Real> precision;        // [n], >= 0; an observation of precision 0 is absent
  std::span<const std::int64_t> offsets;  // [tasks + 1]
  std::span<const Real> prior_mean;       // [rank], or [tasks, rank]
  std::span<const Real> prior_precision;  // [rank, rank], or [tasks, rank, rank]; the lower triangle is read

  std::int64_t tasks() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
};

template <class Real>
struct GaussianPosterior {
  std::span<Real> mean;          // [tasks, rank]
  std::span<Real> cholesky;      // [tasks, rank, rank], lower factor of the posterior precision
  std::span<Real> log_evidence;  // [tasks]
};

template <class Real>
struct GaussianPosteriorGradients {
  std::span<Real> features;
  std::span<Real> targets;
  std::span<Real> precision;
  std::span<Real> prior_mean;
  std::span<Real> prior_precision;
};

// Computes the posterior of every task; throws std::invalid_argument where a precision is not positive definite.
template <class Real>
void gaussian_posterior(const GaussianTasks<Real>& tasks, const GaussianPosterior<Real>& posterior,
                        const Parallel& parallel = {});

// Computes the gradients of the inputs from those of the results; `mean` and `cholesky` are the results themselves.
template <class Real>
void gaussian_posterior_backward(const GaussianTasks<Real>& tasks, std::span<const Real> mean,
                                 std::span<const Real> cholesky, std::span<const Real> grad_mean,
                                 std::span<const Real> grad_cholesky, std::span<const Real> grad_log_evidence,
                                 const GaussianPosteriorGradients<Real>& gradients, const Parallel& parallel = {});

// Adds one observation to every posterior in place; one of negative precision takes it away again.
template <class Real>
void gaussian_update(std::int64_t rank, std::span<Real> mean, std::span<Real> cholesky,
                     std::span<const Real> features, std::span<const Real> targets, std::span<const Real> precision,
                     const Parallel& parallel = {});

}  // namespace metarec
