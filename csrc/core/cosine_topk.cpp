#include "metarec/cosine_topk.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace metarec {
namespace {

template <class Real>
struct ScoredRow {
  Real score;
  std::int64_t row;
};

template <class Real>
bool better(const ScoredRow<Real>& left, const ScoredRow<Real>& right) {
  return left.score > right.score || (left.score == right.score && left.row < right.row);
}

// The k best items seen so far, as a heap with the worst on top.
template <class Real>
class BestItems {
 public:
  explicit BestItems(std::span<ScoredRow<Real>> storage) : heap_(storage) {}

  // No score is kept that is minus infinity or not a number.
  void offer(Real score, std::int64_t row) {
    const ScoredRow<Real> item{score, row};
    if (!(score > -std::numeric_limits<Real>::infinity()) || heap_.empty()) return;
    const auto begin = heap_.begin(), end = begin + size_;
    if (size_ < std::ssize(heap_)) {
      *end = item;
      std::push_heap(begin, begin + ++size_, better<Real>);
    } else if (better(item, heap_.front())) {
      std::pop_heap(begin, end, better<Real>);
      *(end - 1) = item;
      std::push_heap(begin, end, better<Real>);
    }
  }

  // A score below this cannot enter.
  Real worst() const {
    if (heap_.empty()) return std::numeric_limits<Real>::infinity();
    return size_ < std::ssize(heap_) ? -std::numeric_limits<Real>::infinity() : heap_.front().score;
  }

  std::span<const ScoredRow<Real>> items() const { return heap_.first(static_cast<std::size_t>(size_)); }

 private:
  std::span<ScoredRow<Real>> heap_;
  std::int64_t size_ = 0;
};

// A query in integers for the first pass over codes. An item's score is at most
// codes . item codes * scale * item scale + error_factor * item error + error.
struct CodedQuery {
  std::vector<std::int16_t> codes;
  float scale, error_factor, error;
};

// Floats that begin on a cache line.
class AlignedFloats {
 public:
  explicit AlignedFloats(std::int64_t count) : storage_(static_cast<std::size_t>(count) + 16) {
    const auto misplaced = reinterpret_cast<std::uintptr_t>(storage_.data()) % 64 / sizeof(float);
    data_ = storage_.data() + (misplaced ? 16 - misplaced : 0);
  }
  float* data() { return data_; }

 private:
  std::vector<float> storage_;
  float* data_;
};

template <class Real>
struct Search {
  std::span<const Real> queries;
  const ItemTable<Real>& table;
  std::span<const double> query_norms;
  std::span<const std::int64_t> excluded_offsets, excluded_rows;  // rows ascend within each query
  bool cosine;

  static double length(double norm) { return norm > kNormEpsilon ? norm : norm <= kNormEpsilon ? kNormEpsilon : norm; }

  Real score(double product, std::int64_t query, std::int64_t row) const {
    return static_cast<Real>(cosine ? product / (length(query_norms[query]) * length(table.norms[row])) : product);
  }

  bool is_excluded(std::int64_t query, std::int64_t row) const {
    if (excluded_offsets.empty()) return false;
    const auto begin = excluded_rows.begin();
    return std::binary_search(begin + excluded_offsets[query], begin + excluded_offsets[query + 1], row);
  }

  double query_scale(std::int64_t query) const { return cosine ? 1 / length(query_norms[query]) : 1; }
  float item_scale(std::int64_t row) const {
    return cosine ? static_cast<float>(1 / length(table.norms[row])) : 1.0f;
  }

  // The product of the norms that estimates of a query are made of, at most.
  double magnitude(std::int64_t query) const { return cosine ? 1.0 : query_norms[query] * table.largest_norm; }

  // Beyond this magnitude an estimate could overflow, and bounds nothing.
  static constexpr double kSafeMagnitude = 1e37;
  bool can_overflow(std::int64_t query) const {
    return !(table.largest_norm < kSafeMagnitude && query_norms[query] < kSafeMagnitude &&
             magnitude(query) < kSafeMagnitude);
  }

  // A bound on |estimate - score| for a tile: a sum of d products of float32 in any order has a relative error of at
  // most d u / (1 - d u) with u = 2^-24, of the product of the norms; scaling both vectors, rounding the score and
  // forming the threshold add 6 u. The last term covers products that underflow.
  float tile_error(std::int64_t query) const {
    if (can_overflow(query)) return std::numeric_limits<float>::infinity();
    const double relative = 1.1 * static_cast<double>(table.dim + 8) * 0x1p-24;
    return static_cast<float>(relative * magnitude(query) + static_cast<double>(table.dim) * 0x1p-100);
  }

  // With the query q = s b + r and an item x = t c + e, where b and c are integers,
  // q.x - s t b.c = q.e + r.(t c), so |q.x - s t b.c| <= |q| |e| + |r| (|x| + |e|).
  CodedQuery encode(std::int64_t query) const {
    const std::int64_t dim = table.dim, padded = (dim + 1) / 2 * 2;
    CodedQuery coded{std::vector<std::int16_t>(static_cast<std::size_t>(padded)), 0, 0, 0};
    if (can_overflow(query)) {
      coded.error = std::numeric_limits<float>::infinity();
      return coded;
    }
    const Real* values = queries.data() + query * dim;
    double largest = 0, norm = query_norms[query] * query_scale(query), squared = 0;
    for (std::int64_t d = 0; d < dim; ++d) largest = std::max(largest, std::abs(static_cast<double>(values[d])));
    // The sum of dim products of codes must fit 32 bits.
    const double top = std::min<double>(32767, std::floor(2147483647.0 / (127.0 * static_cast<double>(padded))));
    const double scale = largest * query_scale(query) / top;
    for (std::int64_t d = 0; largest > 0 && d < dim; ++d) {
      const double value = static_cast<double>(values[d]) * query_scale(query), code = std::nearbyint(value / scale);
      squared += (value - scale * code) * (value - scale * code);
      coded.codes[static_cast<std::size_t>(d)] = static_cast<std::int16_t>(code);
    }
    const double residual = std::sqrt(squared), item = cosine ? 1.0 : table.largest_norm;
    coded.scale = static_cast<float>(scale);
    coded.error_factor = static_cast<float>(1.001 * (norm + residual));
    coded.error = static_cast<float>(1.001 * residual * item + 16 * 0x1p-24 * magnitude(query) +
                                     static_cast<double>(dim) * 0x1p-130 * (1 + norm));
    return coded;
  }
};

}  // namespace
}  // namespace metarec

#define METAREC_KERNEL "cosine_topk_kernel.h"
#include "for_each_isa.h"

namespace metarec {
namespace {

// Copies the excluded rows, ascending within each query, and checks them.
std::vector<std::int64_t> sorted_rows(const Excluded& excluded, std::int64_t queries, std::int64_t items) {
  std::vector<std::int64_t> rows(excluded.rows.begin(), excluded.rows.end());
  if (excluded.offsets.empty()) return rows;
  if (std::ssize(excluded.offsets) != queries + 1 || excluded.offsets.front() != 0 ||
      excluded.offsets.back() != std::ssize(rows) || !std::ranges::is_sorted(excluded.offsets)) {
    throw std::invalid_argument("cosine_topk: excluded offsets must ascend from 0 to " + std::to_string(rows.size()) +
                                " over " + std::to_string(queries) + " queries");
  }
  for (const std::int64_t row : rows) {
    if (row < 0 || row >= items) {
      throw std::invalid_argument("cosine_topk: excluded rows must be from 0 to " + std::to_string(items - 1) +
                                  ", got " + std::to_string(row));
    }
  }
  for (std::int64_t query = 0; query < queries; ++query) {
    std::sort(rows.begin() + excluded.offsets[query], rows.begin() + excluded.offsets[query + 1]);
  }
  return rows;
}

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

template <class Real>
double item_norms(std::int64_t dim, std::span<const Real> items, std::span<double> norms, const Parallel& parallel) {
  const std::int64_t count = std::ssize(norms), parts = std::clamp<std::int64_t>(count / 1024, 1, parallel.threads);
  parallel.run(parts, [&](std::int64_t part) {
    METAREC_DISPATCH(norms_range(dim, items.data(), norms.data(), count * part / parts, count * (part + 1) / parts));
  });
  double largest = 0;
  for (const double norm : norms) largest = std::max(largest, norm);
  return largest;
}

void encode_items(std::int64_t dim, std::span<const float> items, std::span<const double> norms, Similarity similarity,
                  std::span<std::int8_t> codes, std::span<float> code_bounds, const Parallel& parallel) {
  const std::int64_t count = std::ssize(norms), groups = divide_up(count, kCodeGroup);
  const std::int64_t bytes = divide_up(dim, 2) * 2 * kCodeGroup;
  parallel.run(parallel.threads, [&](std::int64_t part) {
    const std::int64_t begin = groups * part / parallel.threads, end = groups * (part + 1) / parallel.threads;
    for (std::int64_t group = begin; group < end; ++group) {
      const std::int64_t row = group * kCodeGroup, size = std::min(kCodeGroup, count - row);
      double lengths[kCodeGroup];
      for (std::int64_t i = 0; i < size; ++i) {
        lengths[i] = similarity == Similarity::cosine ? Search<float>::length(norms[row + i]) : 1.0;
      }
      float* bounds = code_bounds.data() + group * 2 * kCodeGroup;
      METAREC_DISPATCH(encode_group(dim, items.data() + row * dim, lengths, static_cast<int>(size),
                                    codes.data() + group * bytes, bounds, bounds + kCodeGroup));
    }
  });
}

template <class Real>
void cosine_topk(std::span<const Real> queries, const ItemTable<Real>& table, std::int64_t k, const Excluded& excluded,
                 Similarity similarity, std::span<Real> scores, std::span<std::int64_t> rows,
                 const Parallel& parallel) {
  const std::int64_t count = k > 0 ? std::ssize(rows) / k : 0, items = table.count();
  const std::vector<std::int64_t> excluded_rows = sorted_rows(excluded, std::ssize(excluded.offsets) - 1, items);
  if (count == 0) return;
  std::vector<double> query_norms(static_cast<std::size_t>(count));
  item_norms(table.dim, queries, std::span(query_norms), Parallel{});
  const Search<Real> search{queries, table, query_norms, excluded.offsets, excluded_rows,
                            similarity == Similarity::cosine};

  // The work is a grid of query blocks, which fit the second-level cache, and item ranges. Few blocks are spread over
  // the threads by ranges that are long enough for heaps to fill in a small part of each.
  constexpr std::int64_t least_range = 4096, block_bytes = 1 << 18, panel = 32;
  const std::int64_t fitting = std::max(panel, block_bytes / (4 * std::max<std::int64_t>(table.dim, 1)) / panel * panel);
  const std::int64_t wanted = divide_up(parallel.threads, divide_up(count, fitting));
  const std::int64_t ranges = std::clamp<std::int64_t>(items / least_range, 1, wanted);
  const std::int64_t spread = divide_up(divide_up(count, divide_up(parallel.threads, ranges)), panel) * panel;
  const std::int64_t block = std::min(fitting, spread), blocks = divide_up(count, block);
  std::vector<ScoredRow<Real>> storage(static_cast<std::size_t>(ranges * count * k));
  std::vector<BestItems<Real>> best;
  for (std::int64_t i = 0; i < ranges * count; ++i) {
    best.emplace_back(std::span(storage).subspan(static_cast<std::size_t>(i * k), static_cast<std::size_t>(k)));
  }
  parallel.run(blocks * ranges, [&](std::int64_t part) {
    const std::int64_t first = part / ranges * block, range = part % ranges;
    const std::int64_t size = std::min(block, count - first);
    // Ranges begin where groups of codes do.
    const auto bound = [&](std::int64_t index) {
      return index == ranges ? items : items * index / ranges / kCodeGroup * kCodeGroup;
    };
    const std::int64_t begin = bound(range), end = bound(range + 1);
    const std::span mine = std::span(best).subspan(static_cast<std::size_t>(range * count + first),
                                                   static_cast<std::size_t>(size));
    // Fewer queries than this leave most lanes of a tile idle.
    constexpr std::int64_t few = 4, few_for_codes = 16;
    if constexpr (sizeof(Real) == sizeof(float)) {
      if (!table.codes.empty() && size < few_for_codes) {
        METAREC_DISPATCH(search_codes(search, first, mine, begin, end));
        return;
      }
      if (size >= few) {
        METAREC_DISPATCH(search_tiles(search, first, mine, begin, end));
        return;
      }
    }
    METAREC_DISPATCH(search_exactly(search, first, mine, begin, end));
  });

  std::vector<ScoredRow<Real>> merged;
  for (std::int64_t query = 0; query < count; ++query) {
    merged.clear();
    for (std::int64_t range = 0; range < ranges; ++range) {
      const auto kept = best[static_cast<std::size_t>(range * count + query)].items();
      merged.insert(merged.end(), kept.begin(), kept.end());
    }
    std::sort(merged.begin(), merged.end(), better<Real>);
    merged.resize(static_cast<std::size_t>(k), {-std::numeric_limits<Real>::infinity(), -1});
    for (std::int64_t i = 0; i < k; ++i) {
      scores[query * k + i] = merged[static_cast<std::size_t>(i)].score;
      rows[query * k + i] = merged[static_cast<std::size_t>(i)].row;
    }
  }
}

template double item_norms(std::int64_t, std::span<const float>, std::span<double>, const Parallel&);
template double item_norms(std::int64_t, std::span<const double>, std::span<double>, const Parallel&);
template void cosine_topk(std::span<const float>, const ItemTable<float>&, std::int64_t, const Excluded&, Similarity,
                          std::span<float>, std::span<std::int64_t>, const Parallel&);
template void cosine_topk(std::span<const double>, const ItemTable<double>&, std::int64_t, const Excluded&, Similarity,
                          std::span<double>, std::span<std::int64_t>, const Parallel&);

}  // namespace metarec
