#include "embedding_update__kernel.cuh"

#include "stream.cuh"

namespace metarec::cuda {

#define METAREC_INSTANTIATE(Real)                                                                       \
  template void embedding_update(const Stream&, const RowUpdates<Real>&, const SgdRule<Real>&);     \
  template void embedding_update(const Stream&, const RowUpdates<Real>&, const AdagradRule<Real>&); \
  template void embedding_update(const Stream&, const RowUpdates<Real>&, const AdamRule<Real>&);
METAREC_INSTANTIATE(float)
METAREC_INSTANTIATE(double)
#undef METAREC_INSTANTIATE

}  // namespace metarec::cuda
