// The search against sorting all scores.
#include "metarec/cosine_topk.h"

#include "checks.h"
#include "cosine_topk_by_hand.h"
#include "stored.h"

namespace {

using metarec::Arithmetic;
using metarec::BFloat16;
using metarec::Similarity;

template <class Stored>
struct Items {
  std::int64_t dim;
  std::vector<Stored> values;
  std::vector<double> norms;
  double largest_norm;
  std::vector<std::int8_t> codes;
  std::vector<float> code_bounds;

  Items(std::int64_t dim, std::vector<Stored> items, std::int64_t count, Similarity similarity, bool compact,
        const metarec::Parallel& parallel)
      : dim(dim), values(std::move(items)), norms(count) {
    largest_norm = metarec::item_norms<Stored>(dim, values, norms, parallel);
    if constexpr (sizeof(Arithmetic<Stored>) == sizeof(float)) {
      const std::int64_t groups = compact ? (count + metarec::kCodeGroup - 1) / metarec::kCodeGroup : 0;
      codes.resize(groups * ((dim + 1) / 2) * metarec::kCodeGroup * 2);
      code_bounds.resize(groups * 2 * metarec::kCodeGroup);
      if (compact) metarec::encode_items<Stored>(dim, values, norms, similarity, codes, code_bounds, parallel);
    }
  }

  metarec::ItemTable<Stored> table() const { return {dim, values, norms, largest_norm, codes, code_bounds}; }
};

template <class Real>
struct Best {
  std::vector<Real> scores;
  std::vector<std::int64_t> rows;
  bool operator==(const Best&) const = default;
};

template <class Stored, class Real = Arithmetic<Stored>>
Best<Real> search(const std::vector<Stored>& queries, std::int64_t count, const Items<Stored>& items, std::int64_t k,
                  const metarec::Excluded& excluded, Similarity similarity, const metarec::Parallel& parallel = {}) {
  Best<Real> best{std::vector<Real>(count * k), std::vector<std::int64_t>(count * k)};
  metarec::cosine_topk<Stored>(queries, items.table(), k, excluded, similarity, best.scores, best.rows, parallel);
  return best;
}

// Integers, so that every sum is exact and many scores are equal.
template <class Stored>
std::vector<Stored> integers(std::int64_t count, unsigned seed) {
  std::vector<Stored> values;
  for (const double value : normal<double>(count, seed)) values.push_back(stored<Stored>(std::round(value)));
  return values;
}

template <class Stored, class Real = Arithmetic<Stored>>
Best<Real> sort_all(const std::vector<Stored>& queries, std::int64_t count, const Items<Stored>& items, std::int64_t k,
                    const metarec::Excluded& excluded, Similarity similarity) {
  Best<Real> best;
  for (std::int64_t q = 0; q < count; ++q) {
    const std::int64_t begin = excluded.offsets[q], end = excluded.offsets[q + 1];
    for (const auto& [score, row] : best_by_hand(queries.data() + q * items.dim, items.values, std::ssize(items.norms),
                                                 items.dim, k, similarity == Similarity::cosine,
                                                 excluded.rows.subspan(begin, end - begin))) {
      best.scores.push_back(score);
      best.rows.push_back(row);
    }
  }
  return best;
}

template <class Stored>
void test_equals_sorting_all() {
  for (const std::int64_t dim : {0, 1, 7, 33}) {
    for (const std::int64_t count : {1, 15, 17, 300}) {
      for (const std::int64_t queries : {1, 3, 16, 40}) {
        for (const Similarity similarity : {Similarity::dot, Similarity::cosine}) {
          const std::int64_t k = std::min<std::int64_t>(count, 9);
          std::vector<std::int64_t> offsets{0}, rows;
          for (std::int64_t q = 0; q < queries; ++q) {
            rows.push_back(q % count);
            rows.push_back((5 * q + 2) % count);
            offsets.push_back(std::ssize(rows));
          }
          const metarec::Excluded excluded{offsets, rows};
          const std::vector<Stored> left = integers<Stored>(queries * dim, 1);
          for (const bool compact : {false, true}) {
            const Items<Stored> items(dim, integers<Stored>(count * dim, 2), count, similarity, compact, {});
            CHECK(search(left, queries, items, k, excluded, similarity) ==
                  sort_all(left, queries, items, k, excluded, similarity));
          }
        }
      }
    }
  }
}

template <class Stored>
void test_threads_change_nothing() {
  constexpr std::int64_t dim = 24, count = 9'000;
  for (const std::int64_t queries : {1, 5, 300}) {
    const std::vector<Stored> left = stored_normal<Stored>(queries * dim, 1);
    for (const bool compact : {false, true}) {
      const Items<Stored> one(dim, stored_normal<Stored>(count * dim, 2), count, Similarity::cosine, compact, {});
      const Items<Stored> four(dim, one.values, count, Similarity::cosine, compact, threads(4));
      CHECK(one.norms == four.norms && one.codes == four.codes && one.code_bounds == four.code_bounds);
      CHECK(search(left, queries, one, 11, {}, Similarity::cosine) ==
            search(left, queries, four, 11, {}, Similarity::cosine, threads(4)));
    }
  }
}

void test_what_is_no_number_is_not_found() {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const bool compact : {false, true}) {
    for (const std::int64_t queries : {1, 40}) {
      const Items<float> items(2, {1, 2, nan, 1, infinity, -infinity, 3, 4}, 4, Similarity::cosine, compact, {});
      const Best<float> best = search(std::vector<float>(queries * 2, 1.0f), queries, items, 4, {}, Similarity::cosine);
      CHECK((std::vector(best.rows.begin(), best.rows.begin() + 4) == std::vector<std::int64_t>{3, 0, -1, -1}));
    }
  }
}

void test_bad_arguments_throw() {
  const Items<float> items(1, {1, 2, 3}, 3, Similarity::dot, false, {});
  const std::vector<std::int64_t> ends{0, 1}, backwards{1, 0}, outside{3};
  check_throws([&] { search({1.0f}, 1, items, 1, {ends, outside}, Similarity::dot); },
               "excluded rows must be from 0 to 2, got 3");
  check_throws([&] { search({1.0f}, 1, items, 1, {backwards, outside}, Similarity::dot); },
               "excluded offsets must ascend from 0 to 1");
}

}  // namespace

// With an argument only what threads do, for the sanitizer that is slow.
int main(int count, char**) {
  test_threads_change_nothing<float>();
  test_threads_change_nothing<double>();
  test_threads_change_nothing<BFloat16>();
  if (count > 1) return 0;
  test_equals_sorting_all<float>();
  test_equals_sorting_all<double>();
  test_equals_sorting_all<BFloat16>();
  test_what_is_no_number_is_not_found();
  test_bad_arguments_throw();
}
