// One epoch of stochastic gradient descent on a factorisation by cosine or dot product.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "metarec/bfloat16.h"
#include "metarec/parallel.h"
#include "metarec/rows.h"
#include "metarec/similarity.h"

namespace metarec {

enum class RatingLoss { squared, logistic };

// A rating is predicted as scale * similarity(user, item) + bias + user bias + item bias. All is changed in place.
template <class Stored>
struct Factorization {
  using Real = Arithmetic<Stored>;

  std::int64_t dim;
  std::span<Stored> users, items;            // [users, dim], [items, dim]
  std::span<Real> user_biases, item_biases;  // [users], [items]
  std::span<Real> head;                      // [2]: scale, bias
};

template <class Real>
struct Ratings {
  Rows users, items;             // [n]
  std::span<const Real> values;  // [n]
};

struct SgdOptions {
  double lr, l2;
  Similarity similarity = Similarity::cosine;
  RatingLoss loss = RatingLoss::squared;
  std::uint64_t seed = 0;
  std::optional<double> head_lr = {};  // of scale and bias; lr where not given
};

// Makes one step along the gradient of each rating, in an order that the seed and the ratings decide, and gives the mean
// loss, of each rating before its step. Tables of BFloat16 are rounded stochastically after each step, by noise of the
// seed: to the nearest, steps below half a unit in the last place would be lost. Throws where a row is outside its table
// or a rating is not one; nothing has changed then.
template <class Stored>
double cosine_sgd_epoch(const Factorization<Stored>& model, const Ratings<Arithmetic<Stored>>& ratings,
                        const SgdOptions& options, const Parallel& parallel = {});

}  // namespace metarec
