// The kernels of embedding_update_ against steps written out in double precision.
#include "ops/cuda/embedding_update__kernel.cuh"

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <optional>
#include <random>

#include "cuda/emulated.h"
#include "native/embedding_step.h"
#include "native/rounded.h"

namespace {

namespace cuda = metarec::cuda;

using metarec::BFloat16;

using Shape = std::array<std::int64_t, 3>;  // rows of the table, dimensions, gradients

// The last row has half of the gradients: so many that its run spans chunks, and in two of these chunks of chunks.
const Shape kShapes[] = {{4, 3, 0}, {1, 1, 1}, {4, 0, 5}, {4, 3, 7}, {5, 4, 33}, {50, 33, 900}, {70, 64, 600}, {300, 8, 5000},
                         {3, 160, 2500}};

template <class Stored>
struct Problem {
  using Real = metarec::Arithmetic<Stored>;

  std::int64_t count, dim, entries, rounding_seed;
  std::vector<Stored> table, gradients;
  std::vector<Real> sums, means, squares;
  std::vector<std::int32_t> steps, rows;

  explicit Problem(const Shape& shape, std::int64_t rounding_seed = -1)
      : count(shape[0]), dim(shape[1]), entries(shape[2]), rounding_seed(rounding_seed),
        table(stored_normal<Stored>(count * dim, 1)), gradients(stored_normal<Stored>(entries * dim, 2)), sums(count),
        means(count * dim), squares(count * dim), steps(count) {
    std::mt19937 random(3);
    for (std::int64_t entry = 0; entry < entries; ++entry) {
      rows.push_back(static_cast<std::int32_t>(entry % 2 == 0 ? count - 1 : random() % count));
    }
  }

  void update(const std::string& name, std::uint64_t seed) {
    std::vector<std::int64_t> order(entries);
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::ranges::stable_sort(order, {}, [&](std::int64_t entry) { return rows[entry]; });
    std::vector<std::int32_t> sorted;
    for (const std::int64_t entry : order) sorted.push_back(rows[entry]);
    simt::Output<Real> heads(cuda::update_heads(dim, entries));
    const cuda::RowUpdates<Stored> updates{dim,
                                           entries,
                                           table.data(),
                                           sorted.data(),
                                           order.data(),
                                           gradients.data(),
                                           {kRates.lr, kRates.l2, kRates.weight_decay},
                                           rounding_seed,
                                           heads.data()};
    const Emulated launch{seed};
    if (name == "sgd") {
      cuda::embedding_update(launch, updates, cuda::SgdRule<Real>{});
    } else if (name == "adagrad") {
      cuda::embedding_update(launch, updates, cuda::AdagradRule<Real>{static_cast<Real>(kEps), sums.data()});
    } else {
      cuda::embedding_update(launch, updates, cuda::AdamRule<Real>(kBeta1, kBeta2, kEps, means.data(), squares.data(),
                                                                   steps.data()));
    }
  }
};

// One step of 16 bits: values that are rounded either way go different ways from there.
template <class Stored>
void test_steps(const Shape& shape, const std::string& name, std::uint64_t seed, double tolerance,
                std::optional<std::int64_t> rounding_seed = std::nullopt) {
  const int last_step = sizeof(Stored) == sizeof(BFloat16) ? 1 : 2;
  Problem<Stored> problem(shape, rounding_seed.value_or(-1));
  const auto [count, dim, entries] = shape;
  const std::vector<double> before = numbers(problem.table);
  for (int step = 1; step <= last_step; ++step) problem.update(name, seed);
  std::map<std::int64_t, std::vector<double>> gradients;
  for (std::int64_t entry = 0; entry < entries; ++entry) {
    std::vector<double>& sum = gradients[problem.rows[entry]];
    sum.resize(dim);
    for (std::int64_t d = 0; d < dim; ++d) sum[d] += number(problem.gradients[entry * dim + d]);
  }
  for (std::int64_t row = 0; row < count; ++row) {
    double sum = 0;
    std::vector<double> values(before.begin() + row * dim, before.begin() + (row + 1) * dim), mean(dim), square(dim);
    for (int step = 1; gradients.contains(row) && step <= last_step; ++step) {
      step_by_hand(name, values, gradients[row], sum, mean, square, step);
    }
    for (std::int64_t d = 0; d < dim; ++d) {
      CHECK(gradients.contains(row) ? is_rounded<Stored>(number(problem.table[row * dim + d]), values[d],
                                                         tolerance * (1 + std::abs(values[d])), rounding_seed, row, d)
                                    : number(problem.table[row * dim + d]) == values[d]);
    }
    CHECK(problem.steps[row] == (name == "adam" && gradients.contains(row) ? last_step : 0));
    CHECK(name != "adagrad" || std::abs(problem.sums[row] - sum) <= tolerance * (1 + sum));
  }
}

void test_order_of_threads_changes_nothing(const std::string& name) {
  Problem<float> one({9, 20, 1500}), other = one;
  one.update(name, 1);
  other.update(name, 2);
  CHECK(one.table == other.table && one.sums == other.sums && one.means == other.means);
}

}  // namespace

int main() {
  for (const std::string name : {"sgd", "adagrad", "adam"}) {
    std::uint64_t seed = 0;
    for (const Shape& shape : kShapes) {
      test_steps<float>(shape, name, seed++, 1e-4);
      test_steps<double>(shape, name, seed++, 1e-11);
      test_steps<BFloat16>(shape, name, seed++, 1e-5);
      test_steps<BFloat16>(shape, name, seed++, 1e-5, 7);
    }
    test_order_of_threads_changes_nothing(name);
  }
}
