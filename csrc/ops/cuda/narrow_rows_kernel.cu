#include "narrow_rows_kernel.cuh"

#include "stream.cuh"

namespace metarec::cuda {

template void narrow_rows(const Stream&, Rows, std::int64_t, std::int64_t, std::int32_t*);

}  // namespace metarec::cuda
