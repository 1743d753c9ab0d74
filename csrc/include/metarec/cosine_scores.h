// The cosine of pairs of rows of two tables, and its gradient.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "metarec/bfloat16.h"
#include "metarec/parallel.h"
#include "metarec/rows.h"

namespace metarec {

// A vector that is no longer than kNormEpsilon has no direction: its norm counts as this, and it gets no gradient.
// Stored is float, double or BFloat16, which is computed in float.
template <class Stored>
struct CosinePairs {
  std::int64_t dim, left_count, right_count;
  std::span<const Stored> left;   // [left_count, dim]
  std::span<const Stored> right;  // [right_count, dim]
  Rows left_rows, right_rows;     // [pairs]
};

// What the gradient is computed from, each [pairs].
template <class Real>
struct CosineGradient {
  std::span<const Real> of_scores;
  std::span<const Real> scores, inverse_norms;  // as the scores gave them
};

// Distinct rows, ascending, and a vector for each.
template <class Stored>
struct RowValues {
  std::span<std::int64_t> rows;
  std::span<Stored> values;
};

// Writes the cosine of each pair, and one over the product of its norms. Throws where a row is outside its table.
template <class Stored>
void cosine_scores(const CosinePairs<Stored>& pairs, std::span<Arithmetic<Stored>> scores,
                   std::span<Arithmetic<Stored>> inverse_norms, const Parallel& parallel = {});

// Computes the gradient of the left table, of the rows that have one; `allocate` is told how many these are.
template <class Stored>
void cosine_scores_row_gradient(const CosinePairs<Stored>& pairs, const CosineGradient<Arithmetic<Stored>>& gradient,
                                const std::function<RowValues<Stored>(std::int64_t count)>& allocate,
                                const Parallel& parallel = {});

// Computes the gradient of the left table into `table` [left_count, dim], which must be zero.
template <class Stored>
void cosine_scores_gradient(const CosinePairs<Stored>& pairs, const CosineGradient<Arithmetic<Stored>>& gradient,
                            std::span<Stored> table, const Parallel& parallel = {});

}  // namespace metarec
