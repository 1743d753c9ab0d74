#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(metarec, library) {
  library.def(
      "gaussian_posterior(Tensor features, Tensor targets, Tensor precision, Tensor offsets, Tensor prior_mean, "
      "Tensor prior_precision) -> (Tensor, Tensor, Tensor)");
  library.def(
      "gaussian_posterior_backward(Tensor grad_mean, Tensor grad_cholesky, Tensor grad_log_evidence, "
      "Tensor features, Tensor targets, Tensor precision, Tensor offsets, Tensor prior_mean, Tensor prior_precision, "
      "Tensor mean, Tensor cholesky) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "gaussian_update(Tensor mean, Tensor cholesky, Tensor features, Tensor targets, Tensor precision) "
      "-> (Tensor, Tensor)");
}
