// Computes what it reads from standard input and writes the results to standard output, all as raw memory.
#include <iostream>
#include <vector>

#include "metarec/cosine_topk.h"
#include "metarec/gaussian_posterior.h"

namespace {

template <class Value>
std::vector<Value> read(std::int64_t count) {
  std::vector<Value> values(static_cast<std::size_t>(count));
  std::cin.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(count * sizeof(Value)));
  return values;
}

template <class Value>
void write(const std::vector<Value>& values) {
  std::cout.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(Value)));
}

void posteriors() {
  const std::vector<std::int64_t> sizes = read<std::int64_t>(3);
  const std::int64_t tasks = sizes[0], count = sizes[1], rank = sizes[2];
  const auto offsets = read<std::int64_t>(tasks + 1);
  const auto features = read<float>(count * rank), targets = read<float>(count), precision = read<float>(count);
  const auto prior_mean = read<float>(rank), prior_precision = read<float>(rank * rank);
  std::vector<float> mean(tasks * rank), cholesky(tasks * rank * rank), log_evidence(tasks);
  metarec::gaussian_posterior<float>({rank, features, targets, precision, offsets, prior_mean, prior_precision},
                                     {mean, cholesky, log_evidence});
  write(mean);
  write(cholesky);
  write(log_evidence);
}

void searches() {
  const std::vector<std::int64_t> sizes = read<std::int64_t>(4);
  const std::int64_t items = sizes[0], dim = sizes[1], queries = sizes[2], k = sizes[3];
  const auto table = read<float>(items * dim), left = read<float>(queries * dim);
  std::vector<double> norms(items);
  const double largest = metarec::item_norms<float>(dim, table, norms);
  const std::int64_t groups = (items + metarec::kCodeGroup - 1) / metarec::kCodeGroup;
  std::vector<std::int8_t> codes(groups * ((dim + 1) / 2) * metarec::kCodeGroup * 2);
  std::vector<float> bounds(groups * 2 * metarec::kCodeGroup), scores(queries * k);
  metarec::encode_items<float>(dim, table, norms, metarec::Similarity::cosine, codes, bounds);
  std::vector<std::int64_t> rows(queries * k);
  metarec::cosine_topk<float>(left, {dim, table, norms, largest, codes, bounds}, k, {}, metarec::Similarity::cosine,
                              scores, rows);
  write(scores);
  write(rows);
}

}  // namespace

int main() {
  posteriors();
  searches();
}
