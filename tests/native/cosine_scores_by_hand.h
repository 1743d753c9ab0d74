// The cosines of pairs of rows and the gradient of a table, written out in double precision.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

struct CosinesByHand {
  std::vector<double> scores;    // of the pairs
  std::vector<double> gradient;  // of the left table
};

template <class LeftRows, class RightRows, class Real>
CosinesByHand cosines_by_hand(std::int64_t dim, const std::vector<double>& left, const std::vector<double>& right,
                              const LeftRows& left_rows, const RightRows& right_rows,
                              const std::vector<Real>& of_scores) {
  CosinesByHand result{std::vector<double>(of_scores.size()), std::vector<double>(left.size())};
  for (std::size_t pair = 0; pair < of_scores.size(); ++pair) {
    const double* u = left.data() + left_rows[pair] * dim;
    const double* v = right.data() + right_rows[pair] * dim;
    double* to = result.gradient.data() + left_rows[pair] * dim;
    double product = 0, left_square = 0, right_square = 0;
    for (std::int64_t d = 0; d < dim; ++d) {
      product += u[d] * v[d], left_square += u[d] * u[d], right_square += v[d] * v[d];
    }
    const double norms = std::sqrt(left_square) * std::sqrt(right_square), score = dim > 0 ? product / norms : 0;
    result.scores[pair] = score;
    for (std::int64_t d = 0; d < dim; ++d) to[d] += of_scores[pair] * (v[d] / norms - score * u[d] / left_square);
  }
  return result;
}
