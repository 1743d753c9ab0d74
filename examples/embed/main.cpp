// A newcomer has rated two of five items: adapt to them, then recommend from the rest.
#include <cstdio>
#include <vector>

#include "metarec/cosine_topk.h"
#include "metarec/gaussian_posterior.h"

int main() {
  const std::vector<float> items{1, 0, .8f, .6f, 0, 1, -1, 0, .6f, -.8f};  // five items of rank two
  const std::vector<float> rated{1, 0, 0, 1}, ratings{2, -1}, precision{4, 4}, prior_mean{0, 0}, prior{1, 0, 0, 1};
  const std::vector<std::int64_t> tasks{0, 2}, seen{0, 2};  // one task of two ratings: items 0 and 2
  std::vector<float> mean(2), cholesky(4), evidence(1), scores(3);
  metarec::gaussian_posterior<float>({2, rated, ratings, precision, tasks, prior_mean, prior},
                                     {mean, cholesky, evidence});

  std::vector<double> norms(5);
  const double largest = metarec::item_norms<float>(2, items, norms);
  std::vector<std::int64_t> best(3);
  metarec::cosine_topk<float>(mean, {2, items, norms, largest, {}, {}}, 3, {tasks, seen}, metarec::Similarity::dot,
                              scores, best);
  for (std::size_t i = 0; i < 3; ++i) std::printf("item %lld: %.6f\n", static_cast<long long>(best[i]), scores[i]);
}
