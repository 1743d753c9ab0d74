// Sums of the gradients of rows, and the steps along them, for one instruction set.
//
// The entries have been grouped by row. Of each group the gradients are summed in registers and the step is made at
// once, so a gradient is read once, and a row with its state is read and written once: for Adam, 64 floats and a share
// of distinct rows of r, 256 + 1536 r bytes per gradient, which is the floor; 12 bytes more go through the sort. A table
// of sums per row would add 512 r, a copy of the gradients in order 512. State lies in tables of its own, like that of
// torch's optimizers. Rows and gradients to come are fetched ahead, because both are scattered.
#include "simd.h"

#include "row_sums_kernel.h"

namespace metarec::METAREC_ISA {
namespace {

template <class Real>
struct Gradients {
  const Real* values;
  std::int64_t dim;

  const Real* row(std::uint32_t entry) const { return values + std::int64_t{entry} * dim; }
  [[gnu::always_inline]] constexpr Real weight(std::uint32_t) const { return 1; }
  [[gnu::always_inline]] void prefetch_entry(std::uint32_t) const {}
  [[gnu::always_inline]] void prefetch_row(std::uint32_t entry) const {
    const auto bytes = static_cast<std::size_t>(dim) * sizeof(Real);
    prefetch(values, entry * bytes, bytes);
  }
};

template <class Real>
void sum_pieces(const Real* gradients, std::int64_t dim, const RowGroups& groups, std::int64_t begin, std::int64_t end,
                Real* sums) {
  const Gradients<Real> source{gradients, dim};
  for (std::int64_t piece = begin; piece < end; ++piece) {
    const RowGroups::Range range = groups.pieces()[static_cast<std::size_t>(piece)];
    sum_rows<Real>(source, groups.entries(), range.begin, range.end, dim, sums + piece * dim);
  }
}

// The base by squaring: steps are whole.
inline double power(double base, std::int32_t exponent) {
  double result = 1;
  for (auto left = static_cast<std::uint32_t>(exponent); left != 0; left >>= 1, base *= base) {
    if (left & 1) result *= base;
  }
  return result;
}

// Each step is told the row, its values and the sum of its gradients, which it may overwrite.
template <class Real>
struct Step {
  std::int64_t dim;
  Real lr, l2, kept;

  explicit Step(std::int64_t dim, const UpdateRates& rates)
      : dim(dim), lr(static_cast<Real>(rates.lr)), l2(static_cast<Real>(rates.l2)),
        kept(static_cast<Real>(1 - rates.lr * rates.weight_decay)) {}
};

template <class Real>
struct SgdStep : Step<Real> {
  SgdStep(const Sgd&, std::int64_t dim, const UpdateRates& rates) : Step<Real>(dim, rates) {}

  void prefetch_state(std::uint32_t) const {}

  void operator()(std::uint32_t, Real* values, Real* gradient) const {
    for_each_value<Real>(0, this->dim, [&]<class Value>(std::int64_t i) {
      const auto value = load_as<Value>(values + i);
      store_as<Value>(values + i, this->kept * value - this->lr * (load_as<Value>(gradient + i) + this->l2 * value));
    });
  }
};

template <class Real>
struct AdagradStep : Step<Real> {
  const RowwiseAdagrad<Real>& rule;

  AdagradStep(const RowwiseAdagrad<Real>& rule, std::int64_t dim, const UpdateRates& rates)
      : Step<Real>(dim, rates), rule(rule) {}

  void prefetch_state(std::uint32_t row) const { prefetch(rule.sums.data(), row * sizeof(Real), sizeof(Real)); }

  void operator()(std::uint32_t row, Real* values, Real* gradient) const {
    Vector<Real> squares = {};
    Real square = 0;
    for_each_value<Real>(0, this->dim, [&]<class Value>(std::int64_t i) {
      const Value g = load_as<Value>(gradient + i) + this->l2 * load_as<Value>(values + i);
      store_as<Value>(gradient + i, g);
      if constexpr (sizeof(Value) > sizeof(Real)) {
        squares += g * g;
      } else {
        square += g * g;
      }
    });
    Real& total = rule.sums[row];
    total += (square + sum<Real>(squares)) / static_cast<Real>(std::max<std::int64_t>(this->dim, 1));
    const Real rate = this->lr / (std::sqrt(total) + static_cast<Real>(rule.eps));
    for_each_value<Real>(0, this->dim, [&]<class Value>(std::int64_t i) {
      store_as<Value>(values + i, this->kept * load_as<Value>(values + i) - rate * load_as<Value>(gradient + i));
    });
  }
};

template <class Real>
struct AdamStep : Step<Real> {
  const LazyAdam<Real>& rule;

  AdamStep(const LazyAdam<Real>& rule, std::int64_t dim, const UpdateRates& rates)
      : Step<Real>(dim, rates), rule(rule) {}

  void prefetch_state(std::uint32_t row) const {
    const auto bytes = static_cast<std::size_t>(this->dim) * sizeof(Real);
    prefetch(rule.means.data(), row * bytes, bytes);
    prefetch(rule.squares.data(), row * bytes, bytes);
    prefetch(rule.steps.data(), row * sizeof(std::int32_t), sizeof(std::int32_t));
  }

  void operator()(std::uint32_t row, Real* values, Real* gradient) const {
    const std::int32_t step = ++rule.steps[row];
    const auto rate = static_cast<Real>(static_cast<double>(this->lr) / (1 - power(rule.beta1, step)));
    const auto root = static_cast<Real>(1 / std::sqrt(1 - power(rule.beta2, step)));
    const auto beta1 = static_cast<Real>(rule.beta1), beta2 = static_cast<Real>(rule.beta2);
    const auto rest1 = static_cast<Real>(1 - rule.beta1), rest2 = static_cast<Real>(1 - rule.beta2);
    const auto eps = static_cast<Real>(rule.eps);
    Real* means = rule.means.data() + row * this->dim;
    Real* squares = rule.squares.data() + row * this->dim;
    for_each_value<Real>(0, this->dim, [&]<class Value>(std::int64_t i) {
      const auto value = load_as<Value>(values + i);
      const Value g = load_as<Value>(gradient + i) + this->l2 * value;
      const Value mean = beta1 * load_as<Value>(means + i) + rest1 * g;
      const Value square = beta2 * load_as<Value>(squares + i) + rest2 * (g * g);
      store_as<Value>(means + i, mean);
      store_as<Value>(squares + i, square);
      store_as<Value>(values + i, this->kept * value - rate * mean / (root * square_root(square) + eps));
    });
  }
};

template <class Real>
auto step_of(const Sgd& rule, std::int64_t dim, const UpdateRates& rates) {
  return SgdStep<Real>(rule, dim, rates);
}
template <class Real>
auto step_of(const RowwiseAdagrad<Real>& rule, std::int64_t dim, const UpdateRates& rates) {
  return AdagradStep<Real>(rule, dim, rates);
}
template <class Real>
auto step_of(const LazyAdam<Real>& rule, std::int64_t dim, const UpdateRates& rates) {
  return AdamStep<Real>(rule, dim, rates);
}

template <class Real, class Rule>
void update_groups(const EmbeddingTable<Real>& table, const Real* gradients, const Rule& rule,
                   const UpdateRates& rates, const RowGroups& groups, const Real* piece_sums, std::int64_t begin,
                   std::int64_t end) {
  constexpr std::int64_t ahead = 4;
  const std::int64_t dim = table.dim;
  const auto bytes = static_cast<std::size_t>(dim) * sizeof(Real);
  const std::span<const std::uint32_t> rows = groups.rows();
  const Gradients<Real> source{gradients, dim};
  const auto step = step_of<Real>(rule, dim, rates);
  std::vector<Real> sums(static_cast<std::size_t>(dim));
  for (std::int64_t group = begin; group < end; ++group) {
    if (group + ahead < end) {
      const std::uint32_t next = rows[static_cast<std::size_t>(group + ahead)];
      prefetch(table.values.data(), next * bytes, bytes);
      step.prefetch_state(next);
    }
    const RowGroups::Range pieces = groups.pieces_of(group);
    if (pieces.begin == pieces.end) {
      sum_rows<Real>(source, groups.entries(), groups.begin(group), groups.end(group), dim, sums.data());
    } else {
      std::fill(sums.begin(), sums.end(), Real(0));
      for (std::uint32_t piece = pieces.begin; piece < pieces.end; ++piece) {
        for (std::int64_t i = 0; i < dim; ++i) sums[static_cast<std::size_t>(i)] += piece_sums[piece * dim + i];
      }
    }
    const std::uint32_t row = rows[static_cast<std::size_t>(group)];
    step(row, table.values.data() + std::int64_t{row} * dim, sums.data());
  }
}

}  // namespace
}  // namespace metarec::METAREC_ISA
