// What the kernels share. They include no torch, and no CUDA header: nvcc compiles them for the device, and any C++20
// compiler for the host, where csrc/testing/simt.h runs them.
//
// Next to its kernels an op has the host functions that launch them, templates over `launch(Grid, kernel,
// arguments...)`: a Stream on the device, the emulator in the tests. So the tests run the whole of it, the choice of
// kernel and grid included.
#pragma once

#include <cstdint>
#include <type_traits>

#include "metarec/bfloat16.h"
#include "metarec/similarity.h"
#include "stream.h"

#ifdef __CUDACC__

#include <cassert>

// METAREC_SHARED(name, type): a variable of the block.
#define METAREC_SHARED(name, ...) __shared__ std::type_identity_t<__VA_ARGS__> name
// METAREC_DYNAMIC_SHARED(name, type): pointer to the memory that the launch gives the block, aligned to 16 bytes.
#define METAREC_DYNAMIC_SHARED(name, ...)                            \
  extern __shared__ __align__(16) unsigned char metarec_dynamic_shared[]; \
  __VA_ARGS__* const name = reinterpret_cast<__VA_ARGS__*>(metarec_dynamic_shared)
// What must hold for memory to be safe. Where it does not, the device stops and torch's next call says so.
#define METAREC_DEVICE_CHECK(claim, message) assert((claim) && message)

#else

#include "../../testing/simt.h"

#define METAREC_SHARED(name, ...) auto& name = simt::shared_variable<std::type_identity_t<__VA_ARGS__>>([] {})
#define METAREC_DYNAMIC_SHARED(name, ...) __VA_ARGS__* const name = simt::dynamic_shared<__VA_ARGS__>()
#define METAREC_DEVICE_CHECK(claim, message) \
  do {                                       \
    if (!(claim)) throw simt::Error(message); \
  } while (false)

#endif

namespace metarec::cuda {

constexpr int kWarp = 32;

__device__ __forceinline__ std::int64_t row_at(const Rows& rows, std::int64_t i) {
  return rows.wide ? static_cast<const std::int64_t*>(rows.data)[i] : static_cast<const std::int32_t*>(rows.data)[i];
}

template <class Stored>
__device__ __forceinline__ Arithmetic<Stored> load(Stored value) {
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
  } else {
    return value;
  }
}

// Rounds to the nearest, ties to even.
template <class Stored>
__device__ __forceinline__ Stored store(Arithmetic<Stored> value) {
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    const unsigned bits = __float_as_uint(value);
    if (value != value) return {static_cast<std::uint16_t>((bits >> 16) | 0x40)};
    return {static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
  } else {
    return value;
  }
}

// Rounds stochastically, by noise below 2^16.
template <class Stored>
  requires std::is_same_v<Stored, BFloat16>
__device__ __forceinline__ Stored store(float value, unsigned noise) {
  const unsigned bits = __float_as_uint(value);
  if (value != value) return {static_cast<std::uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<std::uint16_t>((bits + noise) >> 16)};
}

// Neighbouring values that are read and written at once, or by 16 bytes.
template <class Stored, int kCount>
struct alignas(sizeof(Stored) * kCount < 16 ? sizeof(Stored) * kCount : 16) Pack {
  Stored values[kCount];
};

// How many values the widest access takes.
template <class Stored>
constexpr int kWidest = 16 / sizeof(Stored);

// Whether rows of this length can be read by the widest access.
template <class Stored>
bool has_wide_rows(const Stored* table, std::int64_t dim) {
  return dim % kWidest<Stored> == 0 && reinterpret_cast<std::uintptr_t>(table) % 16 == 0;
}

// Lanes that share a row: the fewest that take it in one step, at least 4 and at most a warp.
inline int lanes_for(std::int64_t steps) {
  int lanes = 4;
  while (lanes < kWarp && lanes < steps) lanes *= 2;
  return lanes;
}

// A power of two of neighbouring lanes of a warp, which work on one thing.
struct LaneGroup {
  int size, lane;
  unsigned mask;

  __device__ explicit LaneGroup(int size) : size(size), lane(static_cast<int>(threadIdx.x) & (size - 1)) {
    const int first = (static_cast<int>(threadIdx.x) & (kWarp - 1)) - lane;
    mask = (size == kWarp ? ~0u : (1u << size) - 1) << first;
  }

  // The sum over the lanes, which all of them get, in an order that is fixed.
  template <class Real>
  __device__ __forceinline__ Real sum(Real value) const {
    for (int distance = size / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(mask, value, distance);
    return value;
  }

  // The value of one lane.
  template <class Value>
  __device__ __forceinline__ Value of(Value value, int from) const {
    return __shfl_sync(mask, value, from, size);
  }
};

}  // namespace metarec::cuda
