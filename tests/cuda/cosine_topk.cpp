// The kernels of cosine_topk against sorting all scores.
#include "ops/cuda/cosine_topk_kernel.cuh"

#include <algorithm>
#include <limits>
#include <random>

#include "cuda/emulated.h"
#include "native/cosine_topk_by_hand.h"

namespace {

namespace cuda = metarec::cuda;

struct Shape {
  std::int64_t queries, items, dim, k, ranges;
};

template <class Stored>
struct Problem {
  using Real = metarec::Arithmetic<Stored>;

  Shape shape;
  bool cosine;
  std::vector<Stored> queries, items;
  std::vector<std::int64_t> excluded_offsets, excluded_rows;

  Problem(const Shape& shape, bool cosine)
      : shape(shape), cosine(cosine), queries(stored_normal<Stored>(shape.queries * shape.dim, 1)),
        items(stored_normal<Stored>(shape.items * shape.dim, 2)) {}

  // All of the items for query 0, none for query 1, some twice for the others.
  void exclude() {
    std::mt19937 random(5);
    excluded_offsets = {0};
    for (std::int64_t query = 0; query < shape.queries; ++query) {
      for (std::int64_t i = 0; query == 0 && i < shape.items; ++i) excluded_rows.push_back(shape.items - 1 - i);
      for (std::int64_t i = 0; query > 1 && i < shape.items / 2; ++i) excluded_rows.push_back(random() % shape.items);
      excluded_offsets.push_back(std::ssize(excluded_rows));
    }
  }

  static double dot(const Stored* left, const Stored* right, std::int64_t dim) {
    double total = 0;
    for (std::int64_t d = 0; d < dim; ++d) total += number(left[d]) * number(right[d]);
    return total;
  }

  auto expected(std::int64_t query) const {
    std::span<const std::int64_t> rows;
    if (!excluded_offsets.empty()) {
      const std::int64_t begin = excluded_offsets[query], end = excluded_offsets[query + 1];
      rows = std::span(excluded_rows).subspan(begin, end - begin);
    }
    return best_by_hand(queries.data() + query * shape.dim, items, shape.items, shape.dim, shape.k, cosine, rows);
  }

  void check(std::uint64_t seed) const {
    const auto& [query_count, item_count, dim, k, ranges] = shape;
    const Emulated launch{seed};
    simt::Output<double> query_norms(query_count), item_norms(item_count);
    double largest = 0;
    cuda::vector_norms(launch, queries.data(), query_count, dim, query_norms.data(), nullptr);
    cuda::vector_norms(launch, items.data(), item_count, dim, item_norms.data(), &largest);
    for (std::int64_t row = 0; row < item_count; ++row) {
      const double square = dot(items.data() + row * dim, items.data() + row * dim, dim), norm = item_norms.data()[row];
      CHECK(std::isnan(square) ? std::isnan(norm) : norm == std::sqrt(square) || std::abs(norm * norm / square - 1) < 1e-14);
      CHECK(!(norm > largest));
    }
    cuda::ExcludedRows excluded{nullptr, nullptr, 0};
    if (!excluded_offsets.empty()) {
      excluded = {excluded_offsets.data(), excluded_rows.data(), std::ssize(excluded_rows)};
      cuda::check_excluded(launch, excluded, query_count, item_count);
    }
    cuda::TopkLists lists(query_count, item_count, k);
    lists.ranges = ranges;
    simt::Output<cuda::ScoredRow<Real>> places(query_count * ranges * lists.room);
    simt::Output<std::int64_t> sizes(query_count * ranges), rows(query_count * k);
    simt::Output<std::int32_t> limits(query_count);
    simt::Output<Real> scores(query_count * k);
    cuda::cosine_topk(launch,
                      cuda::TopkSearch<Stored>{query_count, item_count, dim, k, queries.data(), items.data(),
                                               query_norms.data(), item_norms.data(), cosine, excluded, lists,
                                               places.data(), sizes.data(), limits.data()},
                      scores.data(), rows.data());
    for (std::int64_t query = 0; query < query_count; ++query) {
      const auto best = expected(query);
      for (std::int64_t at = 0; at < k; ++at) {
        const auto [wanted, row] = best[at];
        const Real score = scores.written()[query * k + at];
        CHECK(rows.written()[query * k + at] == row);
        const Real error = std::abs(score - wanted), size = 8 + std::abs(score);
        CHECK(score == wanted || error <= 4 * std::numeric_limits<Real>::epsilon() * size);
      }
    }
  }
};

template <class Stored>
void test_random(std::uint64_t seed) {
  for (const Shape& shape : {Shape{1, 1, 1, 1, 1}, Shape{3, 0, 4, 0, 1}, Shape{2, 270, 33, 10, 1}, Shape{1, 560, 8, 20, 2},
                             Shape{9, 40, 16, 40, 3}, Shape{65, 8, 20, 5, 1}, Shape{2, 9, 0, 4, 1}}) {
    for (const bool cosine : {false, true}) {
      Problem<Stored> problem(shape, cosine);
      if (cosine) problem.exclude();
      problem.check(seed++);
    }
  }
}

// Whole numbers, so that many scores are equal, in the order that is worst for lists: ever better.
template <class Stored>
void test_ties(std::uint64_t seed) {
  for (const bool cosine : {false, true}) {
    Problem<Stored> problem({9, 100, 4, 12, 2}, cosine);
    for (std::int64_t i = 0; i < std::ssize(problem.queries); ++i) problem.queries[i] = stored<Stored>(i % 3);
    for (std::int64_t i = 0; i < std::ssize(problem.items); ++i) problem.items[i] = stored<Stored>(i / 60 + i % 2);
    problem.check(seed);
  }
}

// Zero vectors, numbers whose products overflow or vanish in floats, infinity, and what is no number.
void test_extremes(std::uint64_t seed) {
  constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> factors{0, 1e-30f, 1e30f, 1e-42f, 1, infinity, nan};
  for (const bool cosine : {false, true}) {
    Problem<float> problem({9, 49, 4, 15, 1}, cosine);
    for (std::int64_t i = 0; i < std::ssize(problem.items); ++i) problem.items[i] *= factors[i / 4 % 7];
    for (std::int64_t i = 0; i < std::ssize(problem.queries); ++i) problem.queries[i] *= factors[i / 4 % 5];
    problem.check(seed);
  }
}

// What codes say of an item: code times scale, with an error of the length that stands beside the scale.
template <class Stored>
void test_codes() {
  const std::int64_t count = 37, dim = 5, groups = 3, pairs = 3;
  std::vector<Stored> items = stored_normal<Stored>(count * dim, 6);
  std::fill_n(items.begin() + 3 * dim, dim, stored<Stored>(0));
  items[4 * dim] = stored<Stored>(std::numeric_limits<float>::quiet_NaN());
  std::vector<double> norms(count);
  cuda::vector_norms(Emulated{0}, items.data(), count, dim, norms.data(), nullptr);
  for (const bool cosine : {false, true}) {
    simt::Output<std::int8_t> codes(groups * pairs * 32);
    simt::Output<float> bounds(groups * 32);
    cuda::encode_items(Emulated{0}, items.data(), count, dim, norms.data(), cosine, codes.data(), bounds.data());
    for (std::int64_t row = 0; row < groups * 16; ++row) {
      const std::int64_t group = row / 16, member = row % 16;
      const double scale = bounds.written()[group * 32 + member], error = bounds.written()[group * 32 + 16 + member];
      const double length = cosine && row < count && row != 4 ? std::max(norms[row], 1e-12) : 1;
      double square = 0, largest = 0;
      for (std::int64_t d = 0; d < 2 * pairs; ++d) {
        const double value = row < count && row != 4 && d < dim ? number(items[row * dim + d]) : 0;
        const double code = codes.written()[((group * pairs + d / 2) * 16 + member) * 2 + d % 2];
        largest = std::max(largest, std::abs(value));
        square += (value / length - scale * code) * (value / length - scale * code);
        CHECK(std::abs(code) <= 127 && (value != 0 || code == 0));
      }
      CHECK(row == 4 ? std::isinf(error) : std::abs(error - std::sqrt(square)) <= 1e-6);
      CHECK(std::abs(scale - largest / 127 / length) <= 1e-8);
    }
  }
}

void test_what_does_not_fit_is_refused() {
  const std::vector<std::int64_t> offsets{0, 1}, late{1, 1}, short_of{0, 0}, rows{7};
  const auto check = [&](const std::vector<std::int64_t>& given, std::int64_t items, const std::string& message) {
    check_error([&] { cuda::check_excluded(Emulated{0}, {given.data(), rows.data(), 1}, 1, items); }, message);
  };
  check(offsets, 7, "an excluded row is not in the table");
  check(late, 8, "excluded offsets must begin at 0");
  check(short_of, 8, "excluded offsets must end at the number of rows");
}

}  // namespace

int main() {
  test_random<float>(0);
  test_random<double>(20);
  test_ties<float>(0);
  test_ties<double>(1);
  test_random<metarec::BFloat16>(40);
  test_ties<metarec::BFloat16>(3);
  test_extremes(2);
  test_codes<float>();
  test_codes<metarec::BFloat16>();
  test_what_does_not_fit_is_refused();
}
