#include "metarec/embedding_update.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "row_groups.h"

namespace metarec {
namespace {

// Entries whose gradients are summed by row before anything is sorted: few enough that the sums of the rows that repeat
// stay in the second-level cache, and that their numbers fit into 16 bits. It is the same for any number of threads, or
// the order of the sums were not.
constexpr std::int64_t kChunk = 8192;

// The gradient of a row that a chunk names once, or else, where it is not null, the sum of those that it has.
template <class Stored>
struct Term {
  const Stored* gradient;
  Arithmetic<Stored>* sum;
};

// Distinct rows of a chunk and the term of each.
template <class Stored>
struct ChunkTerms {
  std::vector<std::uint32_t> rows;
  std::vector<Term<Stored>> terms;
  std::unique_ptr<Arithmetic<Stored>[]> sums;
};

}  // namespace
}  // namespace metarec

#define METAREC_KERNEL "embedding_update_kernel.h"
#include "for_each_isa.h"

namespace metarec {
namespace {

template <class Stored>
std::vector<ChunkTerms<Stored>> sum_by_chunk(std::span<const std::uint32_t> rows, const Stored* gradients,
                                             std::int64_t dim, const Parallel& parallel) {
  const std::int64_t count = std::ssize(rows), chunks = (count + kChunk - 1) / kChunk;
  std::vector<ChunkTerms<Stored>> sums(static_cast<std::size_t>(chunks));
  const std::int64_t parts = std::clamp<std::int64_t>(chunks, 1, parallel.threads);
  parallel.run(parts, [&](std::int64_t part) {
    for (std::int64_t chunk = chunks * part / parts; chunk < chunks * (part + 1) / parts; ++chunk) {
      const std::int64_t begin = chunk * kChunk, entries = std::min(kChunk, count - begin);
      const std::span named = rows.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(entries));
      METAREC_DISPATCH(sum_chunk(named, gradients + begin * dim, dim, sums[static_cast<std::size_t>(chunk)]));
    }
  });
  return sums;
}

}  // namespace

template <class Stored>
void embedding_update(const EmbeddingTable<Stored>& table, const Rows& rows, std::span<const Stored> gradients,
                      const UpdateRule<Arithmetic<Stored>>& rule, const UpdateRates& rates, const Parallel& parallel) {
  if (table.seed && !std::is_same_v<Stored, BFloat16>) {
    throw std::invalid_argument("embedding_update_: only a table of bfloat16 is rounded by a seed");
  }
  const std::string what = "embedding_update_: rows";
  const auto checked = checked_rows(rows, table.count, what, parallel);
  const auto count = std::visit([](const auto& values) { return values.size(); }, rows);
  const auto chunks = sum_by_chunk({checked.get(), count}, gradients.data(), table.dim, parallel);
  std::vector<std::int64_t> term_rows;
  std::vector<Term<Stored>> terms;
  for (const ChunkTerms<Stored>& chunk : chunks) {
    term_rows.insert(term_rows.end(), chunk.rows.begin(), chunk.rows.end());
    terms.insert(terms.end(), chunk.terms.begin(), chunk.terms.end());
  }
  const RowGroups groups(std::span<const std::int64_t>(term_rows), table.count, what, parallel);
  constexpr std::int64_t least_part = 512, group_cost = 4;
  const std::int64_t parts = std::clamp<std::int64_t>(std::ssize(terms) / least_part, 1, parallel.threads);
  std::visit(
      [&](const auto& chosen) {
        parallel.run(parts, [&](std::int64_t part) {
          METAREC_DISPATCH(update_groups(table, terms.data(), chosen, rates, groups,
                                         groups.part_begin(part, parts, group_cost),
                                         groups.part_begin(part + 1, parts, group_cost)));
        });
      },
      rule);
}

#define METAREC_INSTANTIATE(Stored)                                                                 \
  template void embedding_update(const EmbeddingTable<Stored>&, const Rows&, std::span<const Stored>, \
                                 const UpdateRule<Arithmetic<Stored>>&, const UpdateRates&, const Parallel&);
METAREC_INSTANTIATE(float)
METAREC_INSTANTIATE(double)
METAREC_INSTANTIATE(BFloat16)
#undef METAREC_INSTANTIATE

}  // namespace metarec
