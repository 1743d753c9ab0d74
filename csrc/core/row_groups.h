// Entries that name a row of a table, checked and grouped by row.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "metarec/parallel.h"
#include "metarec/rows.h"

namespace metarec {

// Rows in 32 bits, which is enough for any table and halves what later passes read. Throws std::invalid_argument,
// which begins with `what` and names the entry, where one is outside [0, table_rows).
std::unique_ptr<std::uint32_t[]> checked_rows(const Rows& rows, std::int64_t table_rows, const std::string& what,
                                              const Parallel& parallel);

// The distinct rows of a list, and which entries name each.
//
// Sums over the entries of a row are formed in an order that depends on the list alone: one after the other, or, for a
// row of at least twice kPiece entries, piece by piece and then over the pieces. Threads can so share a popular row, and
// the result is the same for any number of them.
class RowGroups {
 public:
  static constexpr std::uint32_t kPiece = 256;

  RowGroups(const Rows& rows, std::int64_t table_rows, const std::string& what, const Parallel& parallel);

  std::int64_t count() const { return std::ssize(rows_); }
  std::span<const std::uint32_t> rows() const { return rows_; }  // ascending
  std::span<const std::uint32_t> entries() const { return {entries_.get(), count_}; }
  std::uint32_t begin(std::int64_t group) const { return begins_[static_cast<std::size_t>(group)]; }
  std::uint32_t end(std::int64_t group) const { return begins_[static_cast<std::size_t>(group) + 1]; }

  struct Range {
    std::uint32_t begin, end;
  };
  std::span<const Range> pieces() const { return pieces_; }
  // The pieces of a group; none where it is summed at once.
  Range pieces_of(std::int64_t group) const;

  // The first group of a part of the work, such that all parts have about as much, where a group costs as much as
  // `group_cost` entries and pieces have been summed before.
  std::int64_t part_begin(std::int64_t part, std::int64_t parts, std::int64_t group_cost) const;

 private:
  struct LongGroup {
    std::int64_t group;
    std::uint32_t first_piece;
  };
  void find_groups(std::span<const std::uint64_t> sorted, const Parallel& parallel);
  void cut_long_groups();
  std::uint32_t pieces_before(std::int64_t group) const;

  std::size_t count_;
  std::unique_ptr<std::uint32_t[]> entries_;
  std::vector<std::uint32_t> rows_, begins_;
  std::vector<LongGroup> long_groups_;
  std::vector<Range> pieces_;
};

}  // namespace metarec
