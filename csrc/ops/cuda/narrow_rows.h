// Rows of a table in 32 bits, checked.
#pragma once

#include "stream.h"

namespace metarec::cuda {

// Launch is Stream, or what the tests have in its place.
template <class Launch>
void narrow_rows(const Launch& launch, Rows rows, std::int64_t count, std::int64_t table_rows, std::int32_t* narrow);

}  // namespace metarec::cuda
