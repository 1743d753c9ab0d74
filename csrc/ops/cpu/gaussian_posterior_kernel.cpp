#include "metarec/gaussian_posterior.h"

#include <tuple>

#include "../tensor.h"

namespace metarec::ops {
namespace {

using torch::stable::empty_like;
using torch::stable::new_empty;

template <class Real>
GaussianTasks<Real> tasks_of(const Tensor& features, const Tensor& targets, const Tensor& precision,
                             const Tensor& offsets, const Tensor& prior_mean, const Tensor& prior_precision) {
  return {features.size(1),           values<Real>(features),   values<Real>(targets),
          values<Real>(precision),    values<std::int64_t>(offsets), values<Real>(prior_mean),
          values<Real>(prior_precision)};
}

std::tuple<Tensor, Tensor, Tensor> posterior(Tensor features, Tensor targets, Tensor precision, Tensor offsets,
                                             Tensor prior_mean, Tensor prior_precision) {
  for (Tensor* tensor : {&features, &targets, &precision, &offsets, &prior_mean, &prior_precision}) {
    *tensor = dense(*tensor);
  }
  const std::int64_t tasks = offsets.numel() - 1, rank = features.size(1);
  const Tensor mean = new_empty(features, {tasks, rank});
  const Tensor cholesky = new_empty(features, {tasks, rank, rank});
  const Tensor log_evidence = new_empty(features, {tasks});
  with_real(features, [&]<class Real>(Real) {
    gaussian_posterior<Real>(
        tasks_of<Real>(features, targets, precision, offsets, prior_mean, prior_precision),
        {mutable_values<Real>(mean), mutable_values<Real>(cholesky), mutable_values<Real>(log_evidence)},
        torch_threads());
  });
  return {mean, cholesky, log_evidence};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> posterior_backward(
    Tensor grad_mean, Tensor grad_cholesky, Tensor grad_log_evidence, Tensor features, Tensor targets,
    Tensor precision, Tensor offsets, Tensor prior_mean, Tensor prior_precision, Tensor mean, Tensor cholesky) {
  for (Tensor* tensor : {&grad_mean, &grad_cholesky, &grad_log_evidence, &features, &targets, &precision, &offsets,
                         &prior_mean, &prior_precision, &mean, &cholesky}) {
    *tensor = dense(*tensor);
  }
  const std::tuple gradients{empty_like(features), empty_like(targets), empty_like(precision), empty_like(prior_mean),
                             empty_like(prior_precision)};
  with_real(features, [&]<class Real>(Real) {
    const auto& [to_features, to_targets, to_precision, to_prior_mean, to_prior_precision] = gradients;
    gaussian_posterior_backward<Real>(
        tasks_of<Real>(features, targets, precision, offsets, prior_mean, prior_precision), values<Real>(mean),
        values<Real>(cholesky), values<Real>(grad_mean), values<Real>(grad_cholesky), values<Real>(grad_log_evidence),
        {mutable_values<Real>(to_features), mutable_values<Real>(to_targets), mutable_values<Real>(to_precision),
         mutable_values<Real>(to_prior_mean), mutable_values<Real>(to_prior_precision)},
        torch_threads());
  });
  return gradients;
}

std::tuple<Tensor, Tensor> update(const Tensor& mean, const Tensor& cholesky, const Tensor& features,
                                  const Tensor& targets, const Tensor& precision) {
  const Tensor new_mean = torch::stable::clone(dense(mean));
  const Tensor new_cholesky = torch::stable::clone(dense(cholesky));
  const Tensor feature_rows = dense(features), target_values = dense(targets),
               precision_values = dense(precision);
  with_real(mean, [&]<class Real>(Real) {
    gaussian_update<Real>(mean.size(1), mutable_values<Real>(new_mean), mutable_values<Real>(new_cholesky),
                          values<Real>(feature_rows), values<Real>(target_values), values<Real>(precision_values),
                          torch_threads());
  });
  return {new_mean, new_cholesky};
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CPU, library) {
  library.impl("gaussian_posterior", TORCH_BOX(&metarec::ops::posterior));
  library.impl("gaussian_posterior_backward", TORCH_BOX(&metarec::ops::posterior_backward));
  library.impl("gaussian_update", TORCH_BOX(&metarec::ops::update));
}
