// The steps of an optimiser on a row, written out in double precision.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "metarec/embedding_update.h"

constexpr metarec::UpdateRates kRates{.lr = 0.1, .l2 = 0.3, .weight_decay = 0.2};
constexpr double kBeta1 = 0.8, kBeta2 = 0.9, kEps = 1e-3;

// A step of a rule on one row along the gradient g, one value after the other.
inline void step_by_hand(const std::string& name, std::vector<double>& row, std::vector<double> g, double& sum,
                  std::vector<double>& mean, std::vector<double>& square, int step) {
  double total = 0;
  for (std::size_t d = 0; d < row.size(); ++d) {
    g[d] += kRates.l2 * row[d];
    total += g[d] * g[d];
  }
  sum += row.empty() ? 0 : total / static_cast<double>(row.size());
  for (std::size_t d = 0; d < row.size(); ++d) {
    mean[d] = kBeta1 * mean[d] + (1 - kBeta1) * g[d];
    square[d] = kBeta2 * square[d] + (1 - kBeta2) * g[d] * g[d];
    const double adam = mean[d] / (1 - std::pow(kBeta1, step)) /
                        (std::sqrt(square[d] / (1 - std::pow(kBeta2, step))) + kEps);
    const double change = name == "sgd" ? g[d] : name == "adagrad" ? g[d] / (std::sqrt(sum) + kEps) : adam;
    row[d] = (1 - kRates.lr * kRates.weight_decay) * row[d] - kRates.lr * change;
  }
}
