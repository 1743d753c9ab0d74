// Steps of stochastic optimisation on the rows of a table that have gradients.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <variant>

#include "metarec/bfloat16.h"
#include "metarec/parallel.h"
#include "metarec/rows.h"

namespace metarec {

struct Sgd {};

// Adagrad with one rate per row, for the mean square of its gradients.
template <class Real>
struct RowwiseAdagrad {
  double eps;
  std::span<Real> sums;  // [count]
};

// Adam that leaves rows without a gradient alone, and corrects the bias of a row by the steps that it has had.
template <class Real>
struct LazyAdam {
  double beta1, beta2, eps;
  std::span<Real> means, squares;  // [count, dim]
  std::span<std::int32_t> steps;   // [count]
};

template <class Real>
using UpdateRule = std::variant<Sgd, RowwiseAdagrad<Real>, LazyAdam<Real>>;

struct UpdateRates {
  double lr;
  double l2 = 0;            // l2 times the row is added to its gradient
  double weight_decay = 0;  // the row is first scaled by 1 - lr * weight_decay
};

// Stored is float, double, or BFloat16: then everything but the table and its gradients is float, and so is all
// arithmetic.
template <class Stored>
struct EmbeddingTable {
  std::int64_t dim, count;
  std::span<Stored> values;  // [count, dim]
  // Of BFloat16 only: values are rounded stochastically by the noise of this seed and their row, not to the nearest.
  std::optional<std::uint64_t> seed = std::nullopt;
};

// Makes one step on every row named, along the sum of its gradients. Throws where a row is outside the table, which is
// then unchanged.
template <class Stored>
void embedding_update(const EmbeddingTable<Stored>& table, const Rows& rows, std::span<const Stored> gradients,
                      const UpdateRule<Arithmetic<Stored>>& rule, const UpdateRates& rates,
                      const Parallel& parallel = {});

}  // namespace metarec
