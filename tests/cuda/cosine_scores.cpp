// The kernels of cosine_scores against sums written out in double precision.
#include "ops/cuda/cosine_scores_kernel.cuh"

#include <algorithm>
#include <array>
#include <numeric>
#include <random>

#include "cuda/emulated.h"
#include "native/cosine_scores_by_hand.h"
#include "ops/cuda/narrow_rows_kernel.cuh"

namespace {

using metarec::Arithmetic;
using metarec::BFloat16;
namespace cuda = metarec::cuda;

using Shape = std::array<std::int64_t, 4>;  // rows of the left table, of the right one, dimensions, pairs

// Those of tests/ops/test_cosine_scores.py, with fewer pairs; row 0 on the right is in a quarter of them.
const Shape kShapes[] = {{3, 4, 5, 0},     {1, 1, 1, 1},     {0, 2, 3, 0},     {5, 3, 0, 7},
                         {7, 2, 3, 40},    {50, 40, 16, 100}, {40, 60, 33, 70}, {30, 20, 64, 300},
                         {30, 30, 65, 70}, {9, 90, 128, 50}, {5, 6, 200, 40},  {3, 2, 7, 1200}};

template <class Stored, class Index>
struct Problem {
  using Real = Arithmetic<Stored>;
  std::int64_t left_count, right_count, dim, pairs;
  std::vector<Stored> left, right;
  std::vector<Index> left_rows, right_rows;
  std::vector<Real> gradient, scores, inverse_norms;

  explicit Problem(const Shape& shape)
      : left_count(shape[0]), right_count(shape[1]), dim(shape[2]), pairs(shape[3]),
        left(stored_normal<Stored>(left_count * dim, 1)), right(stored_normal<Stored>(right_count * dim, 2)),
        gradient(normal<Real>(pairs, 3)) {
    std::mt19937 random(4);
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
      left_rows.push_back(static_cast<Index>(random() % left_count));
      right_rows.push_back(static_cast<Index>(pair % 4 == 0 ? 0 : random() % right_count));
    }
  }

  static cuda::Rows view(const std::vector<Index>& rows) { return {rows.data(), sizeof(Index) == 8}; }

  // The same pairs with the tables changed over.
  Problem swapped() const {
    Problem other(*this);
    std::swap(other.left, other.right), std::swap(other.left_rows, other.right_rows);
    std::swap(other.left_count, other.right_count);
    return other;
  }

  void score(std::uint64_t seed) {
    simt::Output<Real> to_scores(pairs), to_inverse_norms(pairs);
    cuda::cosine_scores<Emulated, Stored>({seed}, {dim, left_count, right_count, left.data(), right.data()},
                                          view(left_rows), view(right_rows), pairs, to_scores.data(),
                                          to_inverse_norms.data());
    std::ranges::copy(to_scores.written(), std::back_inserter(scores));
    std::ranges::copy(to_inverse_norms.written(), std::back_inserter(inverse_norms));
  }

  // The gradient of the left table, of the rows that have one; `rows` are these, ascending.
  std::vector<Stored> row_gradient(std::uint64_t seed, std::vector<std::int32_t>& rows) const {
    simt::Output<std::int32_t> narrow(pairs);
    cuda::narrow_rows<Emulated>({seed}, view(left_rows), pairs, left_count, narrow.data());
    rows.assign(narrow.written().begin(), narrow.written().end());
    CHECK(std::ranges::equal(rows, left_rows));
    std::vector<std::int64_t> order(rows.size()), places;
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::ranges::stable_sort(order, {}, [&](std::int64_t pair) { return rows[pair]; });
    std::ranges::sort(rows);
    const std::vector<std::int32_t> sorted = rows;
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    for (const std::int32_t row : sorted) places.push_back(std::ranges::lower_bound(rows, row) - rows.begin());
    simt::Output<Stored> result(std::ssize(rows) * dim);
    std::vector<Real> tile_sums(cuda::cosine_tile_sums(dim, pairs), std::numeric_limits<Real>::quiet_NaN());
    cuda::cosine_scores_gradient<Emulated, Stored>(
        {seed}, {{dim, left_count, right_count, left.data(), right.data()}, view(right_rows), gradient.data(),
                 scores.data(), inverse_norms.data(), pairs, sorted.data(), order.data(), places.data(), result.data(),
                 tile_sums.data()});
    // Written to the rows of the table itself, it is the same.
    std::vector<Stored> table(left.size(), stored<Stored>(7));
    cuda::cosine_scores_gradient<Emulated, Stored>(
        {seed + 1}, {{dim, left_count, right_count, left.data(), right.data()}, view(right_rows), gradient.data(),
                     scores.data(), inverse_norms.data(), pairs, sorted.data(), order.data(), nullptr, table.data(),
                     tile_sums.data()});
    const auto values = result.written();
    for (std::int64_t row = 0, i = 0; row < left_count; ++row) {
      const bool named = i < std::ssize(rows) && rows[i] == row;
      for (std::int64_t d = 0; d < dim; ++d) {
        CHECK(number(table[row * dim + d]) == (named ? number(values[i * dim + d]) : 7));
      }
      i += named;
    }
    return {values.begin(), values.end()};
  }
};

template <class Stored, class Index>
void check_gradient(const Problem<Stored, Index>& problem, double tolerance, std::uint64_t seed) {
  const std::int64_t dim = problem.dim;
  const auto [scores, expected] = cosines_by_hand(dim, numbers(problem.left), numbers(problem.right),
                                                  problem.left_rows, problem.right_rows, problem.gradient);
  std::vector<bool> named(problem.left_count);
  for (std::int64_t pair = 0; pair < problem.pairs; ++pair) {
    CHECK(std::abs(problem.scores[pair] - scores[pair]) < (sizeof(Arithmetic<Stored>) == 8 ? 1e-13 : 2e-6));
    named[problem.left_rows[pair]] = true;
  }
  double scale = 1;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  std::vector<std::int32_t> rows;
  const std::vector<Stored> values = problem.row_gradient(seed, rows);
  CHECK(std::ssize(rows) == std::ranges::count(named, true));
  for (std::int64_t i = 0; i < std::ssize(rows); ++i) {
    CHECK(named[rows[i]]);
    for (std::int64_t d = 0; d < dim; ++d) {
      CHECK(std::abs(number(values[i * dim + d]) - expected[rows[i] * dim + d]) < tolerance * scale);
    }
  }
}

template <class Stored, class Index>
void test_scores_and_gradients(double tolerance) {
  for (std::uint64_t seed = 0; const Shape& shape : kShapes) {
    Problem<Stored, Index> problem(shape);
    problem.score(++seed);
    check_gradient(problem, tolerance, seed);
    check_gradient(problem.swapped(), tolerance, seed + 100);
  }
}

// The order of threads changes no bit.
void test_the_order_of_threads_changes_nothing() {
  Problem<float, std::int64_t> first({10, 6, 12, 200}), second = first;
  first.score(1), second.score(2);
  CHECK(first.scores == second.scores && first.inverse_norms == second.inverse_norms);
  std::vector<std::int32_t> rows;
  CHECK(first.row_gradient(1, rows) == second.row_gradient(2, rows));
}

void test_zero_vectors_have_score_and_gradient_zero() {
  Problem<float, std::int32_t> problem({4, 3, 8, 90});
  std::fill_n(problem.left.begin() + 8, 8, 0.f), std::fill_n(problem.right.begin(), 8, 0.f);
  problem.score(1);
  std::vector<std::int32_t> rows;
  const std::vector<float> values = problem.row_gradient(1, rows);
  CHECK(rows.size() == 4);
  for (std::int64_t pair = 0; pair < 90; ++pair) {
    CHECK((problem.scores[pair] == 0) == (problem.left_rows[pair] == 1 || problem.right_rows[pair] == 0));
  }
  for (std::int64_t i = 0; i < 32; ++i) CHECK((values[i] == 0) == (i / 8 == 1));
}

void test_rows_that_are_not_in_their_table_stop_the_kernel() {
  Problem<float, std::int64_t> problem({4, 3, 5, 300});
  problem.score(1);
  std::vector<std::int32_t> rows;
  problem.right_rows[170] = 3;
  check_error([&] { problem.score(1); }, "a row of the second table is not in it");
  check_error([&] { problem.row_gradient(1, rows); }, "a row of the second table is not in it");
  problem.left_rows[170] = -1;
  check_error([&] { problem.score(1); }, "a row of the first table is not in it");
  check_error([&] { problem.row_gradient(1, rows); }, "a row is not in its table");
}

}  // namespace

int main() {
  test_scores_and_gradients<float, std::int64_t>(2e-6);
  test_scores_and_gradients<double, std::int32_t>(1e-13);
  test_scores_and_gradients<BFloat16, std::int64_t>(8e-3);
  test_the_order_of_threads_changes_nothing();
  test_zero_vectors_have_score_and_gradient_zero();
  test_rows_that_are_not_in_their_table_stop_the_kernel();
}
