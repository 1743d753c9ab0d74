// Steps of the three rules against steps written out in double precision.
#include "metarec/embedding_update.h"

#include <algorithm>
#include <array>
#include <map>

#include "checks.h"
#include "embedding_step.h"

namespace {

template <class Real>
struct Problem {
  std::int64_t count, dim;
  std::vector<Real> table, sums, means, squares, gradients;
  std::vector<std::int32_t> steps;
  std::vector<std::int64_t> rows;

  Problem(std::int64_t count, std::int64_t dim, std::int64_t entries)
      : count(count), dim(dim), table(normal<Real>(count * dim, 1)), sums(count), means(count * dim),
        squares(count * dim), gradients(normal<Real>(entries * dim, 2)), steps(count) {
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
    metarec::embedding_update<Real>({dim, count, table}, std::span<const std::int64_t>(rows), gradients, rule(name),
                                    kRates, parallel);
  }
};

template <class Real>
void test_steps(double tolerance) {
  for (const std::string name : {"sgd", "adagrad", "adam"}) {
    // Of the 63 entries some have one hash, and one the last of the table; 20,000 are more than a chunk.
    for (const auto& [count, dim, entries] :
         {std::array<std::int64_t, 3>{1, 1, 1}, {4, 3, 0}, {4, 0, 5}, {50, 33, 900}, {3000, 64, 4000}, {30000, 2, 63},
          {900, 5, 20000}}) {
      Problem<Real> problem(count, dim, entries);
      const std::vector<Real> before = problem.table;
      const auto steps_before = [](std::int64_t row) { return static_cast<int>(row % 100); };
      for (std::int64_t row = 0; row < count; ++row) problem.steps[row] = steps_before(row);
      for (int step = 1; step <= 2; ++step) problem.update(name);
      std::map<std::int64_t, std::vector<double>> gradients;
      for (std::int64_t entry = 0; entry < entries; ++entry) {
        std::vector<double>& sum = gradients[problem.rows[entry]];
        sum.resize(dim);
        for (std::int64_t d = 0; d < dim; ++d) sum[d] += problem.gradients[entry * dim + d];
      }
      for (std::int64_t row = 0; row < count; ++row) {
        std::vector<double> values(before.begin() + row * dim, before.begin() + (row + 1) * dim);
        if (gradients.contains(row)) {
          double sum = 0;
          std::vector<double> mean(dim), square(dim);
          for (int step = 1; step <= 2; ++step) {
            step_by_hand(name, values, gradients[row], sum, mean, square, steps_before(row) + step);
          }
        }
        for (std::int64_t d = 0; d < dim; ++d) {
          const double got = problem.table[row * dim + d];
          CHECK(gradients.contains(row) ? std::abs(got - values[d]) < tolerance * (1 + std::abs(values[d]))
                                        : got == before[row * dim + d]);
        }
        CHECK(problem.steps[row] == steps_before(row) + (name == "adam" && gradients.contains(row) ? 2 : 0));
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

template <class Real>
void test_threads_change_nothing() {
  for (const std::string name : {"sgd", "adagrad", "adam"}) {
    Problem<Real> one(2000, 19, 40000), four = one;
    for (int step = 0; step < 2; ++step) {
      one.update(name);
      four.update(name, threads(4));
    }
    CHECK(one.table == four.table && one.sums == four.sums && one.means == four.means);
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
}

}  // namespace

// With an argument only what threads do, for the sanitizer that is slow.
int main(int count, char**) {
  test_threads_change_nothing<float>();
  test_threads_change_nothing<double>();
  if (count > 1) return 0;
  test_steps<float>(1e-4);
  test_steps<double>(1e-11);
  test_every_row_twice();
  test_bad_rows_throw_and_change_nothing();
}
