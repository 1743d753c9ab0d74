#include "gaussian_posterior.h"

#include "torch.h"

namespace metarec::ops {
namespace {

using torch::stable::empty_like;
using torch::stable::new_empty;

template <class Real>
cuda::GaussianTasks<Real> tasks_of(const Tensor& features, const Tensor& targets, const Tensor& precision,
                                   const Tensor& offsets, const Tensor& prior_mean, const Tensor& prior_precision) {
  return {features.size(1),        offsets.numel() - 1,         features.size(0),     data<Real>(features),
          data<Real>(targets),     data<Real>(precision),       data<std::int64_t>(offsets), data<Real>(prior_mean),
          data<Real>(prior_precision), prior_mean.dim() == 2, prior_precision.dim() == 3};
}

std::tuple<Tensor, Tensor, Tensor> posterior(Tensor features, Tensor targets, Tensor precision, Tensor offsets,
                                             Tensor prior_mean, Tensor prior_precision) {
  const CurrentStream stream(features);
  for (Tensor* tensor : {&features, &targets, &precision, &offsets, &prior_mean, &prior_precision}) {
    *tensor = dense(*tensor);
  }
  const std::int64_t tasks = offsets.numel() - 1, rank = features.size(1);
  const Tensor mean = new_empty(features, {tasks, rank});
  const Tensor cholesky = new_empty(features, {tasks, rank, rank});
  const Tensor log_evidence = new_empty(features, {tasks});
  with_real(features, [&]<class Real>(Real) {
    const auto problem = tasks_of<Real>(features, targets, precision, offsets, prior_mean, prior_precision);
    const Tensor half_log_determinants = new_empty(features, {problem.priors()});
    const Tensor matrices = new_empty(features, {cuda::gaussian_matrices(problem, problem.height())});
    cuda::gaussian_posterior<cuda::Stream, Real>(
        stream, problem,
        {mutable_data<Real>(mean), mutable_data<Real>(cholesky), mutable_data<Real>(log_evidence),
         mutable_data<Real>(half_log_determinants), mutable_data<Real>(matrices)});
  });
  return {mean, cholesky, log_evidence};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> posterior_backward(
    Tensor grad_mean, Tensor grad_cholesky, Tensor grad_log_evidence, Tensor features, Tensor targets,
    Tensor precision, Tensor offsets, Tensor prior_mean, Tensor prior_precision, Tensor mean, Tensor cholesky) {
  const CurrentStream stream(features);
  for (Tensor* tensor : {&grad_mean, &grad_cholesky, &grad_log_evidence, &features, &targets, &precision, &offsets,
                         &prior_mean, &prior_precision, &mean, &cholesky}) {
    *tensor = dense(*tensor);
  }
  const std::tuple gradients{empty_like(features), empty_like(targets), empty_like(precision), empty_like(prior_mean),
                             empty_like(prior_precision)};
  with_real(features, [&]<class Real>(Real) {
    const auto problem = tasks_of<Real>(features, targets, precision, offsets, prior_mean, prior_precision);
    const Tensor sums = new_empty(features, {problem.blocks * cuda::gaussian_sums(problem)});
    const Tensor matrices = new_empty(features, {cuda::gaussian_matrices(problem, problem.gradient_height())});
    const auto& [to_features, to_targets, to_precision, to_prior_mean, to_prior_precision] = gradients;
    cuda::gaussian_posterior_backward<cuda::Stream, Real>(
        stream, problem,
        {data<Real>(grad_mean), data<Real>(grad_cholesky), data<Real>(grad_log_evidence), data<Real>(mean),
         data<Real>(cholesky)},
        {mutable_data<Real>(to_features), mutable_data<Real>(to_targets), mutable_data<Real>(to_precision),
         mutable_data<Real>(to_prior_mean), mutable_data<Real>(to_prior_precision), mutable_data<Real>(sums),
         mutable_data<Real>(matrices)});
  });
  return gradients;
}

std::tuple<Tensor, Tensor> update(Tensor mean, Tensor cholesky, Tensor features, Tensor targets, Tensor precision) {
  const CurrentStream stream(mean);
  for (Tensor* tensor : {&mean, &cholesky, &features, &targets, &precision}) *tensor = dense(*tensor);
  const Tensor new_mean = empty_like(mean), new_cholesky = empty_like(cholesky);
  with_real(mean, [&]<class Real>(Real) {
    cuda::gaussian_update<cuda::Stream, Real>(
        stream, {mean.size(1), mean.size(0), data<Real>(mean), data<Real>(cholesky), data<Real>(features),
                 data<Real>(targets), data<Real>(precision), mutable_data<Real>(new_mean),
                 mutable_data<Real>(new_cholesky)});
  });
  return {new_mean, new_cholesky};
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CUDA, library) {
  library.impl("gaussian_posterior", TORCH_BOX(&metarec::ops::posterior));
  library.impl("gaussian_posterior_backward", TORCH_BOX(&metarec::ops::posterior_backward));
  library.impl("gaussian_update", TORCH_BOX(&metarec::ops::update));
}
