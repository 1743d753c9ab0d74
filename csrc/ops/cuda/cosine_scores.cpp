#include "cosine_scores.h"

#include "torch.h"

namespace metarec::ops {
namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;

template <class Stored>
cuda::CosineTables<Stored> tables_of(const Tensor& left, const Tensor& right) {
  return {left.size(1), left.size(0), right.size(0), data<Stored>(left), data<Stored>(right)};
}

std::tuple<Tensor, Tensor> scores(Tensor left, Tensor right, Tensor left_rows, Tensor right_rows, bool) {
  const CurrentStream stream(left);
  for (Tensor* tensor : {&left, &right, &left_rows, &right_rows}) *tensor = dense(*tensor);
  const std::int64_t pairs = left_rows.numel();
  const Tensor cosines = new_empty(left, {pairs}, arithmetic_type(left));
  const Tensor inverse_norms = new_empty(left, {pairs}, arithmetic_type(left));
  with_stored(left, [&]<class Stored>(Stored) {
    using Real = Arithmetic<Stored>;
    cuda::cosine_scores<cuda::Stream>(stream, tables_of<Stored>(left, right), device_rows(left_rows),
                               device_rows(right_rows), pairs, mutable_data<Real>(cosines),
                               mutable_data<Real>(inverse_norms));
  });
  return {cosines, inverse_norms};
}

// Writes the gradients of the rows of `left` that the pairs name: each to that row of the result or, where these are
// given, to the row of the result that stands at its place in the sorted list.
void gradients(const cuda::Stream& stream, const Tensor& of_scores, const Tensor& cosines,
               const Tensor& inverse_norms, const Tensor& left, const Tensor& right, const Tensor& right_rows,
               const Tensor& sorted, const Tensor& order, const std::int64_t* result_rows, const Tensor& result) {
  with_stored(left, [&]<class Stored>(Stored) {
    using Real = Arithmetic<Stored>;
    const std::int64_t pairs = sorted.numel();
    const Tensor tile_sums =
        new_empty(left, {cuda::cosine_tile_sums(left.size(1), pairs)}, arithmetic_type(left));
    cuda::cosine_scores_gradient<cuda::Stream>(
        stream, cuda::CosineGradientTerms<Stored>{
                    tables_of<Stored>(left, right), device_rows(right_rows), data<Real>(of_scores),
                    data<Real>(cosines), data<Real>(inverse_norms), pairs,
                    data<std::int32_t>(sorted), data<std::int64_t>(order), result_rows,
                    mutable_data<Stored>(result), mutable_data<Real>(tile_sums)});
  });
}

Tensor gradient(Tensor of_scores, Tensor cosines, Tensor inverse_norms, Tensor left, Tensor right, Tensor left_rows,
                Tensor right_rows) {
  const CurrentStream stream(left);
  for (Tensor* tensor : {&of_scores, &cosines, &inverse_norms, &left, &right, &left_rows, &right_rows}) {
    *tensor = dense(*tensor);
  }
  const auto [sorted, order] = sorted_rows(stream, left_rows, left.size(0));
  const Tensor table = new_zeros(left, {left.size(0), left.size(1)});
  gradients(stream, of_scores, cosines, inverse_norms, left, right, right_rows, sorted, order, nullptr, table);
  return table;
}

std::tuple<Tensor, Tensor> row_gradient(Tensor of_scores, Tensor cosines, Tensor inverse_norms, Tensor left,
                                        Tensor right, Tensor left_rows, Tensor right_rows) {
  const CurrentStream stream(left);
  for (Tensor* tensor : {&of_scores, &cosines, &inverse_norms, &left, &right, &left_rows, &right_rows}) {
    *tensor = dense(*tensor);
  }
  const auto [sorted, order] = sorted_rows(stream, left_rows, left.size(0));
  const auto [rows, places] = distinct_rows(sorted);
  const Tensor row_values = new_empty(left, {rows.numel(), left.size(1)});
  gradients(stream, of_scores, cosines, inverse_norms, left, right, right_rows, sorted, order,
            data<std::int64_t>(places), row_values);
  return {rows, row_values};
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CUDA, library) {
  library.impl("cosine_scores", TORCH_BOX(&metarec::ops::scores));
  library.impl("cosine_scores_gradient", TORCH_BOX(&metarec::ops::gradient));
  library.impl("cosine_scores_row_gradient", TORCH_BOX(&metarec::ops::row_gradient));
}
