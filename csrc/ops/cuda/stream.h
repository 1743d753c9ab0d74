// What the two halves of a CUDA op share, in plain C++: the torch half ({op}.cpp, by the host's compiler) and the kernels
// ({op}_kernel.cu, by nvcc). Torch's headers stay out of nvcc, which would read them once per architecture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace metarec::cuda {

struct Grid {
  std::int64_t blocks;
  int threads;
  std::int64_t rows = 1;         // blockIdx.y
  std::size_t shared_bytes = 0;  // of dynamic shared memory

  // Refuses what no device takes, before the sizes are cut to 32 bits.
  void check() const {
    constexpr std::int64_t most_blocks = 2147483647, most_rows = 65535;
    if (blocks <= most_blocks && rows <= most_rows) return;
    throw std::length_error("metarec on CUDA: a grid has at most 2147483647 by 65535 blocks, got " +
                            std::to_string(blocks) + " by " + std::to_string(rows));
  }
};

// Launches kernels on a CUDA stream of the current device, and waits for none. Defined in stream.cuh.
struct Stream {
  void* handle;

  template <class... Parameters>
  void operator()(const Grid& grid, void (*kernel)(Parameters...), std::type_identity_t<Parameters>... arguments) const;
};

// Rows of int32 or int64.
struct Rows {
  const void* data;
  bool wide;
};

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace metarec::cuda
