// Bayesian linear regression of a task, its gradients, and tasks to try it on, written out in double precision.
#pragma once

#include <algorithm>
#include <limits>
#include <numbers>
#include <utility>
#include <vector>

#include "checks.h"

// A square matrix, or one row of numbers.
struct Matrix {
  std::int64_t rank = 0;
  std::vector<double> values;

  explicit Matrix(std::int64_t rank) : rank(rank), values(rank * rank) {}
  double& operator()(std::int64_t i, std::int64_t j) { return values[i * rank + j]; }
  double operator()(std::int64_t i, std::int64_t j) const { return values[i * rank + j]; }

  Matrix transposed() const {
    Matrix result(rank);
    for (std::int64_t i = 0; i < rank; ++i) {
      for (std::int64_t j = 0; j < rank; ++j) result(i, j) = (*this)(j, i);
    }
    return result;
  }

  std::vector<double> operator*(const std::vector<double>& vector) const {
    std::vector<double> result(rank);
    for (std::int64_t i = 0; i < rank; ++i) {
      for (std::int64_t j = 0; j < rank; ++j) result[i] += (*this)(i, j) * vector[j];
    }
    return result;
  }

  Matrix operator*(const Matrix& other) const {
    Matrix result(rank);
    for (std::int64_t i = 0; i < rank; ++i) {
      for (std::int64_t k = 0; k < rank; ++k) {
        if ((*this)(i, k) == 0) continue;
        for (std::int64_t j = 0; j < rank; ++j) result(i, j) += (*this)(i, k) * other(k, j);
      }
    }
    return result;
  }

  // The lower triangle L of L L^T.
  Matrix cholesky() const {
    Matrix lower(rank);
    for (std::int64_t j = 0; j < rank; ++j) {
      for (std::int64_t i = j; i < rank; ++i) {
        double value = (*this)(i, j);
        for (std::int64_t k = 0; k < j; ++k) value -= lower(i, k) * lower(j, k);
        lower(i, j) = i == j ? std::sqrt(value) : value / lower(j, j);
      }
    }
    return lower;
  }

  // Of a lower triangle.
  Matrix inverse() const {
    Matrix result(rank);
    for (std::int64_t j = 0; j < rank; ++j) {
      for (std::int64_t i = j; i < rank; ++i) {
        double value = i == j;
        for (std::int64_t k = j; k < i; ++k) value -= (*this)(i, k) * result(k, j);
        result(i, j) = value / (*this)(i, i);
      }
    }
    return result;
  }

  double log_diagonal() const {
    double sum = 0;
    for (std::int64_t i = 0; i < rank; ++i) sum += std::log((*this)(i, i));
    return sum;
  }
};

struct TaskByHand {
  std::vector<double> features, targets, precision, prior_mean;
  Matrix prior_precision;

  std::int64_t rank() const { return prior_precision.rank; }
};

struct PosteriorByHand {
  std::vector<double> mean;
  Matrix cholesky;
  double log_evidence;
};

inline PosteriorByHand posterior_by_hand(const TaskByHand& task) {
  const std::int64_t rank = task.rank(), count = std::ssize(task.targets);
  Matrix total = task.prior_precision;
  std::vector<double> shift = task.prior_precision * task.prior_mean;
  for (std::int64_t row = 0; row < count; ++row) {
    const double* f = task.features.data() + row * rank;
    for (std::int64_t i = 0; i < rank; ++i) {
      for (std::int64_t j = 0; j < rank; ++j) total(i, j) += task.precision[row] * f[i] * f[j];
      shift[i] += task.precision[row] * task.targets[row] * f[i];
    }
  }
  const Matrix cholesky = total.cholesky(), inverse = cholesky.inverse();
  const std::vector<double> mean = inverse.transposed() * (inverse * shift);
  double evidence = task.prior_precision.cholesky().log_diagonal() - cholesky.log_diagonal();
  for (std::int64_t row = 0; row < count; ++row) {
    const double w = task.precision[row];
    double residual = task.targets[row];
    for (std::int64_t i = 0; i < rank; ++i) residual -= task.features[row * rank + i] * mean[i];
    if (w > 0) evidence += (std::log(w / (2 * std::numbers::pi)) - w * residual * residual) / 2;
  }
  for (std::int64_t i = 0; i < rank; ++i) {
    for (std::int64_t j = 0; j < rank; ++j) {
      evidence -= task.prior_precision(i, j) * (mean[i] - task.prior_mean[i]) * (mean[j] - task.prior_mean[j]) / 2;
    }
  }
  return {mean, cholesky, evidence};
}

// The gradients of a task's numbers from those of its posterior, as a task of its own; that of the prior precision is
// symmetric. Everything passes through the posterior precision, whose inverse is written out.
inline TaskByHand gradients_by_hand(const TaskByHand& task, const PosteriorByHand& posterior,
                                    const std::vector<double>& of_mean, const Matrix& of_cholesky,
                                    double of_evidence) {
  const std::int64_t rank = task.rank(), count = std::ssize(task.targets);
  const Matrix inverse = posterior.cholesky.inverse(), covariance = inverse.transposed() * inverse;
  const Matrix prior_inverse = task.prior_precision.cholesky().inverse();
  const Matrix prior_covariance = prior_inverse.transposed() * prior_inverse;
  const std::vector<double>&mean = posterior.mean, solved = covariance * of_mean;
  std::vector<double> deviation = mean;
  for (std::int64_t i = 0; i < rank; ++i) deviation[i] -= task.prior_mean[i];

  Matrix inner = posterior.cholesky.transposed() * of_cholesky;
  for (std::int64_t i = 0; i < rank; ++i) {
    for (std::int64_t j = 0; j < i; ++j) inner(j, i) = inner(i, j);
  }
  const Matrix pushed = inverse.transposed() * inner * inverse;
  TaskByHand to{task.features, task.targets, task.precision, {}, Matrix(rank)};
  Matrix total(rank);
  for (std::int64_t i = 0; i < rank; ++i) {
    for (std::int64_t j = 0; j < rank; ++j) {
      total(i, j) = (pushed(i, j) - of_evidence * covariance(i, j) - solved[i] * mean[j] - mean[i] * solved[j]) / 2;
      const double lift = solved[i] * task.prior_mean[j] + task.prior_mean[i] * solved[j];
      const double spread = prior_covariance(i, j) - deviation[i] * deviation[j];
      to.prior_precision(i, j) = total(i, j) + (lift + of_evidence * spread) / 2;
    }
  }
  std::vector<double> shift = solved;
  for (std::int64_t i = 0; i < rank; ++i) shift[i] += of_evidence * deviation[i];
  to.prior_mean = task.prior_precision * shift;

  for (std::int64_t row = 0; row < count; ++row) {
    const std::vector<double> f(task.features.begin() + row * rank, task.features.begin() + (row + 1) * rank);
    const std::vector<double> image = total * f;
    double residual = task.targets[row], along = 0, curvature = 0;
    for (std::int64_t i = 0; i < rank; ++i) {
      residual -= f[i] * mean[i], along += f[i] * solved[i], curvature += f[i] * image[i];
    }
    const double w = task.precision[row], y = task.targets[row];
    for (std::int64_t i = 0; i < rank; ++i) {
      to.features[row * rank + i] = w * (2 * image[i] + y * solved[i] + of_evidence * residual * mean[i]);
    }
    to.targets[row] = w * (along - of_evidence * residual);
    to.precision[row] = curvature + y * along + of_evidence * ((w > 0 ? 1 / w : 0) - residual * residual) / 2;
  }
  return to;
}

// Tasks of random numbers. Some precisions are zero; above the diagonal of a prior precision stands what must not be
// read.
template <class Real>
struct PosteriorProblem {
  std::int64_t rank;
  bool own_mean, own_precision;
  std::vector<std::int64_t> offsets{0};
  std::vector<Real> features, targets, precision, prior_mean, prior_precision;

  PosteriorProblem(std::int64_t rank, const std::vector<std::int64_t>& counts, bool own_mean, bool own_precision)
      : rank(rank), own_mean(own_mean), own_precision(own_precision) {
    for (const std::int64_t count : counts) offsets.push_back(offsets.back() + count);
    features = normal<Real>(offsets.back() * rank, 1), targets = normal<Real>(offsets.back(), 2);
    for (const Real value : normal<Real>(offsets.back(), 3)) precision.push_back(value * value + Real(0.05));
    for (std::int64_t i = 4; i < offsets.back(); i += 5) precision[i] = 0;
    prior_mean = normal<Real>((own_mean ? tasks() : 1) * rank, 4);
    for (std::int64_t task = 0; task < (own_precision ? tasks() : 1); ++task) {
      const std::vector<Real> root = normal<Real>(rank * rank, 5 + static_cast<unsigned>(task));
      for (std::int64_t i = 0; i < rank; ++i) {
        for (std::int64_t j = 0; j < rank; ++j) {
          Real sum = i == j;
          for (std::int64_t k = 0; k < rank; ++k) sum += root[i * rank + k] * root[j * rank + k] / Real(rank);
          prior_precision.push_back(j <= i ? sum : std::numeric_limits<Real>::quiet_NaN());
        }
      }
    }
  }

  std::int64_t tasks() const { return std::ssize(offsets) - 1; }

  TaskByHand task(std::int64_t t) const {
    const std::int64_t begin = offsets[t], end = offsets[t + 1];
    const auto part = [](const std::vector<Real>& values, std::int64_t from, std::int64_t to) {
      return std::vector<double>(values.begin() + from, values.begin() + to);
    };
    const std::int64_t center = own_mean ? t * rank : 0, prior = own_precision ? t * rank * rank : 0;
    TaskByHand result{part(features, begin * rank, end * rank), part(targets, begin, end), part(precision, begin, end),
                      part(prior_mean, center, center + rank), Matrix(rank)};
    for (std::int64_t i = 0; i < rank; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) {
        result.prior_precision(i, j) = result.prior_precision(j, i) = prior_precision[prior + i * rank + j];
      }
    }
    return result;
  }
};

// What is asked of the gradients: numbers that reach the posteriors of all tasks, and the gradients they give.
template <class Real>
struct PosteriorAdjoint {
  std::vector<Real> mean, cholesky, log_evidence;

  explicit PosteriorAdjoint(const PosteriorProblem<Real>& problem)
      : mean(normal<Real>(problem.tasks() * problem.rank, 6)),
        cholesky(normal<Real>(problem.tasks() * problem.rank * problem.rank, 7)),
        log_evidence(normal<Real>(problem.tasks(), 8)) {}

  TaskByHand gradients(const PosteriorProblem<Real>& problem, std::int64_t t, const PosteriorByHand& posterior) const {
    const std::int64_t rank = problem.rank;
    Matrix of_cholesky(rank);
    for (std::int64_t i = 0; i < rank; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) of_cholesky(i, j) = cholesky[(t * rank + i) * rank + j];
    }
    const std::vector<double> of_mean(mean.begin() + t * rank, mean.begin() + (t + 1) * rank);
    return gradients_by_hand(problem.task(t), posterior, of_mean, of_cholesky, log_evidence[t]);
  }
};

// Claims that two rows of numbers differ by no more than this share of the largest of them, or of one.
template <class Values>
void check_close(const Values& values, const std::vector<double>& expected, double tolerance, const std::string& what) {
  CHECK(std::size(values) == expected.size());
  double scale = 1, worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(values[i] - expected[i]);
    scale = std::max(scale, std::abs(expected[i]));
    worst = error <= worst ? worst : error;
  }
  if (worst <= tolerance * scale) return;
  std::fprintf(stderr, "%s: does not hold: an error of %g of %g\n", what.c_str(), worst, scale);
  std::exit(1);
}

// The gradients of all tasks, put together as those of the problem's arrays.
template <class Real, class Gradients>
void check_gradients(const PosteriorProblem<Real>& problem, const std::vector<PosteriorByHand>& posteriors,
                     const PosteriorAdjoint<Real>& adjoint, const Gradients& got, double tolerance,
                     const std::string& what) {
  std::vector<double> features, targets, precision;
  std::vector<double> mean(problem.prior_mean.size()), matrix(problem.prior_precision.size());
  for (std::int64_t t = 0; t < problem.tasks(); ++t) {
    const TaskByHand task = adjoint.gradients(problem, t, posteriors[t]);
    features.insert(features.end(), task.features.begin(), task.features.end());
    targets.insert(targets.end(), task.targets.begin(), task.targets.end());
    precision.insert(precision.end(), task.precision.begin(), task.precision.end());
    const std::int64_t rank = problem.rank, center = problem.own_mean ? t * rank : 0;
    const std::int64_t prior = problem.own_precision ? t * rank * rank : 0;
    for (std::int64_t i = 0; i < rank; ++i) mean[center + i] += task.prior_mean[i];
    for (std::int64_t i = 0; i < rank * rank; ++i) matrix[prior + i] += task.prior_precision.values[i];
  }
  check_close(got.features, features, tolerance, what + ": gradient of the features");
  check_close(got.targets, targets, tolerance, what + ": gradient of the targets");
  check_close(got.precision, precision, tolerance, what + ": gradient of the precision");
  check_close(got.prior_mean, mean, tolerance, what + ": gradient of the prior mean");
  check_close(got.prior_precision, matrix, tolerance, what + ": gradient of the prior precision");
}
