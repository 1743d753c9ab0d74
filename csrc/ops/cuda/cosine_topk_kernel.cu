#include "cosine_topk_kernel.cuh"

#include "stream.cuh"

namespace metarec::cuda {

#define METAREC_INSTANTIATE(Stored)                                                                            \
  template void cosine_topk(const Stream&, const TopkSearch<Stored>&, Arithmetic<Stored>*, std::int64_t*); \
  template void vector_norms(const Stream&, const Stored*, std::int64_t, std::int64_t, double*, double*);
METAREC_INSTANTIATE(float)
METAREC_INSTANTIATE(double)
METAREC_INSTANTIATE(BFloat16)
#undef METAREC_INSTANTIATE

template void check_excluded(const Stream&, const ExcludedRows&, std::int64_t, std::int64_t);
template void encode_items(const Stream&, const float*, std::int64_t, std::int64_t, const double*, bool, std::int8_t*,
                           float*);
template void encode_items(const Stream&, const BFloat16*, std::int64_t, std::int64_t, const double*, bool,
                           std::int8_t*, float*);

}  // namespace metarec::cuda
