#include "metarec/embedding_update.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "metarec/bfloat16.h"
#include "row_groups.h"

#define METAREC_KERNEL "embedding_update_kernel.h"
#include "for_each_isa.h"

namespace metarec {

template <class Real>
void embedding_update(const EmbeddingTable<Real>& table, const Rows& rows, std::span<const Real> gradients,
                      const UpdateRule<Real>& rule, const UpdateRates& rates, const Parallel& parallel) {
  const RowGroups groups(rows, table.count, "embedding_update_: rows", parallel);
  const std::int64_t pieces = std::ssize(groups.pieces());
  const auto piece_sums = std::make_unique_for_overwrite<Real[]>(static_cast<std::size_t>(pieces * table.dim));
  if (pieces > 0) {
    const std::int64_t parts = std::min(pieces, parallel.threads);
    parallel.run(parts, [&](std::int64_t part) {
      METAREC_DISPATCH(sum_pieces(gradients.data(), table.dim, groups, pieces * part / parts,
                                  pieces * (part + 1) / parts, piece_sums.get()));
    });
  }
  constexpr std::int64_t least_part = 512, group_cost = 4;
  const std::int64_t parts =
      std::clamp<std::int64_t>(std::ssize(groups.entries()) / least_part, 1, parallel.threads);
  std::visit(
      [&](const auto& chosen) {
        parallel.run(parts, [&](std::int64_t part) {
          METAREC_DISPATCH(update_groups(table, gradients.data(), chosen, rates, groups, piece_sums.get(),
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
