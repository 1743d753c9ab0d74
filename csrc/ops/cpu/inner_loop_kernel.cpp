#include "metarec/inner_loop.h"

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../inner_loop.h"
#include "../tensor.h"

namespace metarec::ops {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;

template <class Real>
std::span<const Real> values_if(const std::optional<Tensor>& tensor) {
  return tensor ? values<Real>(*tensor) : std::span<const Real>();
}

std::optional<Tensor> contiguous_if(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(contiguous(*tensor)) : std::nullopt;
}

struct SupportTensors {
  Tensor support, targets, weights, offsets;
  bool mean;

  template <class Real>
  Supports<Real> as() const {
    return {values<Real>(support), values<Real>(targets), values<Real>(weights), values<std::int64_t>(offsets), mean};
  }
};

SupportTensors support_of(const Tensor& support, const Tensor& targets, const Tensor& weights, const Tensor& offsets,
                          bool mean) {
  return {contiguous(support), contiguous(targets), contiguous(weights), contiguous(offsets), mean};
}

struct QueryTensors {
  Tensor query, offsets;

  template <class Real>
  Queries<Real> as() const {
    return {values<Real>(query), values<std::int64_t>(offsets)};
  }
};

QueryTensors query_of(const Tensor& query, const Tensor& offsets) { return {contiguous(query), contiguous(offsets)}; }

struct HeadTensors {
  Tensor parameters;
  std::vector<std::int64_t> widths;
  Activation activation;
  Loss loss;

  template <class Real>
  Head<Real> as() const {
    return {widths, values<Real>(parameters), activation, loss};
  }
};

HeadTensors head_of(const Tensor& parameters, const std::vector<std::int64_t>& widths, const std::string& activation,
                    const std::string& loss) {
  return {contiguous(parameters), widths, activation_of(activation), loss_of(loss)};
}

struct RateTensors {
  Tensor rates;
  std::optional<Tensor> output_scales, input_scales, scales;
  double pull;

  template <class Real>
  InnerRates<Real> as() const {
    return {values<Real>(rates), values_if<Real>(output_scales), values_if<Real>(input_scales), values_if<Real>(scales),
            static_cast<Real>(pull)};
  }
};

RateTensors rates_of(const Tensor& rates, const std::optional<Tensor>& output_scales,
                     const std::optional<Tensor>& input_scales, const std::optional<Tensor>& scales, double pull) {
  return {contiguous(rates), contiguous_if(output_scales), contiguous_if(input_scales), contiguous_if(scales), pull};
}

Keep keep_of(std::int64_t keep) {
  return keep == 0 ? Keep::nothing : keep == 1 ? Keep::adapted : Keep::steps;
}

std::tuple<Tensor, Tensor> predict(const Tensor& support, const Tensor& targets, const Tensor& weights,
                                   const Tensor& support_offsets, bool mean, const Tensor& query,
                                   const Tensor& query_offsets, const Tensor& parameters,
                                   std::vector<std::int64_t> widths, std::string activation, std::string loss,
                                   const Tensor& rates, std::optional<Tensor> output_scales,
                                   std::optional<Tensor> input_scales, std::optional<Tensor> scales, double pull,
                                   std::int64_t, std::int64_t keep, std::int64_t room) {
  const SupportTensors supports = support_of(support, targets, weights, support_offsets, mean);
  const QueryTensors queries = query_of(query, query_offsets);
  const HeadTensors head = head_of(parameters, widths, activation, loss);
  const RateTensors inner_rates = rates_of(rates, output_scales, input_scales, scales, pull);
  const Tensor predictions = new_empty(query, {query.size(0), widths.back()}), trace = new_empty(query, {room});
  with_real(query, [&]<class Real>(Real) {
    inner_loop<Real>(head.as<Real>(), inner_rates.as<Real>(), supports.as<Real>(), queries.as<Real>(),
                     mutable_values<Real>(predictions), {keep_of(keep), mutable_values<Real>(trace)}, torch_threads());
  });
  return {predictions, trace};
}

std::vector<Tensor> backward(const Tensor& grad, const Tensor& support, const Tensor& targets, const Tensor& weights,
                             const Tensor& support_offsets, bool mean, const Tensor& query,
                             const Tensor& query_offsets, const Tensor& parameters, std::vector<std::int64_t> widths,
                             std::string activation, std::string loss, const Tensor& rates,
                             std::optional<Tensor> output_scales, std::optional<Tensor> input_scales,
                             std::optional<Tensor> scales, double pull, std::int64_t order, std::int64_t keep,
                             const Tensor& trace, std::vector<bool> wanted) {
  const SupportTensors supports = support_of(support, targets, weights, support_offsets, mean);
  const QueryTensors queries = query_of(query, query_offsets);
  const HeadTensors head = head_of(parameters, widths, activation, loss);
  const RateTensors inner_rates = rates_of(rates, output_scales, input_scales, scales, pull);
  const Tensor grads = contiguous(grad);
  std::vector<Tensor> to;
  for (const std::optional<Tensor>& tensor : {std::optional(support), std::optional(targets), std::optional(weights),
                                              std::optional(query), std::optional(parameters), std::optional(rates),
                                              output_scales, input_scales, scales}) {
    const bool is_wanted = tensor && wanted[to.size()];
    to.push_back(is_wanted ? new_empty(*tensor, tensor->sizes()) : new_empty(query, {0}));
  }
  with_real(query, [&]<class Real>(Real) {
    const auto at = [&](int index) { return mutable_values<Real>(to[index]); };
    inner_loop_backward<Real>(head.as<Real>(), inner_rates.as<Real>(), supports.as<Real>(), queries.as<Real>(),
                              values<Real>(grads), order == 1 ? Order::first : Order::second,
                              {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8)},
                              {keep_of(keep), mutable_values<Real>(trace)}, torch_threads());
  });
  return to;
}

std::tuple<Tensor, Tensor, Tensor> state(const Tensor& support, const Tensor& targets, const Tensor& weights,
                                         const Tensor& support_offsets, bool mean, const Tensor& parameters,
                                         std::vector<std::int64_t> widths, std::string activation, std::string loss,
                                         const Tensor& rates, std::optional<Tensor> output_scales,
                                         std::optional<Tensor> input_scales, std::optional<Tensor> scales,
                                         double pull) {
  const SupportTensors supports = support_of(support, targets, weights, support_offsets, mean);
  const HeadTensors head = head_of(parameters, widths, activation, loss);
  const RateTensors inner_rates = rates_of(rates, output_scales, input_scales, scales, pull);
  const bool gram = !scales || output_scales;
  const std::int64_t kept = gram ? support.size(0) : 0, first = gram ? widths[0] * widths[1] : 0;
  const Tensor rows = new_empty(support, {kept, widths[0]}), coefficients = new_empty(support, {kept, widths[1]});
  const Tensor adapted = new_empty(support, {support_offsets.numel() - 1, parameters.numel() - first});
  with_real(support, [&]<class Real>(Real) {
    inner_loop_state<Real>(
        head.as<Real>(), inner_rates.as<Real>(), supports.as<Real>(),
        {mutable_values<Real>(rows), mutable_values<Real>(coefficients), mutable_values<Real>(adapted)},
        torch_threads());
  });
  return {rows, coefficients, adapted};
}

Tensor predict_by_state(const Tensor& rows, const Tensor& coefficients, const Tensor& adapted,
                        const Tensor& support_offsets, const Tensor& query, const Tensor& query_offsets,
                        const Tensor& parameters, std::vector<std::int64_t> widths, std::string activation) {
  const Tensor kept = contiguous(rows), factors = contiguous(coefficients), blocks = contiguous(adapted),
               offsets = contiguous(support_offsets);
  const QueryTensors queries = query_of(query, query_offsets);
  const HeadTensors head = head_of(parameters, widths, activation, "squared");
  const Tensor predictions = new_empty(query, {query.size(0), widths.back()});
  with_real(query, [&]<class Real>(Real) {
    inner_loop_predict<Real>(head.as<Real>(), {values<Real>(kept), values<Real>(factors), values<Real>(blocks)},
                             values<std::int64_t>(offsets), queries.as<Real>(), mutable_values<Real>(predictions),
                             torch_threads());
  });
  return predictions;
}

Tensor effects(const Tensor& support, const Tensor& targets, const Tensor& weights, const Tensor& support_offsets,
               bool mean, const Tensor& query, const Tensor& query_offsets, const Tensor& parameters,
               std::vector<std::int64_t> widths, std::string activation, std::string loss, const Tensor& rates,
               std::optional<Tensor> output_scales, std::optional<Tensor> input_scales, std::optional<Tensor> scales,
               double pull, std::int64_t pairs) {
  const SupportTensors supports = support_of(support, targets, weights, support_offsets, mean);
  const QueryTensors queries = query_of(query, query_offsets);
  const HeadTensors head = head_of(parameters, widths, activation, loss);
  const RateTensors inner_rates = rates_of(rates, output_scales, input_scales, scales, pull);
  const Tensor result = new_empty(query, {pairs, widths.back()});
  with_real(query, [&]<class Real>(Real) {
    inner_loop_effects<Real>(head.as<Real>(), inner_rates.as<Real>(), supports.as<Real>(), queries.as<Real>(),
                             mutable_values<Real>(result), torch_threads());
  });
  return result;
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CPU, library) {
  library.impl("inner_loop", TORCH_BOX(&metarec::ops::predict));
  library.impl("inner_loop_backward", TORCH_BOX(&metarec::ops::backward));
  library.impl("inner_loop_state", TORCH_BOX(&metarec::ops::state));
  library.impl("inner_loop_predict", TORCH_BOX(&metarec::ops::predict_by_state));
  library.impl("inner_loop_effects", TORCH_BOX(&metarec::ops::effects));
}
