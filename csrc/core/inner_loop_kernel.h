// The inner loop of one task, and its adjoint, for one instruction set.
//
// Rows of a task's support are X [S, D], its targets y and weights w. Layer l has inputs h_l (h_0 = X), sums
// z_l = h_l W_l^T + b_l and outputs h_{l+1} = f(z_l); below, a bias is a weight of a constant input 1. Step k does
//
//   G_top = w l'(z_top, y),   D_l = G_{l+1} W_{l+1},   G_l = D_l o f'(z_l)                        (o: elementwise)
//   W_l  <- W_l - a_kl s_l o (G_l^T h_l + p (W_l - W_l^0)).
//
// Gram form of the first layer. With scales of rank one, s_0 = u v^T, and no steps of its own for W_0,
//
//   W_0 = W_0^0 - C^T Y,   Y = X diag(v),   z_0 = X W_0^0^T - P C,   P = X Y^T  (a bias adds v_b to each entry)
//   C   <- (1 - a p) C + a G_0 diag(u),
//
// so that X W_0^0^T and P are computed once, and a step is products of S x S and S x H matrices.
//
// Adjoint. A bar marks the derivative of the result. Backwards through step k, where V = s o W-bar of the next weights,
//
//   G-bar_l  = -a h_l V_l^T,   h-bar_l = -a G_l V_l,   W-bar_l <- W-bar_l - a p V_l   (and W-bar_l^0 += a p V_l)
//   a-bar_kl = -<G_l, h_l V_l^T> - p <V_l, W_l - W_l^0>
//   Gram: G-bar_0 = a C-bar diag(u),   a-bar_k0 = <C-bar, G_0 diag(u) - p C>,   C-bar <- (1 - a p) C-bar
//
// then up, through the gradient, for l = 0, 1, ...
//
//   D-bar_l = G-bar_l o f'(z_l),   z-bar_l = G-bar_l o D_l o f''(z_l)
//   G-bar_{l+1} += D-bar_l W_{l+1}^T,   W-bar_{l+1} += G_{l+1}^T D-bar_l,   z-bar_top = w l''(z_top, y) G-bar_top
//
// and down again, through the sums,
//
//   h-bar_l += z-bar_l W_l,   W-bar_l += z-bar_l^T h_l,   z-bar_{l-1} += h-bar_l o f'(z_{l-1})
//   Gram: C-bar -= P z-bar_0,   P-bar -= z-bar_0 C^T,   z-bar of X W_0^0^T += z-bar_0.
//
// First order leaves out all but what reaches the last weights and the rates.
//
// Matrices are padded to whole vectors with zeros, which all of the above keep. A step of a head D-H-H-1 costs S^2 H +
// 3 S H^2 multiply-adds, its adjoint S^2 H + 6 S H^2, and S^2 H more where X has a gradient: compute-bound, as all but
// the inputs stays in the second-level cache. The backward pass runs the steps again, unless the caller kept a trace of
// them; a thread holds the steps of one task, O(min(S^2, D H) + S H K + H^2 K).
#include "inner_loop_adjoint.h"

namespace metarec::METAREC_ISA {
namespace {

template <class Real>
std::int64_t vector_length() {
  return kLanes<Real>;
}

template <class Real>
bool prefers_gram(const Network<Real>& network, std::int64_t rows, std::int64_t queries) {
  const Layer<Real>& layer = network.layers[0];
  if (!network.gram_exact()) return false;
  const std::int64_t products = rows + std::min(queries, layer.out);
  return products * layer.in + network.steps * rows * layer.out < (2 * network.steps - 1) * layer.in * layer.out;
}

// The adapted heads of a trace are in Gram form wherever there is one, so that their size is known.
template <class Real>
bool takes_gram(const Network<Real>& network, Keep keep, std::int64_t rows, std::int64_t queries) {
  return keep == Keep::adapted ? network.gram_exact() : prefers_gram(network, rows, queries);
}

// From this many queries on it pays to compute the first layer's weight from its Gram form.
template <class Real>
bool prefers_unfolded(const Network<Real>& network, std::int64_t queries) {
  const Layer<Real>& layer = network.layers[0];
  return queries * (layer.in + layer.out) > layer.in * layer.out;
}

// Fetches the inputs of a task while the one before it is busy.
template <class Real>
void fetch_inputs(const Supports<Real>& supports, const Queries<Real>& queries, std::int64_t width, std::int64_t task) {
  const auto fetch = [width, task](std::span<const Real> inputs, std::span<const std::int64_t> offsets) {
    const std::size_t row = static_cast<std::size_t>(width) * sizeof(Real);
    prefetch(inputs.data(), offsets[task] * row, (offsets[task + 1] - offsets[task]) * row);
  };
  fetch(supports.inputs, supports.offsets);
  fetch(queries.inputs, queries.offsets);
}

template <class Real>
void predict_tasks(const Network<Real>& network, const Supports<Real>& supports, const Queries<Real>& queries,
                   Real* predictions, const TraceLayout<Real>& trace, std::int64_t begin, std::int64_t end) {
  TaskLoop<Real> loop(network, false, trace.keep == Keep::steps);
  const std::int64_t width = network.layers[0].in;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first = supports.offsets[task], rows = supports.offsets[task + 1] - first;
    const std::int64_t query = queries.offsets[task], query_rows = queries.offsets[task + 1] - query;
    loop.begin(supports.inputs.data() + first * width, rows, takes_gram(network, trace.keep, rows, query_rows),
               trace.of(task, first, query));
    loop.prepare(true);
    if (task + 1 < end) fetch_inputs(supports, queries, width, task + 1);
    loop.rate(supports.targets.data() + first, supports.weights.data() + first, supports.mean);
    loop.adapt();
    if (prefers_unfolded(network, query_rows)) loop.unfold();
    loop.predict(queries.inputs.data() + query * width, query_rows, predictions + query * network.outputs());
  }
}

template <class Real>
void reverse_tasks(const Network<Real>& network, const Supports<Real>& supports, const Queries<Real>& queries,
                   const Real* grad, Order order, const TraceLayout<Real>& trace, const InnerLoopGradients<Real>& to,
                   const SharedSums<Real>& sums, std::int64_t begin, std::int64_t end) {
  const bool steps = order == Order::second || sums.rates != nullptr || sums.scales != nullptr;
  TaskAdjoint<Real> loop(network, steps, steps);
  const std::int64_t width = network.layers[0].in;
  const auto from = [](std::span<Real> values, std::int64_t index) {
    return values.empty() ? nullptr : values.data() + index;
  };
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first = supports.offsets[task], rows = supports.offsets[task + 1] - first;
    const std::int64_t query = queries.offsets[task], query_rows = queries.offsets[task + 1] - query;
    loop.begin(supports.inputs.data() + first * width, rows, takes_gram(network, trace.keep, rows, query_rows),
               trace.of(task, first, query));
    loop.rate(supports.targets.data() + first, supports.weights.data() + first, supports.mean);
    if (trace.keep == Keep::adapted) {
      loop.recall();
    } else {
      loop.prepare(trace.keep == Keep::nothing);
      loop.adapt(trace.keep == Keep::steps);
    }
    if (task + 1 < end) fetch_inputs(supports, queries, width, task + 1);
    loop.reverse(queries.inputs.data() + query * width, query_rows, grad + query * network.outputs(), order,
                 supports.mean,
                 {from(to.support, first * width), from(to.targets, first), from(to.weights, first),
                  from(to.query, query * width)},
                 sums);
  }
}

template <class Real>
void state_of_tasks(const Network<Real>& network, const Supports<Real>& supports, const InnerLoopState<Real>& state,
                    std::int64_t begin, std::int64_t end) {
  TaskLoop<Real> loop(network, false, false);
  const bool gram = network.gram_exact();
  const std::int64_t width = network.layers[0].in, outputs = network.layers[0].out;
  const std::int64_t size = network.parameters() - (gram ? width * outputs : 0);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first = supports.offsets[task];
    loop.begin(supports.inputs.data() + first * width, supports.offsets[task + 1] - first, gram);
    loop.prepare(true);
    loop.rate(supports.targets.data() + first, supports.weights.data() + first, supports.mean);
    loop.adapt();
    loop.write_state(gram ? state.rows.data() + first * width : nullptr,
                     gram ? state.coefficients.data() + first * outputs : nullptr,
                     state.parameters.data() + task * size);
  }
}

template <class Real>
void predict_by_state(const Network<Real>& network, const InnerLoopState<const Real>& state,
                      std::span<const std::int64_t> offsets, const Queries<Real>& queries, Real* predictions,
                      std::int64_t begin, std::int64_t end) {
  TaskLoop<Real> loop(network, false, false);
  const std::int64_t width = network.layers[0].in, outputs = network.layers[0].out;
  const std::int64_t all = network.parameters();
  const bool gram = std::ssize(state.parameters) != (std::ssize(offsets) - 1) * all;
  const std::int64_t size = all - (gram ? width * outputs : 0);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first = gram ? offsets[task] : 0, rows = gram ? offsets[task + 1] - first : 0;
    const std::int64_t query = queries.offsets[task], query_rows = queries.offsets[task + 1] - query;
    if (query_rows == 0) continue;
    loop.read_state(state.rows.data() + first * width, state.coefficients.data() + first * outputs,
                    state.parameters.data() + task * size, rows, gram);
    if (prefers_unfolded(network, query_rows)) loop.unfold();
    loop.predict(queries.inputs.data() + query * width, query_rows, predictions + query * network.outputs());
  }
}

template <class Real>
void effects_on_task(TaskLoop<Real>& loop, const Real* targets, const Real* weights, std::int64_t rows, bool mean,
                     const Real* queries, std::int64_t query_rows, std::int64_t predicted, Real* effects) {
  std::vector<Real> whole(static_cast<std::size_t>(predicted)), others(weights, weights + rows);
  loop.rate(targets, weights, mean);
  loop.adapt();
  loop.predict(queries, query_rows, whole.data());
  for (std::int64_t j = 0; j < rows; ++j, effects += predicted) {
    others[j] = 0;
    loop.rate(targets, others.data(), mean);
    loop.adapt();
    others[j] = weights[j];
    loop.predict(queries, query_rows, effects);
    for (std::int64_t i = 0; i < predicted; ++i) effects[i] = whole[i] - effects[i];
  }
}

template <class Real>
void effects_on_tasks(const Network<Real>& network, const Supports<Real>& supports, const Queries<Real>& queries,
                      Real* effects, const std::int64_t* effect_offsets, std::int64_t begin, std::int64_t end) {
  TaskLoop<Real> loop(network, false, false);
  const std::int64_t width = network.layers[0].in;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first = supports.offsets[task], rows = supports.offsets[task + 1] - first;
    const std::int64_t query = queries.offsets[task], query_rows = queries.offsets[task + 1] - query;
    if (rows == 0 || query_rows == 0) continue;
    loop.begin(supports.inputs.data() + first * width, rows, prefers_gram(network, rows, query_rows));
    loop.prepare(true);
    effects_on_task(loop, supports.targets.data() + first, supports.weights.data() + first, rows, supports.mean,
                    queries.inputs.data() + query * width, query_rows, query_rows * network.outputs(),
                    effects + effect_offsets[task]);
  }
}

}  // namespace
}  // namespace metarec::METAREC_ISA
