// Sums of the gradients of rows, and the steps along them, for one instruction set.
//
// First, chunk by chunk, the gradients are read once and in order, and those of rows that repeat are summed; a hash
// table of the chunk's rows finds the sum. Popular rows repeat often, so that few terms are left to sort by row: the
// sums, and the gradients of rows that a chunk names once, which are not copied. Of each row the terms are then summed
// in registers and the step is made at once, so a row with its state is read and written once: for Adam, 64 floats and
// a share of distinct rows of r, 264 + 1544 r bytes per gradient (with its row, and the row's step), which is the
// floor, for 64 + 704 r operations. To sort all gradients by row would read them out of order; a table of sums for all
// rows would add 512 r. State lies in tables of its own, like that of torch's optimizers. What is scattered is fetched
// ahead.
//
// BFloat16, of the table and its gradients, is widened where it is read and rounded where it is written: 136 + 1288 r
// bytes. Sums and state are floats.
#include "simd.h"

#include "row_sums_kernel.h"

namespace metarec::METAREC_ISA {
namespace {

// Calls body with the values of a term, in the type in which they are stored.
template <class Stored, class Body>
[[gnu::always_inline]] inline void with_values(const Term<Stored>& term, const Body& body) {
  if constexpr (std::is_same_v<Stored, Arithmetic<Stored>>) {
    body(term.sum != nullptr ? term.sum : term.gradient);
  } else if (term.sum != nullptr) {
    body(term.sum);
  } else {
    body(term.gradient);
  }
}

template <class Stored, class Real = Arithmetic<Stored>>
void sum_chunk(std::span<const std::uint32_t> rows, const Stored* gradient, std::int64_t dim,
               ChunkTerms<Stored>& chunk) {
  constexpr std::uint16_t none = 0xffff;
  constexpr std::size_t ahead = 16;
  const auto bytes = static_cast<std::size_t>(dim) * sizeof(Stored);
  const int bits = std::bit_width(rows.size()) + 1;
  std::vector<std::uint16_t> table(std::size_t{1} << bits, none);  // the numbers of rows, by hash
  chunk.rows.reserve(rows.size());
  chunk.terms.reserve(rows.size());
  chunk.sums = std::make_unique_for_overwrite<Real[]>(rows.size() / 2 * static_cast<std::size_t>(dim));
  Real* unused = chunk.sums.get();
  for (std::size_t entry = 0; entry < rows.size(); ++entry, gradient += dim) {
    // Only where most rows repeat: else most gradients are not read here.
    if (2 * chunk.rows.size() < entry) prefetch(gradient, ahead * bytes, bytes);
    std::size_t at = rows[entry] * 0x9e3779b1u >> (32 - bits);
    while (table[at] != none && chunk.rows[table[at]] != rows[entry]) at = (at + 1) & (table.size() - 1);
    if (table[at] == none) {
      table[at] = static_cast<std::uint16_t>(chunk.rows.size());
      chunk.rows.push_back(rows[entry]);
      chunk.terms.push_back({gradient, nullptr});
      continue;
    }
    Term<Stored>& term = chunk.terms[table[at]];
    Real* const sum = term.sum != nullptr ? term.sum : std::exchange(unused, unused + dim);
    with_values(term, [&](const auto* before) {
      for_each_value<Real>(0, dim, [=]<class Value>(std::int64_t i) {
        store_as<Value>(sum + i, load_as<Value>(before + i) + load_as<Value>(gradient + i));
      });
    });
    term.sum = sum;
  }
}

template <class Stored, class Real = Arithmetic<Stored>>
struct Terms {
  const Term<Stored>* terms;
  std::int64_t dim;

  template <class Body>
  [[gnu::always_inline]] void with_row(std::uint32_t term, const Body& body) const {
    with_values(terms[term], body);
  }
  [[gnu::always_inline]] constexpr Real weight(std::uint32_t) const { return 1; }
  [[gnu::always_inline]] void prefetch_entry(std::uint32_t term) const {
    prefetch(terms, term * sizeof(*terms), sizeof(*terms));
  }
  [[gnu::always_inline]] void prefetch_row(std::uint32_t term) const {
    with_row(term, [&](const auto* row) { prefetch(row, 0, static_cast<std::size_t>(dim) * sizeof(*row)); });
  }
};

// A row of the table, which is rounded to the nearest where it is written.
template <class Stored>
struct TableRow {
  Stored* values;

  template <class Value>
  [[gnu::always_inline]] Value load(std::int64_t column) const {
    return load_as<Value>(values + column);
  }
  template <class Value>
  [[gnu::always_inline]] void store(std::int64_t column, Value value) const {
    store_as<Value>(values + column, value);
  }
};

// One that is rounded stochastically.
struct NoisyRow : TableRow<BFloat16> {
  RowNoise noise;

  template <class Value>
  [[gnu::always_inline]] void store(std::int64_t column, Value value) const {
    store_as<Value>(values + column, value, noise_at<Value>(noise, column));
  }
};

// The base by squaring: steps are whole.
inline double power(double base, std::int32_t exponent) {
  double result = 1;
  for (auto left = static_cast<std::uint32_t>(exponent); left != 0; left >>= 1, base *= base) {
    if (left & 1) result *= base;
  }
  return result;
}

// Each step is told the number of the row, the row itself and the sum of its gradients, which it may overwrite.
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

  template <class Row>
  void operator()(std::uint32_t, const Row& values, Real* gradient) const {
    for_each_value<Real>(0, this->dim, [&]<class Value>(std::int64_t i) {
      const auto value = values.template load<Value>(i);
      values.store(i, this->kept * value - this->lr * (load_as<Value>(gradient + i) + this->l2 * value));
    });
  }
};

template <class Real>
struct AdagradStep : Step<Real> {
  const RowwiseAdagrad<Real>& rule;

  AdagradStep(const RowwiseAdagrad<Real>& rule, std::int64_t dim, const UpdateRates& rates)
      : Step<Real>(dim, rates), rule(rule) {}

  void prefetch_state(std::uint32_t row) const { prefetch(rule.sums.data(), row * sizeof(Real), sizeof(Real)); }

  template <class Row>
  void operator()(std::uint32_t row, const Row& values, Real* gradient) const {
    Vector<Real> squares = {};
    Real square = 0;
    for_each_value<Real>(0, this->dim, [&]<class Value>(std::int64_t i) {
      const Value g = load_as<Value>(gradient + i) + this->l2 * values.template load<Value>(i);
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
      values.store(i, this->kept * values.template load<Value>(i) - rate * load_as<Value>(gradient + i));
    });
  }
};

template <class Real>
struct AdamStep : Step<Real> {
  // Of the learning rate and of the root, for the bias of both means after so many steps. Rows have few different
  // counts, and the powers and the root of one take as long as the rest of its step.
  struct Correction {
    std::int32_t step;
    Real rate, root;
  };

  const LazyAdam<Real>& rule;
  mutable std::array<Correction, 64> corrections = {};  // by the last bits of the count

  AdamStep(const LazyAdam<Real>& rule, std::int64_t dim, const UpdateRates& rates)
      : Step<Real>(dim, rates), rule(rule) {}

  void prefetch_state(std::uint32_t row) const {
    const auto bytes = static_cast<std::size_t>(this->dim) * sizeof(Real);
    prefetch(rule.means.data(), row * bytes, bytes);
    prefetch(rule.squares.data(), row * bytes, bytes);
    prefetch(rule.steps.data(), row * sizeof(std::int32_t), sizeof(std::int32_t));
  }

  const Correction& correction_of(std::int32_t step) const {
    Correction& correction = corrections[static_cast<std::size_t>(step) % corrections.size()];
    if (correction.step != step) {
      correction = {step, static_cast<Real>(static_cast<double>(this->lr) / (1 - power(rule.beta1, step))),
                    static_cast<Real>(1 / std::sqrt(1 - power(rule.beta2, step)))};
    }
    return correction;
  }

  template <class Row>
  void operator()(std::uint32_t row, const Row& values, Real* gradient) const {
    const std::int32_t step = ++rule.steps[row];
    const auto [_, rate, root] = correction_of(step);
    const auto beta1 = static_cast<Real>(rule.beta1), beta2 = static_cast<Real>(rule.beta2);
    const auto rest1 = static_cast<Real>(1 - rule.beta1), rest2 = static_cast<Real>(1 - rule.beta2);
    const auto eps = static_cast<Real>(rule.eps);
    Real* means = rule.means.data() + row * this->dim;
    Real* squares = rule.squares.data() + row * this->dim;
    for_each_value<Real>(0, this->dim, [&]<class Value>(std::int64_t i) {
      const auto value = values.template load<Value>(i);
      const Value g = load_as<Value>(gradient + i) + this->l2 * value;
      const Value mean = beta1 * load_as<Value>(means + i) + rest1 * g;
      const Value square = beta2 * load_as<Value>(squares + i) + rest2 * (g * g);
      store_as<Value>(means + i, mean);
      store_as<Value>(squares + i, square);
      values.store(i, this->kept * value - rate * mean / (root * square_root(square) + eps));
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

template <class Stored, class Rule>
void update_groups(const EmbeddingTable<Stored>& table, const Term<Stored>* terms, const Rule& rule,
                   const UpdateRates& rates, const RowGroups& groups, std::int64_t begin, std::int64_t end) {
  using Real = Arithmetic<Stored>;
  constexpr std::int64_t ahead = 4;
  const std::int64_t dim = table.dim;
  const auto bytes = static_cast<std::size_t>(dim) * sizeof(Stored);
  const std::span<const std::uint32_t> rows = groups.rows();
  const Terms<Stored> source{terms, dim};
  const auto step = step_of<Real>(rule, dim, rates);
  std::vector<Real> sums(static_cast<std::size_t>(dim));
  for (std::int64_t group = begin; group < end; ++group) {
    if (group + ahead < end) {
      const std::uint32_t next = rows[static_cast<std::size_t>(group + ahead)];
      prefetch(table.values.data(), next * bytes, bytes);
      step.prefetch_state(next);
    }
    sum_rows<Real>(source, groups.entries(), groups.begin(group), groups.end(group), dim, sums.data());
    const std::uint32_t row = rows[static_cast<std::size_t>(group)];
    const TableRow<Stored> values{table.values.data() + std::int64_t{row} * dim};
    if constexpr (std::is_same_v<Stored, BFloat16>) {
      if (table.seed) {
        step(row, NoisyRow{values, RowNoise(*table.seed, row)}, sums.data());
        continue;
      }
    }
    step(row, values, sums.data());
  }
}

}  // namespace
}  // namespace metarec::METAREC_ISA
