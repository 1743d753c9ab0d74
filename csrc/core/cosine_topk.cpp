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

// The k best items seen so far, and behind them newcomers that may be among these. The best are chosen anew only when
// there is no room for another newcomer: so newcomers can be scored together, which lets their rows be fetched at once,
// and each costs a few operations where a heap costs a mispredicted branch per level.
template <class Real>
class BestItems {
 public:
  // The length of its storage.
  static constexpr std::int64_t room(std::int64_t k) { return k + std::max<std::int64_t>(k, 16); }

  BestItems(std::int64_t k, std::span<ScoredRow<Real>> storage) : k_(k), storage_(storage) {}

  // False where there is no room left: `choose` must come next.
  bool add(std::int64_t row, Real score = 0) {
    storage_[static_cast<std::size_t>(size_++)] = {score, row};
    return size_ < std::ssize(storage_);
  }

  std::span<ScoredRow<Real>> newcomers() { return storage_.subspan(chosen_, size_ - chosen_); }

  // Keeps the best; all must have their scores by now. None is kept that is minus infinity or not a number.
  void choose() {
    const auto begin = storage_.begin();
    constexpr Real least = -std::numeric_limits<Real>::infinity();
    const auto lost = [](const ScoredRow<Real>& item) { return !(item.score > least); };
    size_ = std::remove_if(begin + chosen_, begin + size_, lost) - begin;
    if (size_ >= k_) {
      std::nth_element(begin, begin + k_ - 1, begin + size_, better<Real>);
      size_ = k_;
      worst_ = storage_[static_cast<std::size_t>(k_ - 1)].score;
    }
    chosen_ = size_;
  }

  // A score below this cannot enter.
  Real worst() const { return worst_; }

  std::span<const ScoredRow<Real>> chosen() const { return storage_.first(static_cast<std::size_t>(chosen_)); }

 private:
  std::int64_t k_, chosen_ = 0, size_ = 0;
  Real worst_ = -std::numeric_limits<Real>::infinity();
  std::span<ScoredRow<Real>> storage_;
};

// A query in integers for the first pass over codes. An item's score is at most
// codes . item codes * scale * item scale + error_factor * item error + error.
struct CodedQuery {
  std::vector<std::int16_t> codes;
  float scale, error_factor, error;
};

// Values that begin on a cache line.
template <class Value>
class AlignedVector {
 public:
  explicit AlignedVector(std::int64_t count) : storage_(static_cast<std::size_t>(count) + kLine) {
    const auto misplaced = reinterpret_cast<std::uintptr_t>(storage_.data()) % 64 / sizeof(Value);
    data_ = storage_.data() + (misplaced ? kLine - misplaced : 0);
  }
  Value* data() { return data_; }

 private:
  static constexpr std::size_t kLine = 64 / sizeof(Value);
  std::vector<Value> storage_;
  Value* data_;
};

// Tiles take vectors as integers in units of their norm over kUnit, so that a product of two is below 2^31.
constexpr double kUnit = 32700;

// Whether a vector of this norm is zero. The squares of doubles may be lost.
template <class Real>
constexpr bool is_zero(double norm) {
  return sizeof(Real) == sizeof(float) && norm == 0;
}

// Whether floats hold what tiles make of a vector of this norm. One that does not fit is always scored.
template <class Real>
constexpr bool fits_tile(double norm) {
  return is_zero<Real>(norm) || (norm > 1e-20 && norm < 1e20);
}

// A bound on |b.c - kUnit^2 cos(q, x)| for the codes b and c of q and x. Each is off by half a unit per dimension and
// rounding, so by h = 0.51 sqrt(d) as a vector, and b.c by h kUnit + h kUnit + h^2. What floats then round (weights,
// products, limits and the score itself) is less than 2^-20 of the product of the norms.
inline std::int32_t tile_slack(std::int64_t dim) {
  const double off = 0.51 * std::sqrt(static_cast<double>(dim));
  return static_cast<std::int32_t>(2 * off * kUnit + off * off + 0x1p-20 * kUnit * kUnit + 1);
}

template <class Stored>
struct Search {
  using Real = Arithmetic<Stored>;

  std::span<const Stored> queries;
  const ItemTable<Stored>& table;
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

  // The score is query weight * item weight * cosine.
  double weight_of(double norm) const { return cosine ? norm / length(norm) : norm; }

  // What takes the product of codes to item weight * cosine; not a number where it bounds nothing.
  float weight(double norm) const {
    return fits_tile<Real>(norm) ? static_cast<float>(weight_of(norm) / (kUnit * kUnit))
                                 : std::numeric_limits<float>::quiet_NaN();
  }

  // What item weight * cosine must reach for a query whose worst item has that score.
  float limit(std::int64_t query, Real worst) const {
    const double norm = query_norms[query];
    constexpr float infinity = std::numeric_limits<float>::infinity();
    if (is_zero<Real>(norm)) return worst < 0 ? -infinity : infinity;  // all scores are zero, and rows only ascend
    return fits_tile<Real>(norm) ? static_cast<float>(static_cast<double>(worst) / weight_of(norm)) : -infinity;
  }

  double query_scale(std::int64_t query) const { return cosine ? 1 / length(query_norms[query]) : 1; }

  // The product of the norms that estimates of a query are made of, at most.
  double magnitude(std::int64_t query) const { return cosine ? 1.0 : query_norms[query] * table.largest_norm; }

  // Beyond this magnitude an estimate could overflow, and bounds nothing.
  static constexpr double kSafeMagnitude = 1e37;
  bool can_overflow(std::int64_t query) const {
    return !(table.largest_norm < kSafeMagnitude && query_norms[query] < kSafeMagnitude &&
             magnitude(query) < kSafeMagnitude);
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
    const Stored* values = queries.data() + query * dim;
    double largest = 0, norm = query_norms[query] * query_scale(query), squared = 0;
    for (std::int64_t d = 0; d < dim; ++d) largest = std::max(largest, std::abs(static_cast<double>(value_of(values[d]))));
    // The sum of dim products of codes must fit 32 bits.
    const double top = std::min<double>(32767, std::floor(2147483647.0 / (127.0 * static_cast<double>(padded))));
    const double scale = largest * query_scale(query) / top;
    for (std::int64_t d = 0; largest > 0 && d < dim; ++d) {
      const double value = static_cast<double>(value_of(values[d])) * query_scale(query), code = std::nearbyint(value / scale);
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

template <class Stored>
double item_norms(std::int64_t dim, std::span<const Stored> items, std::span<double> norms, const Parallel& parallel) {
  const std::int64_t count = std::ssize(norms), parts = std::clamp<std::int64_t>(count / 1024, 1, parallel.threads);
  parallel.run(parts, [&](std::int64_t part) {
    METAREC_DISPATCH(norms_range(dim, items.data(), norms.data(), count * part / parts, count * (part + 1) / parts));
  });
  double largest = 0;
  for (const double norm : norms) largest = std::max(largest, norm);
  return largest;
}

template <class Stored>
void encode_items(std::int64_t dim, std::span<const Stored> items, std::span<const double> norms,
                  Similarity similarity, std::span<std::int8_t> codes, std::span<float> code_bounds,
                  const Parallel& parallel) {
  const std::int64_t count = std::ssize(norms), groups = divide_up(count, kCodeGroup);
  const std::int64_t bytes = divide_up(dim, 2) * 2 * kCodeGroup;
  parallel.run(parallel.threads, [&](std::int64_t part) {
    const std::int64_t begin = groups * part / parallel.threads, end = groups * (part + 1) / parallel.threads;
    for (std::int64_t group = begin; group < end; ++group) {
      const std::int64_t row = group * kCodeGroup, size = std::min(kCodeGroup, count - row);
      double lengths[kCodeGroup];
      for (std::int64_t i = 0; i < size; ++i) {
        lengths[i] = similarity == Similarity::cosine ? Search<Stored>::length(norms[row + i]) : 1.0;
      }
      float* bounds = code_bounds.data() + group * 2 * kCodeGroup;
      METAREC_DISPATCH(encode_group(dim, items.data() + row * dim, lengths, static_cast<int>(size),
                                    codes.data() + group * bytes, bounds, bounds + kCodeGroup));
    }
  });
}

template <class Stored>
void cosine_topk(std::span<const Stored> queries, const ItemTable<Stored>& table, std::int64_t k,
                 const Excluded& excluded, Similarity similarity, std::span<Arithmetic<Stored>> scores,
                 std::span<std::int64_t> rows, const Parallel& parallel) {
  using Real = Arithmetic<Stored>;
  const std::int64_t count = k > 0 ? std::ssize(rows) / k : 0, items = table.count();
  const std::vector<std::int64_t> excluded_rows = sorted_rows(excluded, std::ssize(excluded.offsets) - 1, items);
  if (count == 0) return;
  std::vector<double> query_norms(static_cast<std::size_t>(count));
  item_norms(table.dim, queries, std::span(query_norms), Parallel{});
  const Search<Stored> search{queries, table, query_norms, excluded.offsets, excluded_rows,
                            similarity == Similarity::cosine};

  // The work is a grid of query blocks, which fit the second-level cache, and item ranges. Few blocks are spread over
  // the threads by ranges that are long enough for lists to fill in a small part of each.
  constexpr std::int64_t least_range = 4096, block_bytes = 1 << 18, panel = 32;
  const std::int64_t code_bytes = 2 * std::max<std::int64_t>(table.dim, 1);
  const std::int64_t fitting = std::max(panel, block_bytes / code_bytes / panel * panel);
  const std::int64_t wanted = divide_up(parallel.threads, divide_up(count, fitting));
  const std::int64_t ranges = std::clamp<std::int64_t>(items / least_range, 1, wanted);
  const std::int64_t spread = divide_up(divide_up(count, divide_up(parallel.threads, ranges)), panel) * panel;
  const std::int64_t block = std::min(fitting, spread), blocks = divide_up(count, block);
  std::vector<ScoredRow<Real>> found(static_cast<std::size_t>(ranges * count * k),
                                     {-std::numeric_limits<Real>::infinity(), -1});
  parallel.run(blocks * ranges, [&](std::int64_t part) {
    const std::int64_t first = part / ranges * block, range = part % ranges;
    const std::int64_t size = std::min(block, count - first);
    // Ranges begin where groups of codes do.
    const auto bound = [&](std::int64_t index) {
      return index == ranges ? items : items * index / ranges / kCodeGroup * kCodeGroup;
    };
    const std::int64_t begin = bound(range), end = bound(range + 1);
    const auto room = static_cast<std::size_t>(BestItems<Real>::room(k));
    std::vector<ScoredRow<Real>> storage(static_cast<std::size_t>(size) * room);
    std::vector<BestItems<Real>> best;
    for (std::size_t q = 0; q < static_cast<std::size_t>(size); ++q) {
      best.emplace_back(k, std::span(storage).subspan(q * room, room));
    }
    // Fewer queries than this leave most lanes of a tile idle.
    constexpr std::int64_t few = 2, few_for_codes = 16;
    if (sizeof(Real) == sizeof(float) && !table.codes.empty() && size < few_for_codes) {
      if constexpr (sizeof(Real) == sizeof(float)) {
        METAREC_DISPATCH(search_codes(search, first, std::span(best), begin, end));
      }
    } else if (size >= few) {
      METAREC_DISPATCH(search_tiles(search, first, std::span(best), begin, end));
    } else {
      METAREC_DISPATCH(search_exactly(search, first, std::span(best), begin, end));
    }
    for (std::int64_t q = 0; q < size; ++q) {
      std::ranges::copy(best[static_cast<std::size_t>(q)].chosen(), found.begin() + (range * count + first + q) * k);
    }
  });

  std::vector<ScoredRow<Real>> merged;
  for (std::int64_t query = 0; query < count; ++query) {
    merged.clear();
    for (std::int64_t range = 0; range < ranges; ++range) {
      const auto from = found.begin() + (range * count + query) * k;
      merged.insert(merged.end(), from, from + k);
    }
    std::sort(merged.begin(), merged.end(), better<Real>);
    for (std::int64_t i = 0; i < k; ++i) {
      scores[query * k + i] = merged[static_cast<std::size_t>(i)].score;
      rows[query * k + i] = merged[static_cast<std::size_t>(i)].row;
    }
  }
}

#define METAREC_INSTANTIATE(Stored)                                                                              \
  template double item_norms(std::int64_t, std::span<const Stored>, std::span<double>, const Parallel&);         \
  template void cosine_topk(std::span<const Stored>, const ItemTable<Stored>&, std::int64_t, const Excluded&,    \
                            Similarity, std::span<Arithmetic<Stored>>, std::span<std::int64_t>, const Parallel&);
METAREC_INSTANTIATE(float)
METAREC_INSTANTIATE(double)
METAREC_INSTANTIATE(BFloat16)
#undef METAREC_INSTANTIATE

template void encode_items(std::int64_t, std::span<const float>, std::span<const double>, Similarity,
                           std::span<std::int8_t>, std::span<float>, const Parallel&);
template void encode_items(std::int64_t, std::span<const BFloat16>, std::span<const double>, Similarity,
                           std::span<std::int8_t>, std::span<float>, const Parallel&);

}  // namespace metarec
