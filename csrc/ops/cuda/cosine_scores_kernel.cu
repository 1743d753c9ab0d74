#include "cosine_scores_kernel.cuh"

#include "stream.cuh"

namespace metarec::cuda {

#define METAREC_INSTANTIATE(Stored)                                                                                  \
  template void cosine_scores(const Stream&, const CosineTables<Stored>&, Rows, Rows, std::int64_t,                  \
                              Arithmetic<Stored>*, Arithmetic<Stored>*);                                             \
  template void cosine_scores_gradient(const Stream&, const CosineGradientTerms<Stored>&);
METAREC_INSTANTIATE(float)
METAREC_INSTANTIATE(double)
METAREC_INSTANTIATE(BFloat16)
#undef METAREC_INSTANTIATE

}  // namespace metarec::cuda
