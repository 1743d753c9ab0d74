// The search of one range of items by one block of queries, for one instruction set.
//
// The score of a pair is always the same number: the dot product summed in double precision in a fixed order, over the
// norms, rounded once. What differs is how pairs are kept from being scored: a first pass computes an estimate whose
// error is bounded, and only a pair whose estimate may reach the worst of the query's k best is scored. Of 200,000
// items in random order a query of k = 20 scores some 300.
//
// Two first passes, both in integers: the processor multiplies and adds twice as many of 16 bits as floats.
// - Tiles, for many queries: both sides in 16 bits in units of their norm, the queries of a panel side by side in two
//   vectors, a few items broadcast against them, all sums in registers. The sums are compared with the limits of the
//   queries in registers too, so no score is ever stored. Queries are coded once per block of them, which stays in the
//   second-level cache, and items once per block of queries; the pass is bound by its 2 dim operations per pair.
// - Codes, for few queries: 8-bit items, coded when the table was prepared, against a 16-bit query, sixteen items side
//   by side. It reads dim + 8 bytes per item in place of 4 dim (2 dim of BFloat16), which is what it is bound by.
// A single query without codes has no first pass.
#include "simd.h"

namespace metarec::METAREC_ISA {
namespace {

constexpr int kPanel = 2 * kLanes<float>;
constexpr int kTileItems = METAREC_VECTOR_BYTES == 64 ? 14 : METAREC_VECTOR_BYTES == 32 ? 6 : 5;
constexpr int kSumLanes = 16;

constexpr int kSumVectors = kSumLanes / kLanes<double>;

[[gnu::always_inline]] inline Vector<double> load_doubles(const double* from) { return load(from); }

[[gnu::always_inline]] inline Vector<double> load_doubles(const float* from) {
  typename VectorOf<float, kLanes<double>>::Type narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  return __builtin_convertvector(narrow, Vector<double>);
}

[[gnu::always_inline]] inline Vector<double> load_doubles(const BFloat16* from) {
  typename VectorOf<std::uint16_t, kLanes<double>>::Type halves;
  std::memcpy(&halves, from, sizeof(halves));
  const auto bits = __builtin_convertvector(halves, typename VectorOf<std::uint32_t, kLanes<double>>::Type) << 16;
  const auto narrow = reinterpret_cast<typename VectorOf<float, kLanes<double>>::Type>(bits);
  return __builtin_convertvector(narrow, Vector<double>);
}

template <class Left, class Right>
[[gnu::always_inline]] inline void add_products(const Left* left, const Right* right, Vector<double>* totals) {
  for (int v = 0; v < kSumVectors; ++v) {
    totals[v] += load_doubles(left + v * kLanes<double>) * load_doubles(right + v * kLanes<double>);
  }
}

// The dot product in double precision. The order of the sum is fixed by kSumLanes, and products of floats are exact in
// a double, so for float and BFloat16 the result is the same for every instruction set.
template <class Left, class Right>
[[gnu::always_inline]] inline double exact_dot(const Left* left, const Right* right, std::int64_t dim) {
  Vector<double> totals[kSumVectors] = {};
  std::int64_t i = 0;
  for (; i + kSumLanes <= dim; i += kSumLanes) add_products(left + i, right + i, totals);
  if (i < dim) {
    Left left_rest[kSumLanes] = {};
    Right right_rest[kSumLanes] = {};
    std::copy(left + i, left + dim, left_rest);
    std::copy(right + i, right + dim, right_rest);
    add_products(left_rest, right_rest, totals);
  }
  for (int width = kSumVectors / 2; width > 0; width /= 2) {
    for (int v = 0; v < width; ++v) totals[v] += totals[v + width];
  }
  return sum<double>(totals[0]);
}

template <class Stored>
void norms_range(std::int64_t dim, const Stored* items, double* norms, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const Stored* item = items + row * dim;
    norms[row] = std::sqrt(exact_dot(item, item, dim));
  }
}

// Scores the newcomers of a query and keeps the best.
template <class Stored, class Real>
void choose(const Search<Stored>& search, BestItems<Real>& best, std::int64_t query) {
  const std::int64_t dim = search.table.dim;
  const std::size_t bytes = static_cast<std::size_t>(dim) * sizeof(Stored);
  for (const ScoredRow<Real>& item : best.newcomers()) prefetch(search.table.items.data(), item.row * bytes, bytes);
  for (ScoredRow<Real>& item : best.newcomers()) {
    const Stored* values = search.table.items.data() + item.row * dim;
    item.score = search.is_excluded(query, item.row)
                     ? -std::numeric_limits<Real>::infinity()
                     : search.score(exact_dot(search.queries.data() + query * dim, values, dim), query, item.row);
  }
  best.choose();
}

template <class Stored, class Real>
void search_exactly(const Search<Stored>& search, std::int64_t first_query, std::span<BestItems<Real>> best,
                    std::int64_t begin, std::int64_t end) {
  const std::int64_t dim = search.table.dim, count = std::ssize(best);
  const Stored* first = search.queries.data() + first_query * dim;
  std::vector<double> queries;
  for (std::int64_t i = 0; i < count * dim; ++i) queries.push_back(value_of(first[i]));
  constexpr std::int64_t block = 256;
  for (std::int64_t from = begin; from < end; from += block) {
    for (std::int64_t q = 0; q < count; ++q) {
      BestItems<Real>& mine = best[static_cast<std::size_t>(q)];
      for (std::int64_t row = from; row < std::min(from + block, end); ++row) {
        const double product = exact_dot(queries.data() + q * dim, search.table.items.data() + row * dim, dim);
        const Real score = search.score(product, first_query + q, row);
        if (!(score >= mine.worst()) || search.is_excluded(first_query + q, row)) continue;
        if (!mine.add(row, score)) mine.choose();
      }
    }
  }
  for (BestItems<Real>& mine : best) mine.choose();
}

// Codes a vector in units of its norm over kUnit: the nearest integers, and a zero where that makes a whole pair.
template <class Stored>
void encode_unit(const Stored* vector, std::int64_t dim, double norm, std::int16_t* codes) {
  using Real = Arithmetic<Stored>;
  const bool fits = fits_tile<Real>(norm) && norm > 0;
  const Real scale = static_cast<Real>(fits ? kUnit / norm : 0);
  // Added to this, a float of that size loses its fraction, and its last bits are the integer.
  constexpr float rounding = 0x1.8p23f;
  for (std::int64_t d = 0; d < dim; ++d) {
    const float value = static_cast<float>(scale * (fits ? value_of(vector[d]) : Real(0)));
    codes[d] = static_cast<std::int16_t>(std::bit_cast<std::int32_t>(value + rounding));
  }
  if (dim % 2 != 0) codes[dim] = 0;
}

// Codes rows side by side: pair p of row i of a group stands at [p, i] of the group's [pairs, group_size] pairs.
template <class Stored>
void pack(const Stored* rows, std::span<const double> norms, std::int64_t dim, std::int64_t group_size,
          std::span<std::int16_t> codes, std::int16_t* packed) {
  const std::int64_t pairs = (dim + 1) / 2;
  for (std::int64_t i = 0; i < std::ssize(norms); ++i) {
    encode_unit(rows + i * dim, dim, norms[static_cast<std::size_t>(i)], codes.data());
    std::int16_t* lane = packed + (i / group_size * pairs * group_size + i % group_size) * 2;
    for (std::int64_t p = 0; p < pairs; ++p) std::memcpy(lane + p * group_size * 2, codes.data() + p * 2, 4);
  }
}

// Compares bounds of the scores of kTileItems items and the queries of a panel with the limits of these. Bit q of
// hits[i] says that item i reaches query q; a bound that is not a number does.
inline bool tile(const std::int16_t* panel, const std::int16_t* items, std::int64_t pairs, std::int32_t slack,
                 const float* weights, const float* limits, std::uint32_t* hits) {
  constexpr int lanes = kLanes<float>;
  Vector<std::int32_t> sums[kTileItems][2];
#pragma GCC unroll 16
  for (int i = 0; i < kTileItems; ++i) sums[i][0] = sums[i][1] = Vector<std::int32_t>{} + slack;
  for (std::int64_t p = 0; p < pairs; ++p) {
    const auto left = load_pairs(panel), right = load_pairs(panel + 2 * lanes);
    panel += 2 * kPanel;
#pragma GCC unroll 16
    for (int i = 0; i < kTileItems; ++i) {
      const auto item = broadcast_pair(items + 2 * i);
      sums[i][0] += pair_products(item, left);
      sums[i][1] += pair_products(item, right);
    }
    items += 2 * kTileItems;
  }
  const Vector<float> low = load(limits), high = load(limits + lanes);
  std::uint32_t any = 0;
#pragma GCC unroll 16
  for (int i = 0; i < kTileItems; ++i) {
    hits[i] = reaches(weights[i] * __builtin_convertvector(sums[i][0], Vector<float>), low) |
              reaches(weights[i] * __builtin_convertvector(sums[i][1], Vector<float>), high) << lanes;
    any |= hits[i];
  }
  return any != 0;
}

template <class Stored, class Real>
void search_tiles(const Search<Stored>& search, std::int64_t first_query, std::span<BestItems<Real>> best,
                  std::int64_t begin, std::int64_t end) {
  const std::int64_t dim = search.table.dim, pairs = (dim + 1) / 2;
  const std::int64_t count = std::ssize(best), panels = (count + kPanel - 1) / kPanel;
  // A block of items shares the first-level cache with a panel, which is fetched once for all its tiles.
  constexpr std::int64_t block_bytes = 1 << 14;
  const std::int64_t tile_bytes = kTileItems * std::max<std::int64_t>(pairs, 8) * 4;
  const std::int64_t block = std::max<std::int64_t>(block_bytes / tile_bytes, 1) * kTileItems;
  AlignedVector<std::int16_t> packed_queries(panels * kPanel * pairs * 2), packed_items(block * pairs * 2);
  AlignedVector<float> limits(panels * kPanel), weights(block);
  std::vector<std::int16_t> codes(static_cast<std::size_t>(pairs * 2));
  const std::int32_t slack = tile_slack(dim);
  pack(search.queries.data() + first_query * dim,
       search.query_norms.subspan(static_cast<std::size_t>(first_query), best.size()), dim, kPanel, codes,
       packed_queries.data());
  for (std::int64_t q = 0; q < panels * kPanel; ++q) {  // none reaches a lane without a query
    limits.data()[q] = q < count ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity();
  }
  for (std::int64_t from = begin; from < end; from += block) {
    const std::int64_t size = std::min(block, end - from);
    const auto norms = search.table.norms.subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(size));
    pack(search.table.items.data() + from * dim, norms, dim, kTileItems, codes, packed_items.data());
    for (std::int64_t i = 0; i < size; ++i) weights.data()[i] = search.weight(norms[static_cast<std::size_t>(i)]);
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      float* panel_limits = limits.data() + panel * kPanel;
      for (std::int64_t at = 0; at < size; at += kTileItems) {
        std::uint32_t hits[kTileItems];
        if (!tile(packed_queries.data() + panel * kPanel * pairs * 2, packed_items.data() + at * pairs * 2, pairs,
                  slack, weights.data() + at, panel_limits, hits)) {
          continue;
        }
        for (std::int64_t i = 0; i < std::min<std::int64_t>(kTileItems, size - at); ++i) {
          for (std::uint32_t left = hits[i]; left != 0; left &= left - 1) {
            const int lane = std::countr_zero(left);
            const std::int64_t q = panel * kPanel + lane;
            if (q >= count) break;
            BestItems<Real>& mine = best[static_cast<std::size_t>(q)];
            if (mine.add(from + at + i)) continue;
            choose(search, mine, first_query + q);
            panel_limits[lane] = search.limit(first_query + q, mine.worst());
          }
        }
      }
    }
  }
  for (std::int64_t q = 0; q < count; ++q) choose(search, best[static_cast<std::size_t>(q)], first_query + q);
}

// Codes one group of items: the nearest multiples of each item's scale, and how far they are from it.
template <class Stored>
void encode_group(std::int64_t dim, const Stored* items, const double* lengths, int count, std::int8_t* codes,
                  float* scales, float* errors) {
  const std::int64_t pairs = (dim + 1) / 2;
  std::fill(codes, codes + pairs * kCodeGroup * 2, std::int8_t(0));
  for (int i = 0; i < kCodeGroup; ++i) scales[i] = errors[i] = 0;
  for (int i = 0; i < count; ++i) {
    const Stored* item = items + i * dim;
    float largest = 0;
    bool finite = true;
    for (std::int64_t d = 0; d < dim; ++d) {
      largest = std::max(largest, std::abs(value_of(item[d])));
      finite &= std::isfinite(value_of(item[d]));
    }
    const double scale = static_cast<double>(largest) / 127;
    double squared = 0;
    for (std::int64_t d = 0; finite && largest > 0 && d < dim; ++d) {
      const double code = std::nearbyint(static_cast<double>(value_of(item[d])) / scale);
      const double error = static_cast<double>(value_of(item[d])) - scale * code;
      squared += error * error;
      codes[(d / 2 * kCodeGroup + i) * 2 + d % 2] = static_cast<std::int8_t>(code);
    }
    scales[i] = finite ? static_cast<float>(scale / lengths[i]) : 0.0f;
    errors[i] = finite ? static_cast<float>(std::sqrt(squared) / lengths[i]) : std::numeric_limits<float>::infinity();
  }
}

// The integer products of a group of items with a query, compared with a threshold: bit i says that item i reaches it.
inline std::uint32_t scan_group(const std::int8_t* codes, const std::int16_t* query, std::int64_t pairs,
                                const float* bounds, float query_scale, float error_factor, float threshold) {
  constexpr int lanes = kLanes<float>, vectors = kCodeGroup / lanes;
  Vector<std::int32_t> sums[vectors] = {};
  for (std::int64_t p = 0; p < pairs; ++p) {
    const auto pair = broadcast_pair(query + 2 * p);
    const std::int8_t* items = codes + p * 2 * kCodeGroup;
    for (int v = 0; v < vectors; ++v) sums[v] += pair_products(pair, load_pairs(items + v * 2 * lanes));
  }
  std::uint32_t hits = 0;
  for (int v = 0; v < vectors; ++v) {
    const Vector<float> scale = query_scale * load(bounds + v * lanes);
    const Vector<float> error = error_factor * load(bounds + kCodeGroup + v * lanes);
    const Vector<float> most = __builtin_convertvector(sums[v], Vector<float>) * scale + error;
    hits |= reaches(most, Vector<float>{} + threshold) << v * lanes;
  }
  return hits;
}

template <class Stored>
void search_codes(const Search<Stored>& search, std::int64_t first_query, std::span<BestItems<float>> best,
                  std::int64_t begin, std::int64_t end) {
  const std::int64_t dim = search.table.dim, pairs = (dim + 1) / 2;
  std::vector<CodedQuery> coded;
  for (std::int64_t q = 0; q < std::ssize(best); ++q) coded.push_back(search.encode(first_query + q));
  constexpr std::int64_t block = 128;
  for (std::int64_t from = begin; from < end; from += block) {
    const std::int64_t to = std::min(from + block, end);
    for (std::size_t q = 0; q < best.size(); ++q) {
      const CodedQuery& query = coded[q];
      float threshold = best[q].worst() - query.error;
      for (std::int64_t row = from; row < to; row += kCodeGroup) {
        const std::int64_t group = row / kCodeGroup;
        std::uint32_t hits = scan_group(search.table.codes.data() + group * pairs * 2 * kCodeGroup, query.codes.data(),
                                        pairs, search.table.code_bounds.data() + group * 2 * kCodeGroup, query.scale,
                                        query.error_factor, threshold);
        if (to - row < kCodeGroup) hits &= (1u << (to - row)) - 1;
        for (; hits != 0; hits &= hits - 1) {
          const std::int64_t candidate = row + std::countr_zero(hits);
          prefetch(search.table.items.data(), candidate * dim * sizeof(Stored), dim * sizeof(Stored));
          if (best[q].add(candidate)) continue;
          choose(search, best[q], first_query + static_cast<std::int64_t>(q));
          threshold = best[q].worst() - query.error;
        }
      }
    }
  }
  for (std::size_t q = 0; q < best.size(); ++q) choose(search, best[q], first_query + static_cast<std::int64_t>(q));
}

}  // namespace
}  // namespace metarec::METAREC_ISA
