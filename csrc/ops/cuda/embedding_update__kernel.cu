#include "embedding_update__kernel.cuh"

#include "stream.cuh"

namespace metarec::cuda {

#define METAREC_INSTANTIATE(Stored)                                                                                 \
  template void embedding_update(const Stream&, const RowUpdates<Stored>&, const SgdRule<Arithmetic<Stored>>&);     \
  template void embedding_update(const Stream&, const RowUpdates<Stored>&, const AdagradRule<Arithmetic<Stored>>&); \
  template void embedding_update(const Stream&, const RowUpdates<Stored>&, const AdamRule<Arithmetic<Stored>>&);
METAREC_INSTANTIATE(float)
METAREC_INSTANTIATE(double)
METAREC_INSTANTIATE(BFloat16)
#undef METAREC_INSTANTIATE

}  // namespace metarec::cuda
