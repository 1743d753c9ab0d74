#include "cosine_sgd_epoch__kernel.cuh"

#include "stream.cuh"

namespace metarec::cuda {

template void shuffle_rows(const Stream&, const SgdEntries&, const Swaps&, std::int32_t*, std::int32_t*, std::int32_t*);
template void find_blocks(const Stream&, const SgdEntries&, const std::int32_t*, const std::int32_t*,
                          const std::int64_t*, std::int32_t*, std::int16_t*);
template void cosine_sgd_epoch(const Stream&, const SgdModel<float>&, const SgdEntries&, const float*,
                               const SgdBlocks<float>&, const SgdOptions&, double*);
template void cosine_sgd_epoch(const Stream&, const SgdModel<double>&, const SgdEntries&, const double*,
                               const SgdBlocks<double>&, const SgdOptions&, double*);
template void cosine_sgd_epoch(const Stream&, const SgdModel<BFloat16>&, const SgdEntries&, const float*,
                               const SgdBlocks<float>&, const SgdOptions&, double*);

}  // namespace metarec::cuda
