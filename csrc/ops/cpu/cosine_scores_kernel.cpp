#include "metarec/cosine_scores.h"

#include <tuple>

#include "../tensor.h"

namespace metarec::ops {
namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;

template <class Stored>
CosinePairs<Stored> pairs_of(const Tensor& left, const Tensor& right, const Tensor& left_rows,
                             const Tensor& right_rows) {
  return {left.size(1),          left.size(0), right.size(0),
          values<Stored>(left),  values<Stored>(right), rows_of(left_rows), rows_of(right_rows)};
}

std::tuple<Tensor, Tensor> scores(Tensor left, Tensor right, Tensor left_rows, Tensor right_rows, bool) {
  for (Tensor* tensor : {&left, &right, &left_rows, &right_rows}) *tensor = dense(*tensor);
  const std::tuple results{new_empty(left, {left_rows.numel()}, arithmetic_type(left)),
                           new_empty(left, {left_rows.numel()}, arithmetic_type(left))};
  with_stored(left, [&]<class Stored>(Stored) {
    using Real = Arithmetic<Stored>;
    const auto& [cosines, inverse_norms] = results;
    cosine_scores<Stored>(pairs_of<Stored>(left, right, left_rows, right_rows), mutable_values<Real>(cosines),
                          mutable_values<Real>(inverse_norms), torch_threads());
  });
  return results;
}

Tensor gradient(Tensor of_scores, Tensor cosines, Tensor inverse_norms, Tensor left, Tensor right, Tensor left_rows,
                Tensor right_rows) {
  for (Tensor* tensor : {&of_scores, &cosines, &inverse_norms, &left, &right, &left_rows, &right_rows}) {
    *tensor = dense(*tensor);
  }
  const Tensor table = new_zeros(left, {left.size(0), left.size(1)});
  with_stored(left, [&]<class Stored>(Stored) {
    using Real = Arithmetic<Stored>;
    cosine_scores_gradient<Stored>(pairs_of<Stored>(left, right, left_rows, right_rows),
                                   {values<Real>(of_scores), values<Real>(cosines), values<Real>(inverse_norms)},
                                   mutable_values<Stored>(table), torch_threads());
  });
  return table;
}

std::tuple<Tensor, Tensor> row_gradient(Tensor of_scores, Tensor cosines, Tensor inverse_norms, Tensor left,
                                        Tensor right, Tensor left_rows, Tensor right_rows) {
  for (Tensor* tensor : {&of_scores, &cosines, &inverse_norms, &left, &right, &left_rows, &right_rows}) {
    *tensor = dense(*tensor);
  }
  Tensor rows, row_values;
  with_stored(left, [&]<class Stored>(Stored) {
    using Real = Arithmetic<Stored>;
    const auto allocate = [&](std::int64_t count) -> RowValues<Stored> {
      rows = new_empty(left, {count}, ScalarType::Long);
      row_values = new_empty(left, {count, left.size(1)});
      return {mutable_values<std::int64_t>(rows), mutable_values<Stored>(row_values)};
    };
    cosine_scores_row_gradient<Stored>(pairs_of<Stored>(left, right, left_rows, right_rows),
                                       {values<Real>(of_scores), values<Real>(cosines), values<Real>(inverse_norms)},
                                       allocate, torch_threads());
  });
  return {rows, row_values};
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CPU, library) {
  library.impl("cosine_scores", TORCH_BOX(&metarec::ops::scores));
  library.impl("cosine_scores_gradient", TORCH_BOX(&metarec::ops::gradient));
  library.impl("cosine_scores_row_gradient", TORCH_BOX(&metarec::ops::row_gradient));
}
