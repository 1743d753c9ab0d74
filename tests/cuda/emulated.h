// What the tests of the kernels share: the emulator as a launch, and results that must all be written.
#pragma once

#include "native/checks.h"
#include "native/stored.h"
#include "ops/cuda/device.cuh"

// Launches as a Stream does on a device, with the threads in an order of its own.
struct Emulated {
  std::uint64_t seed;

  template <class... Parameters>
  void operator()(const metarec::cuda::Grid& grid, void (*kernel)(Parameters...),
                  std::type_identity_t<Parameters>... arguments) const {
    grid.check();
    const dim3 blocks(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.rows));
    simt::launch({blocks, static_cast<unsigned>(grid.threads), grid.shared_bytes, seed}, kernel, arguments...);
  }
};

// Claims that a call throws simt::Error with this in its message.
template <class Call>
void check_error(const Call& call, const std::string& message) {
  try {
    call();
  } catch (const simt::Error& error) {
    if (std::string(error.what()).find(message) != std::string::npos) return;
    std::fprintf(stderr, "expected \"%s\", got \"%s\"\n", message.c_str(), error.what());
    std::exit(1);
  }
  std::fprintf(stderr, "nothing was thrown, expected \"%s\"\n", message.c_str());
  std::exit(1);
}
