#include "cosine_topk_kernel.cuh"

#include "stream.cuh"

namespace metarec::cuda {

#define METAREC_INSTANTIATE(Real)                                                                  \
  template void cosine_topk(const Stream&, const TopkSearch<Real>&, Real*, std::int64_t*); \
  template void vector_norms(const Stream&, const Real*, std::int64_t, std::int64_t, double*, double*);
METAREC_INSTANTIATE(float)
METAREC_INSTANTIATE(double)
#undef METAREC_INSTANTIATE

template void check_excluded(const Stream&, const ExcludedRows&, std::int64_t, std::int64_t);
template void encode_items(const Stream&, const float*, std::int64_t, std::int64_t, const double*, bool, std::int8_t*,
                           float*);

}  // namespace metarec::cuda
