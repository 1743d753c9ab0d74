// Between the tensors of torch's stable ABI and the spans of the core.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <span>

#include "metarec/bfloat16.h"
#include "metarec/parallel.h"
#include "metarec/rows.h"

namespace metarec::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class Value>
std::span<const Value> values(const Tensor& tensor) {
  return {static_cast<const Value*>(tensor.const_data_ptr()), static_cast<std::size_t>(tensor.numel())};
}

template <class Value>
std::span<Value> mutable_values(const Tensor& tensor) {
  return {static_cast<Value*>(tensor.mutable_data_ptr()), static_cast<std::size_t>(tensor.numel())};
}

// Asks the dispatcher for a copy only where one is needed: for one small task the question costs more than the work.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Rows of int32 or int64.
inline Rows rows_of(const Tensor& tensor) {
  if (tensor.scalar_type() == ScalarType::Int) return values<std::int32_t>(tensor);
  return values<std::int64_t>(tensor);
}

// Torch's threads.
inline Parallel torch_threads() {
  return {static_cast<std::int64_t>(torch::stable::get_num_threads()),
          [](std::int64_t parts, const std::function<void(std::int64_t)>& body) {
            torch::stable::parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
              for (std::int64_t part = begin; part < end; ++part) body(part);
            });
          }};
}

// Calls function(Real{}) with the floating type of a tensor.
template <class Function>
auto with_real(const Tensor& tensor, const Function& function) {
  return tensor.scalar_type() == ScalarType::Double ? function(double{}) : function(float{});
}

// Calls function(Stored{}) with the type that a table is stored in.
template <class Function>
auto with_stored(const Tensor& table, const Function& function) {
  return table.scalar_type() == ScalarType::BFloat16 ? function(BFloat16{}) : with_real(table, function);
}

inline ScalarType arithmetic_type(const Tensor& table) {
  return table.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace metarec::ops
