// Steps of the three rules against steps written out in double precision.
#include "metarec/embedding_update.h"

#include <algorithm>
#include <array>
#include <map>

#include "checks.h"
#include "embedding_step.h"
#include "rounded.h"
#include "stored.h"

namespace {

using metarec::BFloat16;
using Seed = std::optional<std::uint64_t>;

template <class Stored>
struct Problem {
  using Real = metarec::Arithmetic<Stored>;

  std::int64_t count, dim;
  std::vector<Stored> table, gradients;
  std::vector<Real> sums, means, squares;
  std::vector<std::int32_t> steps;
  std::vector<std::int64_t> rows;
  Seed seed;

  Problem(std::int64_t count, std::int64_t dim, std::int64_t entries)
      : count(count), dim(dim), table(stored_normal<Stored>(count * dim, 1)),
        gradients(stored_normal<Stored>(entries * dim, 2)), sums(count), means(count * dim), squares(count * dim),
        steps(count) {
    std::mt19937 random(3);
    for (std::int64_t entry = 0; entry < entries; ++entry) {
      rows.push_back(entry % 3 == 0 ? count - 1 : random() % count);
    }
  }

  metarec::UpdateRule<Real> rule(const std::string& name) {
    if (name == "sgd") return metarec::Sgd{};
    if (name == "adagrad") return metarec::RowwiseAdagrad<Real>{kEps, sums};
    return metarec::LazyAdam<Real>{kBeta1, kBeta2, kEps, means, squares, steps};
  }

  void update(const std::string& name, const metarec::Parallel& parallel = {}) {
    metarec::embedding_update<Stored>({dim, count, table, seed}, std::span<const std::int64_t>(rows), gradients,
                                      rule(name), kRates, parallel);
  }
};

// One step of 16 bits: values that are rounded either way go different ways from there.
template <class Stored>
void test_steps(double tolerance, Seed seed = std::nullopt) {
  const int last_step = sizeof(Stored) == sizeof(BFloat16) ? 1 : 2;
  for (const std::string name : {"sgd", "adagrad", "adam"}) {
    // Of the 63 entries some have one hash, and one the last of the table; 20,000 are more than a chunk.
    for (const auto& [count, dim, entries] :
         {std::array<std::int64_t, 3>{1, 1, 1}, {4, 3, 0}, {4, 0, 5}, {50, 33, 900}, {3000, 64, 4000}, {30000, 2, 63},
          {900, 5, 20000}}) {
      Problem<Stored> problem(count, dim, entries);
      problem.seed = seed;
      const std::vector<Stored> before = problem.table;
      const auto steps_before = [](std::int64_t row) { return static_cast<int>(row % 100); };
      for (std::int64_t row = 0; row < count; ++row) problem.steps[row] = steps_before(row);
      for (int step = 1; step <= last_step; ++step) problem.update(name);
      std::map<std::int64_t, std::vector<double>> gradients;
      for (std::int64_t entry = 0; entry < entries; ++entry) {
        std::vector<double>& sum = gradients[problem.rows[entry]];
        sum.resize(dim);
        for (std::int64_t d = 0; d < dim; ++d) sum[d] += number(problem.gradients[entry * dim + d]);
      }
      for (std::int64_t row = 0; row < count; ++row) {
        std::vector<double> values;
        for (std::int64_t d = 0; d < dim; ++d) values.push_back(number(before[row * dim + d]));
        if (gradients.contains(row)) {
          double sum = 0;
          std::vector<double> mean(dim), square(dim);
          for (int step = 1; step <= last_step; ++step) {
            step_by_hand(name, values, gradients[row], sum, mean, square, steps_before(row) + step);
          }
        }
        for (std::int64_t d = 0; d < dim; ++d) {
          const double got = number(problem.table[row * dim + d]);
          CHECK(gradients.contains(row)
                    ? is_rounded<Stored>(got, values[d], tolerance * (1 + std::abs(values[d])), seed, row, d)
                    : got == number(before[row * dim + d]));
        }
        CHECK(problem.steps[row] == steps_before(row) + (name == "adam" && gradients.contains(row) ? last_step : 0));
      }
    }
  }
}

// As many rows as can repeat, so that all the memory for sums is used.
void test_every_row_twice() {
  Problem<float> twice(500, 3, 1000), once(500, 3, 500);
  for (std::int64_t entry = 0; entry < 1000; ++entry) twice.rows[entry] = entry / 2;
  for (std::int64_t row = 0; row < 500; ++row) {
    once.rows[row] = row;
    for (std::int64_t d = 0; d < 3; ++d) {
      once.gradients[row * 3 + d] = twice.gradients[2 * row * 3 + d] + twice.gradients[(2 * row + 1) * 3 + d];
    }
  }
  once.update("adam");
  twice.update("adam");
  CHECK(once.table == twice.table);
}

template <class Stored>
void test_threads_change_nothing(Seed seed = std::nullopt) {
  for (const std::string name : {"sgd", "adagrad", "adam"}) {
    Problem<Stored> one(2000, 19, 20000);  // three chunks
    one.seed = seed;
    Problem<Stored> four = one;
    for (int step = 0; step < 2; ++step) {
      one.update(name);
      four.update(name, threads(4));
    }
    CHECK(numbers(one.table) == numbers(four.table) && one.sums == four.sums && one.means == four.means);
    CHECK(one.squares == four.squares && one.steps == four.steps);
  }
}

void test_bad_rows_throw_and_change_nothing() {
  Problem<float> problem(5, 3, 20000);
  const std::vector<float> before = problem.table;
  problem.rows[18000] = 5;
  check_throws([&] { problem.update("adam", threads(2)); }, "rows must be from 0 to 4, got 5 at 18000");
  problem.rows[3] = -1;
  check_throws([&] { problem.update("adam"); }, "rows must be from 0 to 4, got -1 at 3");
  CHECK(problem.table == before && std::ranges::count(problem.steps, 0) == 5);
  problem.seed = 1;
  check_throws([&] { problem.update("adam"); }, "only a table of bfloat16 is rounded by a seed");
}

}  // namespace

// With an argument only what threads do, for the sanitizer that is slow.
int main(int count, char**) {
  test_threads_change_nothing<float>();
  test_threads_change_nothing<double>();
  test_threads_change_nothing<BFloat16>(5);
  if (count > 1) return 0;
  test_steps<float>(1e-4);
  test_steps<double>(1e-11);
  test_steps<BFloat16>(1e-4, 5);
  test_every_row_twice();
  test_bad_rows_throw_and_change_nothing();
}
