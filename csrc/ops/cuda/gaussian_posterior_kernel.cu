#include "gaussian_posterior_kernel.cuh"

#include "stream.cuh"

namespace metarec::cuda {

template void gaussian_posterior(const Stream&, const GaussianTasks<float>&, const GaussianPosterior<float>&);
template void gaussian_posterior(const Stream&, const GaussianTasks<double>&, const GaussianPosterior<double>&);

}  // namespace metarec::cuda
