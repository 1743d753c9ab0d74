#include "row_groups.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <utility>

namespace metarec {
namespace {

// Fewer entries than this are not worth another thread.
constexpr std::int64_t kLeastPart = 1 << 14;

std::int64_t parts_of(std::int64_t count, const Parallel& parallel) {
  return std::clamp<std::int64_t>(count / kLeastPart, 1, parallel.threads);
}

std::int64_t size(const Rows& rows) {
  return std::visit([](const auto& values) { return std::ssize(values); }, rows);
}

// Calls take(entry, row) for every entry, in parts.
template <class Take>
void for_each_row(const Rows& rows, std::int64_t table_rows, const std::string& what, const Parallel& parallel,
                  const Take& take) {
  constexpr std::int64_t most = std::int64_t{1} << 32;
  const std::int64_t count = size(rows), parts = parts_of(count, parallel);
  if (count >= most || table_rows > most) {
    throw std::invalid_argument(what + ": more than 2^32 rows cannot be addressed");
  }
  std::vector<std::uint8_t> wrong(static_cast<std::size_t>(parts));
  std::visit(
      [&](const auto& values) {
        const auto is_wrong = [table_rows](std::int64_t row) { return row < 0 || row >= table_rows; };
        parallel.run(parts, [&](std::int64_t part) {
          const auto* from = values.data();
          bool any = false;
          for (std::int64_t entry = count * part / parts; entry < count * (part + 1) / parts; ++entry) {
            any |= is_wrong(from[entry]);
            take(static_cast<std::uint32_t>(entry), static_cast<std::uint32_t>(from[entry]));
          }
          wrong[static_cast<std::size_t>(part)] = any;
        });
        if (std::ranges::count(wrong, 1) == 0) return;
        const auto first = std::ranges::find_if(values, is_wrong);
        throw std::invalid_argument(what + " must be from 0 to " + std::to_string(table_rows - 1) + ", got " +
                                    std::to_string(*first) + " at " + std::to_string(first - values.begin()));
      },
      rows);
}

constexpr std::uint64_t pack(std::uint32_t row, std::uint32_t entry) { return std::uint64_t{row} << 32 | entry; }
constexpr std::uint32_t row_of(std::uint64_t packed) { return static_cast<std::uint32_t>(packed >> 32); }

// One stable pass of a radix sort by the `bits` bits above `shift`.
void scatter(std::span<const std::uint64_t> from, std::span<std::uint64_t> to, int shift, int bits,
             const Parallel& parallel) {
  const std::int64_t count = std::ssize(from), parts = parts_of(count, parallel), buckets = std::int64_t{1} << bits;
  const auto bucket = [&](std::uint64_t value) { return value >> shift & static_cast<std::uint64_t>(buckets - 1); };
  std::vector<std::uint32_t> next(static_cast<std::size_t>(parts * buckets));
  parallel.run(parts, [&](std::int64_t part) {
    std::uint32_t* counts = next.data() + part * buckets;
    for (std::int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) ++counts[bucket(from[i])];
  });
  std::uint32_t total = 0;
  for (std::int64_t value = 0; value < buckets; ++value) {
    for (std::int64_t part = 0; part < parts; ++part) {
      total += std::exchange(next[static_cast<std::size_t>(part * buckets + value)], total);
    }
  }
  parallel.run(parts, [&](std::int64_t part) {
    std::uint32_t* places = next.data() + part * buckets;
    for (std::int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
      to[places[bucket(from[i])]++] = from[i];
    }
  });
}

// Sorts by row, entries of a row in order. Reads and writes 16 bytes per entry in each of two or three passes.
void sort_by_row(std::unique_ptr<std::uint64_t[]>& packed, std::size_t count, std::int64_t table_rows,
                 const Parallel& parallel) {
  if (std::is_sorted(packed.get(), packed.get() + count)) return;
  constexpr std::size_t few = 512;
  if (count < few) {
    std::sort(packed.get(), packed.get() + count);
    return;
  }
  constexpr int widest = 11;
  const int width = std::bit_width(static_cast<std::uint64_t>(table_rows - 1));
  const int passes = (width + widest - 1) / widest;
  auto other = std::make_unique_for_overwrite<std::uint64_t[]>(count);
  for (int pass = 0; pass < passes; ++pass) {
    const int from = width * pass / passes, to = width * (pass + 1) / passes;
    scatter({packed.get(), count}, {other.get(), count}, 32 + from, to - from, parallel);
    packed.swap(other);
  }
}

}  // namespace

std::unique_ptr<std::uint32_t[]> checked_rows(const Rows& rows, std::int64_t table_rows, const std::string& what,
                                              const Parallel& parallel) {
  auto checked = std::make_unique_for_overwrite<std::uint32_t[]>(static_cast<std::size_t>(size(rows)));
  for_each_row(rows, table_rows, what, parallel,
               [to = checked.get()](std::uint32_t entry, std::uint32_t row) { to[entry] = row; });
  return checked;
}

RowGroups::RowGroups(const Rows& rows, std::int64_t table_rows, const std::string& what, const Parallel& parallel)
    : count_(static_cast<std::size_t>(size(rows))) {
  auto packed = std::make_unique_for_overwrite<std::uint64_t[]>(count_);
  for_each_row(rows, table_rows, what, parallel,
               [to = packed.get()](std::uint32_t entry, std::uint32_t row) { to[entry] = pack(row, entry); });
  sort_by_row(packed, count_, table_rows, parallel);
  find_groups({packed.get(), count_}, parallel);
  cut_long_groups();
}

void RowGroups::find_groups(std::span<const std::uint64_t> sorted, const Parallel& parallel) {
  entries_ = std::make_unique_for_overwrite<std::uint32_t[]>(count_);
  const std::int64_t count = std::ssize(sorted), parts = parts_of(count, parallel);
  const auto begins_group = [&](std::int64_t i) { return i == 0 || row_of(sorted[i]) != row_of(sorted[i - 1]); };
  std::vector<std::int64_t> first(static_cast<std::size_t>(parts) + 1);
  parallel.run(parts, [&](std::int64_t part) {
    std::int64_t found = 0;
    for (std::int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
      entries_[static_cast<std::size_t>(i)] = static_cast<std::uint32_t>(sorted[i]);
      found += begins_group(i);
    }
    first[static_cast<std::size_t>(part) + 1] = found;
  });
  for (std::size_t part = 1; part < first.size(); ++part) first[part] += first[part - 1];
  rows_.resize(static_cast<std::size_t>(first.back()));
  begins_.resize(rows_.size() + 1);
  parallel.run(parts, [&](std::int64_t part) {
    // Every entry is written where the next group belongs, and stays there if it begins one: no branch to mispredict.
    const auto end = static_cast<std::size_t>(first[static_cast<std::size_t>(part) + 1]);
    std::int64_t i = count * part / parts;
    for (auto group = static_cast<std::size_t>(first[static_cast<std::size_t>(part)]); group < end; ++i) {
      rows_[group] = row_of(sorted[i]);
      begins_[group] = static_cast<std::uint32_t>(i);
      group += begins_group(i);
    }
  });
  begins_.back() = static_cast<std::uint32_t>(count);
}

void RowGroups::cut_long_groups() {
  for (std::int64_t group = 0; group < count(); ++group) {
    const std::uint32_t pieces = (end(group) - begin(group)) / kPiece;
    if (pieces < 2) continue;
    long_groups_.push_back({group, static_cast<std::uint32_t>(pieces_.size())});
    for (std::uint32_t piece = 0; piece < pieces; ++piece) {
      const std::uint32_t from = begin(group) + piece * kPiece;
      pieces_.push_back({from, piece + 1 == pieces ? end(group) : from + kPiece});
    }
  }
}

std::uint32_t RowGroups::pieces_before(std::int64_t group) const {
  const auto found = std::ranges::lower_bound(long_groups_, group, {}, &LongGroup::group);
  return found == long_groups_.end() ? static_cast<std::uint32_t>(pieces_.size()) : found->first_piece;
}

RowGroups::Range RowGroups::pieces_of(std::int64_t group) const {
  if ((end(group) - begin(group)) / kPiece < 2) return {0, 0};
  return {pieces_before(group), pieces_before(group + 1)};
}

std::int64_t RowGroups::part_begin(std::int64_t part, std::int64_t parts, std::int64_t group_cost) const {
  const auto work_before = [&](std::int64_t group) {
    return std::int64_t{begins_[static_cast<std::size_t>(group)]} - std::int64_t{kPiece} * pieces_before(group) +
           group_cost * group;
  };
  if (part == parts) return count();
  const std::int64_t wanted = work_before(count()) / parts * part;
  std::int64_t low = 0, high = count();
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    (work_before(middle) < wanted) ? low = middle + 1 : high = middle;
  }
  return low;
}

}  // namespace metarec
