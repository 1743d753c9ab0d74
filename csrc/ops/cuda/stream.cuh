// How a stream launches a kernel.
#pragma once

#include <stdexcept>
#include <string>

#include "stream.h"

namespace metarec::cuda {

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("metarec on CUDA: ") + cudaGetErrorString(error));
}

template <class... Parameters>
void Stream::operator()(const Grid& grid, void (*kernel)(Parameters...),
                        std::type_identity_t<Parameters>... arguments) const {
  grid.check();
  // More than 48 KB must be asked for, and what a kernel declares counts as well.
  if (grid.shared_bytes > 0) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(grid.shared_bytes)));
  }
  const dim3 blocks(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.rows));
  kernel<<<blocks, static_cast<unsigned>(grid.threads), grid.shared_bytes, static_cast<cudaStream_t>(handle)>>>(
      arguments...);
  check_cuda(cudaGetLastError());
}

}  // namespace metarec::cuda
