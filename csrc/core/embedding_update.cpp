#include "metarec/embedding_update.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "metarec/bfloat16.h"
#include "row_groups.h"

namespace metarec {
namespace {

// Entries whose gradients are summed by row before anything is sorted: few enough that the sums of the rows that repeat
// stay in the second-level cache, and that their numbers fit into 16 bits. It is the same for any number of threads, or
// the order of the sums were not.
constexpr std::int64_t kChunk = 8192;

// Distinct rows of a chunk and the sum of the gradients of each, or, where that is one gradient, this itself.
template <class Real>
struct ChunkSums {
  std::vector<std::uint32_t> rows;
  std::vector<const Real*> values;
  std::unique_ptr<Real[]> sums;
};

}  // namespace
}  // namespace metarec

#define METAREC_KERNEL "embedding_update_kernel.h"
#include "for_each_isa.h"

namespace metarec {
namespace {

template <class Real>
std::vector<ChunkSums<Real>> sum_by_chunk(std::span<const std::uint32_t> rows, const Real* gradients, std::int64_t dim,
                                          const Parallel& parallel) {
  const std::int64_t count = std::ssize(rows), chunks = (count + kChunk - 1) / kChunk;
  std::vector<ChunkSums<Real>> sums(static_cast<std::size_t>(chunks));
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

template <class Real>
void embedding_update(const EmbeddingTable<Real>& table, const Rows& rows, std::span<const Real> gradients,
                      const UpdateRule<Real>& rule, const UpdateRates& rates, const Parallel& parallel) {
  const std::string what = "embedding_update_: rows";
  const auto checked = checked_rows(rows, table.count, what, parallel);
  const auto count = std::visit([](const auto& values) { return values.size(); }, rows);
  const auto chunks = sum_by_chunk({checked.get(), count}, gradients.data(), table.dim, parallel);
  std::vector<std::int64_t> term_rows;
  std::vector<const Real*> terms;
  for (const ChunkSums<Real>& chunk : chunks) {
    term_rows.insert(term_rows.end(), chunk.rows.begin(), chunk.rows.end());
    terms.insert(terms.end(), chunk.values.begin(), chunk.values.end());
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

template void embedding_update(const EmbeddingTable<float>&, const Rows&, std::span<const float>,
                               const UpdateRule<float>&, const UpdateRates&, const Parallel&);
template void embedding_update(const EmbeddingTable<double>&, const Rows&, std::span<const double>,
                               const UpdateRule<double>&, const UpdateRates&, const Parallel&);

}  // namespace metarec
