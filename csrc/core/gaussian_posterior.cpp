#include "metarec/gaussian_posterior.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace metarec {
namespace {

// Scratch of one part of the work, handed out in pieces that begin on cache lines.
template <class Real>
class Workspace {
 public:
  explicit Workspace(std::int64_t capacity) : storage_(static_cast<std::size_t>(capacity + kPieces * kLine)) {
    next_ = storage_.data();
  }

  Real* take(std::int64_t count) {
    const auto misplaced = reinterpret_cast<std::uintptr_t>(next_) % kLineBytes / sizeof(Real);
    Real* piece = next_ + (misplaced ? kLine - static_cast<std::int64_t>(misplaced) : 0);
    next_ = piece + count;
    return piece;
  }

 private:
  static constexpr std::size_t kLineBytes = 64;
  static constexpr std::int64_t kLine = kLineBytes / sizeof(Real), kPieces = 20;
  std::vector<Real> storage_;
  Real* next_;
};

// Why a range of tasks could not be computed.
struct Failure {
  enum What { none, prior, posterior, observation } what = none;
  std::int64_t index = 0;
};

template <class Real>
struct PosteriorGradients {
  std::span<const Real> mean, cholesky, grad_mean, grad_cholesky, grad_log_evidence;
};

}  // namespace
}  // namespace metarec

#define METAREC_KERNEL "gaussian_posterior_kernel.h"
#include "for_each_isa.h"

namespace metarec {
namespace {

template <class Real>
void check(const GaussianTasks<Real>& tasks) {
  const std::span<const std::int64_t> offsets = tasks.offsets;
  const auto count = std::ssize(tasks.targets);
  if (offsets.empty() || offsets.front() != 0 || offsets.back() != count ||
      !std::is_sorted(offsets.begin(), offsets.end())) {
    std::string shown;
    for (const std::int64_t offset : offsets.first(std::min<std::size_t>(offsets.size(), 8))) {
      shown += (shown.empty() ? "" : ", ") + std::to_string(offset);
    }
    throw std::invalid_argument("gaussian_posterior: offsets must ascend from 0 to " + std::to_string(count) +
                                ", got [" + shown + (offsets.size() > 8 ? ", ...]" : "]"));
  }
}

template <class Real>
[[noreturn]] void raise(const GaussianTasks<Real>& tasks, const Failure& failure) {
  if (failure.what == Failure::observation) {
    throw std::invalid_argument("gaussian_posterior: precision must be finite and not negative, got " +
                                std::to_string(tasks.precision[static_cast<std::size_t>(failure.index)]) + " at " +
                                std::to_string(failure.index));
  }
  const bool shared = std::ssize(tasks.prior_precision) == tasks.rank * tasks.rank;
  if (failure.what == Failure::prior && shared) {
    throw std::invalid_argument("gaussian_posterior: the prior precision is not positive definite");
  }
  throw std::invalid_argument(
      std::string("gaussian_posterior: the ") + (failure.what == Failure::prior ? "prior" : "posterior") +
      " precision of task " + std::to_string(failure.index) + " is not positive definite");
}

// The first task of a part, such that all parts have about the same work.
template <class Real>
std::int64_t part_begin(const GaussianTasks<Real>& tasks, std::int64_t part, std::int64_t parts) {
  const auto work_before = [&](std::int64_t task) { return tasks.offsets[task] + task * (tasks.rank + 1); };
  const std::int64_t wanted = work_before(tasks.tasks()) / parts * part;
  std::int64_t low = 0, high = tasks.tasks();
  if (part == parts) return high;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    (work_before(middle) < wanted) ? low = middle + 1 : high = middle;
  }
  return low;
}

// Updates one posterior by a sequence of plane rotations, hyperbolic ones where an observation is taken away: column k
// of the factor takes up the k-th component of x = sqrt(|w|) f, and hands the rest on. False where a pivot is lost.
template <class Real>
bool update_one(std::int64_t rank, Real* mean, Real* cholesky, const Real* features, Real target, Real precision,
                Real* x) {
  if (!std::isfinite(precision)) return false;
  const Real root = std::sqrt(std::abs(precision)), sign = precision < 0 ? Real(-1) : Real(1);
  Real fitted = 0;
  for (std::int64_t i = 0; i < rank; ++i) {
    x[i] = root * features[i];
    fitted += features[i] * mean[i];
  }
  for (std::int64_t k = 0; k < rank; ++k) {
    Real& pivot = cholesky[k * (rank + 1)];
    const Real squared = pivot * pivot + sign * x[k] * x[k];
    if (!(squared > 0)) return false;
    const Real updated = std::sqrt(squared), cosine = pivot / updated, sine = sign * x[k] / updated;
    const Real slope = x[k] / pivot;
    pivot = updated;
    for (std::int64_t i = k + 1; i < rank; ++i) {
      Real& entry = cholesky[i * rank + k];
      const Real before = entry;
      entry = cosine * before + sine * x[i];
      x[i] = cosine * (x[i] - slope * before);
    }
  }
  // mean += w (y - f^T mean) * (L L^T)^-1 f
  for (std::int64_t i = 0; i < rank; ++i) {
    Real value = features[i];
    for (std::int64_t k = 0; k < i; ++k) value -= cholesky[i * rank + k] * x[k];
    x[i] = value / cholesky[i * (rank + 1)];
  }
  const Real scale = precision * (target - fitted);
  for (std::int64_t k = rank; k-- > 0;) {
    const Real value = x[k] / cholesky[k * (rank + 1)];
    for (std::int64_t i = 0; i < k; ++i) x[i] -= cholesky[k * rank + i] * value;
    mean[k] += scale * value;
  }
  return true;
}

}  // namespace

template <class Real>
void gaussian_posterior(const GaussianTasks<Real>& tasks, const GaussianPosterior<Real>& posterior,
                        const Parallel& parallel) {
  check(tasks);
  if (tasks.tasks() == 0) return;
  // Below this many multiply-adds a second thread costs more than it saves.
  constexpr std::int64_t worth_a_thread = 1 << 18;
  const std::int64_t work =
      (std::ssize(tasks.targets) + tasks.tasks() * (tasks.rank + 1)) * (tasks.rank + 1) * (tasks.rank + 1) / 2;
  const std::int64_t parts = std::clamp<std::int64_t>(work / worth_a_thread, 1, parallel.threads);
  std::vector<Failure> failures(static_cast<std::size_t>(parts));
  parallel.run(parts, [&](std::int64_t part) {
    const std::int64_t begin = part_begin(tasks, part, parts), end = part_begin(tasks, part + 1, parts);
    failures[static_cast<std::size_t>(part)] = METAREC_DISPATCH(posterior_range(tasks, posterior, begin, end));
  });
  for (const Failure& failure : failures) {
    if (failure.what != Failure::none) raise(tasks, failure);
  }
}

template <class Real>
void gaussian_posterior_backward(const GaussianTasks<Real>& tasks, std::span<const Real> mean,
                                 std::span<const Real> cholesky, std::span<const Real> grad_mean,
                                 std::span<const Real> grad_cholesky, std::span<const Real> grad_log_evidence,
                                 const GaussianPosteriorGradients<Real>& gradients, const Parallel& parallel) {
  check(tasks);
  const std::int64_t rank = tasks.rank, count = tasks.tasks();
  const bool own_mean = std::ssize(tasks.prior_mean) > rank;
  const bool own_matrix = std::ssize(tasks.prior_precision) > rank * rank;
  // Gradients of shared priors are summed within ranges of fixed size and then over these in order, so that the sums do
  // not depend on the number of threads.
  constexpr std::int64_t range = 64;
  const std::int64_t ranges = (count + range - 1) / range, stride = METAREC_DISPATCH(padded<Real>(rank));
  const std::int64_t size = (rank + 1) * stride;
  std::vector<Real> shared(static_cast<std::size_t>((own_mean && own_matrix ? 1 : ranges) * size));
  const PosteriorGradients<Real> from{mean, cholesky, grad_mean, grad_cholesky, grad_log_evidence};
  parallel.run(ranges, [&](std::int64_t part) {
    const std::int64_t end = std::min((part + 1) * range, count);
    Real* sums = shared.data() + (own_mean && own_matrix ? 0 : part * size);
    METAREC_DISPATCH(backward_range(tasks, from, gradients, part * range, end, own_mean, own_matrix, sums,
                                    sums + stride));
  });
  if (!own_mean) {
    std::fill(gradients.prior_mean.begin(), gradients.prior_mean.end(), Real(0));
    for (std::int64_t part = 0; part < ranges; ++part) {
      const Real* sums = shared.data() + part * size;
      for (std::int64_t i = 0; i < std::ssize(gradients.prior_mean); ++i) gradients.prior_mean[i] += sums[i];
    }
  }
  if (!own_matrix) {
    std::fill(gradients.prior_precision.begin(), gradients.prior_precision.end(), Real(0));
    for (std::int64_t part = 0; part < ranges; ++part) {
      const Real* sums = shared.data() + part * size + stride;
      for (std::int64_t i = 0; i < std::ssize(gradients.prior_precision); ++i) {
        gradients.prior_precision[i] += sums[i / rank * stride + i % rank];
      }
    }
  }
}

template <class Real>
void gaussian_update(std::int64_t rank, std::span<Real> mean, std::span<Real> cholesky,
                     std::span<const Real> features, std::span<const Real> targets, std::span<const Real> precision,
                     const Parallel& parallel) {
  const std::int64_t count = std::ssize(targets);
  constexpr std::int64_t worth_a_thread = 1 << 16;
  const std::int64_t parts = std::clamp<std::int64_t>(count * rank * rank / worth_a_thread, 1, parallel.threads);
  constexpr std::int64_t none = std::numeric_limits<std::int64_t>::max();
  std::vector<std::int64_t> failed(static_cast<std::size_t>(parts), none);
  parallel.run(parts, [&](std::int64_t part) {
    std::vector<Real> change(static_cast<std::size_t>(rank));
    for (std::int64_t task = count * part / parts; task < count * (part + 1) / parts; ++task) {
      if (!update_one(rank, mean.data() + task * rank, cholesky.data() + task * rank * rank,
                      features.data() + task * rank, targets[task], precision[task], change.data())) {
        failed[static_cast<std::size_t>(part)] = task;
        return;
      }
    }
  });
  const std::int64_t first = *std::min_element(failed.begin(), failed.end());
  if (first == none) return;
  if (!std::isfinite(precision[first])) {
    throw std::invalid_argument("gaussian_update: precision must be finite, got " +
                                std::to_string(precision[first]) + " at " + std::to_string(first));
  }
  throw std::invalid_argument("gaussian_update: the updated precision of task " + std::to_string(first) +
                              " is not positive definite");
}

#define METAREC_INSTANTIATE(Real)                                                                                    \
  template void gaussian_posterior(const GaussianTasks<Real>&, const GaussianPosterior<Real>&, const Parallel&);     \
  template void gaussian_posterior_backward(const GaussianTasks<Real>&, std::span<const Real>, std::span<const Real>, \
                                            std::span<const Real>, std::span<const Real>, std::span<const Real>,     \
                                            const GaussianPosteriorGradients<Real>&, const Parallel&);               \
  template void gaussian_update(std::int64_t, std::span<Real>, std::span<Real>, std::span<const Real>,               \
                                std::span<const Real>, std::span<const Real>, const Parallel&);
METAREC_INSTANTIATE(float)
METAREC_INSTANTIATE(double)
#undef METAREC_INSTANTIATE

}  // namespace metarec
