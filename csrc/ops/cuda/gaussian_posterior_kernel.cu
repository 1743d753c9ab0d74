#include "gaussian_posterior_kernel.cuh"

#include "stream.cuh"

namespace metarec::cuda {

#define METAREC_INSTANTIATE(Real)                                                                            \
  template void gaussian_posterior(const Stream&, const GaussianTasks<Real>&, const GaussianPosterior<Real>&); \
  template void gaussian_posterior_backward(const Stream&, const GaussianTasks<Real>&,                       \
                                            const GaussianAdjoint<Real>&,                                    \
                                            const GaussianPosteriorGradients<Real>&);                        \
  template void gaussian_update(const Stream&, const GaussianUpdates<Real>&);
METAREC_INSTANTIATE(float)
METAREC_INSTANTIATE(double)
#undef METAREC_INSTANTIATE

}  // namespace metarec::cuda
