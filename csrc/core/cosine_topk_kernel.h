// The search of one range of items by one block of queries, for one instruction set.
//
// The score of a pair is always the same number: the dot product summed in double precision in a fixed order, over the
// norms, rounded once. What differs is how pairs are kept from being scored. Each query has a heap of its k best so far;
// a first pass computes an estimate whose error is bounded, and only a pair whose estimate reaches the worst of the heap
// less that bound is scored. Of 200,000 items in random order a query of k = 20 scores some 250.
//
// Two first passes:
// - Tiles, for many queries: float32, the queries of a panel side by side in two vectors, a few items broadcast against
//   them, all sums in registers. The sums are compared with the thresholds in registers too, so no score is ever
//   stored. Items are read once per block of queries, which stays in the second-level cache; the pass is bound by
//   multiply-adds.
// - Codes, for few queries: 8-bit items against a 16-bit query in integer arithmetic, sixteen items side by side. It
//   reads dim + 8 bytes per item in place of 4 dim, which is what it is bound by.
// Single queries without codes, and float64, have no first pass.
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

template <class Left, class Right>
[[gnu::always_inline]] inline void add_products(const Left* left, const Right* right, Vector<double>* totals) {
  for (int v = 0; v < kSumVectors; ++v) {
    totals[v] += load_doubles(left + v * kLanes<double>) * load_doubles(right + v * kLanes<double>);
  }
}

// The dot product in double precision. The order of the sum is fixed by kSumLanes, and products of floats are exact in
// a double, so for float the result is the same for every instruction set.
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

template <class Real>
void norms_range(std::int64_t dim, const Real* items, double* norms, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const Real* item = items + row * dim;
    norms[row] = std::sqrt(exact_dot(item, item, dim));
  }
}

// Offers a pair to the query's heap.
template <class Real>
[[gnu::always_inline]] inline void offer(const Search<Real>& search, BestItems<Real>& best, std::int64_t query,
                                         std::int64_t row, double product) {
  const Real score = search.score(product, query, row);
  if (!(score >= best.worst()) || search.is_excluded(query, row)) return;
  best.offer(score, row);
}

// Scores a pair that has passed the first pass.
inline void consider(const Search<float>& search, BestItems<float>& best, std::int64_t query, std::int64_t row) {
  const std::int64_t dim = search.table.dim;
  const float* item = search.table.items.data() + row * dim;
  offer(search, best, query, row, exact_dot(search.queries.data() + query * dim, item, dim));
}

template <class Real>
void search_exactly(const Search<Real>& search, std::int64_t first_query, std::span<BestItems<Real>> best,
                    std::int64_t begin, std::int64_t end) {
  const std::int64_t dim = search.table.dim, count = std::ssize(best);
  const Real* first = search.queries.data() + first_query * dim;
  const std::vector<double> queries(first, first + count * dim);
  constexpr std::int64_t block = 256;
  for (std::int64_t from = begin; from < end; from += block) {
    for (std::int64_t q = 0; q < count; ++q) {
      for (std::int64_t row = from; row < std::min(from + block, end); ++row) {
        const double product = exact_dot(queries.data() + q * dim, search.table.items.data() + row * dim, dim);
        offer(search, best[static_cast<std::size_t>(q)], first_query + q, row, product);
      }
    }
  }
}

// Compares the sums of kTileItems items and the queries of a panel with the thresholds of these. Bit q of hits[i] says
// that item i reaches query q; a sum that is not a number does.
inline bool tile(const float* panel, const float* items, std::int64_t dim, const float* thresholds,
                 std::uint32_t* hits) {
  constexpr int lanes = kLanes<float>;
  Vector<float> sums[kTileItems][2] = {};
  for (std::int64_t d = 0; d < dim; ++d) {
    const Vector<float> left = load(panel), right = load(panel + lanes);
    panel += kPanel;
#pragma GCC unroll 16
    for (int i = 0; i < kTileItems; ++i) {
      sums[i][0] += items[i] * left;
      sums[i][1] += items[i] * right;
    }
    items += kTileItems;
  }
  const Vector<float> low = load(thresholds), high = load(thresholds + lanes);
  std::uint32_t any = 0;
#pragma GCC unroll 16
  for (int i = 0; i < kTileItems; ++i) {
    hits[i] = reaches(sums[i][0], low) | reaches(sums[i][1], high) << lanes;
    any |= hits[i];
  }
  return any != 0;
}

inline void search_tiles(const Search<float>& search, std::int64_t first_query, std::span<BestItems<float>> best,
                         std::int64_t begin, std::int64_t end) {
  const std::int64_t dim = search.table.dim, count = std::ssize(best), panels = (count + kPanel - 1) / kPanel;
  AlignedFloats packed_queries(panels * dim * kPanel), packed_items(dim * kTileItems), thresholds(panels * kPanel);
  std::vector<float> errors(static_cast<std::size_t>(count));
  for (std::int64_t q = 0; q < count; ++q) {
    float* lane = packed_queries.data() + q / kPanel * dim * kPanel + q % kPanel;
    const float* query = search.queries.data() + (first_query + q) * dim;
    const double scale = search.query_scale(first_query + q);
    for (std::int64_t d = 0; d < dim; ++d) lane[d * kPanel] = static_cast<float>(scale * static_cast<double>(query[d]));
    errors[static_cast<std::size_t>(q)] = search.tile_error(first_query + q);
    thresholds.data()[q] = -std::numeric_limits<float>::infinity();
  }
  for (std::int64_t q = count; q < panels * kPanel; ++q) {
    thresholds.data()[q] = std::numeric_limits<float>::infinity();  // a lane without a query
  }
  for (std::int64_t row = begin; row < end; row += kTileItems) {
    const int items = static_cast<int>(std::min<std::int64_t>(kTileItems, end - row));
    for (int i = 0; i < items; ++i) {
      const float scale = search.item_scale(row + i);
      const float* item = search.table.items.data() + (row + i) * dim;
      for (std::int64_t d = 0; d < dim; ++d) packed_items.data()[d * kTileItems + i] = scale * item[d];
    }
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      std::uint32_t hits[kTileItems];
      float* limits = thresholds.data() + panel * kPanel;
      if (!tile(packed_queries.data() + panel * dim * kPanel, packed_items.data(), dim, limits, hits)) continue;
      for (int i = 0; i < items; ++i) {
        for (std::uint32_t left = hits[i]; left != 0; left &= left - 1) {
          const int lane = std::countr_zero(left);
          const std::int64_t q = panel * kPanel + lane;
          if (q >= count) break;
          BestItems<float>& heap = best[static_cast<std::size_t>(q)];
          consider(search, heap, first_query + q, row + i);
          limits[lane] = heap.worst() - errors[static_cast<std::size_t>(q)];
        }
      }
    }
  }
}

// Codes one group of items: the nearest multiples of each item's scale, and how far they are from it.
inline void encode_group(std::int64_t dim, const float* items, const double* lengths, int count, std::int8_t* codes,
                         float* scales, float* errors) {
  const std::int64_t pairs = (dim + 1) / 2;
  std::fill(codes, codes + pairs * kCodeGroup * 2, std::int8_t(0));
  for (int i = 0; i < kCodeGroup; ++i) scales[i] = errors[i] = 0;
  for (int i = 0; i < count; ++i) {
    const float* item = items + i * dim;
    float largest = 0;
    bool finite = true;
    for (std::int64_t d = 0; d < dim; ++d) {
      largest = std::max(largest, std::abs(item[d]));
      finite &= std::isfinite(item[d]);
    }
    const double scale = static_cast<double>(largest) / 127;
    double squared = 0;
    for (std::int64_t d = 0; finite && largest > 0 && d < dim; ++d) {
      const double code = std::nearbyint(static_cast<double>(item[d]) / scale);
      const double error = static_cast<double>(item[d]) - scale * code;
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
#if METAREC_VECTOR_BYTES == 64
  __m512i sums = _mm512_setzero_si512();
  for (std::int64_t p = 0; p < pairs; ++p) {
    std::int32_t pair;
    std::memcpy(&pair, query + 2 * p, sizeof(pair));
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + p * 2 * kCodeGroup));
    sums = _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_cvtepi8_epi16(bytes), _mm512_set1_epi32(pair)));
  }
  const Vector<float> estimates = __builtin_convertvector(reinterpret_cast<Vector<std::int32_t>>(sums), Vector<float>);
  return reaches(estimates * (query_scale * load(bounds)) + error_factor * load(bounds + kCodeGroup),
                 Vector<float>{} + threshold);
#else
  std::int32_t sums[kCodeGroup] = {};
#if METAREC_VECTOR_BYTES == 32
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
  for (std::int64_t p = 0; p < pairs; ++p) {
    std::int32_t pair;
    std::memcpy(&pair, query + 2 * p, sizeof(pair));
    const __m256i factor = _mm256_set1_epi32(pair);
    const __m128i* bytes = reinterpret_cast<const __m128i*>(codes + p * 2 * kCodeGroup);
    low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(bytes)), factor));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(bytes + 1)), factor));
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 8), high);
#else
  for (std::int64_t p = 0; p < pairs; ++p) {
    const std::int8_t* code = codes + p * 2 * kCodeGroup;
    for (int i = 0; i < kCodeGroup; ++i) sums[i] += code[2 * i] * query[2 * p] + code[2 * i + 1] * query[2 * p + 1];
  }
#endif
  std::uint32_t hits = 0;
  for (int i = 0; i < kCodeGroup; ++i) {
    const float bound = static_cast<float>(sums[i]) * (query_scale * bounds[i]) + error_factor * bounds[kCodeGroup + i];
    hits |= static_cast<std::uint32_t>(!(bound < threshold)) << i;
  }
  return hits;
#endif
}

inline void search_codes(const Search<float>& search, std::int64_t first_query, std::span<BestItems<float>> best,
                         std::int64_t begin, std::int64_t end) {
  const std::int64_t dim = search.table.dim, pairs = (dim + 1) / 2;
  std::vector<CodedQuery> coded;
  for (std::size_t q = 0; q < best.size(); ++q) coded.push_back(search.encode(first_query + static_cast<std::int64_t>(q)));
  // Items of a block are scanned against a fixed threshold while those that reach it are fetched, then these are scored.
  constexpr std::int64_t block = 128;
  std::int64_t candidates[block];
  for (std::int64_t from = begin; from < end; from += block) {
    const std::int64_t to = std::min(from + block, end);
    for (std::size_t q = 0; q < best.size(); ++q) {
      const CodedQuery& query = coded[q];
      const float threshold = best[q].worst() - query.error;
      std::int64_t found = 0;
      for (std::int64_t row = from; row < to; row += kCodeGroup) {
        const std::int64_t group = row / kCodeGroup;
        std::uint32_t hits = scan_group(search.table.codes.data() + group * pairs * 2 * kCodeGroup, query.codes.data(),
                                        pairs, search.table.code_bounds.data() + group * 2 * kCodeGroup, query.scale,
                                        query.error_factor, threshold);
        if (to - row < kCodeGroup) hits &= (1u << (to - row)) - 1;
        for (; hits != 0; hits &= hits - 1) {
          const std::int64_t candidate = row + std::countr_zero(hits);
          candidates[found++] = candidate;
          const float* item = search.table.items.data() + candidate * dim;
          for (std::int64_t d = 0; d < dim; d += 16) __builtin_prefetch(item + d);
        }
      }
      for (std::int64_t i = 0; i < found; ++i) {
        consider(search, best[q], first_query + static_cast<std::int64_t>(q), candidates[i]);
      }
    }
  }
}

}  // namespace
}  // namespace metarec::METAREC_ISA
