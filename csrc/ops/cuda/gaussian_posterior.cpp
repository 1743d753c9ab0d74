#include "gaussian_posterior.h"

#include "torch.h"

namespace metarec::ops {
namespace {

using torch::stable::new_empty;

std::tuple<Tensor, Tensor, Tensor> posterior(Tensor features, Tensor targets, Tensor precision, Tensor offsets,
                                             Tensor prior_mean, Tensor prior_precision) {
  const CurrentStream stream(features);
  for (Tensor* tensor : {&features, &targets, &precision, &offsets, &prior_mean, &prior_precision}) {
    *tensor = dense(*tensor);
  }
  const std::int64_t tasks = offsets.numel() - 1, rank = features.size(1);
  const bool own_mean = prior_mean.dim() == 2, own_precision = prior_precision.dim() == 3;
  const Tensor mean = new_empty(features, {tasks, rank});
  const Tensor cholesky = new_empty(features, {tasks, rank, rank});
  const Tensor log_evidence = new_empty(features, {tasks});
  const Tensor half_log_determinants = new_empty(features, {own_precision ? tasks : 1});
  const Tensor matrices = new_empty(features, {cuda::gaussian_matrices(rank, tasks)});
  with_real(features, [&]<class Real>(Real) {
    cuda::gaussian_posterior<cuda::Stream, Real>(
        stream,
        {rank, tasks, features.size(0), data<Real>(features), data<Real>(targets), data<Real>(precision),
         data<std::int64_t>(offsets), data<Real>(prior_mean), data<Real>(prior_precision), own_mean, own_precision},
        {mutable_data<Real>(mean), mutable_data<Real>(cholesky), mutable_data<Real>(log_evidence),
         mutable_data<Real>(half_log_determinants), mutable_data<Real>(matrices)});
  });
  return {mean, cholesky, log_evidence};
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CUDA, library) {
  library.impl("gaussian_posterior", TORCH_BOX(&metarec::ops::posterior));
}
