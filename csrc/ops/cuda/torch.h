// What the torch half of the CUDA ops shares: the device and the stream of a call, and torch's own sort and sums.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <optional>
#include <tuple>

#include "../tensor.h"
#include "narrow_rows.h"
#include "stream.h"

namespace metarec::ops {

// Makes the device of a tensor the current one while it lives, and gives torch's stream there.
class CurrentStream {
 public:
  explicit CurrentStream(const Tensor& tensor)
      : guard_(tensor.get_device_index()),
        stream_{torch::stable::accelerator::getCurrentStream(tensor.get_device_index()).nativeHandle()} {}

  operator const cuda::Stream&() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cuda::Stream stream_;
};

template <class Value>
const Value* data(const Tensor& tensor) {
  return static_cast<const Value*>(tensor.const_data_ptr());
}

template <class Value>
Value* mutable_data(const Tensor& tensor) {
  return static_cast<Value*>(tensor.mutable_data_ptr());
}

inline cuda::Rows device_rows(const Tensor& rows) {
  return {rows.const_data_ptr(), rows.scalar_type() == ScalarType::Long};
}

// Rows in 32 bits, checked.
inline Tensor narrow_rows(const cuda::Stream& stream, const Tensor& rows, std::int64_t table_rows) {
  STD_TORCH_CHECK(table_rows < std::int64_t{1} << 31, "a table on CUDA has at most 2147483647 rows, got ", table_rows);
  const Tensor narrow = torch::stable::new_empty(rows, {rows.numel()}, ScalarType::Int);
  cuda::narrow_rows(stream, device_rows(rows), rows.numel(), table_rows, mutable_data<std::int32_t>(narrow));
  return narrow;
}

// Values in ascending order, and the place that each had; equal ones in the order that they had.
inline std::tuple<Tensor, Tensor> stable_sort(const Tensor& values) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(values),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(std::int64_t{0}), torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// Rows in ascending order, in 32 bits, and the place that each had; equal rows in the order that they had.
inline std::tuple<Tensor, Tensor> sorted_rows(const cuda::Stream& stream, const Tensor& rows, std::int64_t table_rows) {
  return stable_sort(narrow_rows(stream, rows, table_rows));
}

// The sum of each value and all before it, of integers in 64 bits.
inline Tensor running_sums(const Tensor& values) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(values), torch::stable::detail::from(std::int64_t{0}),
                                    torch::stable::detail::from(std::optional<ScalarType>())};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::cumsum", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The distinct rows of a sorted list, in 64 bits, and for each place in the list which of them it is. How many there are
// is known on the device only, so that this waits for it.
inline std::tuple<Tensor, Tensor> distinct_rows(const Tensor& sorted) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(sorted), torch::stable::detail::from(true),
                                    torch::stable::detail::from(false),
                                    torch::stable::detail::from(std::optional<std::int64_t>())};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::unique_consecutive", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor rows = torch::stable::detail::to<Tensor>(stack[0]), places = torch::stable::detail::to<Tensor>(stack[1]);
  torch::stable::detail::to<Tensor>(stack[2]);  // the counts, which were not asked for, are the caller's all the same
  return {torch::stable::to(rows, ScalarType::Long), places};
}

}  // namespace metarec::ops
