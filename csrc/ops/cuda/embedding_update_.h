// Steps of an optimiser on the rows of a table that have gradients, on CUDA. All pointers are the device's.
#pragma once

#include <cmath>

#include "metarec/bfloat16.h"
#include "stream.h"

namespace metarec::cuda {

template <class Real>
struct SgdRule {};

template <class Real>
struct AdagradRule {
  Real eps;
  Real* sums;  // [rows of the table]
};

template <class Real>
struct AdamRule {
  Real beta1, rest1, log_beta1, beta2, rest2, log_beta2, eps;  // rest: 1 - beta
  Real* means;                                                 // [rows of the table, dim]
  Real* squares;                                               // the same
  std::int32_t* steps;                                         // [rows of the table]

  // Each is rounded once, from double precision.
  AdamRule(double beta1, double beta2, double eps, Real* means, Real* squares, std::int32_t* steps)
      : beta1(static_cast<Real>(beta1)), rest1(static_cast<Real>(1 - beta1)),
        log_beta1(static_cast<Real>(std::log(beta1))), beta2(static_cast<Real>(beta2)),
        rest2(static_cast<Real>(1 - beta2)), log_beta2(static_cast<Real>(std::log(beta2))),
        eps(static_cast<Real>(eps)), means(means), squares(squares), steps(steps) {}
};

template <class Real>
struct UpdateRates {
  Real lr, l2, kept;  // kept: what decoupled decay leaves of a row

  UpdateRates(double lr, double l2, double weight_decay)
      : lr(static_cast<Real>(lr)), l2(static_cast<Real>(l2)), kept(static_cast<Real>(1 - lr * weight_decay)) {}
};

// A table, and gradients that have been sorted by their rows of it, stably. Stored is float, double or BFloat16.
template <class Stored>
struct RowUpdates {
  using Real = Arithmetic<Stored>;

  std::int64_t dim, count;
  Stored* table;              // [rows, dim]
  const std::int32_t* rows;   // [count], ascending
  const std::int64_t* order;  // [count], the gradient that stands there
  const Stored* gradients;    // [count, dim]
  UpdateRates<Real> rates;
  std::int64_t seed;          // of stochastic rounding to BFloat16; negative: to the nearest
  Real* heads;                // workspace of this size:
};

constexpr std::int64_t kUpdateChunk = 32;
constexpr std::int64_t update_heads(std::int64_t dim, std::int64_t count) {
  const std::int64_t chunks = ceil_div(count, kUpdateChunk);
  return (chunks + ceil_div(chunks, kUpdateChunk)) * dim;
}

// Launch is Stream, or what the tests have in its place. Rule is one of the above.
template <class Launch, class Stored, class Rule>
void embedding_update(const Launch& launch, const RowUpdates<Stored>& updates, const Rule& rule);

}  // namespace metarec::cuda
