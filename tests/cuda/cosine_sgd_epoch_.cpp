// The kernels of cosine_sgd_epoch_ against an epoch written out in double precision.
#include "ops/cuda/cosine_sgd_epoch__kernel.cuh"

#include <algorithm>
#include <array>
#include <numeric>

#include "cuda/emulated.h"
#include "native/sgd_epoch.h"

namespace {

using metarec::BFloat16;
using metarec::RatingLoss;
using metarec::SgdOptions;
using metarec::Similarity;
namespace cuda = metarec::cuda;

using Shape = std::array<std::int64_t, 4>;  // users, items, dimensions, ratings

// Those of tests/ops/test_cosine_sgd_epoch_.py, with fewer ratings.
const Shape kShapes[] = {{3, 4, 5, 0},     {1, 1, 1, 1},   {4, 3, 0, 20},    {7, 5, 3, 40},   {30, 20, 33, 60},
                         {9, 14, 16, 50},  {25, 40, 64, 60}, {12, 9, 70, 50}, {6, 9, 136, 40}};

// The lists of swaps of a number of places, none of which has one.
struct SwapLists {
  std::vector<std::int32_t> last;
  simt::Output<std::int32_t> previous;

  explicit SwapLists(std::int64_t places) : last(places, -1), previous(places) {}
  cuda::Swaps view() { return {last.data(), previous.data()}; }
};

// The blocks, sorted, and which rating stands where.
struct SortedBlocks {
  std::vector<std::int16_t> blocks;
  std::vector<std::int64_t> order;

  SortedBlocks(const Emulated& launch, const cuda::SgdEntries& entries) : order(entries.count) {
    const std::int64_t rows = entries.rows();
    SwapLists swaps(rows);
    std::vector<std::int32_t> counts(rows);
    std::vector<std::int64_t> sums;
    simt::Output<std::int32_t> shuffled(rows), shuffled_counts(rows), groups(rows);
    simt::Output<std::int16_t> unsorted(entries.count);
    cuda::shuffle_rows(launch, entries, swaps.view(), counts.data(), shuffled.data(), shuffled_counts.data());
    if (entries.count == 0) return;
    for (const std::int64_t count : shuffled_counts.written()) sums.push_back(count + (sums.empty() ? 0 : sums.back()));
    cuda::find_blocks(launch, entries, shuffled.written().data(), shuffled_counts.data(), sums.data(), groups.data(),
                      unsorted.data());
    const std::span<const std::int16_t> found = unsorted.written();
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::ranges::stable_sort(order, {}, [&](std::int64_t i) { return found[i]; });
    for (const std::int64_t i : order) blocks.push_back(found[i]);
  }
};

template <class Stored>
double epoch(SgdProblem<Stored>& problem, const SgdOptions& options, const Emulated& launch) {
  using Real = metarec::Arithmetic<Stored>;
  const cuda::SgdEntries entries{problem.user_count,  problem.item_count,  problem.count,
                                 options.seed,        problem.user.data(), problem.item.data()};
  const SortedBlocks sorted(launch, entries);
  SwapLists swaps(problem.count);
  const std::int64_t groups = entries.groups(), blocks = groups * groups;
  simt::Output<std::int32_t> begins(blocks + 1);
  simt::Output<cuda::SgdRating<Real>> ratings(problem.count);
  simt::Output<cuda::SgdHead<Real>> heads(blocks);
  simt::Output<double> losses(blocks), loss(1);
  cuda::SgdHead<Real> head{problem.head[0], problem.head[1]};
  const cuda::SgdModel<Stored> model{problem.dim,
                                     problem.users.data(),
                                     problem.items.data(),
                                     problem.user_biases.data(),
                                     problem.item_biases.data(),
                                     &head};
  const cuda::SgdBlocks<Real> in_blocks{sorted.blocks.data(), sorted.order.data(), swaps.view(), begins.data(),
                                        ratings.data(),       heads.data(),        losses.data()};
  cuda::cosine_sgd_epoch(launch, model, entries, problem.values.data(), in_blocks, options, loss.data());
  problem.head = {head.scale, head.bias};
  return loss.written()[0];
}

template <class Stored>
void test_epochs(double tolerance) {
  std::uint64_t seed = 0;
  for (const RatingLoss loss : {RatingLoss::squared, RatingLoss::logistic}) {
    for (const Similarity similarity : {Similarity::cosine, Similarity::dot}) {
      for (const auto& [users, items, dim, ratings] : kShapes) {
        const SgdOptions options{0.05, 0.1, similarity, loss, ++seed, 0.02};
        check_epoch(SgdProblem<Stored>(users, items, dim, ratings), options, tolerance,
                    [&](auto& problem, const SgdOptions& options) { return epoch(problem, options, {seed}); });
      }
    }
  }
}

// The least that make four groups each of users and items.
void test_four_groups() {
  const SgdOptions options{.lr = 0.05, .l2 = 0.1, .seed = 9};
  check_epoch(SgdProblem<float>(300, 200, 4, 8192), options, 2e-5,
              [](auto& problem, const SgdOptions& options) { return epoch(problem, options, {3}); });
}

// One user is in one group of two.
void test_blocks_without_ratings() {
  const SgdOptions options{.lr = 0.05, .l2 = 0.1, .seed = 4};
  check_epoch(SgdProblem<BFloat16>(1, 30, 2, 2048), options, 0x1p-7,
              [](auto& problem, const SgdOptions& options) { return epoch(problem, options, {4}); });
  const std::vector<std::int16_t> blocks{1, 1, 3};
  simt::Output<std::int32_t> begins(6);
  Emulated{1}({1, cuda::kOrderThreads}, cuda::find_begins<std::int32_t>, blocks.data(), 3, 5, begins.data());
  CHECK(std::ranges::equal(begins.written(), std::array{0, 0, 2, 2, 3, 3}));
}

template <class Stored>
void test_the_order_of_threads_changes_nothing() {
  SgdProblem<Stored> first(20, 30, 12, 200), second = first;
  const SgdOptions options{0.05, 0.1, Similarity::cosine, RatingLoss::logistic, 5};
  const double loss = epoch(first, options, {1}), same = epoch(second, options, {2});
  CHECK(loss == same && first == second);
}

// More groups than lanes: so many ratings that an epoch of them takes long.
void test_the_end_of_an_epoch_of_64_groups() {
  constexpr std::int64_t groups = 64;
  std::vector<double> losses = normal<double>(groups * groups, 1);
  const std::vector<double> values = normal<double>(2 * groups * groups, 2);
  std::vector<cuda::SgdHead<double>> heads;
  for (std::int64_t i = 0; i < groups * groups; ++i) heads.push_back({values[2 * i], values[2 * i + 1]});
  cuda::SgdHead<double> head;
  double loss = 0, scale = 0, bias = 0;
  cuda::SgdBlocks<double> blocks{};
  blocks.heads = heads.data(), blocks.losses = losses.data();
  Emulated{1}({1, cuda::kWarp}, cuda::finish_epoch<double>, blocks, groups, 1000, &head, &loss);
  for (std::size_t i = heads.size() - groups; i < heads.size(); ++i) scale += heads[i].scale, bias += heads[i].bias;
  CHECK(std::abs(head.scale - scale / groups) < 1e-14 && std::abs(head.bias - bias / groups) < 1e-14);
  CHECK(std::abs(loss - std::accumulate(losses.begin(), losses.end(), 0.) / 1000) < 1e-13);
}

void test_ratings_that_are_none_stop_the_kernel() {
  SgdProblem<float> problem(4, 3, 5, 300);
  problem.values[170] = 1.5;
  SgdOptions options{.lr = 0.1, .l2 = 0, .loss = RatingLoss::logistic};
  check_error([&] { epoch(problem, options, {1}); }, "ratings must be from 0 to 1 for the logistic loss");
  problem.values[170] = std::numeric_limits<float>::infinity();
  options.loss = RatingLoss::squared;
  check_error([&] { epoch(problem, options, {1}); }, "ratings must be finite");
}

}  // namespace

int main() {
  test_epochs<float>(2e-5);
  test_epochs<double>(1e-12);
  test_epochs<BFloat16>(0x1p-7);
  test_four_groups();
  test_blocks_without_ratings();
  test_the_order_of_threads_changes_nothing<float>();
  test_the_order_of_threads_changes_nothing<BFloat16>();
  test_the_end_of_an_epoch_of_64_groups();
  test_ratings_that_are_none_stop_the_kernel();
}
