// Sums of rows, for one instruction set; included by kernels that sum over the groups of RowGroups.
namespace metarec::METAREC_ISA {
namespace {

// How many rows ahead are fetched: enough to hide the memory, few enough to stay in the first-level cache.
constexpr std::int64_t kAhead = 8;

// Calls body.operator()<Value>(i) for all of a row, where Value is a vector of values from i, or one value at its end.
template <class Real, class Body>
[[gnu::always_inline]] inline void for_each_value(std::int64_t begin, std::int64_t dim, const Body& body) {
  std::int64_t i = begin;
  for (; i + kLanes<Real> <= dim; i += kLanes<Real>) body.template operator()<Vector<Real>>(i);
  for (; i < dim; ++i) body.template operator()<Real>(i);
}

// Writes the sum over the entries [begin, end) of source.weight(entry) times the row of `dim` values that
// source.with_row(entry, body) gives to the body, in the type in which it is stored. Eight vectors are summed at a time,
// in registers, so each row is read once and nothing is written in between. What tells where a row is, is fetched twice
// as far ahead as the row.
template <class Real, class Source>
void sum_rows(const Source& source, std::span<const std::uint32_t> entries, std::int64_t begin, std::int64_t end,
              std::int64_t dim, Real* sums) {
  constexpr std::int64_t lanes = kLanes<Real>, vectors = 8;
  const auto fetch = [&](std::int64_t i) {
    const std::int64_t last = std::ssize(entries) - 1;
    source.prefetch_entry(entries[static_cast<std::size_t>(std::min(i + 2 * kAhead, last))]);
    source.prefetch_row(entries[static_cast<std::size_t>(std::min(i + kAhead, last))]);
  };
  std::int64_t column = 0;
  for (; column + vectors * lanes <= dim; column += vectors * lanes) {
    Vector<Real> totals[vectors] = {};
    for (std::int64_t i = begin; i < end; ++i) {
      if (column == 0) fetch(i);
      const std::uint32_t entry = entries[static_cast<std::size_t>(i)];
      const Real weight = source.weight(entry);
      source.with_row(entry, [&](const auto* row) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) totals[v] += weight * load_as<Vector<Real>>(row + column + v * lanes);
      });
    }
    for (int v = 0; v < vectors; ++v) store(sums + column + v * lanes, totals[v]);
  }
  for_each_value<Real>(column, dim, [&]<class Value>(std::int64_t at) {
    Value total = {};
    for (std::int64_t i = begin; i < end; ++i) {
      const std::uint32_t entry = entries[static_cast<std::size_t>(i)];
      source.with_row(entry, [&](const auto* row) { total += source.weight(entry) * load_as<Value>(row + at); });
    }
    store_as(sums + at, total);
  });
}

}  // namespace
}  // namespace metarec::METAREC_ISA
