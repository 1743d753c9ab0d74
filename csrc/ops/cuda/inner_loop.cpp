#include "inner_loop.h"

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../inner_loop.h"
#include "torch.h"

namespace metarec::ops {
namespace {

using torch::stable::matmul;
using torch::stable::narrow;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::transpose;

using MaybeTensor = std::optional<Tensor>;

// Null where there is nothing.
template <class Real>
Real* data_if(const MaybeTensor& tensor) {
  return tensor && tensor->numel() > 0 ? mutable_data<Real>(*tensor) : nullptr;
}

MaybeTensor dense_if(const MaybeTensor& tensor) { return tensor ? MaybeTensor(dense(*tensor)) : std::nullopt; }

// The tasks, those of the largest supports first.
Tensor by_size(Tensor offsets) {
  const std::int64_t tasks = offsets.numel() - 1;
  const Tensor sizes = torch::stable::subtract(narrow(offsets, 0, 1, tasks), narrow(offsets, 0, 0, tasks));
  std::array<StableIValue, 4> stack{torch::stable::detail::from(sizes),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(std::int64_t{0}), torch::stable::detail::from(true)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // the sorted sizes, which are ours to free
  return torch::stable::detail::to<Tensor>(stack[1]);
}

// The arguments of a call, made contiguous, and the products of all rows with the first weight.
struct Call {
  Tensor support, targets, weights, offsets, query, query_offsets, parameters, rates;
  MaybeTensor output_scales, input_scales, scales;
  std::vector<std::int64_t> widths;
  Activation activation;
  Loss loss;
  double pull;
  bool mean;
  cuda::Machine machine = cuda::current_machine();
  Tensor first_weight, support_sums, query_sums;
  MaybeTensor order;

  Call(const Tensor& support, const Tensor& targets, const Tensor& weights, const Tensor& offsets, bool mean,
       const Tensor& query, const Tensor& query_offsets, const Tensor& parameters,
       const std::vector<std::int64_t>& widths, const std::string& activation, const std::string& loss,
       const Tensor& rates, const MaybeTensor& output_scales, const MaybeTensor& input_scales,
       const MaybeTensor& scales, double pull)
      : support(dense(support)), targets(dense(targets)), weights(dense(weights)), offsets(dense(offsets)),
        query(dense(query)), query_offsets(dense(query_offsets)), parameters(dense(parameters)), rates(dense(rates)),
        output_scales(dense_if(output_scales)), input_scales(dense_if(input_scales)), scales(dense_if(scales)),
        widths(widths), activation(activation_of(activation)), loss(loss_of(loss)), pull(pull), mean(mean) {
    for (const std::int64_t width : widths) {
      STD_TORCH_CHECK(width <= std::int64_t{1} << 30, "a layer on CUDA has at most 1073741824 units, got ", width);
    }
    first_weight = torch::stable::view(narrow(this->parameters, 0, 0, widths[0] * widths[1]), {widths[1], widths[0]});
    support_sums = sums_of(this->support);
    query_sums = sums_of(this->query);
    // With no more tasks than multiprocessors, each has one of its own.
    if (tasks() > machine.multiprocessors) order = by_size(this->offsets);
  }

  std::int64_t tasks() const { return offsets.numel() - 1; }

  Tensor sums_of(const Tensor& rows) const { return matmul(rows, transpose(first_weight, 0, 1)); }

  template <class Real>
  cuda::InnerProblem<Real> problem() const {
    cuda::InnerProblem<Real> problem = {};
    cuda::Network<Real>& network = problem.network;
    network.layers = static_cast<int>(widths.size()) - 1;
    network.activation = activation;
    network.loss = loss;
    std::copy(widths.begin(), widths.end(), network.widths);
    network.steps = rates.size(0);
    network.parameters = data<Real>(parameters);
    network.rates = data<Real>(rates);
    network.output_scales = data_if<Real>(output_scales);
    network.input_scales = data_if<Real>(input_scales);
    network.scales = data_if<Real>(scales);
    network.pull = static_cast<Real>(pull);
    network.lay_out();
    problem.support = rows<Real>(support, support_sums, offsets);
    problem.query = rows<Real>(query, query_sums, query_offsets);
    problem.targets = data<Real>(targets);
    problem.weights = data<Real>(weights);
    problem.mean = mean;
    problem.tasks = tasks();
    problem.order = data_if<std::int64_t>(order);
    return problem;
  }

  template <class Real>
  static cuda::RaggedRows<Real> rows(const Tensor& inputs, const Tensor& sums, const Tensor& offsets) {
    return {data<Real>(inputs), data<Real>(sums), data<std::int64_t>(offsets), inputs.size(0)};
  }

  Tensor workspace(const cuda::Cuts& cuts) const { return new_empty(parameters, {cuts.workspace()}); }
};

Tensor predicted(const cuda::Stream& stream, const Call& call) {
  const Tensor predictions = new_empty(call.query, {call.query.size(0), call.widths.back()});
  with_real(call.query, [&]<class Real>(Real) {
    const cuda::InnerProblem<Real> problem = call.problem<Real>();
    const cuda::Cuts cuts = cuda::inner_loop_cuts<Real>(problem, call.tasks(), nullptr, call.machine);
    cuda::inner_loop<cuda::Stream>(stream, problem, cuts, mutable_data<Real>(call.workspace(cuts)),
                                   mutable_data<Real>(predictions));
  });
  return predictions;
}

std::tuple<Tensor, Tensor> predict(const Tensor& support, const Tensor& targets, const Tensor& weights,
                                   const Tensor& support_offsets, bool mean, const Tensor& query,
                                   const Tensor& query_offsets, const Tensor& parameters,
                                   std::vector<std::int64_t> widths, std::string activation, std::string loss,
                                   const Tensor& rates, MaybeTensor output_scales, MaybeTensor input_scales,
                                   MaybeTensor scales, double pull, std::int64_t, std::int64_t, std::int64_t room) {
  const CurrentStream stream(query);
  const Call call(support, targets, weights, support_offsets, mean, query, query_offsets, parameters, widths,
                  activation, loss, rates, output_scales, input_scales, scales, pull);
  return {predicted(stream, call), new_empty(query, {room})};
}

// The gradients of what all tasks share.
template <class Real>
void write_shared(const cuda::Stream& stream, const Call& call, const cuda::InnerAdjoint<Real>& adjoint,
                  const cuda::Cuts& cuts, const cuda::Network<Real>& network, const Tensor& gram_sums,
                  const Tensor& own_sums, const MaybeTensor& of_support, const Tensor& of_query,
                  const std::vector<Tensor>& to) {
  const Tensor total = new_empty(call.parameters, {adjoint.layout.size});
  const auto at = [&](int index) { return data_if<Real>(to[index]); };
  cuda::inner_loop_share<cuda::Stream>(
      stream, network, adjoint.layout, {data<Real>(gram_sums), data<Real>(own_sums), cuts.gram.blocks, cuts.own.blocks},
      mutable_data<Real>(total), {at(4), at(5), at(6), at(7), at(8), data_if<Real>(of_support), data<Real>(of_query)});
}

template <class Real>
void reverse(const cuda::Stream& stream, const Call& call, const Tensor& grad, Order order,
             const std::vector<Tensor>& to) {
  const auto at = [&](int index) { return data_if<Real>(to[index]); };
  const cuda::InnerProblem<Real> problem = call.problem<Real>();
  const Tensor support_bar = new_empty(call.support, {call.support.size(0), call.widths[1]});
  const Tensor query_bar = new_empty(call.query, {call.query.size(0), call.widths[1]});
  const cuda::InnerAdjoint<Real> adjoint = {
      data<Real>(grad),
      order,
      at(0),
      at(1),
      at(2),
      at(3),
      mutable_data<Real>(support_bar),
      mutable_data<Real>(query_bar),
      nullptr,
      cuda::SumsLayout::of(problem.network, at(5) != nullptr, at(6) != nullptr || at(7) != nullptr, at(8) != nullptr)};
  const cuda::Cuts cuts = cuda::inner_loop_cuts<Real>(problem, call.tasks(), &adjoint, call.machine);
  const Tensor gram_sums = new_zeros(call.query, {cuts.gram.blocks * adjoint.layout.size});
  const Tensor own_sums = new_zeros(call.query, {cuts.own.blocks * adjoint.layout.size});
  cuda::inner_loop_backward<cuda::Stream>(stream, problem, cuts, mutable_data<Real>(call.workspace(cuts)), adjoint,
                                          mutable_data<Real>(gram_sums), mutable_data<Real>(own_sums));
  const auto add = [&](const Tensor& sum, const Tensor& term) {
    if (sum.numel() > 0)
      cuda::inner_loop_add<cuda::Stream>(stream, mutable_data<Real>(sum), data<Real>(term), sum.numel());
  };
  const bool second = order == Order::second;
  if (second && at(0) != nullptr) add(to[0], matmul(support_bar, call.first_weight));
  if (at(3) != nullptr) add(to[3], matmul(query_bar, call.first_weight));
  const MaybeTensor of_support =
      second ? MaybeTensor(matmul(transpose(support_bar, 0, 1), call.support)) : std::nullopt;
  const Tensor of_query = matmul(transpose(query_bar, 0, 1), call.query);
  write_shared(stream, call, adjoint, cuts, problem.network, gram_sums, own_sums, of_support, of_query, to);
}

std::vector<Tensor> backward(const Tensor& grad, const Tensor& support, const Tensor& targets, const Tensor& weights,
                             const Tensor& support_offsets, bool mean, const Tensor& query, const Tensor& query_offsets,
                             const Tensor& parameters, std::vector<std::int64_t> widths, std::string activation,
                             std::string loss, const Tensor& rates, MaybeTensor output_scales, MaybeTensor input_scales,
                             MaybeTensor scales, double pull, std::int64_t order, std::int64_t, const Tensor&,
                             std::vector<bool> wanted) {
  const CurrentStream stream(query);
  const Call call(support, targets, weights, support_offsets, mean, query, query_offsets, parameters, widths,
                  activation, loss, rates, output_scales, input_scales, scales, pull);
  std::vector<Tensor> to;
  for (const MaybeTensor& tensor :
       {MaybeTensor(support), MaybeTensor(targets), MaybeTensor(weights), MaybeTensor(query), MaybeTensor(parameters),
        MaybeTensor(rates), output_scales, input_scales, scales}) {
    const bool is_wanted = tensor && wanted[to.size()];
    to.push_back(is_wanted ? new_empty(*tensor, tensor->sizes()) : new_empty(query, {0}));
  }
  const Tensor grads = dense(grad);
  with_real(query, [&]<class Real>(Real) {
    reverse<Real>(stream, call, grads, order == 1 ? Order::first : Order::second, to);
  });
  return to;
}

std::tuple<Tensor, Tensor, Tensor> state(const Tensor& support, const Tensor& targets, const Tensor& weights,
                                         const Tensor& support_offsets, bool mean, const Tensor& parameters,
                                         std::vector<std::int64_t> widths, std::string activation, std::string loss,
                                         const Tensor& rates, MaybeTensor output_scales, MaybeTensor input_scales,
                                         MaybeTensor scales, double pull) {
  const CurrentStream stream(support);
  const Tensor none = new_empty(support, {0, support.size(1)});
  const Call call(support, targets, weights, support_offsets, mean, none,
                  new_zeros(support_offsets, {support_offsets.numel()}), parameters, widths, activation, loss, rates,
                  output_scales, input_scales, scales, pull);
  const bool compact = !scales || output_scales;
  const std::int64_t kept = compact ? support.size(0) : 0, first = compact ? call.first_weight.numel() : 0;
  const Tensor rows = new_empty(support, {kept, call.widths[0]});
  const Tensor coefficients = new_empty(support, {kept, call.widths[1]});
  const Tensor adapted = new_empty(support, {call.tasks(), parameters.numel() - first});
  with_real(support, [&]<class Real>(Real) {
    const cuda::InnerProblem<Real> problem = call.problem<Real>();
    const cuda::Cuts cuts = cuda::inner_loop_cuts<Real>(problem, call.tasks(), nullptr, call.machine);
    cuda::inner_loop_state<cuda::Stream>(
        stream, problem, cuts, mutable_data<Real>(call.workspace(cuts)),
        {compact, mutable_data<Real>(rows), mutable_data<Real>(coefficients), mutable_data<Real>(adapted)});
  });
  return {rows, coefficients, adapted};
}

Tensor predict_by_state(const Tensor& rows, const Tensor& coefficients, const Tensor& adapted,
                        const Tensor& support_offsets, const Tensor& query, const Tensor& query_offsets,
                        const Tensor& parameters, std::vector<std::int64_t> widths, std::string activation) {
  const CurrentStream stream(query);
  const Tensor kept = dense(rows), factors = dense(coefficients), blocks = dense(adapted);
  const Tensor none = new_empty(parameters, {0}), no_rates = new_empty(parameters, {1, 0});
  const Call call(new_empty(rows, {0, rows.size(1)}), none, none, support_offsets, false, query, query_offsets,
                  parameters, widths, activation, "squared", no_rates, std::nullopt, std::nullopt, std::nullopt, 0);
  const bool compact = adapted.size(1) != parameters.numel();
  const Tensor predictions = new_empty(query, {query.size(0), call.widths.back()});
  with_real(query, [&]<class Real>(Real) {
    cuda::InnerProblem<Real> problem = call.problem<Real>();
    problem.support.count = kept.size(0);
    const cuda::Cut cut = cuda::inner_loop_state_cut(problem, compact, call.machine);
    const Tensor workspace = new_empty(query, {cut.workspace()});
    cuda::inner_loop_predict<cuda::Stream>(
        stream, problem, cut, mutable_data<Real>(workspace),
        {compact, mutable_data<Real>(kept), mutable_data<Real>(factors), mutable_data<Real>(blocks)},
        mutable_data<Real>(predictions));
  });
  return predictions;
}

Tensor effects(const Tensor& support, const Tensor& targets, const Tensor& weights, const Tensor& support_offsets,
               bool mean, const Tensor& query, const Tensor& query_offsets, const Tensor& parameters,
               std::vector<std::int64_t> widths, std::string activation, std::string loss, const Tensor& rates,
               MaybeTensor output_scales, MaybeTensor input_scales, MaybeTensor scales, double pull,
               std::int64_t pairs) {
  const CurrentStream stream(query);
  const Call call(support, targets, weights, support_offsets, mean, query, query_offsets, parameters, widths,
                  activation, loss, rates, output_scales, input_scales, scales, pull);
  const Tensor whole = predicted(stream, call), result = new_empty(query, {pairs, call.widths.back()});
  with_real(query, [&]<class Real>(Real) {
    const cuda::InnerProblem<Real> problem = call.problem<Real>();
    const cuda::Cuts cuts = cuda::inner_loop_cuts<Real>(problem, support.size(0), nullptr, call.machine);
    cuda::inner_loop_effects<cuda::Stream>(stream, problem, cuts, mutable_data<Real>(call.workspace(cuts)),
                                           data<Real>(whole), mutable_data<Real>(result));
  });
  return result;
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CUDA, library) {
  library.impl("inner_loop", TORCH_BOX(&metarec::ops::predict));
  library.impl("inner_loop_backward", TORCH_BOX(&metarec::ops::backward));
  library.impl("inner_loop_state", TORCH_BOX(&metarec::ops::state));
  library.impl("inner_loop_predict", TORCH_BOX(&metarec::ops::predict_by_state));
  library.impl("inner_loop_effects", TORCH_BOX(&metarec::ops::effects));
}
