// Scores and gradients of pairs against sums written out in double precision.
#include "metarec/cosine_scores.h"

#include <algorithm>
#include <array>
#include <map>

#include "checks.h"
#include "cosine_scores_by_hand.h"
#include "stored.h"

namespace {

using metarec::Arithmetic;
using metarec::BFloat16;

template <class Stored>
struct Problem {
  using Real = Arithmetic<Stored>;
  std::int64_t dim, left_count, right_count;
  std::vector<Stored> left, right;
  std::vector<std::int32_t> left_rows;
  std::vector<std::int64_t> right_rows;
  std::vector<Real> gradient, scores, inverse_norms;

  Problem(std::int64_t left_count, std::int64_t right_count, std::int64_t dim, std::int64_t pairs)
      : dim(dim), left_count(left_count), right_count(right_count), left(stored_normal<Stored>(left_count * dim, 1)),
        right(stored_normal<Stored>(right_count * dim, 2)), gradient(normal<Real>(pairs, 3)), scores(pairs),
        inverse_norms(pairs) {
    std::mt19937 random(4);
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
      left_rows.push_back(static_cast<std::int32_t>(pair % 3 == 0 ? left_count - 1 : random() % left_count));
      right_rows.push_back(random() % right_count);
    }
  }

  metarec::CosinePairs<Stored> pairs() const {
    return {dim, left_count, right_count, left, right, std::span(left_rows), std::span(right_rows)};
  }

  void score(const metarec::Parallel& parallel = {}) {
    metarec::cosine_scores<Stored>(pairs(), scores, inverse_norms, parallel);
  }

  std::vector<Stored> dense(const metarec::Parallel& parallel = {}) const {
    std::vector<Stored> table(left.size(), Stored{});
    metarec::cosine_scores_gradient<Stored>(pairs(), {gradient, scores, inverse_norms}, table, parallel);
    return table;
  }

  std::map<std::int64_t, std::vector<Stored>> by_row(const metarec::Parallel& parallel = {}) const {
    std::vector<std::int64_t> rows;
    std::vector<Stored> values;
    metarec::cosine_scores_row_gradient<Stored>(
        pairs(), {gradient, scores, inverse_norms},
        [&](std::int64_t count) {
          rows.resize(count);
          values.resize(count * dim);
          return metarec::RowValues<Stored>{rows, values};
        },
        parallel);
    CHECK(std::ranges::is_sorted(rows));
    std::map<std::int64_t, std::vector<Stored>> result;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      result[rows[i]] = {values.begin() + static_cast<std::int64_t>(i) * dim,
                         values.begin() + static_cast<std::int64_t>(i + 1) * dim};
    }
    CHECK(result.size() == rows.size());
    return result;
  }
};

template <class Stored>
void test_scores_and_gradients(double tolerance) {
  for (const auto& [left_count, right_count, dim, pairs] :
       {std::array<std::int64_t, 4>{1, 1, 1, 1}, {5, 4, 3, 0}, {5, 4, 0, 3}, {40, 7, 33, 900}, {3, 50, 64, 2000}}) {
    Problem<Stored> problem(left_count, right_count, dim, pairs);
    problem.score();
    const auto [scores, expected] = cosines_by_hand(dim, numbers(problem.left), numbers(problem.right),
                                                    problem.left_rows, problem.right_rows, problem.gradient);
    for (std::int64_t pair = 0; pair < pairs; ++pair) CHECK(std::abs(problem.scores[pair] - scores[pair]) < tolerance);
    const std::vector<Stored> table = problem.dense();
    const double rounding = sizeof(Stored) == sizeof(BFloat16) ? 0x1p-8 : 0;
    for (std::size_t i = 0; i < table.size(); ++i) {
      CHECK(std::abs(number(table[i]) - expected[i]) < 60 * tolerance + rounding * std::abs(expected[i]));
    }
    std::vector<std::int64_t> named(problem.left_rows.begin(), problem.left_rows.end());
    std::ranges::sort(named);
    named.erase(std::unique(named.begin(), named.end()), named.end());
    const auto rows = problem.by_row();
    CHECK(rows.size() == named.size());
    for (const std::int64_t row : named) {
      for (std::int64_t d = 0; d < dim; ++d) CHECK(number(rows.at(row)[d]) == number(table[row * dim + d]));
    }
  }
}

template <class Stored>
void test_threads_change_nothing() {
  Problem<Stored> one(700, 90, 19, 40000), four = one;
  one.score();
  four.score(threads(4));
  CHECK(one.scores == four.scores && one.inverse_norms == four.inverse_norms);
  const auto same = [](Stored a, Stored b) { return number(a) == number(b); };
  CHECK(std::ranges::equal(one.dense(), four.dense(threads(4)), same));
  const auto rows = one.by_row(), others = four.by_row(threads(4));
  CHECK(rows.size() == others.size());
  for (const auto& [row, values] : rows) CHECK(std::ranges::equal(values, others.at(row), same));
}

void test_bad_rows_throw() {
  Problem<float> problem(4, 3, 5, 20000);
  problem.left_rows[17000] = 4;
  check_throws([&] { problem.score(threads(2)); }, "rows of the first table must be from 0 to 3, got 4 at 17000");
  check_throws([&] { problem.dense(threads(2)); }, "rows of the first table must be from 0 to 3, got 4 at 17000");
  problem.left_rows[17000] = 0;
  problem.right_rows[5] = -1;
  check_throws([&] { problem.score(); }, "rows of the second table must be from 0 to 2, got -1 at 5");
  check_throws([&] { problem.by_row(); }, "rows of the second table must be from 0 to 2, got -1 at 5");
}

}  // namespace

// With an argument only what threads do, for the sanitizer that is slow.
int main(int count, char**) {
  test_threads_change_nothing<float>();
  test_threads_change_nothing<BFloat16>();
  if (count > 1) return 0;
  test_scores_and_gradients<float>(2e-6);
  test_scores_and_gradients<double>(1e-13);
  test_scores_and_gradients<BFloat16>(2e-6);
  test_bad_rows_throw();
}
